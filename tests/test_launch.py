"""Two processes train as one does, at odd sizes; and through the launcher: watched, killed, resumed."""
import logging
import math
import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch
from tiny import comparable, events, same_weights
from together import MAKERS, POISONED, group_of_two, made, outcome

from nexuslab.checkpoint import open_checkpoint
from nexuslab.config import flatten, overlay, resolve
from nexuslab.core import CheckpointError, ConfigError, RunError, TrainingError
from nexuslab.fit import fit
from nexuslab.jobs import main
from nexuslab.launch import train
from nexuslab.listen import Listener
from nexuslab.reproduce import reproduce
from nexuslab.run import Run
from nexuslab.task import get_task

pytestmark = pytest.mark.xdist_group("launch")  # one worker: groups are started once

TASK = get_task("toy_tokens")
CONFIG = resolve(
    TASK, "smoke",
    {
        "processes": 2, "threads": 1, "steps": 240, "eval_every": 120, "save_every": 20, "log_every": 10,
        "restore_best": False,
    },
)

ALIKE = [name for name in MAKERS if name not in ("memory refused", "poisoned")]  # those that end well


def prepared(name, root, processes):
    """A run directory for a case whose data is there."""
    task, cfg = made(name, processes)
    task.prepare(cfg, root)
    return Run.create(cfg, root)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Case -> its outcome in one process, and its run."""
    root = tmp_path_factory.mktemp("alone")
    runs = {name: prepared(name, root, 1) for name in MAKERS}
    return {name: (outcome(name, run.path, 1), run) for name, run in runs.items()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory, alone):
    """Case -> its outcome on both processes of a group, and its run; some runs are resumed in the group besides."""
    root, folder = tmp_path_factory.mktemp("pair"), tmp_path_factory.mktemp("group")
    runs = {name: prepared(name, root, 2) for name in MAKERS}
    jobs = [(name, run.path, None) for name, run in runs.items()]
    again, taken_over = (prepared("toy_tokens", root, n) for n in (2, 1))
    outcome("toy_tokens", taken_over.path, 1)
    resumed = {"resumed": again, "taken over": taken_over}
    jobs += [("toy_tokens", path, resume) for path, resume in (
        (again.path, None), (again.path, "step_3"), (taken_over.path, "step_3"))]
    found = group_of_two(jobs, folder)
    done = {name: (outs, runs[name]) for name, outs in zip(runs, found)}
    return done | {name: (outs, resumed[name]) for name, outs in zip(resumed, found[-2:])}


def assert_close(one, many):
    """Two results or snapshots are equal, their figures within 1e-5."""
    assert one.keys() == many.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            assert_close(value, many[key])
        elif isinstance(value, float):
            assert many[key] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), key
        else:
            assert many[key] == value, key


@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_do_what_one_does(name, alone, pair):
    """The same cadence, events, figures, weights, result and configuration."""
    (one, run), ((first, second), many) = alone[name], pair[name]
    rows, others = comparable(run), comparable(many)
    assert list(rows) == list(others) and rows[["step", "epoch"]].equals(others[["step", "epoch"]])
    told = [[e["event"] for e in r.events() if e["event"] in ("start", "nonfinite", "end")] for r in (run, many)]
    assert told[0] == told[1] and run.status["state"] == many.status["state"] == "finished"
    assert [r[:4] for r in one["rows"]] == [r[:4] for r in first["rows"]] and second["rows"] == []  # one process tells
    settings, changed = flatten(run.tree), flatten(many.tree)
    assert {k for k in settings if settings[k] != changed[k]} == {"compute.processes", "optim.accumulate"}
    assert same_tensors(first["weights"], second["weights"])  # buffers included: both evaluate the same model
    weights = {k: v for k, v in one["weights"].items() if "running" not in k and "tracked" not in k}
    torch.testing.assert_close(weights, {k: first["weights"][k] for k in weights}, rtol=1e-4, atol=1e-6)
    if name != "running statistics":  # those of the first process's micro-batches, not of all
        np.testing.assert_allclose(rows.to_numpy(float), others.to_numpy(float), rtol=1e-5, atol=1e-6, equal_nan=True)
        assert_close(one["result"], first["result"])
        assert one["rows"] == first["rows"]


def same_tensors(a, b) -> bool:
    """Whether two state dictionaries are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_same_examples_in_the_same_steps(alone, pair, tmp_path):
    """An epoch of 33 examples is five micro-batches, which the processes take in turns; the fifth has one example."""
    micro = alone["line"][0]["asked"]
    assert len(micro) == 15 and [len(ids) for ids in micro[:5]] == [8, 8, 8, 8, 1]
    shares = [[m for i, m in enumerate(micro) if i % 5 % 2 == r] for r in (0, 1)]
    assert [out["asked"] for out in pair["line"][0]] == shares
    task, cfg = made("line", 1)
    doubled = overlay(cfg, {"batch_size": 16, "optim.accumulate": 1})
    whole = comparable(fit(task, doubled, Run.create(doubled, tmp_path)).run)
    parts = comparable(pair["line"][1]).to_numpy(float)
    np.testing.assert_allclose(whole.to_numpy(float), parts, rtol=1e-5, equal_nan=True)


