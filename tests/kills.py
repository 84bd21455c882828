"""Jobs killed by SIGKILL before their k-th file operation, or a moment after it; then the job is asked for again.

A job is the released notebook's cells, executed in a fork of a process that has imported everything, with what
papermill would write after each cell. Afterwards nothing may be left over, and everything must be as after an
undisturbed job. The whole of it: `cd tests && python -m kills`.
"""
import argparse
import atexit
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import optuna
import torch

from nexuslab import jobs, kernels, run, store
from nexuslab.config import resolve
from nexuslab.core import digest, parse_json
from nexuslab.doctor import survey, verdict, whole_png
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.parameters import released_notebook
from nexuslab.run import Run, find_runs
from nexuslab.sample import sample
from nexuslab.task import get_task
from nexuslab.tune import FINISHED, open_storage

sys.path.insert(0, str(Path(__file__).parent / "toys"))
FULL, FAST = 300, "/dev/shm"  # kills; a file system in memory, where there is one
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}
TOKENS = {"system": "toy_tokens", "preset": "smoke", "steps": 12,
          "overrides": {"eval_every": 4, "log_every": 1, "save_every": 3, "save_total_limit": 2}}


class Altered(AssertionError):
    """Something was lost, left over, or is another one than without the kill."""


class Job(NamedTuple):
    """A job, and what it is given."""

    verb: str
    parameters: dict[str, Any] = {}
    fresh: bool = False  # in a project without data and runs


JOBS = {
    "prepare": Job("prepare", {"system": "toy_graphs", "preset": "smoke"}, fresh=True),
    "train": Job("train", TOKENS, fresh=True),
    "resume": Job("train", {"resume": "half"}),
    "evaluate": Job("evaluate", {"run": "tokens"}),
    "sample": Job("sample", {"run": "graphs", "n": 5}),
    "answer": Job("sample", {"run": "tokens", "inputs": [[1, 2, 3], [2, 4, 6]]}),
    "analyse": Job("analyse", {"run": "graphs"}),
    "tune": Job("tune", TOKENS | {"steps": 4, "trials": 3, "overrides": None}, fresh=True),
    "report": Job("report", {"run": "graphs"}),
    "compare": Job("compare", {"runs": ["tokens", "graphs"]}),
}


# ---- a project in which everything has been trained


@functools.cache
def base() -> Path:
    """A project with two finished runs, called `tokens` and `graphs`, and one that was killed half-way, `half`."""
    place, owner = tempfile.mkdtemp(
        prefix="nexuslab-kills-", dir=FAST if os.access(FAST, os.W_OK) else None
    ), os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(place, ignore_errors=True))
    root = Path(place) / "project"
    os.environ["NEXUSLAB_HOME"], os.environ["MPLBACKEND"] = str(root), "agg"
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name, stop in (("tokens", None), ("half", 7), ("graphs", None)):
        task = get_task("toy_graphs" if name == "graphs" else "toy_tokens")
        cfg = resolve(task, "smoke", TOKENS["overrides"] | {"steps": 12} if name != "graphs" else {})
        task.prepare(cfg, root)
        made = Run.create(cfg, root)
        made.path.rename(made.path.with_name(name))
        made = Run(made.path.with_name(name))
        if stop:
            in_child(functools.partial(killed_in_training, task, cfg, made, stop))
        else:
            fit(task, cfg, made)
    evaluate(get_task("toy_graphs"), Run(root / "runs" / "toy_graphs" / "graphs"))
    sample(get_task("toy_graphs"), Run(root / "runs" / "toy_graphs" / "graphs"), 3)
    return root


def killed_in_training(task, cfg, made: Run, step: int) -> None:
    """Train, and die in a step."""
    real = task.step
    task.step = lambda model, batch, cfg, at: os.kill(os.getpid(), signal.SIGKILL) if at.step == step else real(
        model, batch, cfg, at)
    fit(task, cfg, made)


# ---- a job in a child


def in_child(act: Callable[[], Any], ready: Callable[[int], None] = lambda child: None) -> tuple[int, str]:
    """Call in a fork; the exit status (-9 if it was killed), and what went wrong."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        said, code = "", 0
        try:
            os.close(reader)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                said = json.dumps(act())
        except BaseException:
            said, code = traceback.format_exc(), 1
        os.write(writer, said.encode()[-60_000:])
        os._exit(code)
    os.close(writer)
    ready(child)
    with open(reader, "rb") as pipe:
        said = pipe.read().decode("utf-8", "replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def execute(verb: str, parameters: dict[str, Any], address: str | None = None) -> None:
    """The cells of a job's notebook, with what papermill does beside them; a report is written by its command."""
    if verb == "report":
        assert jobs.main(["report", parameters["run"]]) == 0
        return
    address = address or kernels.new_report(verb)
    os.environ["NEXUSLAB_REPORT"] = str(kernels.report_files(address)[1])
    text = released_notebook(verb)
    names: dict[str, Any] = {"__name__": "__main__"}
    kernels.RunStore.write(text, address)
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), verb, "exec"), names)
            names |= parameters if "parameters" in cell["metadata"].get("tags", []) else {}
            kernels.RunStore.write(text, address)
    plt.close("all")


