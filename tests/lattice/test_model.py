"""The network: its recurrence, its heads, what it can and cannot learn."""
import numpy as np
import pytest
import torch
from nexuslab.core import NexusError
from nexuslab.systems.lattice.batch import collate, flat
from nexuslab.systems.lattice.circuit import LINEAR, draw_circuits, edge_features, node_features
from nexuslab.systems.lattice.data import Plan, make_block, profile_of
from nexuslab.systems.lattice.loss import losses
from nexuslab.systems.lattice.model import (
    AdvancedGNNOptimizer, AlongTheOrder, place_shares, predict_circuits, propose,
)

SMALL = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def arrays():
    return flat(make_block((0, 250, False), Plan(250, nodes=(5, 60), seed=5)))


def batch_of(arrays, ids):
    return collate(arrays, np.asarray(ids), profile_of("rlwe").axes)


def test_the_recurrence_is_the_growth_at_every_node(arrays):
    batch = batch_of(arrays, np.arange(250))
    step = 2 * batch.edge_attr[:, 3:].abs().log()
    gain = torch.from_numpy(LINEAR[batch.x[:, :7].argmax(1)]).float()[:, None]
    found = AlongTheOrder.apply(step, gain, torch.zeros_like(gain), batch)[:, 0]
    largest = torch.full((250,), -1.0).scatter_reduce(0, batch.graph, found, "amax")
    assert torch.allclose(largest, batch.growth.clamp(max=60), atol=1e-3)


def test_outputs_do_not_depend_on_the_others_of_a_batch(arrays):
    torch.manual_seed(0)
    model = AdvancedGNNOptimizer(**SMALL).eval()
    with torch.no_grad():
        together, alone = model(batch_of(arrays, [3, 1, 2])), model(batch_of(arrays, [1]))
    for name in ("hardness", "degree", "modulus", "nothing", "width"):
        assert torch.allclose(getattr(together, name)[1:2], getattr(alone, name), atol=1e-4), name


def test_numbering_of_nodes_does_not_matter():
    rng, model = np.random.default_rng(0), AdvancedGNNOptimizer(**SMALL).eval()
    one = draw_circuits(rng, [50])
    order = rng.permutation(50)
    rank = np.argsort(order)
    other = type(one)(one.gate[order], rank[one.source], rank[one.target], one.kind, one.weight, one.node_offset,
                      one.edge_offset)
    a, b = (predict_circuits(model, c, 192)[0] for c in (one, other))
    assert a == b


def test_growth_is_read_by_its_preset_alone(arrays):
    from dataclasses import replace

    batch = batch_of(arrays, np.arange(20))
    other = replace(batch, growth=batch.growth + 3, told=batch.told + 1, places=batch.places * 0,
                    metrics=batch.metrics + 1)
    for growth in (False, True):
        torch.manual_seed(0)
        model = AdvancedGNNOptimizer(**SMALL, growth=growth).eval()
        with torch.no_grad():
            same = torch.equal(model(batch).hardness, model(other).hardness)
        assert same == (not growth)


def test_proposals_are_on_the_safe_side(arrays):
    torch.manual_seed(0)
    batch, sizes = batch_of(arrays, np.arange(40)), [6, 40, 29]
    model = AdvancedGNNOptimizer(**SMALL).eval()
    with torch.no_grad():
        out = model(batch)
    bold, careful = [], []
    for caution, found in ((0.5, bold), (0.99, careful)):
        model.caution = caution
        found.append(propose(model, out, batch.level).places)
    assert (careful[0][:, 1] >= bold[0][:, 1]).all() and (careful[0][:, 1] > bold[0][:, 1]).any()
    assert (careful[0] < sizes).all() and torch.allclose(place_shares(out.modulus).sum(2), torch.ones(40, 6), atol=1e-5)


