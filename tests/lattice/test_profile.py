"""Solvers against the whole grid, point by point; constraints, reasons and refusals."""
import dataclasses

import numpy as np
import pytest

from nexuslab.core import ConfigError, DataError
from nexuslab.systems.lattice.circuit import draw_circuits, statistics
from nexuslab.systems.lattice.profile import Lnp, Rlwe, calibrate, get_profile, is_prime, ntt_primes, pick
from nexuslab.systems.lattice.proof import core_svp_delta, lnp_proof, mlwe_rank
from nexuslab.systems.lattice.security import lwe_bits

MANY = 1000  # circuits


@pytest.fixture(scope="module")
def asked():
    """Statistics, levels and weights of a thousand random circuits."""
    rng = np.random.default_rng(1)
    circuits = statistics(draw_circuits(rng, rng.integers(10, 400, MANY)))
    return circuits, rng.choice([128.0, 160.5, 192.0, 256.0], MANY), rng.dirichlet([1, 1, 1], MANY)


@pytest.fixture(scope="module")
def rlwe():
    return Rlwe()


def every_rlwe_point(profile, circuits, b, level, weights):
    """The optimum of circuit b by the definitions, over every point of the grid; (0, 0, 0) where there is none."""
    n, q, sigma = (x.ravel() for x in np.meshgrid(*profile.axes.values(), indexing="ij"))
    noise = 6.5 * sigma * np.sqrt(4 * n / 3 + 1) * np.exp(circuits.growth[b] / 2)
    fits = (profile.secured.ravel() >= level) & (noise <= q / 4)
    ct = np.ceil(max(circuits.wires[b], 1) / n) + np.ceil(circuits.nonlinear[b] / n)
    costs = [ct * 2 * n * np.log2(q) / 8, ct * 3 * n * np.log2(n), ct * n * np.log2(n)]
    score = sum(w * np.log2(c) for w, c in zip(weights, costs, strict=True))
    order = np.lexsort((sigma, q, n, np.where(fits, score.round(9), np.inf)))[0]
    return (n[order], q[order], sigma[order]) if fits.any() else (0, 0, 0)


def test_rlwe_solver_is_exact(rlwe, asked):
    circuits, level, weights = asked
    found = rlwe.solve(circuits, level, weights)
    wrong = [
        b for b in range(MANY)
        if every_rlwe_point(rlwe, circuits, b, level[b], weights[b]) != (found.n[b], found.q[b], found.sigma[b])
    ]
    assert not wrong and 0.5 < found.feasible.mean() < 0.95
    assert (found.feasible == (found.n > 0)).all() and np.isinf(found.size[~found.feasible]).all()


def test_what_is_solved_is_confirmed(rlwe, asked):
    """Optima pass `check`; one step down in q or sigma, for the binding constraint, does not."""
    circuits, level, weights = asked
    found = rlwe.solve(circuits, level, weights)
    rows = np.flatnonzero(found.feasible)
    some = pick(circuits, rows)
    again = rlwe.check(some, found.n[rows], found.q[rows], found.sigma[rows], level[rows], weights[rows])
    assert again.feasible.all() and (again.bits == found.bits[rows]).all() and (again.margin >= 0).all()
    assert (again.objective == found.objective[rows]).all() and (again.failure < -20).all()
    quieter = found.sigma[rows] - 0.25
    lower = rlwe.check(some, found.n[rows], found.q[rows], np.maximum(quieter, 0.75), level[rows])
    assert not lower.feasible[quieter >= 1].any() and set(lower.reason[quieter >= 1]) == {"security"}


def test_degree_may_be_fixed(rlwe, asked):
    """The best of all degrees is the optimum, and a fixed degree never beats it."""
    circuits, level, weights = asked
    free = rlwe.solve(circuits, level, weights)
    each = np.stack([rlwe.solve(circuits, level, weights, n=n).objective for n in rlwe.axes["n"]])
    assert (each.min(0) == free.objective).all()
    same = rlwe.solve(circuits, level, weights, n=free.n)
    assert (same.q == free.q).all() and (same.sigma == free.sigma).all()


def test_reasons(rlwe, asked):
    circuits, *_ = asked
    loud = dataclasses.replace(circuits, growth=circuits.growth * 0 + 40)
    assert set(rlwe.solve(loud).reason) == {"correctness"}
    quiet = dataclasses.replace(circuits, growth=circuits.growth * 0)
    assert set(rlwe.solve(quiet, 512, n=512).reason) == {"security"}
    assert set(rlwe.check(loud, 64, 4099, 1.0).reason) == {"security and correctness"}
    assert (rlwe.solve(quiet, 256).bits >= 256).all()