class Operations:
    """Counts what a process does to files below a folder, and acts at the k-th time, before it is done."""

    def __init__(self, root: Path, at: int = 0, act: Callable[[], None] = lambda: None):
        self.root, self.at, self.act, self.seen, self.off = str(root), at, act, 0, False

    def told(self) -> None:
        self.seen += 1
        if self.seen == self.at:
            self.act()

    def hook(self, event: str, arguments: tuple) -> None:
        """Of the interpreter, which tells of opened, renamed and removed files."""
        if event == "open":
            path, mode, flags = arguments
            if not (set(mode or "") & set("wax+") or (flags or 0) & WRITING):
                return
        elif event not in CHANGES:
            return
        if str(arguments[0]).startswith(self.root):
            self.told()

    def watch(self) -> None:
        """Of what the interpreter does not tell: the content of files, and what is forced to the disk."""
        sys.addaudithook(self.hook)
        for module, name in ((os, "fsync"), (run.Record, "write"), (store.Column, "write")):
            setattr(module, name, self.counted(getattr(module, name)))

    def counted(self, real: Callable) -> Callable:
        @functools.wraps(real)
        def call(*given, **options):
            self.told()
            return real(*given, **options)

        return call


def ask(name: str) -> None:
    """Execute a job; a training that has begun is resumed."""
    job, begun = JOBS[name], find_runs() if name == "train" else []
    execute(job.verb, {"resume": begun[-1].path.name} if begun else job.parameters)


def watched(name: str, root: Path, at: int = 0, act: Callable[[], None] = lambda: None) -> int:
    """Execute a job under watch; how many operations it took."""
    operations = Operations(root, at, act)
    operations.watch()
    ask(name)
    return operations.seen


# ---- what must be true afterwards


def left_over(root: Path) -> list[str]:
    """Temporary files, anywhere."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.name.endswith((".tmp", ".old")))


def halves(root: Path) -> list[str]:
    """Files that are not whole under their final names: nobody may meet one, at any time."""
    found = []
    for path in (p for p in root.rglob("[!.]*") if p.is_file() and not p.name.endswith(".tmp")):
        if any(folder.name.startswith(".step_") or folder.name.endswith(".tmp") for folder in path.parents):
            continue
        name, data_of, end = str(path.relative_to(root)), path.read_bytes, f"</{path.suffix[1:]}>".encode()
        if path.suffix == ".png" and not whole_png(data_of()) or path.suffix in (".html", ".svg") and not (
                data_of().rstrip().endswith(end)) or path.suffix in (".csv", ".yaml") and not data_of().endswith(b"\n"):
            found.append(name)
        elif path.suffix in (".ipynb", ".json"):
            parse_json(data_of(), path)
        elif path.suffix == ".h5":
            store.Store(path).verify()
    return found


def weights(folder: Run, which: str) -> str:
    """A digest of a checkpoint's weights."""
    return digest({k: v.tolist() for k, v in folder.load(which)[0].state_dict().items()})


def results(root: Path) -> dict[str, Any]:
    """Everything that a job of this kind gives, without times and names of runs."""
    found: dict[str, Any] = {"data": sorted(p.name for p in root.glob("data/*/*.h5"))}
    studies = sorted(root.glob("runs/.studies/*"))
    for made in [] if studies else find_runs(root):
        name = "" if "-" in made.path.name else made.path.name
        history = made.history()
        columns = [c for c in history if c == "step" or "/" in c and not c.startswith("system/")]
        evaluated = run.evaluated(made)
        found[f"{made.path.parent.name}/{name}"] = {
            "history": history[columns].to_csv(), "state": made.status["state"] if name != "half" else "",
            "weights": [weights(made, which) for which in ("best", "last")],
            "figures": {split: entry["figures"] for split, entry in evaluated.items()},
            "files": {p.name: digest(p.read_bytes()) for folder in ("figures", "samples")
                      for p in sorted((made.path / folder).iterdir()) if name and p.suffix in (".png", ".csv")},
            "samples": {p.name: store.Store(p).verify().manifest["digest"] for p in made.path.glob("samples/*.h5")},
        }
    for study in studies:
        with contextlib.redirect_stderr(io.StringIO()):
            known = optuna.load_study(study_name=study.name, storage=open_storage(None, study))
        trials = known.get_trials(deepcopy=False)
        found["trials"] = [(t.state.name, t.value, t.params) for t in trials if t.state in FINISHED]
        found["others"] = sorted({t.state.name for t in trials} - {"COMPLETE", "PRUNED", "FAIL"})
        found["best"] = (study / "best_config.yaml").read_text()
    found["comparison"] = [p.read_text() for p in root.glob("runs/.compare/comparison.csv")]
    return found


