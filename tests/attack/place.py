"""A small project in which everything has happened once, and every reader of what it left."""
import atexit
import contextlib
import functools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import h5py
import nbformat
import numpy as np
import torch

from attack.driver import shown_by
from nexuslab.config import overlay, resolve
from nexuslab.core import digest
from nexuslab.dashboard import Follower, difference_table, row_of
from nexuslab.store import Store
from nexuslab.evaluate import evaluate, evaluation_table, kept_figures
from nexuslab.fit import fit
from nexuslab.jobs import main
from nexuslab.kernels import RunStore
from nexuslab.plans import planned
from nexuslab.run import Run, comparison, find_runs, open_run, runs_table
from nexuslab.sample import sample
from nexuslab.task import get_task
from nexuslab.tune import open_storage, open_study, tune
from nexuslab.views import report

SYSTEM = "toy_graphs"
FAST = "/dev/shm"  # a file system in memory, where there is one


def folder(name: str) -> Path:
    """A temporary folder that goes with this process."""
    made = Path(tempfile.mkdtemp(prefix=f"nexuslab-{name}-", dir=FAST if os.access(FAST, os.W_OK) else None))
    made.chmod(0o755)  # for cases without the rights of the superuser
    owner = os.getpid()
    atexit.register(lambda: os.getpid() == owner and shutil.rmtree(made, ignore_errors=True))
    return made


def at_home(root: Path) -> None:
    """Let this process take `root` for the project."""
    os.environ["NEXUSLAB_HOME"] = str(root)
    os.environ.pop("NEXUSLAB_REPORT", None)


@functools.cache
def project() -> Path:
    """A project with a dataset, a finished run with figures, samples, reports and a baseline, a study."""
    toys = Path(__file__).parents[1] / "toys"
    if str(toys) not in sys.path:
        sys.path.insert(0, str(toys))
    torch.set_num_threads(1)
    os.environ["MPLBACKEND"] = "agg"
    root = folder("attack") / "project"
    at_home(root)
    task = get_task(SYSTEM)
    cfg = resolve(task, "smoke", {"save_every": 1, "name": "study"})
    task.prepare(cfg, root)
    run = fit(task, cfg, Run.create(cfg, root)).run
    run.path.rename(run.path.with_name("sound"))
    run = Run(run.path.with_name("sound"))
    for split in ("val", "test"):
        evaluate(task, run, split)
    sample(task, run, 3)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("figure", outputs=[
        nbformat.v4.new_output("stream", text=f"loss {run.evaluation['test']['figures']['loss']}")])])
    RunStore.write(nbformat.writes(notebook), f"nexuslab://train/x.ipynb?{run.path / 'report.ipynb'}")
    report(run)
    tune(task, overlay(cfg, {"epochs": 1}), 2, "study", root=root)
    for other in find_runs(root):
        if other.path.name != "sound":
            shutil.rmtree(other.path)
    shutil.copytree(run.path, run.path.with_name("other"))
    shutil.rmtree(root / "runs" / ".jobs", ignore_errors=True)
    baseline(root)
    return root


@contextlib.contextmanager
def copied(source: Path) -> Iterator[Path]:
    """A copy of a project, which is the home of this process meanwhile."""
    root = Path(tempfile.mkdtemp(prefix="copy-", dir=source.parent))
    try:
        shutil.copytree(source, root, dirs_exist_ok=True, symlinks=True)
        at_home(root)
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


# ---- readers: each shows what a user would see; times and paths are left out


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    return digest({k: [str(v.dtype), list(v.shape), v.double().tolist()] for k, v in sorted(tensors.items())})


def loaded(checkpoint: str) -> Callable[[Run], object]:
    def read(run: Run) -> object:
        model, cfg, meta = run.load(checkpoint)
        return tensors_digest(model.state_dict()), cfg.tree(), meta

    return read


def status(run: Run) -> object:
    return {k: v for k, v in run.status.items() if k not in ("updated", "started", "process_started", "pid")}


def curves(run: Run) -> object:
    follower = Follower(run)
    follower.poll()
    shown = {k: [c.on("step").tolist(), c.values.tolist()]
             for k, c in follower.curves.items()}
    return shown, [e["event"] for e in follower.events], "damaged" * bool(follower.damaged + follower.missing)


def table_of(root: Path) -> object:
    return runs_table(root).drop(columns="age_minutes").to_csv()


def beside(run: Run) -> object:
    return comparison([run, Run(run.path.with_name("other"))]).to_csv()


def row(run: Run) -> object:
    return {k: v for k, v in row_of(run).items() if k not in ("age", "left", "speed", "updated", "spent")}


def differing(run: Run) -> object:
    return difference_table([Follower(run), Follower(Run(run.path.with_name("other")))])


def evaluated_again(run: Run) -> object:
    found = evaluate(get_task(SYSTEM), run)
    entry = run.evaluation["test"]
    return found, entry["changed"] and f"damaged: {entry['changed']}", entry["baselines"]


def plan(run: Run) -> object:
    _, cfg, _, checkpoint = planned({"resume": run.path.name})
    return cfg.tree(), checkpoint


