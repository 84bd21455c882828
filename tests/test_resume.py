"""A run that was killed and resumed is the run that was not: weights and record, for both toys and a system."""
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from tiny import Halt, Scripted, Watched, comparable, events, points, same_weights, train

from torch.utils.data import get_worker_info

from nexuslab.checkpoint import (
    clear_unnamed, find_checkpoint, load_weights, pointed, prune_checkpoints, read_checkpoint,
)
from nexuslab.config import Config, difference, fields_of, overlay, resolve
from nexuslab.contract import StopAt
from nexuslab.core import CheckpointError, ConfigError
from nexuslab.data import load
from nexuslab.doctor import Examination, examine_figures
from nexuslab.evaluate import evaluate, evaluation_table
from nexuslab.fit import fit, start_clock
from nexuslab.optim import make_optimizer
from nexuslab.reproduce import reproduce
from nexuslab.resume import RESUMABLE, holds, restore
from nexuslab.run import Run, comparison, given_up
from nexuslab.setup import set_up, position
from nexuslab.step import forward_backward
from nexuslab.task import get_task

pytestmark = pytest.mark.xdist_group("resume")  # one worker: the undisturbed runs and the trainers are made once

CHILD = Path(__file__).parent / "killable.py"
COMMON = {
    "threads": 1, "restore_best": False, "log_every": 2, "loader.eval_batch_size": 8, "checkpoint.save_minutes": 1e-9
}
SYSTEMS = {
    "toy_tokens": {"steps": 16, "eval_every": 5, "save_every": 4, "optim.accumulate": 2, "loader.num_workers": 0},
    "toy_graphs": {"epochs": 3, "optim.accumulate": 2, "batch_size": 4, "save_every": 1},
    "circuits": {"epochs": 3, "optim.accumulate": 2, "save_every": 1},
}
MOMENTS = {  # where the process is when it is killed, and the how-manieth time that it is there
    "between two steps": ("step", 4), "in the forward pass": ("forward", 7), "between two micro-batches": ("micro", 5),
    "before the optimiser": ("optimise", 4),
    "in an evaluation": ("evaluate", 2), "after a row, before its checkpoint": ("row", 2),
    "in a checkpoint's first file": ("file", 5),
    "before a checkpoint's manifest": ("manifest", 3), "before `last` names the checkpoint": ("point", 3),
    "while old checkpoints are removed": ("prune", 3),
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
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), system], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def start(self, run: Run, moment: str, count: int, resume: str | None = None) -> tuple[int, Path]:
        """Train in `run` up to the count-th passage of the moment; the process id, and the file that says where it
        waits."""
        mark = run.path / f"reached-{moment}"
        self.process.stdin.write(
            json.dumps({"run": str(run.path), "moment": moment, "count": count, "mark": str(mark), "resume": resume})
            + "\n"
        )
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_workers_as_well(number, undisturbed, killable):
    """Ctrl-C reaches all processes of a terminal, a scheduler's SIGTERM all descendants: the parent alone decides."""
    whole = undisturbed("toy_graphs")
    changes = {"checkpoint.save_minutes": None, "save_every": None, "loader.num_workers": 2}
    cfg = overlay(configuration("toy_graphs"), changes)
    run = Run.create(cfg, whole.run.root)
    child, mark = killable("toy_graphs").start(run, "step", 4)
    workers = psutil.Process(child).children()
    assert len(workers) == 2
    for one in [*workers, psutil.Process(child)]:
        one.send_signal(number)
    time.sleep(0.3)  # a worker that would die is seen to be dead
    mark.with_suffix(".go").touch()
    wait_until(lambda: not psutil.pid_exists(child), "the process to end", mark)
    status = run.status
    assert (status["state"], status["reason"]) == ("interrupted", f"interrupted by {number.name}"), status
    assert status["step"] == 4 and find_checkpoint(run.path / "checkpoints", "last").name == "step_00000004"
    assert not [one for one in workers if one.is_running()], "no worker outlives the training"
    again = fit(get_task("toy_graphs"), cfg, run, resume="last")
    assert again.run.status["state"] == "finished" and same_weights(again.model, whole.model)
    assert comparable(run).equals(comparable(whole.run))


