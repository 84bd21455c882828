"""A store that is written in blocks of rows: the file that the whole arrays give, in a memory that does not grow."""
import subprocess
import sys

import h5py
import numpy as np
import pytest

from nexuslab.config import overlay
from nexuslab.core import DataError
from nexuslab.store import Ragged, Store, write_store
from nexuslab.task import get_task

RNG = np.random.default_rng(0)
ROWS = 90_000  # 11 chunks of the widest array, and a rest
OFFSETS = np.sort(RNG.integers(0, ROWS, 7_000))
ARRAYS = {
    "wide": RNG.random((ROWS, 4)), "flag": RNG.random(ROWS) > 0.5, "half": RNG.random(ROWS).astype(np.float16),
    "few": np.arange(3), "none": np.zeros((0, 2)), "nothing": np.zeros((ROWS, 0), np.int8),
    "kind": np.full(ROWS, b"ring", "S4"), "hit": RNG.integers(0, 255, (ROWS, 3), dtype=np.uint8),
    "hit_offset": np.concatenate([[0], OFFSETS, [ROWS]]),
}


def cut(size):
    """Blocks of so many rows, whose last ones have rows of some arrays only; the ragged one goes by items."""
    offsets = ARRAYS["hit_offset"]
    for low in range(0, ROWS, size):
        block = {name: rows[low : low + size] for name, rows in ARRAYS.items() if not name.startswith("hit")}
        ends = offsets[low : low + size + 1] if low < len(offsets) - 1 else offsets[-1:]
        yield block | {"hit": Ragged(ARRAYS["hit"][ends[0] : ends[-1]], ends - ends[0])}


@pytest.mark.parametrize("size", [997, 8192, 50_000])
def test_blocks_of_any_size_give_the_file_of_the_whole(size, tmp_path):
    whole, blocks = tmp_path / "whole.h5", tmp_path / "blocks.h5"
    write_store(whole, {"generator": "test", "seed": 3}, ARRAYS)
    write_store(blocks, {"generator": "test", "seed": 3}, cut(size))
    one, other = Store(whole).verify(), Store(blocks).verify()
    assert one.manifest == other.manifest and one.manifest["counts"]["hit"] == [ROWS, 3]
    for name, rows in other.arrays().items():
        assert rows.dtype == ARRAYS[name].dtype and np.array_equal(rows, ARRAYS[name])
        assert one.file[name].chunks == other.file[name].chunks
    assert abs(whole.stat().st_size - blocks.stat().st_size) < 64_000, "what was reserved and not used is cut off"


def test_a_buffer_that_is_used_again_is_copied(tmp_path):
    def blocks():
        buffer = np.zeros(5)
        for i in range(3):
            buffer[:] = i
            yield {"x": buffer}

    write_store(tmp_path / "a.h5", {}, blocks())
    assert Store(tmp_path / "a.h5")["x"].tolist() == np.repeat(np.arange(3.0), 5).tolist()


def test_a_builder_that_fails_says_so_itself_and_leaves_nothing(tmp_path):
    def blocks():
        yield {"x": np.zeros(5)}
        raise RuntimeError("the simulator broke")

    with pytest.raises(RuntimeError, match="simulator broke"):
        write_store(tmp_path / "a.h5", {}, blocks())
    assert not list(tmp_path.iterdir())


def test_what_does_not_read_back_is_not_kept(tmp_path, monkeypatch):
    """A late write that is lost, as HDF5 may do without a word: here a row changes behind the writer's back."""
    real = h5py.File.close

    def lose(file):
        if file.mode == "r+" and "x" in file:
            file["x"][7] = -1
        real(file)

    monkeypatch.setattr(h5py.File, "close", lose)
    with pytest.raises(DataError, match="does not read back"):
        write_store(tmp_path / "a.h5", {}, {"x": np.arange(99)})
    assert not list(tmp_path.iterdir())


PEAK = """
import sys
from pathlib import Path
import numpy as np
from nexuslab.store import write_store
write_store(Path(sys.argv[1]), {}, ({"x": np.full((20_000, 8), i)} for i in range(int(sys.argv[2]))))
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the largest memory of a process")
def test_memory_does_not_grow_with_the_rows(tmp_path):
    """25 and 150 MiB of rows; HDF5's own memory is counted, too."""
    def peak(count):
        done = [sys.executable, "-c", PEAK, str(tmp_path / f"{count}.h5"), str(count)]
        return float(subprocess.run(done, capture_output=True, text=True, check=True).stdout) / 1024

    few, many = peak(20), peak(120)
    print(f"{few:.0f} and {many:.0f} MiB")
    assert many < few + 10 and (tmp_path / "120.h5").stat().st_size > 150e6


@pytest.mark.parametrize("system", ["circuits", "collatz", "lattice"])
def test_a_dataset_that_is_named_by_its_path_is_found_from_the_root_or_refused(system, tmp_path, monkeypatch):
    """Never from the working directory; a file of another system is refused before its arrays are missed."""
    task = get_task(system)
    cfg = overlay(task.presets["smoke"](), {"data.path": "given.h5"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="no such file"):
        task.prepare(cfg, tmp_path)
    write_store(tmp_path / "given.h5", {"generator": "another"}, {"x": np.zeros(3)})
    with pytest.raises(DataError, match=f"(?s)made by 'another'.*one made by '{system}'"):
        task.prepare(cfg, tmp_path)