def test_what_one_process_lacks_all_know(pair):
    """Memory of the second process alone: all halve, or all refuse; a NaN of one: all stop and name its examples."""
    assert [e["split"] for e in events(pair["memory"][1], "halved")] == [2]
    for name, text in (("memory refused", "out of memory at step 0"), ("poisoned", "non-finite loss part loss")):
        outs, run = pair[name]
        assert all(out["error"].startswith(f"TrainingError: {text}") for out in outs)
        assert run.status["state"] == "failed" and run.status["reason"] == outs[0]["error"]
    [event] = events(pair["poisoned"][1], "nonfinite")
    assert POISONED in event["ids"] and len(event["ids"]) == 8
    assert pair["poisoned"][0][1]["error"] == run.status["reason"]


def test_a_resumed_group_counts_once(pair):
    """Resumed in the middle of a row: weights and record are those of the group that was not, bit for bit."""
    (whole, _), run = pair["toy_tokens"]
    (again, _), resumed = pair["resumed"]
    assert [e["step"] for e in events(resumed, "start")] == [0, 3]
    assert same_tensors(whole["weights"], again["weights"]) and comparable(resumed).equals(comparable(run))


def test_processes_may_change_and_steps_may_not(alone, pair, tmp_path):
    """One process hands over to two and two to one; a step of other micro-batches is refused by name."""
    record = comparable(alone["toy_tokens"][1]).to_numpy(float)
    run = pair["resumed"][1]
    task, cfg = made("toy_tokens", 1)
    fit(task, cfg, run, resume="step_3")
    for resumed in (pair["taken over"][1], run):
        np.testing.assert_allclose(comparable(resumed).to_numpy(float), record, rtol=1e-5, equal_nan=True)
    with pytest.raises(CheckpointError, match="1 micro-batches a step.*\n.*expected: 2.*\n.*product is 2"):
        fit(task, overlay(cfg, {"optim.accumulate": 1}), run, resume="last")
    with pytest.raises(ConfigError, match="compute.processes\n.*found: 2, and 1 process.*\n.*\n.*launch.train"):
        fit(task, overlay(cfg, {"processes": 2}), Run.create(cfg, tmp_path))


class Seen(Listener):
    """Keeps what it is told."""

    def __init__(self):
        self.rows, self.closed = [], False

    def on_row(self, snapshot):
        self.rows.append(snapshot)

    def close(self):
        self.closed = True


class Terminator(Seen):
    """Asks this process to end, once."""

    def on_row(self, snapshot):
        super().on_row(snapshot)
        if len(self.rows) == 3:
            os.kill(os.getpid(), signal.SIGINT)


