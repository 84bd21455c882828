"""The exact optimum of 49 million points."""
import numpy as np
import pytest

from nexuslab.core import ConfigError
from nexuslab.systems.lattice.circuit import draw_circuits, statistics
from nexuslab.systems.lattice.joint import joint_regret, least_sigma, moduli, solve_joint, space_size
from nexuslab.systems.lattice.profile import get_profile, pick


@pytest.fixture(scope="module")
def profile():
    return get_profile("rlwe", attack="primal")


@pytest.fixture(scope="module")
def told():
    rng = np.random.default_rng(2)
    return statistics(draw_circuits(rng, rng.integers(10, 400, 200)))


def test_the_optimum_is_exact_for_one_degree(profile, told):
    """Every prime and every width of n = 1024, for a few circuits, by the definitions."""
    assert space_size(profile) >= 1000 * profile.secured.size
    n, level, primes = 1024, 256.0, moduli()
    widths = np.arange(100, 801) / 100
    some = pick(told, np.flatnonzero(solve_joint(told, level, profile=profile).n == n)[:5])
    assert len(some) == 5
    best = solve_joint(some, level, profile=profile)
    bits = profile.bits(n, primes[::40, None], widths)  # every fortieth prime, all widths
    noise = 6.5 * widths * np.sqrt(4 * n / 3 + 1)
    for b in range(5):
        fits = (bits >= level) & (noise * np.exp(some.growth[b] / 2) <= primes[::40, None] / 4)
        assert not fits[primes[::40] < best.q[b]].any()
        near = np.searchsorted(primes, best.q[b])
        above = profile.bits(n, primes[near - 30 : near, None], widths) >= level
        assert not (above & (noise * np.exp(some.growth[b] / 2) <= primes[near - 30 : near, None] / 4)).any()
        assert best.feasible[b] and profile.bits(n, best.q[b], best.sigma[b] - 0.01) < level or best.sigma[b] == 1


def test_the_grid_is_part_of_it(profile, told):
    level = np.tile([128.0, 192.0, 256.0, 160.0], 50)
    grid, joint = profile.solve(told, level), solve_joint(told, level, profile=profile)
    assert (joint.feasible >= grid.feasible).all() and joint.feasible.any() and not joint.feasible.all()
    assert (joint.objective <= grid.objective + 1e-9)[grid.feasible].all()
    regret = joint_regret(grid, told, level, profile=profile)
    assert (regret[grid.feasible] > -1e-9).all() and np.isnan(regret[~grid.feasible]).all()
    assert (joint.n[~joint.feasible] == 0).all() and np.isinf(joint.size[~joint.feasible]).all()


def test_least_widths_are_least(profile):
    least = least_sigma(profile, 192.0)
    assert least.shape == (6, len(moduli())) and np.isinf(least[:3]).all() and (least[5] == 1).all()
    assert (np.diff(least[4]) >= 0).all()  # a larger modulus never needs less noise


def test_bad_wishes_are_refused(profile, told):
    with pytest.raises(ConfigError, match="target security"):
        solve_joint(told, 10, profile=profile)