class Deadly(Watched):
    """Points whose third batch signals the process that trains, and kills the worker that reads it."""

    def batch(self, ids, setting, generator):
        if len(self.asked) == 2 and get_worker_info():
            time.sleep(0.3)  # by now the batch is waited for
            os.kill(os.getppid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(ids, setting, generator)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_worker_that_dies_of_an_interruption(tmp_path):
    """What a signal began ends in order, also if a worker does not live to see it."""
    task = Scripted(**{"loader.num_workers": 1})
    task.sources[0] = Deadly(*task.sources[0].tensors)
    result = train(task, tmp_path)
    assert result.run.status["state"] == "interrupted" and result.reason == "interrupted by SIGTERM"
    assert result.run.checkpoint("last").name == f"step_{result.step:08d}"
    task.sources[0] = points(32, 1)
    again = train(task, tmp_path, run=result.run, resume="last")
    assert again.step == 12 and same_weights(again.model, train(Scripted(), tmp_path).model)


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
    forward_backward(loop, micro, position(loop))
    return len(micro), [task.count_items(batch) for _, batch in micro], torch.cat(
        [p.grad.flatten() for p in loop.model.parameters()]
    ), loop.window.compute()


def test_accumulation_is_exact(tmp_path):
    """Eight micro-batches of one ragged sequence give the gradient and the loss of one micro-batch of eight."""
    task = get_task("toy_tokens")
    cfg = resolve(task, "smoke", {"model.dropout": 0.0, "data.length": 40})
    splits = dataclasses.replace(task.data(cfg, tmp_path))
    run = Run(tmp_path / "runs" / "toy_tokens" / "none")
    found = {}
    for batch, accumulate in ((1, 8), (8, 1)):
        found[batch] = first_gradient(
            task, overlay(cfg, {"batch_size": batch, "optim.accumulate": accumulate}), splits, run
        )
    (pieces, weights, many, losses), (one, whole, single, loss) = found[1], found[8]
    assert (pieces, one) == (8, 1) and len(set(weights)) >= 3 and sum(weights) == sum(whole)
    difference = ((many - single).norm() / single.norm()).item()
    print(f"relative difference {difference:.1e}")
    assert difference <= 1e-12
    assert losses["loss"] == pytest.approx(loss["loss"], rel=1e-12)


# ---- what may change on resume, and what follows from it


@pytest.fixture(scope="module")
def halted(tmp_path_factory):
    """A run that was asked to stop after 3 of 12 steps."""
    return train(Scripted(), tmp_path_factory.mktemp("halted"), [Halt(3)]).run


def test_the_list_of_what_may_change_names_keys(halted):
    keys = fields_of(Config)
    assert len(RESUMABLE) > 20 and all(k in keys or any(key.startswith(f"{k}.") for key in keys) for k in RESUMABLE)


@pytest.mark.parametrize(("key", "value"), [
    ("seed", 1), ("optim.name", "adam"), ("loader.drop_last", True), ("loader.batch_size", 4),
    ("loader.shuffle", "none"), ("loader.block_size", 7), ("init_from", "itself"),
])
def test_what_is_not_listed_is_refused(key, value, halted):
    value = halted.path.name if value == "itself" else value
    with pytest.raises(CheckpointError, match=f"{key}: .* -> ") as caught:
        train(Scripted(), halted.root, run=halted, resume="last", **{key: value})
    assert f"put {key} back" in caught.value.remedy and halted.status["state"] == "stopped"
    with pytest.raises(CheckpointError, match="counts other steps"):
        train(Scripted(), halted.root, run=halted, resume="last", **{"optim.accumulate": 2})


CHANGES = {
    "weight_decay": 0.5, "optim.betas": (0.5, 0.6), "optim.eps": 1e-3, "optim.momentum": 0.5, "optim.step_rms": 0.7,
}


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
def test_settings_of_the_optimiser_are_those_recorded(name, tmp_path):
    """A resumed optimiser has the moments of the checkpoint and the settings of the configuration in force."""
    task = Scripted(steps=4, **{"optim.name": name, "optim.momentum": 0.9})
    run, cfg = train(task, tmp_path, [Halt(2)]).run, overlay(task.config, CHANGES)
    before, loop = set_up(task, task.config, run), set_up(task, cfg, run)
    for each in (before, loop):
        start_clock(each)
    restore(before, "last"), restore(loop, "last")

    def settings(optimizer):
        plain = [{k: v for k, v in g.items() if k not in ("params", "lr", "scale")} for g in optimizer.param_groups]
        return plain, {k: v for k, v in vars(optimizer).items() if k in ("momentum", "step_rms")}

    assert settings(loop.optimizer) == settings(make_optimizer(cfg.optim, loop.model)) != settings(before.optimizer)
    moments = [list(each.optimizer.state_dict()["state"].values()) for each in (before, loop)]
    assert moments[0] and all(torch.equal(a[k], b[k]) for a, b in zip(*moments) for k in a if torch.is_tensor(a[k]))


def test_another_monitored_scalar_has_a_best_of_its_own(tmp_path, capsys):
    task = Scripted(script=lambda step: step + 1.0, steps=6)
    run = train(task, tmp_path, [Halt(3)]).run
    assert run.status["best"] == 2.0
    again = train(task, tmp_path, run=run, resume="last", monitor="val/score", **{"stop.mode": "max"})
    assert (again.best, again.best_step) == (-5.0, 4) and "best and patience begin anew" in capsys.readouterr().out
    assert find_checkpoint(run.path / "checkpoints", "best").name == "step_00000004"
    changes = {"stop.monitor": ["val/loss", "val/score"], "stop.mode": ["min", "max"]}
    assert events(run, "start")[-1]["changes"] == changes


@pytest.mark.parametrize("kept", [True, False])
def test_best_belongs_to_what_is_resumed(kept, tmp_path, capsys):
    """Back at step 4, step 5 was never the best: step 3 is again, if it is still there; else the next evaluation is."""
    loss = {3: 3.0, 5: 1.0}
    task = Scripted(script=lambda step: loss.get(step, 9.0), steps=8, save_every=1 if kept else 2, save_total_limit=9)
    run = train(task, tmp_path, [Halt(6)]).run
    assert run.status["best_step"] == 5
    loss.pop(5)
    again = train(task, tmp_path, run=run, resume="step_4")
    folder = run.path / "checkpoints"
    assert (again.best, again.best_step) == ((3.0, 3) if kept else (9.0, 5))
    assert find_checkpoint(folder, "best").name == f"step_{again.best_step:08d}"
    assert ("best begins anew" in capsys.readouterr().out) is not kept
    assert holds(find_checkpoint(folder, "best"), again.best) and not holds(find_checkpoint(folder, "best"), 1.0)
    assert same_weights(again.model, run_weights(task, folder / f"step_{again.best_step:08d}"))


@pytest.mark.parametrize("damage", [Path.unlink, Path.touch, lambda path: path.write_text("{}")])
def test_lost_pointers_follow_what_was_resumed(damage, tmp_path):
    """Right after going back to step 4, neither `last` nor `best` is a checkpoint that came after it."""
    loss = {2: 2.0, 5: 1.0}

    def killed(step):
        if step > 2 and len(events(run, "start")) > 1:
            raise KeyboardInterrupt  # before anything is saved
        return 1.0

    task = Scripted(lambda step: loss.get(step, 9.0), killed, steps=8, save_every=1, save_total_limit=9)
    run = Run.create(task.config, tmp_path)
    train(task, tmp_path, [Halt(6)], run=run)
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path, run=run, resume="step_4")
    folder = run.path / "checkpoints"
    for name in ("last", "best"):
        damage(folder / f"{name}.json")
    assert [find_checkpoint(folder, name).name for name in ("last", "best")] == ["step_00000004", "step_00000002"]
    shutil.rmtree(folder / "step_00000004")
    assert find_checkpoint(folder, "last").name == "step_00000003", "not the newer ones of what was given up"
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path, run=run, resume="last", monitor="val/score", **{"stop.mode": "max"})
    damage(folder / "best.json")
    assert pointed(folder, "best") is None, "of another scalar nothing was best yet"


