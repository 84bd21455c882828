"""Splits, orders and workers: functions of their keys, whatever else there is; and what is found in a batch."""
import collections
import dataclasses
import random

import numpy as np
import pytest
import torch
from torch_geometric.data import Batch, Data, HeteroData

from nexuslab import data
from nexuslab.config import Loader
from nexuslab.core import DataError
from nexuslab.batch import content, leaves, to_device
from nexuslab.data import Plan, Source, Tensors, load, split_by_hash
from nexuslab.views import describe

SHARES = (0.8, 0.1, 0.1)


def test_an_added_item_moves_no_other():
    keys = np.random.default_rng(0).integers(0, 2**64, 3001, dtype=np.uint64)
    side = split_by_hash(keys, SHARES, 5)
    for left_out in (0, 1500, 3000):
        rest = np.delete(np.arange(3001), left_out)
        assert np.array_equal(split_by_hash(keys[rest], SHARES, 5), side[rest])
    order = np.random.default_rng(1).permutation(3001)
    assert np.array_equal(split_by_hash(keys[order], SHARES, 5), side[order])


@pytest.mark.parametrize("keys", [np.arange(40_000), np.arange(40_000) * 2**20, -np.arange(40_000)])
def test_shares_hold_on_average_for_keys_of_any_kind(keys):
    sides = [split_by_hash(keys, SHARES, seed) for seed in (0, 1)]
    for side in sides:
        assert np.abs(np.bincount(side) / len(keys) - SHARES).max() < 0.01
    assert abs((sides[0] == sides[1]).mean() - (0.64 + 0.01 + 0.01)) < 0.01, "another seed, an independent split"


NUMBERS = np.arange(3)
WRONG = [(NUMBERS, (0.5, 0.6)), (NUMBERS, (1.5, -0.5)), (np.ones(3), SHARES), (np.array(["a"]), SHARES)]


@pytest.mark.parametrize("keys, shares", WRONG)
def test_shares_and_keys_that_cannot_be_are_refused(keys, shares):
    with pytest.raises(DataError):
        split_by_hash(keys, shares, 0)


# ---- workers


@pytest.mark.parametrize("workers, persistent", [(0, True), (2, True), (2, False)])
def test_an_epoch_is_shuffled_once(workers, persistent, monkeypatch):
    asked, shuffle = [], data.epoch_order

    def counted(size, seed, epoch, *how):
        asked.append(epoch)
        return shuffle(size, seed, epoch, *how)

    monkeypatch.setattr(data, "epoch_order", counted)
    plan = Plan(40, Loader(batch_size=2, num_workers=workers, persistent_workers=persistent), seed=0, accumulate=2)
    steps = load(Tensors(torch.arange(40)), plan, 5, 30)
    seen = [row.item() for micro in steps for _, (rows,) in micro for row in rows]
    assert asked == [0, 1, 2] and sorted(seen[20:60]) == list(range(40)) and len(seen) == 100


class Careless(Source):
    """Augments by the default generators of its process."""

    size = 16

    def batch(self, ids, setting, generator):
        return torch.rand(1).item(), np.random.random(), random.random()


def test_generators_of_workers_neither_repeat_nor_depend_on_the_workers():
    def drawn(start, workers, persistent):
        plan = Plan(16, Loader(batch_size=4, num_workers=workers, persistent_workers=persistent), seed=0)
        return [numbers for [(_, numbers)] in load(Careless(), plan, start, 12)]

    found = drawn(0, 2, False)
    for numbers in zip(*found):
        assert len(set(numbers)) == 12, "three epochs of four steps"
    assert found == drawn(0, 1, True) and found[5:] == drawn(5, 2, False)


# ---- what is in a batch


def papers(shift=0.0):
    """A graph of two kinds of nodes."""
    graph = HeteroData()
    graph["paper"].x, graph["author"].x = torch.ones(3, 2) + shift, torch.zeros(2, 2)
    graph["author", "writes", "paper"].edge_index = torch.tensor([[0, 1], [1, 2]])
    graph.year = torch.tensor([1999])
    return graph


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    """A frozen batch with a field that its constructor does not take."""

    x: torch.Tensor
    total: torch.Tensor = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "total", self.x.sum())


Pair = collections.namedtuple("Pair", "left right")
X, OTHER = torch.ones(3, 2), torch.zeros(3, 2)
EDGE = torch.tensor([[0, 1], [1, 2]])
KINDS = {
    "Data": (lambda x: Data(x=x, edge_index=EDGE), {"batch.x", "batch.edge_index"}),
    "Batch": (lambda x: Batch.from_data_list([Data(x=x), Data(x=x)]), {"batch.x", "batch.batch", "batch.ptr"}),
    "HeteroData": (
        lambda x: papers(x[0, 0]),
        {"batch._global_store.year", "batch.paper.x", "batch.author.x", "batch.author__writes__paper.edge_index"},
    ),
    "nested": (lambda x: {"graphs": [papers(x[0, 0])], "y": np.ones(2)}, None),
    "sparse": (lambda x: x.to_sparse_csr(), {"batch.crow_indices", "batch.col_indices", "batch.values"}),
    "namedtuple": (lambda x: Pair(x, "a name"), {"batch[0]"}),
    "UserDict": (lambda x: collections.UserDict(x=x), {"batch.x"}),
    "slots": (Slotted, {"batch.x", "batch.total"}),
    "bfloat16": (lambda x: x.bfloat16(), {"batch"}),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_batch_is_looked_into_and_moved(kind):
    make, paths = KINDS[kind]
    one, same, other = make(X), make(X.clone()), make(OTHER)
    found = {path for path, _ in leaves(one)}
    assert found == paths if paths else len(found) == 5
    assert content(one) == content(same) != content(other)
    assert set(describe(one)["name"]) == found
    moved = to_device(one, torch.device("meta"))
    assert type(moved) is type(one) and {path for path, _ in leaves(moved)} == found
    assert {leaf.device.type for _, leaf in leaves(moved) if isinstance(leaf, torch.Tensor)} == {"meta"}


@pytest.mark.parametrize("batch", [{"name": "a"}, [], HeteroData(), object(), Data()])
def test_a_batch_in_which_nothing_is_found_is_refused(batch):
    for look in (leaves, content, describe):
        with pytest.raises(DataError, match="nothing in it"):
            look(batch)
