"""The k-th file operation of a job fails; then the job is done again, and must come to the same result.

Python's own file operations fail: those of `os`, `open`, and reads and writes of its files. What HDF5 and safetensors
write and read in C is out of reach here, but for the descriptors that Python opens for them.
"""
import builtins
import contextlib
import errno
import functools
import io
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from attack.driver import Altered, Case, dice, judged
from attack.place import SYSTEM, copied, gone_on, project, record, tensors_digest
from nexuslab.checkpoint import examine_folder
from nexuslab.config import resolve
from nexuslab.store import Store
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.parameters import job_notebooks, parameters_of
from nexuslab.plans import begin
from nexuslab.run import Run, find_runs
from nexuslab.sample import sample
from nexuslab.task import get_task
from nexuslab.tune import tune
from nexuslab.views import report

FULL = 1_000
LIMIT = 60.0
ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOENT, errno.EINTR)
CALLS = ("open", "read", "write", "fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir", "scandir",
         "listdir", "stat", "lstat", "fstat", "ftruncate", "posix_fallocate", "chmod", "symlink", "link")


class Failing:
    """Counts the operations on files below a folder, and lets one of them fail."""

    def __init__(self, root: Path, at: int, number: int):
        self.root, self.at, self.number, self.count, self.what = str(root), at, number, 0, ""

    def tick(self, call: str, path: object) -> None:
        """Count an operation; raise if it is the one."""
        if isinstance(path, int):
            with contextlib.suppress(OSError):
                path = REAL["readlink"](f"/proc/self/fd/{path}")
        if isinstance(path, (str, bytes, os.PathLike)) and os.fsdecode(path).startswith(self.root):
            self.count += 1
            if self.count == self.at:
                self.what = f"{call} of {Path(os.fsdecode(path)).name}"
                absent = self.number == errno.ENOENT and call in ("stat", "lstat")  # no failure, but another answer
                number = errno.EIO if absent else self.number
                raise OSError(number, os.strerror(number), os.fsdecode(path))


REAL: dict[str, Callable] = {name: vars(os)[name] for name in (*CALLS, "readlink")}
NOW: list[Failing] = []  # what is at work


class Raw(io.FileIO):
    """A file whose reads and writes are counted."""

    def write(self, data):
        NOW[0].tick("write", self.name) if NOW else None
        return super().write(data)

    def readinto(self, buffer):
        NOW[0].tick("read", self.name) if NOW else None
        return super().readinto(buffer)

    def readall(self):
        NOW[0].tick("read", self.name) if NOW else None
        return super().readall()


def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
    """`open` of counted files: what `io.open` does, by its documentation."""
    if NOW:
        NOW[0].tick("open", file)
    raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
    if buffering == 0:
        return raw
    kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
    buffered = kind(raw, buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE)
    if "b" in mode:
        return buffered
    text = io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)
    text.mode = mode
    return text


def counted(name: str) -> Callable:
    """A function of `os` that is counted."""
    @functools.wraps(REAL[name])
    def call(path=".", *rest, **more):
        if NOW:
            NOW[0].tick(name, path)
        return REAL[name](path, *rest, **more)

    return call


@contextlib.contextmanager
def failing(root: Path, at: int, number: int = errno.EIO) -> Iterator[Failing]:
    """Let the `at`-th operation below a folder fail in this block."""
    own = Failing(root, at, number)
    NOW[:] = [own]
    for name in CALLS:
        setattr(os, name, counted(name))
    builtins.open = io.open = opened
    try:
        yield own
    finally:
        NOW.clear()
        for name in CALLS:
            setattr(os, name, REAL[name])
        builtins.open = io.open = REAL_OPEN


REAL_OPEN = io.open


# ---- jobs: each is done in a project that `project` has made, and shows what came of it


def task_and_config():
    task = get_task(SYSTEM)
    return task, resolve(task, "smoke", {"save_every": 1})


def prepare(root: Path) -> object:
    task, _ = task_and_config()
    return content(task.prepare(resolve(task, "smoke", {"seed": 1}), root))


def content(path: Path) -> str:
    """The digest of a store that is sound."""
    with contextlib.closing(Store(path)) as store:
        return store.verify().manifest["digest"]


def train(root: Path) -> object:
    """A new training, or what an earlier try has left of one gone on with, as the command does it."""
    task, _ = task_and_config()
    left = [r for r in find_runs(root) if r.path.name not in ("sound", "other")]
    asked = {"resume": left[-1].path.name} if left else {"system": SYSTEM, "preset": "smoke", "save_every": 1}
    given = {n: p.default for n, p in parameters_of(job_notebooks()["train"]).items()} | asked
    task, cfg, run, checkpoint = begin(given, set(asked))
    done = fit(task, cfg, run, resume=checkpoint)
    return tensors_digest(done.model.state_dict()), done.best, record(done.run)


