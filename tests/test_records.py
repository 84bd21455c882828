"""Long records and many runs: what is read once is not read again, and nothing damaged or replaced is taken for it."""
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from nexuslab import dashboard
from nexuslab.config import Config
from nexuslab.dashboard import Follower, TableRows, marks_of
from nexuslab.run import LONGEST, Record, Run, checked, latest, read_chunks, read_lines, row_of, runs_table


def row(step: int, **more) -> dict:
    return {"step": step, "epoch": step / 10, "time": 1e9 + step, "attempt": 0} | more


def written(*rows: dict) -> bytes:
    return b"".join(checked(json.dumps(r).encode()) + b"\n" for r in rows)


def losses(start: int, stop: int) -> bytes:
    return written(*(row(step, **{"train/loss": 1 / step}) for step in range(start, stop)))


@pytest.fixture
def run(tmp_path):
    """A run directory with nothing in it but what a test writes."""
    (tmp_path / "metrics.jsonl").write_bytes(losses(1, 2001))
    return Run(tmp_path)


def steps_of(follower: Follower) -> list[float]:
    return follower.curves["train/loss"].on("step").tolist()


def test_a_poll_reads_what_is_new(run, monkeypatch):
    """The first poll reads the record by parts, a later one the bytes that were added, and none where none were."""
    follower, read = Follower(run), []

    def counted(path, offset=0):
        for rows, end, damaged in read_chunks(path, offset):
            read.append(end - offset)
            offset = end
            yield rows, end, damaged

    monkeypatch.setattr(dashboard, "read_chunks", counted)
    path = run.path / "metrics.jsonl"
    path.write_bytes(losses(1, 5001))
    assert follower.poll() and len(read) > 1 and sum(read) == path.stat().st_size
    read.clear()
    assert not follower.poll() and not read
    with open(path, "ab") as file:
        file.write(losses(5001, 5002) + b'{"step": 5002, "ep')
    assert follower.poll() and read == [len(losses(5001, 5002))]
    assert not follower.poll() and len(steps_of(follower)) == 5001
    slow = Follower(run)
    ticks = [slow.poll(seconds=0) for _ in range(20)]
    assert 2 < ticks.count(True) < 20 and steps_of(slow) == steps_of(follower)


@pytest.mark.parametrize("how", ["truncated", "rewritten", "rotated", "replaced", "longer"])
def test_another_file_is_read_anew(run, how):
    """Whatever stands in the record's place counts from its beginning; curves are drawn anew."""
    follower, path = Follower(run), run.path / "metrics.jsonl"
    other = losses(7, 2600 if how == "longer" else 2007 if how == "replaced" else 50)
    with open(path, "ab") as file:
        file.write(b"no row\n")
    assert follower.poll() and follower.damaged == 1 and len(steps_of(follower)) == 2000
    version, size = follower.curves["train/loss"].version, path.stat().st_size
    if how == "truncated":
        os.truncate(path, len(losses(1, 100)))
        other = losses(1, 100)
    elif how == "rewritten":
        path.write_bytes(other)
    else:
        path.rename(path.with_suffix(".old"))
        if how == "replaced":  # by a file of the same size
            other = other[: -(len(other) - size) - 1] + b"\n" if len(other) > size else other.ljust(size - 1) + b"\n"
            assert len(other) == size
        path.write_bytes(other)
    assert follower.poll() and follower.curves["train/loss"].version > version
    rows, _, damaged = read_lines(path)
    assert steps_of(follower) == [r["step"] for r in rows] and follower.damaged == damaged


def test_damage_is_counted_after_what_was_read(run):
    """In the first poll and in later ones; rows beside it are taken, and the count stays."""
    path = run.path / "metrics.jsonl"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    follower = Follower(run)
    assert follower.poll() and follower.damaged == 1 and len(steps_of(follower)) == 1999
    with open(path, "ab") as file:
        file.write(losses(2001, 2003).replace(b"5", b"6") + losses(2003, 2004) + b'{"step": 1, "x": [\n')
    assert follower.poll() and not follower.poll()
    _, _, damaged = read_lines(path)
    assert follower.damaged == damaged > 2 and steps_of(follower)[-1] == 2003
    with pytest.warns(UserWarning, match=f"{damaged} damaged"):
        assert len(run.history()) == len(steps_of(follower))


