"""The taxonomy of failures: planted errors come back under their name, random answers under none."""
import numpy as np
import pytest

from nexuslab.core import ConfigError
from nexuslab.systems.collatz.data import long_step
from nexuslab.systems.collatz.errors import (
    LABELS,
    MAX_K,
    MAX_K_PRIME,
    TOLERANCE,
    exact_shift,
    explain,
    near_shift,
    other_loop,
    places_wrong,
    plant,
    random_answers,
    taxonomy,
    widest_gap,
)

KINDS = LABELS[:-1]


def odd(stop: int, many: int, seed: int = 0) -> np.ndarray:
    return 2 * np.random.default_rng(seed).integers(0, stop // 2, many) + 1


def by_hand(n: int) -> tuple[int, int, int]:
    """The long step in Python's integers."""
    k, u = 0, n
    while u % 2:
        u, k = (3 * u + 1) // 2, k + 1
    k_prime = (u & -u).bit_length() - 1
    return u >> k_prime, k, k_prime


@pytest.mark.parametrize("base", [2, 3, 6, 10, 11, 16, 24, 57])
@pytest.mark.parametrize("stop", [2**20, 2**32, 10**12])
def test_every_planted_error_is_labelled_right(stop, base):
    n = odd(stop, 4_000, base)
    for kind, label in enumerate(KINDS):
        value, clear = plant(label, n, base, seed=base)
        assert clear.sum() > 400, label
        assert (explain(n, value, base).label[clear] == kind).all(), label


def test_errors_planted_by_a_plain_loop():
    """Wrong loops made with Python's integers, not with the module's own arithmetic."""
    rng, rows = np.random.default_rng(1), []
    for n in odd(10**12, 400, 7).tolist():
        kappa, k, k_prime = by_hand(n)
        rows += [(n, kappa << l, (0, l, k, k_prime - l)) for l in (1, 3, 8)]
        rows += [(n, kappa >> 2, (1, -2, k, k_prime + 2))] if (kappa >> 2) * TOLERANCE > 1 else []
        a = int(rng.choice([a for a in range(1, MAX_K + 1) if a != k]))
        rows.append((n, (3**a * (n + 1) - 2**a) // 2**a >> 3, (2, 0, a, 3)))
        digits = list(str(kappa))
        place = int(rng.integers(1, len(digits)))
        digits[place] = str((int(digits[place]) + int(rng.integers(1, 10))) % 10)
        rows.append((n, int("".join(digits)), (3, 0, k, k_prime)))
        near = kappa + 11 if 11 / kappa < TOLERANCE and str(kappa)[-1] < "9" else 0  # two digits, no carry
        rows += [(n, near, (4, 0, k, k_prime))] if near and str(kappa)[-2] < "9" else []
        rows += [(n, kappa * 1005 // 1000, (5, 0, k, k_prime))] if kappa > 10**6 else []
    n, value, expected = (np.array([r[i] for r in rows]) for i in range(3))
    found = explain(n, value, 10)
    assert np.array_equal(np.stack([found.label, found.l, found.k, found.k_prime], 1), expected) and len(rows) > 2_300


def test_right_answers_have_no_label():
    n = np.concatenate([odd(10**12, 5_000), np.arange(1, 2_000, 2), 2 ** np.arange(1, 39) - 1])
    found = explain(n, long_step(n).kappa, 24)
    assert (found.label == -1).all() and (found.l == 0).all() and found.share().sum() == 0


def test_what_is_no_number():
    n = odd(2**20, 10)
    found = explain(n, long_step(n).kappa, 24, valid=np.arange(10) < 4)
    assert found.label.tolist() == [-1] * 4 + [LABELS.index("no number")] * 6


@pytest.mark.parametrize("tolerance", [0, -1e-5, 1.1e-4, 0.01, float("nan")])
def test_a_wide_net_is_refused(tolerance):
    with pytest.raises(ConfigError, match="tolerance of the taxonomy"):
        explain(np.array([27]), np.array([1]), 10, tolerance=tolerance)


@pytest.mark.parametrize("stop", [2**20, 10**12])
def test_random_answers_are_unexplained(stop):
    """Labels of a number are hardly ever given by chance; a remainder and a last digit are, and say how often."""
    n = odd(stop, 40_000)
    kappa = np.asarray(long_step(n).kappa)
    width = len(np.base_repr(int(kappa.max()), 24))
    table = taxonomy(n, kappa[np.random.default_rng(0).permutation(len(n))], 24, width)
    named = list(KINDS[:5])
    assert table.loc[named, "share"].sum() < 0.02 and table.loc["unexplained", "share"] > 0.65
    assert table.loc["right magnitude"].iloc[-3:].max() < 0.01  # what is left to chance
    assert table.loc["inner block"].iloc[-3:].max() < 0.03
    for chance in ("chance, random digits", "chance, answers dealt anew"):
        assert table.loc[named, chance].sum() < 0.02
        assert abs(table["share"] - table["chance, answers dealt anew"]).max() < 0.01


def test_a_label_of_the_class_is_given_by_chance_within_the_class():
    """Answers that are right modulo 9 and random otherwise: dealt among numbers of one class they keep their label."""
    n = odd(2**20, 20_000)
    kappa = np.asarray(long_step(n).kappa)
    value, clear = plant("right remainder", n, 24)
    table = taxonomy(n, np.where(clear, value, kappa), 24, 7)
    row = table.loc["right remainder"]
    assert row["share"] == 1 and row["chance, of the class"] > 0.9 > 0.4 > row["chance, answers dealt anew"]
    value, clear = plant("inner block", n, 24)
    row = taxonomy(n, np.where(clear, value, kappa), 24, 7).loc["inner block"]
    assert row["share"] == 1 and row["chance, of the class"] < 0.1


def test_small_and_extreme_answers():
    n = np.array([1, 1, 1, 3, 3, 10**12 - 1, 10**12 - 1])
    found = explain(n, np.array([2, 0, 1, 0, 2**62, 2**63 - 1, 0]), 24)
    rest = LABELS.index("unexplained")
    # both kappa are 1: another digit is a slip, 2^62 a power
    assert found.label.tolist() == [0, 3, -1, 3, 0, rest, rest]
    assert exact_shift(np.array([2**62]), np.array([1])).tolist() == [62]
    assert not near_shift(np.zeros(3, int), np.array([1, 5, 10**12]))[1].any()
    assert other_loop(np.zeros(2, int), np.array([7, 10**12 - 1]), np.array([3, 12]))[0].tolist() == [0, 0]


def test_places_by_hand():
    rng = np.random.default_rng(2)
    for base in (2, 10, 24, 36):
        a, b = rng.integers(0, 10**6, (2, 200))
        for x, y, wrong in zip(a, b, places_wrong(a, b, base), strict=True):
            p, q = (np.base_repr(v, base).rjust(24, "0") for v in (x, y))
            assert wrong == sum(s != t for s, t in zip(p, q, strict=True))


def test_the_gap_is_far_from_every_loop():
    ratio = widest_gap() * 2.0 ** np.arange(-80, 81)[:, None] / 3.0 ** np.arange(-45, 46)
    assert abs(ratio - 1).min() > 20 * TOLERANCE


def test_random_answers_fit_their_width():
    for base, width in ((2, 62), (3, 40), (24, 14), (57, 11), (10, 3)):
        value = random_answers(1000, base, width)
        assert value.dtype == np.int64 and (value >= 0).all() and (width > 10 or value.max() < base**width)
        assert np.array_equal(value, random_answers(1000, base, width))
        assert not np.array_equal(value, random_answers(1000, base, width, 1))


def test_shares_and_intervals():
    n = odd(10**12, 3_000)
    value, clear = plant("power of two", n, 24)
    table = taxonomy(n[clear], np.where(np.arange(clear.sum()) % 2, value[clear], long_step(n[clear]).kappa), 24, 14)
    assert table.loc["power of two", "share"] == 1 and table["failures"].sum() == clear.sum() // 2
    assert table.loc["power of two", "low"] > 0.99 and table.loc["wrong k", "high"] < 0.01
    nothing = taxonomy(n, long_step(n).kappa, 24, 14)
    assert nothing["failures"].sum() == 0 and (nothing["low"] == 0).all() and (nothing["high"] == 1).all()
    assert MAX_K_PRIME == 12
