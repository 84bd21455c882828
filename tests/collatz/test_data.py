"""Collatz data: the long step against Python's integers, digits in every base, samplers, sides, refusals."""

import warnings
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nexuslab.core import ConfigError, DataError
from nexuslab.systems.collatz.data import (
    LIMIT,
    TEST,
    VAL,
    Classes,
    Code,
    CollatzDataset,
    Fixed,
    Numbers,
    Stream,
    class_numbers,
    class_share,
    code_for,
    digits_needed,
    encode,
    held_out,
    largest_kappa,
    long_step,
    side_of,
    training_numbers,
)


def loop(n: int) -> tuple[int, int, int]:
    """The definition, step by step in Python's unbounded integers."""
    k = k_prime = 0
    while n % 2:
        n, k = (3 * n + 1) // 2, k + 1
    while n % 2 == 0:
        n, k_prime = n // 2, k_prime + 1
    return n, k, k_prime


def agrees(n) -> bool:
    found = long_step(n)
    told = [loop(int(x)) for x in n]
    return all(
        (np.asarray(part) == [t[i] for t in told]).all() for i, part in enumerate((found.kappa, found.k, found.k_prime))
    )


# ---- the long step


def test_a_hundred_thousand_random_numbers():
    n = np.random.default_rng(1).integers(0, 5 * 10**11, 100_000) * 2 + 1
    assert agrees(n)


def test_longest_climbs_and_all_small_numbers():
    climbs = 2 ** np.arange(1, 40) - 1
    assert len(climbs) == 39 and agrees(climbs) and agrees(np.arange(1, 2**16, 2))


def test_tensors_and_unsigned_arrays_give_the_same():
    n = np.random.default_rng(2).integers(0, 2**39 - 1, 5000) * 2 + 1
    found, same = long_step(n), long_step(torch.from_numpy(n))
    assert all(
        (np.asarray(a) == b.numpy()).all()
        for a, b in zip((found.kappa, found.k, found.k_prime), (same.kappa, same.k, same.k_prime))
    )
    assert (long_step(n.astype(np.uint64)).kappa == found.kappa).all() and long_step(27).kappa.tolist() == [31]
    assert len(long_step([]).kappa) == 0


@settings(max_examples=300)
@given(st.integers(0, 2**61 - 1).map(lambda i: 2 * i + 1))
def test_exact_or_refused(n):
    """Every odd number below 2^62: the exact answer if its apex fits, else a named refusal."""
    told = loop(n)
    fits = told[0] << told[2] < 2**63
    if fits:
        found = long_step([n])
        assert (found.kappa[0], found.k[0], found.k_prime[0]) == told
    else:
        with pytest.raises(DataError, match="beyond exactness"):
            long_step([n])


def test_everything_below_the_limit_is_exact():
    """The worst numbers below the limit: the largest m of each k."""
    worst = [((LIMIT >> k) - 1 | 1) * 2**k - 1 for k in range(1, 40)]
    worst = [n for n in worst if 0 < n < LIMIT and n % 2] + [2**39 - 1]
    assert len(worst) > 30 and agrees(np.array(worst))
    with pytest.raises(DataError, match="beyond exactness"):
        long_step([LIMIT])


@pytest.mark.parametrize(
    ("n", "what"),
    [
        ([3, 28], "even"), ([0], "even"), ([-3], "below 1"), ([2.0], "numbers"), ([True], "numbers"),
        (["27"], "numbers"), ([2**63 + 1], "numbers"), (torch.tensor([1.5]), "numbers"), (torch.tensor([4]), "even"),
    ],
)
def test_refusals(n, what):
    with pytest.raises(DataError, match=what) as caught:
        long_step(n)
    assert caught.value.found is not None and caught.value.remedy


# ---- classes


def test_classes_are_residues():
    for k, k_prime in product((1, 2, 5, 9, 17), (1, 2, 6, 11)):
        n = class_numbers(k, k_prime, 300, 10**12, np.random.default_rng(k))
        found = long_step(n)
        assert (found.k == k).all() and (found.k_prime == k_prime).all() and len(set(n % 2 ** (k + k_prime + 1))) == 1
        assert n.max() < 10**12
    with pytest.raises(DataError, match="class"):
        class_numbers(12, 3, 1, 2**12, np.random.default_rng(0))