def test_parts_are_the_lines(tmp_path):
    """Parsed together or one by one, lines give the same rows: long ones, odd ones, and those that fit together."""
    odd = [row(1, **{"val/x": float("nan")}), row(2, note="\u2028\n\ud800"), row(3, **{"a/b": 10**400}), {"step": True}]
    odd += [{"epoch": 1}, row(4, deep=json.loads("[" * 50 + "]" * 50)), row(5, **{"train/loss": "x"})]
    lines = written(*odd).splitlines() + [
        b'{"step":1,"x":[{"step":2, "check": "00000000"}', b'{"a":1}],"b":2}', b"[" * 9000
    ]
    (tmp_path / "one").write_bytes(losses(1, 3000) + b"\n".join(lines) + b"\n\n" + losses(3000, 4000))
    rows, offset, damaged = read_lines(tmp_path / "one")
    alone = [row_of(line) for line in (tmp_path / "one").read_bytes().split(b"\n") if line]
    assert repr(rows) == repr([r for r in alone if r is not None]) and damaged == alone.count(None)
    (tmp_path / "two").write_bytes(b"x" * (2 * LONGEST) + b"\n" + losses(1, 3))
    rows, offset, damaged = read_lines(tmp_path / "two")
    assert [r["step"] for r in rows] == [1, 2] and damaged >= 1 and offset == (tmp_path / "two").stat().st_size


def slow_history(rows: list[dict]) -> dict[int, dict]:
    """The history, row by row."""
    merged: dict[int, dict] = {}
    for r in rows:
        if r.get("event") == "start":
            merged = {step: kept for step, kept in merged.items() if step <= r["step"]}
        elif "event" not in r:
            merged.setdefault(r["step"], {}).update(r)
    return merged


def test_history_and_follower_agree_with_the_rows_one_by_one(tmp_path):
    """Attempts that begin again anywhere, steps that repeat or go back, scalars that come and go: 40 records."""
    rng, compared = np.random.default_rng(0), 0
    for number in range(40):
        rows = []
        for _ in range(rng.integers(1, 80)):
            step = int(rng.integers(1, 30))
            kind = rng.choice(["start", "best", "row"], p=[0.1, 0.1, 0.8])
            some = {
                f"train/{k}": float(rng.random()) for k in "abc" if rng.random() < 0.6
            } | ({"note": "n"} if step < 3 else {})
            rows.append(row(step, **(some if kind == "row" else {"event": str(kind)})))
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "metrics.jsonl").write_bytes(written(*rows))
        expected, history = slow_history(rows), Run(folder).history()
        assert (history["step"].tolist() if len(history) else []) == sorted(expected)
        for found in history.to_dict("records"):
            known = expected[found["step"]]
            assert all(found[k] == known[k] if k in known else found[k] != found[k] for k in found)
            compared += 1
        assert Run(folder).events() == [r for r in latest(rows) if "event" in r]
        follower, one = Follower(Run(folder)), Follower(Run(folder))
        follower.poll()
        for r in rows:
            one.take([r])
        assert one.curves.keys() == follower.curves.keys() and one.events == follower.events
        for name, curve in follower.curves.items():
            assert curve.values.tolist() == one.curves[name].values.tolist() and curve.last == one.curves[name].last
            assert curve.on("time").tolist() == one.curves[name].on("time").tolist()
        assert marks_of(follower, "step") == marks_of(one, "step")
    assert compared > 400


def test_the_table_reads_what_has_changed(tmp_path, monkeypatch):
    """A row is made again when one of its three files has another stamp, or its run is running; damage is seen then."""
    runs = [Run.create(Config(system="demo", seed=seed), tmp_path) for seed in range(4)]
    made, rows = [], TableRows()
    monkeypatch.setattr(dashboard, "row_of", lambda run, before=dashboard.row_of: made.append(run.path) or before(run))
    runs[3].set_status(state="running", host="elsewhere")

    def settle():
        for number, run in enumerate(runs):
            for path in run.path.glob("*.*"):
                os.utime(path, (1e9, 1e9 + number))

    def again():
        made.clear()
        return [r["status"] for r in rows.read(tmp_path)]

    settle()
    assert again() == ["created"] * 3 + ["running"] and len(made) == 4
    assert again() and made == [runs[3].path]
    Record(runs[0].path / "metrics.jsonl").write(1, 0, {"train/loss": 1.0})
    (runs[1].path / "config.yaml").write_text("preset: [")
    assert sum(state.startswith("damaged: config.yaml") for state in again())
    assert set(made) == {runs[k].path for k in (0, 1, 3)}
    path = runs[2].path / "config.yaml"
    path.write_text(path.read_text().replace("preset: base", "preset: mine"))
    table = runs_table(tmp_path).set_index("run").loc[[run.path.name for run in runs]]
    assert table.state.iloc[1].startswith("damaged") and table.state.iloc[3] == "running"
    assert table.preset.iloc[0] == "base" and table.preset.iloc[2] == "mine", "what was edited is read, not its summary"


def test_listing_runs_needs_no_torch(tmp_path):
    """What `nexuslab runs` imports is what it needs."""
    heavy = "sorted({'torch', 'scipy'} & set(sys.modules))"
    program = f"import sys; from nexuslab.jobs import main; main(['runs']); print({heavy})"
    environment = os.environ | {"NEXUSLAB_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