@pytest.mark.parametrize("clear", [clear_unnamed, lambda folder: prune_checkpoints(folder, {1, 2, 3, 4}, None)])
def test_a_checkpoint_without_its_successor_is_kept(clear, tmp_path):
    """Killed when the newest had been moved aside to be written again, and both pointers empty: it comes back."""
    task = Scripted(steps=6, save_every=1, save_total_limit=9)
    run = train(task, tmp_path, [Halt(4)]).run
    folder = run.path / "checkpoints"
    (folder / "step_00000004").rename(folder / ".step_00000004.old")
    for name in ("last", "best"):
        (folder / f"{name}.json").write_bytes(b"")
    clear(folder)
    assert read_checkpoint(folder / "step_00000004").manifest["step"] == 4


def run_weights(task, path):
    """The model of a checkpoint."""
    model = task.make()
    load_weights(model, read_checkpoint(path).weights(), path)
    return model


def test_before_any_best_there_is_none(tmp_path):
    """A best that came after the resumed step is forgotten, and a run that ends without one says so."""
    task = Scripted(script=lambda step: 1.0, steps=6, eval_every=4, save_every=2)
    run = train(task, tmp_path, [Halt(5)]).run
    assert run.status["best_step"] == 4
    again = train(task, tmp_path, [Halt(3)], run=run, resume="step_2")
    assert again.best is None and pointed(run.path / "checkpoints", "best") is None


