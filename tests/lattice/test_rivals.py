"""The rivals: what they may see, that they answer on the grid, and that they stand in the order that is expected."""
import numpy as np
import pytest
import torch

from nexuslab.core import ConfigError
from nexuslab.systems.lattice.batch import flat
from nexuslab.systems.lattice.data import Plan, make_block, profile_of
from nexuslab.systems.lattice.model import AdvancedGNNOptimizer
from nexuslab.systems.lattice.rivals import (
    RIVALS,
    TREES,
    answers,
    by_shuffled,
    dealt,
    expected_r2,
    judged_on,
    pooled,
    proposals_of,
    rival_figures,
)

PROFILE = profile_of("rlwe")
TRAIN, ASKED = np.arange(450), np.arange(450, 600)


@pytest.fixture(scope="module")
def arrays():
    """Six hundred examples, as a file has them."""
    return flat(make_block((0, 600, False), Plan(samples=600, nodes=(10, 120), seed=3)))


@pytest.fixture(scope="module")
def told(arrays):
    """The figures of every rival."""
    return {name: rival_figures(name, arrays, TRAIN, ASKED, PROFILE) for name in RIVALS}


def test_they_stand_in_order(told):
    regret, broken = ({name: row[key] for name, row in told.items()} for key in ("regret_mean", "violations_raw"))
    assert regret["degree_then_exact"] <= regret["counts_and_growth"] < regret["counts"] < regret["table"]
    assert broken["degree_then_exact"] == 0 and broken["counts_and_growth"] < broken["counts"]
    assert told["counts_and_growth"]["all_exact"] > told["counts_and_paths"]["all_exact"] > 0
    assert all(row["violations_repaired"] == 0 for row in told.values())
    assert told["mean"]["r2"] < 0.1 < told["counts"]["r2"] < told["counts_and_growth"]["r2"]
    assert told["mean"]["param_loss"] > told["counts_and_growth"]["param_loss"]


def test_no_rival_sees_the_answers_it_is_asked_for(arrays, monkeypatch):
    """With the answers of the asked examples overwritten, proposals stay as they were."""
    monkeypatch.setitem(TREES, "max_iter", 8)
    hidden = dealt(arrays, ASKED, seed=5)
    hidden["feasible"][ASKED] = ~hidden["feasible"][ASKED]
    for rival in RIVALS.values():
        as_before, now = rival(arrays, TRAIN, ASKED, PROFILE), rival(hidden, TRAIN, ASKED, PROFILE)
        assert (as_before.places == now.places).all() and (as_before.feasible == now.feasible).all()


def test_counts_do_not_know_the_order(arrays):
    """Wires led elsewhere change the growth, and not what `counts` is told."""
    led = {**arrays, "source": arrays["source"] * 0}
    assert (pooled(led, ASKED) == pooled(arrays, ASKED)).all()
    with_growth = pooled({**led, "circuit_growth": arrays["circuit_growth"] + 1}, ASKED, told="rlwe")
    assert (with_growth[:, -1] == arrays["circuit_growth"][ASKED] + 1).all()


def test_right_answers_have_no_fault(arrays):
    right = judged_on(arrays, ASKED, PROFILE, answers(arrays, ASKED, PROFILE))
    assert right["param_loss"] == right["violations_raw"] == right["regret_mean"] == 0
    assert right["n_exact"] == right["r2"] == right["infeasible_f1"] == 1


def test_shuffled_labels_teach_nothing(arrays):
    mixed = dealt(arrays, TRAIN)
    assert (mixed["n"][TRAIN] != arrays["n"][TRAIN]).any() and (mixed["n"][ASKED] == arrays["n"][ASKED]).all()
    same = ("n", "q", "sigma", "feasible")  # an answer is dealt whole
    rows = lambda which: sorted(zip(*(which[name][TRAIN].tolist() for name in same), strict=True))
    assert rows(mixed) == rows(arrays)
    lengths = dealt(arrays, TRAIN, profile="lnp")  # which a training of proofs aims at as well
    assert (lengths["circuit_witness_bits"][TRAIN] != arrays["circuit_witness_bits"][TRAIN]).any()
    same = (*same, "circuit_witness_bits", "circuit_max_bits")
    assert rows(lengths) == rows(arrays) != rows(mixed)
    torch.manual_seed(0)
    model = AdvancedGNNOptimizer(hidden_dim=8, num_layers=1, num_heads=2, dropout=0.0)
    before = proposals_of(model, arrays, ASKED, PROFILE)
    given = by_shuffled(model, arrays, TRAIN, ASKED, PROFILE, steps=25)
    assert given.places.shape == before.places.shape == (len(ASKED), 3)
    assert judged_on(arrays, ASKED, PROFILE, given)["r2"] < 0.2 and expected_r2(model, arrays, ASKED, PROFILE) < 0.2


def test_an_unknown_rival_is_refused(arrays):
    with pytest.raises(ConfigError, match="mean"):
        rival_figures("means", arrays, TRAIN, ASKED, PROFILE)
