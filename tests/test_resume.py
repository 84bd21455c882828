"""A run that was killed and resumed is the run that was not: weights and record, for both toys and a system."""
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny import comparable, same_weights

from nexuslab.config import overlay, resolve
from nexuslab.contract import StopAt
from nexuslab.data import load
from nexuslab.fit import fit, forward_backward, set_up, start_clock, where
from nexuslab.run import Run
from nexuslab.task import get_task

pytestmark = pytest.mark.xdist_group("resume")  # one worker: the undisturbed runs and the trainers are made once

CHILD = Path(__file__).parent / "killable.py"
COMMON = {"threads": 1, "restore_best": False, "log_every": 2, "loader.eval_batch_size": 8, "checkpoint.save_minutes": 1e-9}
SYSTEMS = {
    "toy_tokens": {"steps": 16, "eval_every": 5, "save_every": 4, "optim.accumulate": 2, "loader.num_workers": 0},
    "toy_graphs": {"epochs": 3, "optim.accumulate": 2, "batch_size": 4, "save_every": 1},
    "circuits": {"epochs": 3, "optim.accumulate": 2, "save_every": 1},
}
MOMENTS = {  # where the process is when it is killed, and the how-manieth time that it is there
    "between two steps": ("step", 4), "in the forward pass": ("forward", 7), "between two micro-batches": ("micro", 5), "before the optimiser": ("optimise", 4),
    "in an evaluation": ("evaluate", 2), "after a row, before its checkpoint": ("row", 2), "in a checkpoint's first file": ("file", 5),
    "before a checkpoint's manifest": ("manifest", 3), "before `last` names the checkpoint": ("point", 3), "while old checkpoints are removed": ("prune", 3),
}


def configuration(system):
    return resolve(get_task(system), "smoke", COMMON | SYSTEMS[system])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """System -> a run that nothing disturbed, made once."""
    made = {}

    def get(system):
        if system not in made:
            root = tmp_path_factory.mktemp(system)
            cfg = configuration(system)
            get_task(system).prepare(cfg, root)
            made[system] = fit(get_task(system), cfg, Run.create(cfg, root))
        return made[system]

    return get