def test_an_ended_run_stays_as_it_is(tmp_path, capsys):
    """Resumed unchanged, a run that stopped early or used up its budget says so; what it lacked lets it go on."""
    task = Scripted(script=lambda step: 1.0, steps=9, early_stopping=True, patience=3)
    run = train(task, tmp_path).run
    before = comparable(run)
    assert run.status["step"] == 4
    again = train(task, tmp_path, run=run, resume="last")
    assert again.step == 4 and again.reason.startswith("early stop") and comparable(run).equals(before)
    assert "had ended at step 4 (early stop" in capsys.readouterr().out and run.status["state"] == "finished"
    with pytest.raises(CheckpointError, match="budget.steps: 9 -> 12"):  # a larger budget is not what it lacked
        train(task, tmp_path, run=run, resume="last", steps=12)
    assert train(task, tmp_path, run=run, resume="last", patience=5).step == 6
    assert train(task, tmp_path, run=run, resume="last", early_stopping=False).step == 9
    assert "a larger budget goes on" not in capsys.readouterr().out
    assert train(task, tmp_path, run=run, resume="last", early_stopping=False).step == 9
    assert "had ended at step 9 (budget reached): a larger budget goes on" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match="resume at step 9.*\n.*8 steps"):
        train(task, tmp_path, run=run, resume="last", early_stopping=False, steps=8)
    assert run.status["state"] == "finished"


@pytest.mark.parametrize(("changes", "end"), [
    ({"lr": 0.5}, {}), ({"budget.max_minutes": 9.0}, {}), ({"steps": 12}, {"patience": 1, "early_stopping": True}),
])
def test_what_is_recorded_is_what_was_used(changes, end, tmp_path, capsys):
    """No step of a run that had ended would use a change: it is refused by name, and nothing says it was done."""
    task = Scripted(script=lambda step: 1.0 - 0.1 * step if not end else 1.0, steps=3, **end)
    run = train(task, tmp_path).run
    before = [(run.path / name).read_bytes() for name in ("config.yaml", "status.json", "metrics.jsonl")]
    with pytest.raises(CheckpointError, match="had ended") as caught:
        train(task, tmp_path, run=run, resume="last", **changes)
    named = difference(task.config, overlay(task.config, changes))
    assert named and all(key in caught.value.found for key in named) and "changed:" not in capsys.readouterr().out
    assert before == [(run.path / name).read_bytes() for name in ("config.yaml", "status.json", "metrics.jsonl")]
    again = train(task, tmp_path, run=run, resume="last", name="mine", restore_best=False)
    assert again.step == run.status["step"] and again.reason and run.config.name == "mine"


def test_what_a_change_does_is_told(tmp_path, capsys):
    """A pause by the clock is no new end; of a new end it is said."""
    run = train(Scripted(), tmp_path, [Halt(3)]).run
    train(Scripted(), tmp_path, run=run, resume="last", steps=14, **{"budget.max_minutes": 90.0})
    told = {line.split(":")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "changed:" in line}
    assert "learning rate" in told["budget.steps"] and "learning rate" not in told["budget.max_minutes"]
    assert "pause" in told["budget.max_minutes"]


