"""One training in two processes, through the elastic launcher."""
import math

from nexuslab.config import overlay
from nexuslab.fit import Listener
from nexuslab.launch import train
from nexuslab.run import Run
from nexuslab.task import get_task


class Seen(Listener):
    """Keeps what it is told."""

    def __init__(self):
        self.rows = []

    def on_row(self, snapshot):
        self.rows.append(snapshot)

    def close(self):
        return


def test_two_processes_train_and_are_watched(home):
    task, seen = get_task("toy_tokens"), Seen()
    cfg = overlay(task.presets["smoke"](), {"processes": 2})
    task.prepare(cfg, home)
    result = train(task, cfg, Run.create(cfg, home), [seen])
    assert result.reason == "budget reached" and result.step == 20 and result.run.status["state"] == "finished"
    assert result.best < math.log(11)  # better than every token alike
    assert [row.step for row in seen.rows if row.evaluated] == [10, 20]  # the parent trains nothing and sees everything