def test_ranges_of_the_grid(rlwe):
    """What the ranges can reach, with secrets as wide as the error."""
    n, q, sigma = rlwe.axes.values()
    assert (rlwe.secured.shape, q[0], q[-1], sigma[0], sigma[-1]) == ((6, 40, 29), 4099, 131071, 1, 8)
    assert all(is_prime(int(x)) for x in q) and list(n) == [64, 128, 256, 512, 1024, 2048]
    reach = Rlwe(secret="normal-form", attack="primal").secured
    assert (reach[:3].max((1, 2)) <= [12, 38, 93]).all()  # never 128 bits
    assert [(reach[4] >= level).mean().round(3) for level in (128, 192)] == [1, 0.975] and reach[5].min() > 256
    assert lwe_bits(512, np.log2(4099), 2.0, 2.0, 1024) >= 128 > lwe_bits(512, np.log2(4099), 1.75, 1.75, 1024)
    friendly = Rlwe(ntt=True).axes["q"]
    assert friendly.tolist() == ntt_primes(2048, 4096, 131072) and all(p % 4096 == 1 for p in friendly)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lambda_bits": 39}, "target security"), ({"lambda_bits": [128, 128]}, "target security"),
        ({"lambda_bits": float("nan")}, "target security"), ({"weights": (1, 1)}, "weights"),
        ({"weights": (0, 0, 0)}, "weights"), ({"weights": (1, 1, float("inf"))}, "weights"), ({"n": 100}, "degree n"),
    ],
)
def test_bad_wishes_are_refused(rlwe, asked, change, says):
    with pytest.raises(ConfigError, match=says):
        rlwe.solve(asked[0], **change)


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ((1000, 12289, 3.2), "degree n"), ((1024, 12288, 3.2), "modulus q"), ((1024, 2, 3.2), "modulus q"),
        ((1024, 12289, 0.0), "sigma"), ((1024, 12289, float("nan")), "sigma"), ((1024, "12289", 3.2), "proposed"),
        (([1024, 512], 12289, 3.2), "proposed"),
    ],
)
def test_bad_proposals_are_refused(rlwe, asked, point, says):
    with pytest.raises(ConfigError, match=says):
        rlwe.check(asked[0], *point)


def test_bad_statistics_are_refused(rlwe, asked):
    circuits, *_ = asked
    columns = {"growth": circuits.growth * np.nan, "wires": circuits.wires[:3], "nonlinear": circuits.wires * 0 - 1}
    for name, column in columns.items():
        with pytest.raises(DataError, match=name):
            rlwe.solve(dataclasses.replace(circuits, **{name: column}))


def test_a_lone_gate_has_an_answer(rlwe):
    """One node, no wire: one ciphertext."""
    one = statistics(draw_circuits(np.random.default_rng(0), np.array([3])))
    lone = dataclasses.replace(one, wires=np.array([0]), nonlinear=np.array([0]), growth=np.array([0.0]))
    found = rlwe.solve(lone)
    assert found.feasible.all() and found.size[0] == 2 * found.n[0] * np.log2(found.q[0]) / 8


def test_lnp_solver_is_exact(asked):
    """Every point of the grid, proved on its own for each circuit."""
    circuits, level, weights = asked
    profile, wrong = get_profile("lnp"), []
    found = profile.solve(circuits, level, weights)
    d, q, gamma = (x.ravel() for x in np.meshgrid(*profile.axes.values(), indexing="ij"))
    exponent, delta = np.floor(np.log2(q)), {x: float(core_svp_delta(x)) for x in np.unique(level)}
    ranks = {x: mlwe_rank(d, exponent, delta[x]) for x in delta}
    for b in range(len(circuits)):
        m1 = np.ceil(max(circuits.witness_bits[b], 5 * level[b]) / d)
        proof = lnp_proof(
            d, exponent, m1, circuits.witness_bits[b] ** 0.5, nbin=m1, inf_bound=2.0 ** circuits.max_bits[b],
            gammas=(gamma, 1, 5, 5), lambda_bits=level[b], delta=delta[level[b]], rounded=False, kmlwe=ranks[level[b]],
        )
        products = (proof.kmsis + 2 * np.ceil(level[b] / 2 / exponent) + 256 / d) * (m1 + proof.m2)
        once = products * d * np.log2(d) * np.ceil((2 * exponent + 2 + np.log2(d)) / 31)
        costs = [proof.bytes, proof.attempts * once, once]
        score = sum(w * np.log2(c) for w, c in zip(weights[b], costs, strict=True))
        fits = proof.sound & (exponent >= circuits.max_bits[b] + 8)
        best = np.where(fits, score, np.inf).round(9).argmin()
        if (d[best], q[best], gamma[best]) != (found.n[b], found.q[b], found.sigma[b]):
            wrong.append(b)
    assert not wrong and found.feasible.all() and (found.margin >= 0).all()


def test_lnp_reasons_and_refusals(asked):
    circuits = pick(asked[0], slice(0, 20))
    profile = get_profile("lnp")
    wide = dataclasses.replace(circuits, max_bits=circuits.max_bits * 0 + 53)
    assert set(profile.solve(wide).reason) == {"correctness"}
    small, large = (int(profile.axes["q"][i]) for i in (0, -1))
    assert set(profile.check(circuits, 64, small, 300.0, 256).reason) <= {"security", "security and correctness"}
    assert profile.check(circuits, 64, large, 20.0).feasible.all()
    bad = (((256, large, 20.0), "degree n"), ((64, 12289, 20.0), "modulus q"), ((64, large + 2, 20.0), "modulus q"))
    for point, says in bad:
        with pytest.raises(ConfigError, match=says):
            profile.check(circuits, *point)


def test_profiles_by_name():
    assert isinstance(get_profile("lnp"), Lnp) and get_profile() == Rlwe() and calibrate(0.01) > 100
    for wrong in ({"name": "rlw"}, {"name": "rlwe", "secrets": "x"}):
        with pytest.raises(ConfigError, match="unknown"):
            get_profile(**wrong)
    with pytest.raises(ConfigError, match="secret"):
        Rlwe(secret="binary")
    with pytest.raises(ConfigError, match="power of 2"):
        ntt_primes(100, 4096, 131072)
