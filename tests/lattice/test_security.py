"""The estimator against published figures, and against what must hold for every instance."""
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from nexuslab.core import ConfigError
from nexuslab.systems.lattice.security import (
    ATTACKS,
    COST_MODELS,
    SparseSecretWarning,
    deviation,
    largest_log2_q,
    lwe_attack,
    lwe_bits,
    lwe_report,
    msis_bits,
    sis_attack,
)

REFERENCE = pd.read_csv(Path(__file__).parent / "lwe_reference_points.csv")
COLUMNS = ["n", "log2_q", "sigma_s", "sigma_e", "m", "attack", "cost_model"]
ROUNDED = {"ceil": np.ceil, "floor": np.floor, "exact": np.asarray}


def rows(in_bar: int) -> pd.DataFrame:
    """Published rows: 1 like for like, 2 thresholds of the HE standard."""
    return REFERENCE[REFERENCE.in_bar == in_bar].reset_index(drop=True)


@pytest.mark.filterwarnings("ignore::nexuslab.systems.lattice.security.SparseSecretWarning")
def test_published_estimates_are_met():
    """Whole columns at once; a figure that was published rounded is compared rounded."""
    table = rows(1)
    found = lwe_attack(**{name: table[name].to_numpy() for name in COLUMNS})
    told = np.array([ROUNDED[kind](bits) for kind, bits in zip(table.kind, found.bits, strict=True)])
    error = abs(told - table.published_bits)
    assert len(table) == 192 and table.kind.nunique() == 3
    assert error.mean() <= 0.5 and error.max() <= 2 and (error <= 1).mean() >= 0.95
    primal = table.attack == "primal"
    assert abs(found.beta - table.published_beta)[primal].max() <= 2
    exact = table.kind == "exact"
    assert abs(found.bits - table.published_bits)[exact].max() < 0.25


@pytest.mark.parametrize("attack", ["primal", "min_all"])
def test_thresholds_of_the_standard_are_met(attack):
    """The largest whole log2 q of each printed row."""
    table, miss = rows(2), []
    for model, some in table.groupby("cost_model"):
        columns = (some[name].to_numpy() for name in ("n", "published_bits", "sigma_s", "sigma_e", "m"))
        miss.extend(largest_log2_q(*columns, attack, model) - some.log2_q)
    assert len(miss) == 34 and (abs(np.array(miss)) <= 1).mean() >= 0.95


def test_bits_move_the_right_way():
    """More dimension or noise is harder, more modulus or samples easier, under every attack and model."""
    attack, model = (x.ravel() for x in np.meshgrid(list(ATTACKS), COST_MODELS))
    base = {"n": 512.0, "log2_q": 14.0, "sigma_s": 2.0, "sigma_e": 2.0, "m": 1024.0}
    bits = lambda **change: lwe_bits(**(base | change), attack=attack, cost_model=model)
    reference = bits()
    assert (bits(n=600.0) > reference).all() and (bits(sigma_e=4.0, sigma_s=4.0) > reference).all()
    assert (bits(log2_q=16.0) < reference).all() and (bits(m=64.0) > reference).all()
    assert (bits(sigma_s=3.0, m=5000.0) <= bits(sigma_s=2.0, m=5000.0) + 0.5).all()  # normal form


def test_one_call_is_many():
    """Shapes broadcast; an instance reads the same alone and among others, whatever their number."""
    rng = np.random.default_rng(0)
    n, q, sigma = rng.integers(64, 2048, 5000), rng.uniform(8, 40, 5000), rng.uniform(0.6, 8, 5000)
    together = lwe_bits(n, q, sigma, sigma, 2 * n)
    some = [0, 4095, 4096, 4999]
    assert [float(lwe_bits(n[i], q[i], sigma[i], sigma[i], 2 * n[i])) for i in some] == together[some].tolist()
    grid = lwe_attack(np.array([[256], [512]]), np.array([12, 13, 14]), 2, 2, attack="min_all")
    assert grid.bits.shape == grid.attack.shape == (2, 3) and set(grid.attack.ravel()) <= set(ATTACKS)
    each = [lwe_bits(256, 12, 2, 2, attack=name) for name in ATTACKS]
    assert grid.bits[0, 0] == min(each) and grid.attack[0, 0] == list(ATTACKS)[int(np.argmin(each))]
    assert lwe_report(256, 12, 2, 2).bits["primal", "adps16"] == each[0]


def test_extremes_are_defined():
    """Tiny and hopeless instances have an answer, and no floating-point warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in (*ATTACKS, "min_all"):
            bits = lwe_bits(np.array([1, 2, 8, 64, 65536]), np.array([12, 4, 60, 17, 13]), 1, 1, 10, name)
            assert not np.isnan(bits).any() and (bits >= 0).all()
        assert np.isinf(lwe_bits(2**20, 10, 300, 300))  # no block size up to 2^16
        assert msis_bits(4, 64, 20, 2.0**20) == 0 and np.isinf(sis_attack(512, 20, 10, m=512).bits)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"n": 0}, "n of"), ({"n": [512, np.nan]}, "nan"), ({"m": 0}, "m of"), ({"log2_q": -1}, "log2_q"),
        ({"sigma_e": "3"}, "sigma_e"), ({"attack": "primmal"}, "primal"), ({"cost_model": "matzof"}, "matzov"),
        ({"log2_q": 1.5, "sigma_e": 3.2}, "larger q"), ({"n": np.inf}, "n of"), ({"log2_q": np.inf}, "log2_q"),
        ({"log2_q": 0.5, "sigma_e": 0.6, "sigma_s": 0.6}, "at least 1"), ({"n": [1, 2], "m": [1, 2, 3]}, "broadcast"),
    ],
)
def test_bad_input_is_refused(wrong, says):
    with pytest.raises(ConfigError, match=says):
        lwe_bits(**({"n": 512, "log2_q": 12, "sigma_s": 1, "sigma_e": 1} | wrong))


def test_hopeless_instances_read_infinity_under_every_attack():
    """No penalty is cut off before the search has seen its slope."""
    n = np.array([65_536, 300_000, 2**20, 1e9])
    for name in ATTACKS:
        bits = lwe_bits(n, 20.0, 3.2, 3.2, 2 * n, name)
        assert 17_000 < bits[0] < 20_000 and np.isinf(bits[2:]).all(), name


@pytest.mark.parametrize("name", ["gaussian.", "uniform1", "uniform0.5", "tuniform2000", "cbd0", "cbd1e3", "ternary3"])
def test_distributions_that_are_none_are_refused(name):
    with pytest.raises(ConfigError, match="unknown distribution"):
        deviation(name)


def test_sparse_secrets_are_warned_about():
    with pytest.warns(SparseSecretWarning, match="not modelled"):
        lwe_bits(1030, 64, 0.5, 3.19)
    with pytest.warns(SparseSecretWarning):
        deviation("binary")
    with pytest.raises(ConfigError, match="cbd"):
        deviation("cbdx")
