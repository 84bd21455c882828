"""The smallest training there is, with losses that follow a script: what the tests of the engine's options are made of.
"""
import math

import numpy as np
import torch
from torch import nn

from nexuslab.config import Checkpoint, Config, Optim, Schedule, Track, overlay
from nexuslab.data import Tensors
from nexuslab.fit import fit
from nexuslab.listen import Listener
from nexuslab.own import OwnTask
from nexuslab.metrics import Part
from nexuslab.run import Run
from nexuslab.task import StepOut


class Watched(Tensors):
    """Tensors that remember which examples were asked for."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.asked = []

    def batch(self, ids, setting, generator):
        self.asked.append(np.asarray(ids).tolist())
        return super().batch(ids, setting, generator)


def points(n: int, seed: int, dtype=torch.float32) -> Watched:
    """n points of a line in three dimensions."""
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Watched(x.to(dtype), (x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)).to(dtype))


class Scripted(OwnTask):
    """A linear regression whose validation loss is `script(step)` and whose training loss is multiplied by
    `factor(step)`."""

    def __init__(self, script=None, factor=None, dtype=torch.float32, make=None, train=32, val=8, **changes):
        budget = {"epochs": changes.pop("epochs")} if "epochs" in changes else {"steps": changes.pop("steps", 12)}
        base = Config(
            system="tiny", budget=budget, schedule=Schedule(name="constant"), track=Track(log_every=1),
            optim=Optim(name="sgd", lr=0.05, momentum=0.0, weight_decay=0.0, clip=None),
            checkpoint=Checkpoint(save_minutes=None),
        )
        config = overlay(base, {"batch_size": 8, **changes})
        super().__init__(
            "tiny", make or (lambda: nn.Linear(3, 1, dtype=dtype)),
            lambda model, batch: (model(batch[0]) - batch[1]).square().mean(), points(train, 1, dtype),
            points(val, 2, dtype), config,
        )
        self.script, self.factor, self.config = script, factor, config

    def step(self, model, batch, cfg, at):
        out = super().step(model, batch, cfg, at)
        if at.training:
            return StepOut(out.loss * self.factor(at.step), out.n) if self.factor else out
        if self.script is None:
            return out
        value = torch.tensor(float(self.script(at.step)))
        return StepOut(value, out.n, {"score": Part(-value, out.n, weight=0.0)})


class Halt(Listener):
    """Asks to stop at a step, and keeps every row it was shown."""

    def __init__(self, step: int = 10**9, look=lambda snapshot: None):
        self.step, self.rows, self.look, self.closed = step, [], look, False

    def on_row(self, snapshot):
        self.rows.append(snapshot)
        self.look(snapshot)
        return f"asked to stop at {snapshot.step}" if snapshot.step >= self.step else None

    def close(self):
        self.closed = True


def train(task, root, listeners=(), run=None, resume=None, **changes):
    """`fit` in a fresh run, or in one that exists."""
    cfg = overlay(task.config, changes) if changes else task.config
    run = run or Run.create(cfg, root)
    return fit(task, cfg, run, listeners, resume=resume)


def rates(run) -> list[float]:
    """The learning rates of a run, step by step."""
    return run.history()["train/learning_rate"].tolist()


def events(run, name: str) -> list[dict]:
    """The events of one name."""
    return [e for e in run.events() if e["event"] == name]


def same_weights(a, b) -> bool:
    """Whether two models are equal bit for bit."""
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def comparable(run):
    """The record without times, speeds and memory."""
    history = run.history()
    return history[[c for c in history if c in ("step", "epoch") or ("/" in c and not c.startswith("system/"))]]


def is_nan(value) -> bool:
    return isinstance(value, float) and math.isnan(value)
