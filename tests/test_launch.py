"""One training in two processes, through the elastic launcher: watched, killed, started again."""
import math
import os
import signal
import time

import psutil
import pytest
from tiny import comparable, events, same_weights

from nexuslab.checkpoint import open_checkpoint
from nexuslab.config import resolve
from nexuslab.core import TrainingError
from nexuslab.fit import Listener
from nexuslab.launch import train
from nexuslab.run import Run
from nexuslab.task import get_task

pytestmark = pytest.mark.xdist_group("launch")  # one worker: the undisturbed run is made once

TASK = get_task("toy_tokens")
CONFIG = resolve(TASK, "smoke", {"processes": 2, "threads": 1, "steps": 240, "eval_every": 120, "save_every": 20, "log_every": 10, "restore_best": False})


class Seen(Listener):
    """Keeps what it is told."""

    def __init__(self):
        self.rows = []

    def on_row(self, snapshot):
        self.rows.append(snapshot)

    def close(self):
        return


class Killer(Seen):
    """Kills one of the workers once, when a checkpoint is there to go on from."""

    def __init__(self, run: Run, rank: int):
        super().__init__()
        self.run, self.rank, self.began, self.killed_at = run, rank, time.time(), None

    def on_row(self, snapshot):
        super().on_row(snapshot)
        if self.killed_at is None and (self.run.path / "checkpoints" / "last.json").exists():
            first = self.run.status["pid"]
            others = [p.pid for p in psutil.Process().children() if p.pid != first and p.create_time() >= self.began - 1 and "spawn_main" in " ".join(p.cmdline())]
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
    assert [row.step for row in seen.rows if row.evaluated] == [120, 240]  # the parent trains nothing and sees everything


def test_a_killed_worker_is_started_again(undisturbed):
    """The first process, which writes everything, is killed: the group starts again from the last checkpoint and ends as if nothing had happened."""
    whole, _ = undisturbed
    run = Run.create(CONFIG, whole.run.root)
    killer = Killer(run, rank=0)
    result = train(TASK, CONFIG, run, [killer])
    begun = events(run, "start")
    assert killer.killed_at < 240 and [e["attempt"] for e in begun] == [0, 1] and begun[1]["step"] >= 20 and begun[1]["step"] % 20 == 0
    assert result.step == 240 and run.status["state"] == "finished" and run.status["attempt"] == 1
    assert same_weights(result.model, whole.model) and comparable(run).equals(comparable(whole.run))


def test_without_restarts_it_is_an_error_that_tells_how_to_go_on(undisturbed):
    """The second process is killed and nobody may start it again: a named error, and a sound checkpoint to resume from."""
    run = Run.create(CONFIG, undisturbed[0].run.root)
    killer = Killer(run, rank=1)
    with pytest.raises(TrainingError, match=f"worker .*: .*\n.*\n.*resume={run.path.name}"):
        train(TASK, CONFIG, run, [killer], restarts=0)
    assert killer.killed_at < 240 and run.status["state"] in ("failed", "interrupted") and run.status["step"] < 240
    assert open_checkpoint(run.path / "checkpoints", "last").manifest["step"] >= 20
