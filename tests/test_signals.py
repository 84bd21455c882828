"""Jobs that are asked to end, or die: nothing is lost, and the last line names the command that goes on."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import Scripted, comparable, same_weights, train

from nexuslab.config import resolve
from nexuslab.core import Interrupted
from nexuslab.fit import fit
from nexuslab.kernels import exit_code
from nexuslab.plans import stop_if_interrupted
from nexuslab.run import Run, find_runs, read_rows
from nexuslab.task import get_task

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STEPS, LATEST = 600, 300  # of a training, and the latest step at which a signal is sent
TASK = get_task("toy_tokens")
CHANGES = {"steps": STEPS, "eval_every": 100, "log_every": 1, "restore_best": False}
TRAIN = ["--steps", str(STEPS), "--no-restore-best", "-o", "eval_every=100", "-o", "log_every=1"]


class Job:
    """A command that runs, and the run directory that it makes or goes on with."""

    def __init__(self, home: Path, command: list, run: Path | None = None, cwd: Path = ROOT):
        self.known, self.run, self.home = {r.path for r in find_runs(home)}, run, home
        self.process = subprocess.Popen(
            [BIN / command[0], *command[1:]], cwd=cwd, env=os.environ | {"NEXUSLAB_HOME": str(home)}, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )

    def reach(self, step: int) -> None:
        """Wait until a step has been recorded by this attempt."""
        attempt, end = self.run and Run(self.run).status["attempt"] + 1, time.time() + 200
        while time.time() < end and self.process.poll() is None:
            fresh = [r.path for r in find_runs(self.home) if r.path not in self.known]
            self.run = self.run or (fresh[0] if fresh else None)
            rows = read_rows(self.run / "metrics.jsonl")[0] if self.run else []
            if rows and rows[-1]["attempt"] == (attempt or 0) and rows[-1]["step"] >= step and "event" not in rows[-1]:
                return
            time.sleep(0.01)
        raise AssertionError(f"step {step} was not reached: {self.process.communicate()[0][-3000:]}")

    def end(self) -> tuple[int, list[str]]:
        """The exit status, and the lines that were printed."""
        text = self.process.communicate(timeout=200)[0]
        return self.process.returncode, text.strip().splitlines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A training that nothing disturbed."""
    cfg = resolve(TASK, "smoke", CHANGES)
    home = tmp_path_factory.mktemp("undisturbed")
    return fit(TASK, cfg, Run.create(cfg, home))


def interrupt(job: Job, number: int, step: int) -> None:
    """Send a signal to the command alone, and check what it leaves: a checkpoint of the step where it stopped."""
    job.reach(step)
    job.process.send_signal(number)
    code, lines = job.end()
    status = Run(job.run).status
    assert code == 128 + number, lines
    assert status["state"] == "interrupted" and status["step"] >= step, (status, lines)
    assert status["reason"] == f"interrupted by {signal.Signals(number).name}"
    assert json.loads((job.run / "checkpoints" / "last.json").read_text())["step"] == status["step"]
    assert lines[-1] == f"  do: nexuslab train --resume {job.run.name}"
    assert not [line for line in lines if "Traceback" in line or "eavesdropping" in line]


def finish(home: Path, run: Path, whole) -> None:
    """Resume by the command, and compare with the undisturbed training."""
    job = Job(home, ["nexuslab", "train", "--resume", run.name])
    code, lines = job.end()
    assert code == 0 and Run(run).status["state"] == "finished", lines
    assert same_weights(Run(run).load("last")[0], whole.run.load("last")[0])
    assert comparable(Run(run)).equals(comparable(whole.run))


START = ["nexuslab", "train", "--system", "toy_tokens", "--preset", "smoke", *TRAIN]


@pytest.mark.parametrize("place", ["model", "step"])
def test_an_exception_of_a_signal_is_an_interruption(tmp_path, place):
    """A second Ctrl-C, or a signal while everything is set up: nothing is saved, and the state is no failure."""
    def unwound(*_, **__):
        raise KeyboardInterrupt("SIGTERM")

    task = Scripted()
    setattr(task, place, unwound)
    with pytest.raises(KeyboardInterrupt):
        train(task, tmp_path)
    status = find_runs(tmp_path)[0].status
    assert (status["state"], status["reason"]) == ("interrupted", "KeyboardInterrupt: SIGTERM")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_status_and_the_record_name_the_signal(tmp_path, number):
    """A signal to the process that trains: the step is finished and saved, and what was heard is told."""
    task = Scripted(factor=lambda step: 1.0 if step != 5 else os.kill(os.getpid(), number) or 1.0)
    before = signal.signal(number, signal.default_int_handler)  # background jobs may ignore it
    try:
        result = train(task, tmp_path)
    finally:
        assert signal.signal(number, before) is signal.default_int_handler
    told = f"interrupted by {number.name}"
    status = result.run.status
    assert (result.reason, status["reason"], status["state"], status["step"]) == (told, told, "interrupted", 6)
    assert result.run.events()[-1]["reason"] == told and result.run.checkpoint("last").name == "step_00000006"
    with pytest.raises(Interrupted) as caught:
        stop_if_interrupted(result.run)
    assert exit_code(caught.value) == 128 + number


@pytest.mark.xdist_group("signals")
def test_interrupted_and_killed_it_ends_with_the_same_weights(home, undisturbed):
    """SIGTERM to the command, then the kernel killed."""
    draw = random.Random(0)
    job = Job(home, START)
    interrupt(job, signal.SIGTERM, draw.randint(1, LATEST))
    killed = Job(home, ["nexuslab", "train", "--resume", job.run.name], job.run)
    killed.reach(Run(job.run).status["step"] + 10)
    os.kill(Run(job.run).status["pid"], signal.SIGKILL)
    code, lines = killed.end()
    assert code == 2 and Run(job.run).status["state"] == "died"
    assert "signal 9" in "\n".join(lines) and lines[-1] == f"  do: nexuslab train --resume {job.run.name}"
    assert not [line for line in lines if "Traceback" in line]
    finish(home, job.run, undisturbed)


@pytest.mark.skipif(not os.environ.get("NEXUSLAB_TEN_SIGNALS"), reason="ten trainings: set NEXUSLAB_TEN_SIGNALS=1")
@pytest.mark.parametrize("moment", range(10))
def test_ten_random_moments(home, undisturbed, moment):
    """SIGTERM to the command at a random step, then --resume."""
    job = Job(home, START)
    interrupt(job, signal.SIGTERM, random.Random(moment).randint(1, LATEST))
    finish(home, job.run, undisturbed)


@pytest.mark.xdist_group("signals")
def test_papermill_itself_from_another_folder(home, tmp_path):
    """papermill called by hand passes Ctrl-C on as well; an output that was asked for is kept."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    words = [str(ROOT / "nbs" / "03_train.ipynb"), "mine.ipynb", "-p", "system", "toy_tokens", "-p", "preset", "smoke"]
    job = Job(home, ["papermill", *words, "-p", "steps", str(STEPS), "-y", "overrides: {log_every: 1}"], cwd=place)
    interrupt(job, signal.SIGINT, 5)
    assert [p.name for p in place.iterdir()] == ["mine.ipynb"] and (job.run / "report.ipynb").exists()