def gone_on(run: Run) -> object:
    """The training resumed for another epoch, with the weights, the best value and the record at its end."""
    task, cfg, run, checkpoint = planned({"resume": run.path.name, "overrides": {"epochs": 3}})
    done = fit(task, cfg, run, resume=checkpoint)
    return tensors_digest(done.model.state_dict()), done.best, done.best_step, record(done.run)


def record(run: Run) -> object:
    """The scalars of a run without times, speeds and memory."""
    history = run.history()
    return history[[c for c in history if c == "step" or ("/" in c and not c.startswith("system/"))]].to_csv()


def batches(root: Path) -> object:
    task = get_task(SYSTEM)
    splits = task.data(resolve(task, "smoke"), root)
    parts = [splits.named(s).batch(np.arange(splits.named(s).size), {}, None) for s in ("train", "val", "test")]
    return [tensors_digest({k: v for k, v in vars(p).items()}) for p in parts], splits.meta, splits.fingerprint


def arrays(path: Path) -> object:
    with contextlib.closing(Store(path)) as store:
        return {k: [str(v.dtype), v.tolist()] for k, v in store.arrays().items()}, store.manifest


def study(root: Path) -> object:
    task = get_task(SYSTEM)
    cfg = resolve(task, "smoke", {"save_every": 1, "name": "study", "epochs": 1})
    found = open_study("study", open_storage(None, root / "runs" / ".studies" / "study"), cfg)
    return [(t.number, t.state.name, t.values, t.params, t.user_attrs) for t in found.trials]


def document(run: Run) -> object:
    text = report(run, run.path / "again.html").read_text(encoding="utf-8")
    return re.sub(r"cell-id=\w+", "", text.replace(str(run.root), ""))


def command(*words: str) -> Callable[[Path], object]:
    def read(root: Path) -> object:
        with redirect_stdout(StringIO()) as said:
            code = main(list(words))
        if code:
            raise SystemExit(code)
        return re.sub(r" +\d+\.\d\b", " ", said.getvalue().replace(str(root), ""))  # without the age in minutes

    return read


def baseline(root: Path) -> object:
    """The figures of a costly baseline, which are kept in a file."""
    return kept_figures(root / "data" / SYSTEM / "kept", {"peer": 1}, lambda: {"loss": 0.25, "valid": 0.875})


def of_run(read: Callable[[Run], object], by_name: bool = False) -> Callable[[Path], object]:
    """A reader of the project from one of the run."""
    return lambda root: read(open_run("sound", root) if by_name else Run(root / "runs" / SYSTEM / "sound"))


READERS: dict[str, Callable[[Path], object]] = {
    "open": of_run(lambda run: run.path.name, by_name=True), "tree": of_run(lambda run: run.tree),
    "config": of_run(lambda run: run.config.tree()), "status": of_run(status), "history": of_run(record),
    "events": of_run(lambda run: [e["event"] for e in run.events()]), "evaluation": of_run(lambda run: run.evaluation),
    "log": of_run(lambda run: run.log), "best": of_run(loaded("best")), "last": of_run(loaded("last")),
    "step": of_run(loaded("step_5")), "evaluation table": of_run(lambda run: evaluation_table(run).to_csv()),
    "follower": of_run(curves), "row": of_run(row), "differences": of_run(differing), "comparison": of_run(beside),
    "runs": table_of, "nexuslab runs": command("runs"), "nexuslab runs --latest": command("runs", "--latest"),
    "data": batches, "study": study, "baseline": baseline,
    "store": lambda root: arrays(next((root / "data" / SYSTEM).glob("*.h5"))),
    "samples": lambda root: arrays(next((root / "runs" / SYSTEM / "sound" / "samples").glob("*.h5"))),
    "plan": of_run(plan), "evaluate": of_run(evaluated_again), "report": of_run(document), "resume": of_run(gone_on),
}


@functools.cache
def known() -> dict[str, tuple[str, frozenset[str]]]:
    """What each reader shows of the sound project, and the files that it opens."""
    found, opened = {}, set()
    inside = h5py.File.__init__

    def traced(self, name, *rest, **more):
        opened.add(str(name))
        inside(self, name, *rest, **more)

    sys.addaudithook(lambda event, args: event == "open" and isinstance(args[0], str) and opened.add(args[0]))
    for name, read in READERS.items():
        for _ in range(2):  # the second time nothing is imported and nothing is made for the first time
            with copied(project()) as root:
                opened.clear()
                h5py.File.__init__ = traced
                try:
                    text = shown_by(lambda read=read, root=root: read(root))[0]
                finally:
                    h5py.File.__init__ = inside
                files = frozenset(str(Path(p).relative_to(root)) for p in opened if p.startswith(str(root)))
        found[name] = text, files
    return found


def files(root: Path) -> list[str]:
    """The files of a project that hold something, as paths relative to it."""
    return sorted(str(p.relative_to(root)) for p in root.rglob("*")
                  if p.is_file() and not p.name.endswith("lock") and p.stat().st_size and "other" not in p.parts)