def test_thirty_two_circuits_are_learnt_by_heart(arrays):
    """R2 above 0.99: the network and its loss can say what they should."""
    ids = np.flatnonzero(arrays["feasible"] & (arrays["circuit_depth"] <= 8))[:32]
    batch = batch_of(arrays, ids)
    assert len(np.unique(arrays["q"][ids])) >= 5 and len(np.unique(arrays["n"][ids])) == 3
    torch.manual_seed(0)
    model = AdvancedGNNOptimizer(**SMALL)
    optimizer = torch.optim.Adam(model.parameters(), 2e-2, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        parts = losses(model, batch, model(batch))
        optimizer.zero_grad()
        weight = {"param_loss": 1.0, "metrics_loss": 20.0}
        sum(weight.get(name, 0.05) * value for name, value in parts.items()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(), schedule.step()
    steps = torch.tensor([5, 39, 28])
    with torch.no_grad():
        model.caution = 0.5
        made = torch.from_numpy(propose(model.eval(), model(batch), batch.level).places)
    wanted, given = batch.places / steps, made / steps
    r2 = 1 - (wanted - given).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert r2 > 0.99, float(r2)


def test_every_size_of_the_published_defaults_is_accepted_and_others_are_not():
    with pytest.raises(NexusError, match="widths of node and edge"):
        AdvancedGNNOptimizer(node_feat_dim=9, **{**SMALL})
    with pytest.raises(NexusError, match="heads that divide"):
        AdvancedGNNOptimizer(hidden_dim=10, num_heads=4)
    assert AdvancedGNNOptimizer(10, 4, 16, 2, 4, 0.1).settings["num_layers"] == 2


def test_tensors_of_a_training_are_read():
    one = draw_circuits(np.random.default_rng(0), [20])
    given = node_features(one), np.stack([one.source, one.target]), edge_features(one)
    model = AdvancedGNNOptimizer(**SMALL).eval()
    x, ends, attr = map(torch.from_numpy, given)
    assert model.predict_parameters(x.requires_grad_(), ends, attr) == model.predict_parameters(*given)


def test_nodes_without_edges_and_one_node():
    from nexuslab.systems.lattice.circuit import Circuits

    none = np.zeros(0, np.int64)
    lonely = Circuits(np.array([3, 5], np.int8), none, none, none.astype(np.int8), none.astype(np.float32),
                      np.array([0, 1, 2]), np.array([0, 0, 0]))
    rows = predict_circuits(AdvancedGNNOptimizer(**SMALL).eval(), lonely)
    assert [row["feasible"] for row in rows] == [True, True] and rows[0]["margin"] >= 0


@pytest.mark.parametrize(("change", "wish", "says"), [
    (lambda x, e, a: (x[:0], e[:, :0], a[:0]), {}, "at least one node"),
    (lambda x, e, a: (x, np.stack([e[0], e[0]]), a), {}, "cycle"), (lambda x, e, a: (x[:, :9], e, a), {}, "shape"),
    (lambda x, e, a: (x, e, a[:, :3]), {}, "shape"), (lambda x, e, a: (x * np.nan, e, a), {}, "nan"),
    (None, {"lambda_bits": 100}, "128, 192, 256"), (None, {"lambda_bits": float("nan")}, "128, 192, 256"),
    (None, {"weights": (1, -1, 1)}, "weights"), (None, {"weights": (0, 0, 0)}, "weights"),
    (None, {"weights": (1, float("nan"), 1)}, "weights"), (None, {"lambda_bits": "high"}, "target security"),
    (None, {"weights": "small"}, "weights"), (None, {"ms_per_operation": -1}, "ms_per_operation"),
    (None, {"ms_per_operation": float("nan")}, "ms_per_operation"), (None, {"ms_per_operation": True}, "ms_per"),
    (None, {"ms_per_operation": 10**400}, "ms_per_operation"), (None, {"lambda_bits": 10**400}, "target security"),
    (lambda x, e, a: (np.full(x.shape, "a"), e, a), {}, "number"),
    (lambda x, e, a: (x, e, a.astype(float) * 1e300), {}, "finite"),
    (lambda x, e, a: ([x, x], [e], [a]), {}, "one length"),
    (lambda x, e, a: ([], [], []), {}, "one length"), (lambda x, e, a: (x.tolist(), e, a), {}, "arrays or tensors"),
])
@pytest.mark.parametrize("profile", ["rlwe", "lnp"])
def test_bad_input_is_refused_before_anything_is_computed(monkeypatch, profile, change, wish, says):
    """Neither the network nor the statistics nor the estimator are asked."""
    one = draw_circuits(np.random.default_rng(0), [20])
    given = node_features(one), np.stack([one.source, one.target]), edge_features(one)
    model = AdvancedGNNOptimizer(**{**SMALL, "profile": profile})
    monkeypatch.setattr(type(model), "forward", None)
    monkeypatch.setattr("nexuslab.systems.lattice.model.statistics", None)
    with pytest.raises(NexusError, match=says):
        model.predict_parameters(*(change(*given) if change else given), **wish)
