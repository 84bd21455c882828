"""A task that carries a state which the tests can compute: the sum of the windows that a row has read."""
from collections import defaultdict

import numpy as np
import torch
from tiny import Scripted

from nexuslab.data import Consecutive, Tensors
from nexuslab.task import HasState, StepOut

LENGTH = 5  # windows of a document


class Windows(Tensors, Consecutive):
    """Example i holds the number i, beside the inputs and targets of a line."""

    asked = ()

    def begins(self, ids):
        return np.asarray(ids) % LENGTH == 0


class Summing(Scripted, HasState):
    """Hands on the sum of the numbers of the windows so far, on which its loss depends, and remembers what it got."""

    def __init__(self, keep=lambda i: True, **changes):
        super().__init__(**{"loader.shuffle": "none", **changes})
        self.sources = [Windows(*source.tensors, torch.arange(float(source.size))) for source in self.sources]
        self.given, self.keep = defaultdict(dict), keep

    def initial_state(self, model, rows):
        return {"sum": [torch.zeros(rows, 1)]}

    def kept(self, batch):
        return torch.tensor([self.keep(i) for i in range(self.sources[0].size)])[batch[2].nan_to_num().int()]

    def count_items(self, batch):
        return float(self.kept(batch).sum())

    def step(self, model, batch, cfg, at):
        [before] = at.state["sum"]
        for i, row in zip(at.ids.tolist(), before[:, 0].tolist()):
            self.given["train" if at.training else "val"].setdefault((at.step, i), row)
        error = (model(batch[0]) - batch[1] + 0.01 * before)[self.kept(batch)].square().mean()
        return StepOut(error, self.count_items(batch), state={"sum": [before + batch[2][:, None]]})
