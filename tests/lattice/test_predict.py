"""No answer leaves unverified."""
import dataclasses

import numpy as np
import pytest
from nexuslab.core import NexusError
from nexuslab.systems.lattice.circuit import draw_circuits, range_proof, stack, statistics
from nexuslab.systems.lattice.predict import Proposals, report, verify
from nexuslab.systems.lattice.profile import get_profile, pick


@pytest.mark.parametrize("name, many", [("rlwe", 400), ("lnp", 40)])
def test_random_proposals_become_answers_that_hold(name, many):
    profile, rng = get_profile(name), np.random.default_rng(0)
    told = statistics(draw_circuits(rng, rng.integers(5, 200, many)))
    level, weights = rng.choice([128, 192, 256], many), rng.dirichlet([1, 1, 1], many)
    places = np.stack([rng.integers(len(axis), size=many) for axis in profile.axes.values()], 1)
    done = verify(profile, told, Proposals(places, rng.random(many) < 0.8), level, weights)
    best = profile.solve(told, level, weights)
    assert np.array_equal(done.solution.feasible, best.feasible)
    some = best.feasible
    seen = profile.check(pick(told, some), *(getattr(done.solution, k)[some] for k in profile.axes), level[some],
                         weights[some])
    assert seen.feasible.all() and (seen.objective >= best.objective[some] - 1e-9).all()
    assert set(np.unique(done.steps)) <= {-1, 0, 1, 2} and done.repaired.any()
    assert np.array_equal(done.repaired, done.steps != 0)


def test_a_repair_is_the_cheapest_within_two_steps():
    profile = get_profile("rlwe")
    told, (n, q, sigma) = statistics(draw_circuits(np.random.default_rng(1), [200])), profile.axes.values()
    best = profile.solve(told, 192)
    place = np.array([np.searchsorted(a, x[0]) for a, x in zip((n, q, sigma), (best.n, best.q, best.sigma))])
    off = np.maximum(place - [0, 0, 1], 0) if place[2] else np.maximum(place - [0, 1, 0], 0)
    done = verify(profile, told, Proposals(off[None], np.ones(1, bool)), 192)
    if done.violated[0]:
        assert done.steps[0] == 1 and done.solution.objective[0] == pytest.approx(best.objective[0])


def test_reports_say_why_and_how():
    profile = get_profile("rlwe")
    told = statistics(stack([range_proof(40), draw_circuits(np.random.default_rng(0), [40])]))
    done = verify(profile, told, Proposals(np.tile([5, 39, 0], (2, 1)), np.ones(2, bool)), 128)
    rows = report(profile, told, done, 128)
    none, one = rows
    assert not none["feasible"] and none["n"] is None and "correctness" in none["reason"] and none["steps"] == -1
    assert one["feasible"] and one["bits"] == min(one["bits_primal"], one["bits_dual"], one["bits_bdd"])
    assert one["margin"] == one["bits"] - 128 and one["time_unit"] == "operations"
    timed = report(profile, told, done, 128, 0.5)
    assert timed[1]["estimated_prove_time"] == one["estimated_prove_time"] / 2 and timed[1]["time_unit"] == "ms"


def test_proofs_are_reported_under_each_attack():
    """Profile `lnp`: the cheapest of its attacks is what the answer states, also beside one that has no answer."""
    profile, rng = get_profile("lnp"), np.random.default_rng(0)
    told = statistics(draw_circuits(rng, rng.integers(5, 200, 12)))
    told = dataclasses.replace(told, max_bits=np.where(np.arange(12) == 3, 60, told.max_bits))
    level = rng.choice([128, 192, 256], 12)
    best = profile.solve(told, level)
    places = [np.searchsorted(axis, getattr(best, k)) * best.feasible for k, axis in profile.axes.items()]
    rows = report(profile, told, verify(profile, told, Proposals(np.stack(places, 1), best.feasible), level), level)
    attacks = [f"bits_{name}" for name in ("mlwe_primal", "mlwe_dual", "msis")]
    assert rows[3]["feasible"] is False and all(rows[3][name] is None for name in attacks)
    some = [row for row in rows if row["feasible"]]
    assert all(row["bits"] == min(row[name] for name in attacks) >= row["lambda_bits"] for row in some)


def test_wishes_out_of_range_are_refused():
    told = statistics(draw_circuits(np.random.default_rng(0), [40]))
    for level, weights in ((20, (1, 1, 1)), (128, (0, 0, 0)), (128, (1, np.nan, 1)), (128, (1, 1))):
        with pytest.raises(NexusError):
            verify(get_profile("rlwe"), told, Proposals(np.zeros((1, 3), int), np.ones(1, bool)), level, weights)
