"""The contract, on every system and both toys."""
import pytest
import torch
from torch import nn

from nexuslab.config import Config
from nexuslab.contract import PROMISES, Case, check_task, two_processes_agree
from nexuslab.data import Tensors
from nexuslab.own import OwnTask
from nexuslab.task import get_task, list_tasks


def test_there_are_systems_to_check():
    assert {"toy_tokens", "toy_graphs"} <= set(list_tasks())


@pytest.mark.parametrize("name", list_tasks())
def test_contract(name, tmp_path):
    seen = check_task(get_task(name), tmp_path)
    assert len(seen) == len(PROMISES) >= 14 and "no figure besides the loss" not in seen["figures_have_rivals"]
    print(*(f"{k}: {v}" for k, v in seen.items()), sep="\n")


class Sometimes(nn.Module):
    """A line, a branch for some rows, and a layer that nothing uses."""

    def __init__(self):
        super().__init__()
        self.line, self.branch, self.never = nn.Linear(4, 1), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x):
        some = x[:, :1] > 0
        return self.line(x) + (self.branch(x) * some if some.any() else 0)


def squared_error(model, batch):
    return (model(batch[0]) - batch[1]).square().mean()


def test_a_module_may_rest_on_one_process(tmp_path):
    """One row of sixteen uses the branch: of two processes one has it, and the other's branch rests."""
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    x[:, 0] = -1.0
    x[3, 0] = 1.0
    rows = Tensors(x, x.sum(1, keepdim=True))
    cfg = Config(system="line", preset="smoke", budget={"epochs": 1}, loader={"batch_size": 8}, optim={"lr": 0.1})
    task = OwnTask("line", Sometimes, squared_error, rows, rows, cfg)
    said = two_processes_agree(Case(task, cfg, tmp_path, task.data(cfg, tmp_path)))
    assert said.endswith("2 parameters rest"), said