def resume(root: Path) -> object:
    return gone_on(Run(root / "runs" / SYSTEM / "sound"))


def evaluated(root: Path) -> object:
    run = Run(root / "runs" / SYSTEM / "sound")
    figures = evaluate(get_task(SYSTEM), run, "train")
    return figures, {k: v["figures"] for k, v in run.evaluation.items()}


def sampled(root: Path) -> object:
    return content(sample(get_task(SYSTEM), Run(root / "runs" / SYSTEM / "sound"), 4))


def tuned(root: Path) -> object:
    """Two trials of a new study; which trials it took is not compared, since one that failed is counted."""
    task, cfg = task_and_config()
    done = tune(task, cfg.model_copy(update={"name": None}), 1, "attacked", root=root)
    return {"COMPLETE"} <= set(done.trials.state) and done.file.exists()


def reported(root: Path) -> object:
    return report(Run(root / "runs" / SYSTEM / "sound")).name


JOBS: dict[str, Callable[[Path], object]] = {
    "prepare": prepare, "train": train, "resume": resume, "evaluate": evaluated, "sample": sampled, "tune": tuned,
    "report": reported,
}


@functools.cache
def usual(job: str) -> tuple[str, int]:
    """What a job shows when nothing fails, and its number of operations."""
    with copied(project()) as root:
        JOBS[job](root)
    with copied(project()) as root, failing(root, 0) as count:
        text = repr(JOBS[job](root))
    return text, count.count


# ---- what is left


def half_written(root: Path) -> list[str]:
    """Files under a final name that are not whole."""
    found = []
    for path in (p for p in root.rglob("*") if p.is_file() and not any(part.startswith(".step") for part in p.parts)):
        hidden = path.name.startswith(".") or path.name.endswith(".lock")
        data = b"" if hidden else path.read_bytes()
        whole = {
            ".json": lambda: json.loads(data), ".ipynb": lambda: json.loads(data), ".h5": lambda: Store(path).verify(),
            ".png": lambda: data[:4] == b"\x89PNG" and data[-8:-4] == b"IEND" or 1 / 0,
            ".html": lambda: data.rstrip().endswith(b"</html>") or 1 / 0, ".yaml": lambda: data or 1 / 0,
        }.get(path.suffix)
        if whole and not hidden and judged(lambda whole=whole: whole() and None)[0] != "same":
            found.append(str(path.relative_to(root)))
    for path in root.glob("runs/*/*/checkpoints/step_*"):
        if fault := examine_folder(path)[0]:
            found.append(f"{path.name}: {fault}")
    return found


def leftovers(root: Path) -> list[str]:
    """Temporary files and folders, and directories of runs that hold no run."""
    odd = [str(p.relative_to(root)) for p in root.rglob("*") if p.name.endswith((".tmp", ".old", ".rename"))]
    return odd + [str(p.relative_to(root)) for p in root.glob("runs/[!.]*/*") if not (p / "config.yaml").exists()]


def attacked(job: str, at: int, number: int) -> str | tuple[str, str]:
    """Let one operation fail, look at what is left, do the job again, and compare."""
    expected, _ = usual(job)
    with copied(project()) as root:
        with failing(root, at, number) as failed:
            kind, said = judged(lambda: JOBS[job](root) and None)
        where = f"{failed.what}, {errno.errorcode[number]}"
        if kind == "unnamed":
            return kind, f"{where}: {said}"
        if broken := half_written(root):
            raise Altered(f"{where}: half-written: {broken[:3]}")
        came: list[str] = []
        again, words = judged(lambda: came.append(repr(JOBS[job](root))))
        if again != "same":
            return "unnamed", f"{where}: {kind}, and then: {words}"
        if came[0] != expected:
            raise Altered(f"{where}: {kind}, and then {came[0][:200]}, not {expected[:200]}")
        if left := leftovers(root):
            raise Altered(f"{where}: left over: {left[:3]}")
    return kind


def cases(seed: int, count: int) -> Iterator[Case]:
    """Jobs in turn."""
    for n in range(count):
        draw = dice("operations", seed, n)
        job = list(JOBS)[n % len(JOBS)]
        at, number = draw.randrange(1, usual(job)[1] + 1), draw.choice(ERRORS)
        yield Case(f"{n}: {job}, operation {at}, {errno.errorcode[number]}", partial(attacked, job, at, number))