class Killer(Seen):
    """Kills one of the workers once, when a checkpoint is there to go on from."""

    def __init__(self, run: Run, rank: int):
        super().__init__()
        self.run, self.rank, self.began, self.killed_at = run, rank, time.time(), None

    def on_row(self, snapshot):
        super().on_row(snapshot)
        if self.killed_at is None and (self.run.path / "checkpoints" / "last.json").exists():
            first = self.run.status["pid"]
            others = [
                p.pid for p in psutil.Process().children()
                if p.pid != first and p.create_time() >= self.began - 1 and "spawn_main" in " ".join(p.cmdline())
            ]
            victim = first if self.rank == 0 else others[0]
            assert self.run.status["state"] == "running" and len(others) == 1
            os.kill(victim, signal.SIGKILL)
            self.killed_at = snapshot.step


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run of two processes that nothing disturbed, and what its parent was told."""
    root, seen = tmp_path_factory.mktemp("launch"), Seen()
    TASK.prepare(CONFIG, root)
    return train(TASK, CONFIG, Run.create(CONFIG, root), [seen]), seen


def test_two_processes_train_and_are_watched(undisturbed):
    result, seen = undisturbed
    assert result.reason == "budget reached" and result.step == 240 and result.run.status["state"] == "finished"
    assert result.best < math.log(11)  # better than every token alike
    # the parent trains nothing and sees everything
    assert [row.step for row in seen.rows if row.evaluated] == [120, 240]
    assert seen.rows[11].note == "new best" and seen.closed
    assert "val/loss" in result.metrics and result.metrics.items() <= seen.rows[-1].scalars.items()


def test_a_killed_worker_is_started_again(undisturbed):
    """The first process, which writes everything, is killed: the group starts again from the last checkpoint and ends
    as if nothing had happened."""
    whole, _ = undisturbed
    run = Run.create(CONFIG, whole.run.root)
    killer = Killer(run, rank=0)
    result = train(TASK, CONFIG, run, [killer])
    begun = events(run, "start")
    assert killer.killed_at < 240 and [e["attempt"] for e in begun] == [0, 1] and begun[1]["step"] >= 20
    assert begun[1]["step"] % 20 == 0
    assert result.step == 240 and run.status["state"] == "finished" and run.status["attempt"] == 1
    assert same_weights(result.model, whole.model) and comparable(run).equals(comparable(whole.run))


def test_without_restarts_it_is_an_error_that_tells_how_to_go_on(undisturbed):
    """The second process is killed and nobody may start it again: a named error, and a sound checkpoint to resume from.
    """
    run = Run.create(CONFIG, undisturbed[0].run.root)
    killer = Killer(run, rank=1)
    with pytest.raises(TrainingError, match=f"worker .*: .*\n.*\n.*resume={run.path.name}"):
        train(TASK, CONFIG, run, [killer], restarts=0)
    assert killer.killed_at < 240 and run.status["state"] == "failed" and run.status["step"] < 240
    assert "worker 1" in run.status["reason"] and "SIGKILL" in run.status["reason"]
    kept = open_checkpoint(run.path / "checkpoints", "last").manifest["step"]
    assert kept >= 20
    seen = Seen()
    result = train(TASK, CONFIG, run, [seen], resume="last")
    assert [row.step for row in seen.rows] == list(range(kept + 10 - kept % 10, 241, 10))  # nothing is told twice
    assert same_weights(result.model, undisturbed[0].model)  # the last weights: neither the best nor the average


def test_a_refused_trainer_changes_nothing(undisturbed):
    """A run that another process holds: its configuration stays, its rows are not told."""
    run, seen = undisturbed[0].run, Seen()
    before = {name: (run.path / name).read_bytes() for name in ("config.yaml", "status.json", "metrics.jsonl")}
    with run.exclusive(), pytest.raises(RunError, match="another process is training"):
        train(TASK, overlay(CONFIG, {"lr": 1.0}), run, [seen], resume="last")
    assert not seen.rows and all((run.path / name).read_bytes() == content for name, content in before.items())


def test_a_refusal_is_not_tried_again(undisturbed):
    """What one process refuses, a group refuses in the same words, once."""
    cfg = overlay(CONFIG, {"monitor": "val/nosuch", "eval_every": 2, "steps": 4})
    said = []
    for processes in (1, 2):
        run = Run.create(cfg, undisturbed[0].run.root)
        with pytest.raises(ConfigError, match="val/nosuch") as refused:
            train(TASK, overlay(cfg, {"processes": processes}), run)
        said.append(str(refused.value))
        assert not events(run, "start") and run.status["state"] == "failed"
        assert run.status["reason"] == f"ConfigError: {said[0]}"
    assert said[0] == said[1]


class Told(logging.Handler):
    """Keeps what a logger is told."""

    def __init__(self, name: str):
        super().__init__()
        self.lines = []
        logging.getLogger(name).addHandler(self)

    def emit(self, record):
        self.lines.append(record.getMessage())


def test_a_signal_reaches_the_workers(undisturbed):
    """Ctrl-C to the process that waits: the workers save and end, and the result says so, as that of one does."""
    run, told = Run.create(CONFIG, undisturbed[0].run.root), Told("torch.distributed.elastic.multiprocessing.api")
    result = train(TASK, CONFIG, run, [Terminator()])
    assert result.reason == run.status["reason"] == "interrupted by SIGINT" and run.status["state"] == "interrupted"
    assert 30 <= result.step < 240 and open_checkpoint(run.path / "checkpoints", "last").manifest["step"] == result.step
    assert len(told.lines) >= 2 and not [t for t in told.lines if "forcefully" in t]  # they end by themselves


def test_a_run_of_two_comes_out_again(undisturbed, capsys):
    """The command trains with as many processes as the run had; one process refuses."""
    run = undisturbed[0].run
    with pytest.raises(ConfigError, match="launch.train"):
        reproduce(run)
    assert main(["reproduce", str(run.path)]) == 0 and "nothing differs" in capsys.readouterr().out