def diagnosed(root: Path) -> dict[str, str]:
    """What doctor says at last, after it has mended; a loss at any time is a fault."""
    for made, e in survey(root):
        lost = [f for f in e.findings if f.outcome == "lost"]
        if lost:
            raise Altered(f"{made.path.name}: {lost}")
    return {made.path.parent.name: verdict(e) for made, e in survey(root)}


# ---- cases


@functools.cache
def undisturbed(name: str) -> tuple[int, dict[str, Any]]:
    """How many operations a job takes, and what it gives."""
    root = project_for(name, "undisturbed")
    code, said = in_child(functools.partial(watched, name, root))
    if code:
        raise AssertionError(f"{name} fails by itself: {said}")
    found = json.loads(json.dumps(results(root)))
    shutil.rmtree(root)
    return int(said), found


def project_for(name: str, case: str) -> Path:
    """A project of the case's own, which this process takes for its own."""
    source = base()
    root = source.with_name(f"{name}-{case}")
    if JOBS[name].fresh:
        root.mkdir()
    else:
        shutil.copytree(source, root)
        if name != "compare":
            for other in find_runs(root):
                if other.path.name != JOBS[name].parameters.get("run", JOBS[name].parameters.get("resume")):
                    shutil.rmtree(other.path)
    os.environ["NEXUSLAB_HOME"] = str(root)
    os.environ.pop("NEXUSLAB_REPORT", None)
    return root


def killed(name: str, at: float, delay: float | None, times: int) -> str:
    """Kill a job at a share of its operations, `times` times in a row; ask for it again; compare."""
    count, expected = undisturbed(name)
    root = project_for(name, f"{os.getpid()}-{at:.6f}")
    place = 1 + int(at * count)
    for _ in range(times):
        code, said = kill_once(name, root, place, delay)
        if code not in (0, -signal.SIGKILL):
            raise Altered(f"{name} ended with {code}: {said[-1500:]}")
        if found := halves(root):
            raise Altered(f"half written: {found}")
    code, said = in_child(functools.partial(ask, name))
    if code:
        raise Altered(f"{name} cannot be done again: {said[-2000:]}")
    if left := left_over(root) + halves(root):
        raise Altered(f"left over: {left}")
    found = json.loads(json.dumps(results(root)))
    if found != expected:
        wrong = [k for k in {**expected, **found} if found.get(k) != expected.get(k)]
        raise Altered(f"{wrong} differ: {[(found.get(k), expected.get(k)) for k in wrong][:1]!r}"[:3000])
    verdicts = diagnosed(root)
    if set(verdicts.values()) - {"sound"} or list(root.rglob("*.tmp")):
        raise Altered(f"doctor leaves {verdicts}")
    shutil.rmtree(root)
    return "same"


def kill_once(name: str, root: Path, place: int, delay: float | None) -> tuple[int, str]:
    """Run a job in a child that dies before its `place`-th operation, or `delay` seconds after it has begun it."""
    if delay is None:
        return in_child(lambda: watched(name, root, place, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    reader, writer = os.pipe()

    def ready(child: int) -> None:
        os.close(writer)
        with open(reader, "rb") as pipe:
            pipe.read(1)  # or the end of the child
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)

    return in_child(lambda: watched(name, root, place, lambda: os.write(writer, b".")), ready)


def cases(seed: int, count: int, names: tuple[str, ...] = tuple(JOBS)) -> list[tuple[str, Callable[[], str]]]:
    """Kills in turn through the jobs, at operations that are spread evenly; every other one a moment later."""
    for name in names:
        undisturbed(name)
    found, rounds = [], -(-count // len(names))
    for i in range(count):
        name, turn, draw = names[i % len(names)], i // len(names), random.Random(f"kills|{seed}|{i}")
        at = (turn + draw.random()) / rounds
        delay = draw.random() * draw.choice((0.001, 0.005, 0.03)) if turn % 2 else None
        times = draw.choice((1, 1, 2))
        told = f"{name} at {at:.3f}{'' if delay is None else f' and {1000 * delay:.1f} ms'}, {times} times"
        found.append((told, functools.partial(killed, name, at, delay, times)))
    return found


def main() -> int:
    """Kill, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m kills", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=FULL)
    said = parser.parse_args()
    began, tally, wrong = time.perf_counter(), Counter(), Counter()
    for told, kill in cases(said.seed, said.count):
        name = told.split()[0]
        tally[name] += 1
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                kill()
        except Exception as error:
            wrong[name] += 1
            print(f"{told}: {error}", flush=True)
    print("job | cases | wrong or left over\n--- | --- | ---")
    for name in tally:
        print(f"{name} | {tally[name]} | {wrong[name]}")
    print(f"all | {tally.total()} | {wrong.total()}\nseed {said.seed}, {time.perf_counter() - began:.0f} s")
    return int(wrong.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