def test_classes_cover_a_range():
    for start, stop in ((1, 5000), (333, 4001), (7, 12)):
        every = Classes.within(start, stop)
        members = np.sort(
            np.concatenate([f + s * np.arange(c) for f, s, c in zip(every.first, every.step, every.count)])
        )
        assert (members == np.arange(start | 1, stop, 2)).all()


def test_shares_are_the_ladder():
    told = [25.00, 50.00, 68.75, 81.25, 89.06, 93.75, 96.48, 98.05, 98.93, 99.41, 99.68, 99.83]
    assert [round(100 * class_share(s), 2) for s in range(2, 14)] == told
    depth = long_step(np.arange(1, 2**20, 2)).depth
    assert all(abs((depth <= s).mean() - class_share(s)) < 1e-5 for s in range(2, 14))


# ---- digits


@pytest.mark.parametrize("base", range(2, 58))
def test_digits_round_trip(base):
    n = np.random.default_rng(base).integers(0, 5 * 10**11, 400) * 2 + 1
    n[:4] = 1, base | 1, 2**39 - 1, 10**12 - 1
    kappa = long_step(n).kappa
    for order, ending in product(("least", "most"), ("fixed", "end")):
        code = code_for(base, 10**12, order, ending)
        for value, tokens in ((n, code.encode_input(n)), (kappa, code.encode_output(kappa))):
            back, valid = code.decode(tokens)
            assert valid.all() and (back.numpy() == value).all() and tokens.min() >= 0
            assert tokens.max() < code.vocabulary
        assert torch.equal(code.encode_output(torch.from_numpy(kappa)), code.encode_output(kappa))


def test_digits_are_those_of_python():
    code = code_for(24, 10**12, "most", "end")
    for n in (1, 23, 25, 24**5 + 1, 10**12 - 1):
        digits = np.base_repr(n, 24)
        tokens = code.encode_input(np.array([n]))[0].tolist()
        assert tokens[: len(digits)] == [int(c, 24) for c in digits] and tokens[len(digits)] == code.eos
        assert set(tokens[len(digits) + 1 :]) <= {code.pad}


def test_no_digit_is_a_special_token():
    for base in (2, 24, 57):
        code = Code(base, 3, 4)
        assert sorted([*range(base), code.pad, code.bos, code.eos]) == list(range(code.vocabulary))
    zeros = Code(24, 3, 4).encode_output(np.array([0]))
    assert zeros.tolist() == [[0, 0, 0, 0]]  # a number, not padding


def test_what_is_no_number_is_told():
    fixed, end = code_for(10, 1000, "most"), code_for(10, 1000, "most", "end")
    assert fixed.decode(torch.tensor([[1, 10, 2]]))[1].tolist() == [False]
    assert fixed.decode(torch.tensor([[1, 0, 2]]))[0].tolist() == [102]
    assert end.decode(
        torch.tensor([[1, 2, 12, 5], [1, 2, 3, 4], [12, 1, 1, 1], [1, 10, 12, 0]])
    )[1].tolist() == [True, False, False, False]
    wide = Code(57, 5, 20)
    assert not wide.decode(torch.full((1, 20), 56))[1].any()  # larger than 63 bits hold


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"base": 1}, "base"), ({"base": 58}, "base"), ({"stop": 2**40}, "range"), ({"stop": 1}, "range"),
        ({"width_in": 3}, "width of inputs"), ({"width_out": 4}, "width of outputs"),
        ({"order": "middle"}, "digit code"),
    ],
)
def test_impossible_codes(given, what):
    with pytest.raises(ConfigError, match=what):
        code_for(**({"base": 24, "stop": 2**20} | given))
    with pytest.raises(DataError, match="encode"):
        encode(Code(10, 2, 2), np.array([100]), 2)


def test_widths_hold_every_answer():
    for stop in (2**8, 1000, 2**16):
        assert long_step(np.arange(1, stop, 2)).kappa.max() <= largest_kappa(stop)
    assert (digits_needed(10**12 - 1, 24), digits_needed(largest_kappa(10**12), 24)) == (9, 14)


# ---- which numbers