class Killable:
    """A process that trains in forks of its own, which say where they are."""

    def __init__(self, system: str):
        self.process = subprocess.Popen([sys.executable, str(CHILD), system], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    def start(self, run: Run, moment: str, count: int, resume: str | None = None) -> tuple[int, Path]:
        """Train in `run` up to the count-th passage of the moment; the process id, and the file that says where it waits."""
        mark = run.path / f"reached-{moment}"
        self.process.stdin.write(json.dumps({"run": str(run.path), "moment": moment, "count": count, "mark": str(mark), "resume": resume}) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        wait_until(mark.exists, f"{moment} to be reached", mark)
        return child, mark

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=30)


def wait_until(condition, what: str, mark: Path, seconds: float = 60) -> None:
    end, failed = time.time() + seconds, Path(f"{mark}.error")
    while not condition():
        assert not failed.exists(), failed.read_text()
        assert time.time() < end, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def killable():
    """System -> its trainer, started once."""
    made = {}

    def get(system: str) -> Killable:
        if system not in made:
            made[system] = Killable(system)
        return made[system]

    yield get
    for one in made.values():
        one.close()


@pytest.mark.parametrize("system", SYSTEMS)
def test_kill_nine(system, undisturbed, killable):
    """A training killed at each of ten moments, one run each, and resumed ends as the undisturbed one."""
    whole, cfg, trainer, ends = undisturbed(system), configuration(system), killable(system), {}
    for moment, (place, count) in MOMENTS.items():
        run = Run.create(cfg, whole.run.root)
        child, mark = trainer.start(run, place, count)
        assert run.status["state"] == "running"
        os.kill(child, signal.SIGKILL)
        wait_until(lambda child=child: not psutil.pid_exists(child), "the killed process to go", mark)
        assert run.status["state"] == "died", moment
        begun = list((run.path / "checkpoints").glob("step_*"))
        again = fit(get_task(system), cfg, run, resume="last" if begun else None)
        assert same_weights(whole.model, again.model), moment
        assert comparable(run).equals(comparable(whole.run)), moment
        assert not list((run.path / "checkpoints").glob(".step_*")), moment
        ends[moment] = json.loads(mark.read_text())["step"]
    assert len(ends) == 10 and len(set(ends.values())) >= 3
    print(system, ends)


def test_killed_twice(undisturbed, killable):
    """A resumed training that is killed as well."""
    whole, cfg, trainer = undisturbed("toy_tokens"), configuration("toy_tokens"), killable("toy_tokens")
    run = Run.create(cfg, whole.run.root)
    for place, count, resume in (("forward", 9, None), ("manifest", 3, "last"), ("evaluate", 2, "last")):
        child, mark = trainer.start(run, place, count, resume)
        os.kill(child, signal.SIGKILL)
        wait_until(lambda child=child: not psutil.pid_exists(child), "the killed process to go", mark)
    again = fit(get_task("toy_tokens"), cfg, run, resume="last")
    assert same_weights(whole.model, again.model) and comparable(run).equals(comparable(whole.run))
    assert run.status["attempt"] == 3


def test_sigterm_saves(undisturbed, killable):
    """SIGTERM ends the step at hand, saves, and leaves a run that goes on."""
    whole = undisturbed("toy_graphs")
    cfg = overlay(configuration("toy_graphs"), {"checkpoint.save_minutes": None, "save_every": None})
    run = Run.create(cfg, whole.run.root)
    child, mark = killable("toy_graphs").start(run, "step", 4)
    os.kill(child, signal.SIGTERM)
    mark.with_suffix(".go").touch()
    wait_until(lambda child=child: not psutil.pid_exists(child), "the process to end", mark)
    assert run.status["state"] == "interrupted" and "SIGTERM" in run.status["reason"] and run.status["step"] == 4
    assert [p.name for p in (run.path / "checkpoints").glob("step_*")] == ["step_00000004"]
    again = fit(get_task("toy_graphs"), cfg, run, resume="last")
    assert again.run.status["state"] == "finished" and same_weights(again.model, whole.model)


def test_one_seed_one_run(undisturbed):
    """Two trainings with one seed are equal bit for bit, and another seed gives another run."""
    whole = undisturbed("toy_tokens")
    task, cfg = get_task("toy_tokens"), configuration("toy_tokens")
    again = fit(task, cfg, Run.create(cfg, whole.run.root))
    assert same_weights(whole.model, again.model) and comparable(again.run).equals(comparable(whole.run))
    other = overlay(cfg, {"seed": 5})
    assert not same_weights(whole.model, fit(task, other, Run.create(other, whole.run.root)).model)


@pytest.mark.parametrize("system", ["toy_tokens", "toy_graphs"])
def test_one_cut_at_each_step(system, undisturbed):
    """Stopped after any step and resumed: nothing about a step is special."""
    whole = undisturbed(system)
    cfg = configuration(system)
    for step in range(2, whole.step, 3):  # a listener is asked at the logged rows: every second step
        run = Run.create(cfg, whole.run.root)
        fit(get_task(system), cfg, run, [StopAt(step)])
        again = fit(get_task(system), cfg, run, resume="last")
        assert same_weights(whole.model, again.model) and comparable(run).equals(comparable(whole.run)), step


def first_gradient(task, cfg, splits, run):
    """The gradient of the first step, in double precision."""
    loop = set_up(task, cfg, run, splits)
    start_clock(loop)
    loop.model.double()
    loop.module.train()
    micro = next(load(splits.train, loop.plan, 0, 1))
    forward_backward(loop, micro, where(loop))
    return len(micro), [task.weigh(batch) for _, batch in micro], torch.cat([p.grad.flatten() for p in loop.model.parameters()]), loop.window.compute()


def test_accumulation_is_exact(tmp_path):
    """Eight micro-batches of one ragged sequence give the gradient and the loss of one micro-batch of eight."""
    task = get_task("toy_tokens")
    cfg = resolve(task, "smoke", {"model.dropout": 0.0, "data.length": 40})
    splits = dataclasses.replace(task.data(cfg, tmp_path))
    run = Run(tmp_path / "runs" / "toy_tokens" / "none")
    found = {}
    for batch, accumulate in ((1, 8), (8, 1)):
        found[batch] = first_gradient(task, overlay(cfg, {"batch_size": batch, "optim.accumulate": accumulate}), splits, run)
    (pieces, weights, many, losses), (one, whole, single, loss) = found[1], found[8]
    assert (pieces, one) == (8, 1) and len(set(weights)) >= 3 and sum(weights) == sum(whole)
    difference = ((many - single).norm() / single.norm()).item()
    print(f"relative difference {difference:.1e}")
    assert difference <= 1e-12
    assert losses["loss"] == pytest.approx(loss["loss"], rel=1e-12)
