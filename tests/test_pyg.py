"""Graphs of PyG, of one kind of nodes and of several, go everywhere a batch goes."""
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from tiny import Halt, same_weights
from torch import nn
from torch_geometric.data import Batch, Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import global_mean_pool

from nexuslab.batch import content, examples_of, leaves, to_device
from nexuslab.config import Config, overlay
from nexuslab.contract import PROMISES, check_task
from nexuslab.core import DataError
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.own import OwnTask
from nexuslab.run import Run
from nexuslab.task import At
from nexuslab.views import describe


def graph(i, several):
    """A graph of 2 to 5 nodes, whose target is the mean of its numbers; of papers and authors, or of nodes."""
    numbers = np.random.default_rng(i)
    x, y = (torch.from_numpy(numbers.normal(size=(2 + i % 4, n)).astype(np.float32)) for n in (3, 3))
    edges, target = torch.tensor([[0, 1], [1, 0]]), x.mean(0)[None, :1]
    if not several:
        return Data(x=x, edge_index=edges, y=target)
    found = HeteroData({"paper": {"x": x}, "author": {"x": y}, ("author", "writes", "paper"): {"edge_index": edges}})
    found.y = target
    return found


class Mean(nn.Module):
    """A line over the mean of the nodes."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(3, 1)

    def forward(self, batch):
        nodes = batch["paper"] if isinstance(batch, HeteroData) else batch
        return self.line(global_mean_pool(nodes.x, nodes.batch, batch.num_graphs))


class Rivals(OwnTask):
    def baselines(self, splits, split, cfg):
        return {"zero": {"loss": 1.0}}


def task(several, **changes):
    sets = [DataLoader([graph(i, several) for i in range(low, high)], batch_size=6, shuffle=low == 0)
            for low, high in ((0, 33), (40, 52), (60, 72))]
    settings = Config(system="pyg", preset="smoke", budget={"steps": 12}, optim={"lr": 0.1}, track={"log_every": 1})
    made = Rivals("pyg", Mean, lambda model, batch: (model(batch) - batch.y).square().mean(), *sets[:2],
                  overlay(settings, {"eval_every": 6, **changes}) if changes else settings, test=sets[2])
    made.presets = {"smoke": made.presets["base"]}
    return made


@pytest.mark.parametrize("several", [False, True])
def test_training_evaluation_and_contract(several, tmp_path):
    """Counted by graphs, cut into micro-batches, loaded by workers, resumed, evaluated, and held to the contract."""
    one = task(several)
    cfg = one.presets["smoke"]()
    splits = one.data(cfg, tmp_path)
    batch = splits.train.batch(np.arange(5), {}, torch.Generator())
    assert one.count_items(batch) == examples_of(batch) == 5 and one.step(one.make(), batch, cfg, At()).n == 5
    whole = fit(one, cfg, Run.create(cfg, tmp_path))
    assert whole.run.history()["train/loss"].iloc[-1] < whole.run.history()["train/loss"].iloc[0]
    cut = overlay(cfg, {"batch_size": 3, "optim.accumulate": 2})
    twice = fit(one, cut, Run.create(cut, tmp_path))
    for left, right in zip(whole.model.parameters(), twice.model.parameters()):
        assert torch.allclose(left, right, atol=1e-5)
    run = fit(one, cfg, Run.create(cfg, tmp_path), [Halt(5)]).run
    assert same_weights(fit(one, overlay(cfg, {"num_workers": 2}), run, resume="last").model, whole.model)
    assert np.isclose(evaluate(one, run)["loss"], evaluate(one, whole.run)["loss"])
    if several:
        seen = check_task(one, tmp_path, without=("two_processes_agree", "resume_with_workers"))
        assert len(seen) == len(PROMISES) - 2


@pytest.mark.parametrize("several", [False, True])
def test_moved_digested_and_shown(several):
    batch = Batch.from_data_list([graph(i, several) for i in range(3)])
    moved = to_device({"graphs": batch}, torch.device("meta"))["graphs"]
    assert {leaf.device.type for _, leaf in leaves(moved)} == {"meta"}
    assert {leaf.device.type for _, leaf in leaves(batch)} == {"cpu"}, "the batch itself stays where it was"
    same, other = (Batch.from_data_list([graph(i, several) for i in ids]) for ids in (range(3), range(1, 4)))
    assert content(batch) == content(same) != content(other)
    assert len(describe(batch)) == len(leaves(batch)) >= 4
    plt.close(task(several).show(batch, None, {}))


@pytest.mark.parametrize("nothing", [Data(), HeteroData()])
def test_a_graph_in_which_nothing_is_found_is_an_error(nothing):
    for look in (leaves, content, describe):
        with pytest.raises(DataError, match="nothing in it"):
            look(nothing)