def test_a_checkpoint_of_another_run(halted, tmp_path):
    """A path resumes from elsewhere; `last` and `best` stay names of the run's own checkpoints."""
    task = Scripted(steps=4)
    run = Run.create(task.config, tmp_path)
    done = train(task, tmp_path, run=run, resume=str(find_checkpoint(halted.path / "checkpoints", "last")))
    assert done.step == 4 and find_checkpoint(run.path / "checkpoints", "last").name == "step_00000004"
    assert same_weights(done.model, train(task, tmp_path).model)


def test_other_rules_of_early_stopping_count_from_here(tmp_path):
    """Patience that is lowered on resume is not used up by what was before; a new baseline must be beaten."""
    task = Scripted(script=lambda step: 1.0, steps=12, eval_every=1, **{"stop.enabled": True, "stop.patience": 9})
    halted = train(task, tmp_path, [Halt(5)])
    assert halted.run.status["best_step"] == 1
    again = train(task, tmp_path, run=halted.run, resume="last", **{"stop.patience": 2})
    assert (again.step, again.reason.split(":")[0]) == (7, "early stop")
    fussy = Scripted(script=lambda step: 1.0 - 0.01 * step, steps=9, **{"stop.enabled": True, "stop.patience": 2})
    ended = train(fussy, tmp_path, **{"stop.min_delta": 0.5})
    assert (ended.step, ended.reason.split(":")[0]) == (3, "early stop")
    again = train(fussy, tmp_path, run=ended.run, resume="last", **{"stop.min_delta": 0.001})
    assert again.step == 9 and again.run.status["state"] == "finished", "the change is done, not only noted"
    plain = Scripted(script=lambda step: 1.0, steps=12, eval_every=1, **{"stop.enabled": True, "stop.patience": 3})
    halted = train(plain, tmp_path, [Halt(2)])
    again = train(plain, tmp_path, run=halted.run, resume="last", **{"stop.baseline": 1e-4})
    assert (again.step, again.reason.split(":")[0]) == (5, "early stop")


def test_a_child_goes_on_without_its_parent(tmp_path):
    """Weights of another run begin a run; what goes on has its own."""
    task = Scripted(steps=6, save_every=2)
    parent = train(task, tmp_path).run
    child = train(task, tmp_path, [Halt(4)], init_from=parent.path.name).run
    shutil.rmtree(parent.path)
    assert train(task, tmp_path, run=child, resume="last", init_from=parent.path.name).step == 6
    with pytest.raises(ConfigError, match="init_from.*\n.*this run itself"):  # the newest run is by now the new one
        train(task, tmp_path, init_from="last")


def test_figures_of_what_was_given_up(tmp_path):
    """Back at step 2, the figures of step 6 are of another history: told by table, comparison and doctor."""
    task = Scripted(steps=6, save_every=2, save_total_limit=9)
    run = train(task, tmp_path).run
    evaluate(task, run, "val", "last")
    assert not given_up(run) and list(evaluation_table(run, "val").columns)[0] == "model"
    train(task, tmp_path, [Halt(4)], run=run, resume="step_2", lr=0.01)
    told = "of a checkpoint of step 6, which a later attempt gave up"
    assert given_up(run) == {"val": told}
    with pytest.warns(UserWarning, match=told):
        assert list(evaluation_table(run, "val").columns)[0] == f"model, {told}"
    assert comparison([run], "val").loc["figures"].tolist() == [told]
    examine_figures(found := Examination(run, mend=False))
    assert [(f.place, f.outcome) for f in found.findings] == [("evaluation.json", "noted")]
    train(task, tmp_path, run=run, resume="last", lr=0.01)
    evaluate(task, run, "val", "last")
    assert not given_up(run)
    told = []
    found = reproduce(run, task, write=told.append)
    assert found[0] == "resumed at step 2 with optim.lr: 0.05 -> 0.01", "what the reproduction lacks is named"
    assert "metrics.jsonl" in found[1] and told == ["\n".join(found)]