@pytest.mark.parametrize("sampling", ["natural", "log_uniform", "balanced"])
@pytest.mark.parametrize("span", [(1, 2**12), (1001, 2**20), (1, 10**12)])
def test_training_never_meets_what_is_held_out(sampling, span):
    numbers = Numbers(*span, sampling)
    n = np.concatenate([training_numbers(numbers, seed, np.arange(4000), 0.3) for seed in (0, 1)])
    assert n.min() >= span[0] and n.max() < span[1] and (n % 2 == 1).all() and (side_of(n) > TEST).all()
    held = [held_out(*span, side, 1000, seed) for side in (VAL, TEST) for seed in (0, 5)]
    assert not set(n) & set(np.concatenate(held)) and not set(np.concatenate(held[:2])) & set(np.concatenate(held[2:]))
    assert all(len(np.unique(h)) == len(h) for h in held)


def test_sides_are_fair():
    side = side_of(np.arange(1, 2**20, 2))
    count = np.bincount(side, minlength=32)
    assert len(count) == 32 and abs(count / count.mean() - 1).max() < 0.05
    depth = long_step(np.arange(1, 2**20, 2)).depth
    assert abs(depth[side == TEST].mean() - depth.mean()) < 0.05


def test_samplings_are_what_they_say():
    ids = np.arange(30_000)
    natural, log, tilted, even = (
        training_numbers(Numbers(1, 10**9, s, 8), 3, ids, t)
        for s, t in (("natural", 1), ("log_uniform", 1), ("balanced", 1), ("balanced", 0))
    )
    assert abs(natural.mean() / 5e8 - 1) < 0.02 and abs(np.log10(log).mean() - 4.5) < 0.1
    assert abs((long_step(tilted).depth == 2).mean() - 0.25 / class_share(8)) < 0.02
    assert abs((long_step(even).depth == 8).mean() - 7 / 28) < 0.02  # 7 of the 28 classes to depth 8


def test_an_example_depends_on_seed_and_id_only():
    stream = Stream(Numbers(1, 2**20, "balanced"), code_for(24, 2**20), 5)
    whole = stream.batch(np.arange(64), {"tilt": 0.5}, None)
    part = stream.batch(np.arange(20, 30), {"tilt": 0.5}, torch.Generator().manual_seed(9))
    assert torch.equal(whole.inputs[20:30], part.inputs) and torch.equal(whole.targets[20:30], part.targets)
    assert stream.size is None
    assert not torch.equal(whole.n, Stream(stream.numbers, stream.code, 6).batch(np.arange(64), {"tilt": 0.5}, None).n)
    numbers = Numbers(1, 2**20)
    assert (
        training_numbers(numbers, 5, torch.arange(2000)).numpy() == training_numbers(numbers, 5, np.arange(2000))
    ).all()


def test_ranges_without_numbers():
    for start, stop in ((0, 9), (5, 5), (9, 4)):
        with pytest.raises(ConfigError, match="range"):
            Numbers(start, stop)
    with pytest.raises(DataError, match="held-out"):
        held_out(1, 5, VAL, 1, 0)
    alone = next(n for n in range(1, 999, 2) if side_of(np.array([n]))[0] == TEST)
    with pytest.raises(DataError, match="training numbers"):
        training_numbers(Numbers(alone, alone + 2), 0, np.arange(4))


# ---- the guide's set


def test_dataset_of_the_guide():
    with pytest.warns(UserWarning, match="repeat"):
        dataset = CollatzDataset(start_range=(1, 10000), num_samples=50000, base=24, max_length=50, seed=42)
    inputs, targets = dataset[0]
    assert len(dataset) == 50000 and inputs.shape == targets.shape == (50,) and inputs.dtype == torch.int64
    assert set(dataset.n.tolist()) == set(range(1, 10000, 2))
    train, val = dataset.split()
    assert not set(dataset.n[train.indices]) & set(dataset.n[val.indices]) and 0.15 < len(val) / 50000 < 0.25
    value, valid = dataset.code.decode(dataset.targets)
    assert valid.all() and (value.numpy() == dataset.step.kappa).all()


def test_dataset_is_a_function_of_its_seed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two, other = (CollatzDataset((1, 10**9), 300, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.inputs, two.inputs) and not torch.equal(one.inputs, other.inputs)
    assert Fixed(one.n, one.code).size == 300
    with pytest.raises(ConfigError, match="width"):
        CollatzDataset((1, 10**12), 10, base=2, max_length=50)
