"""Splits, orders and draws: functions of their keys, whatever else there is."""
import numpy as np
import pytest

from nexuslab.core import DataError
from nexuslab.data import split_by_hash

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
    assert abs((sides[0] == sides[1]).mean() - (0.64 + 0.01 + 0.01)) < 0.01, "another seed is another, independent split"


NUMBERS = np.arange(3)
WRONG = [(NUMBERS, (0.5, 0.6)), (NUMBERS, (1.5, -0.5)), (np.ones(3), SHARES), (np.array(["a"]), SHARES)]


@pytest.mark.parametrize("keys, shares", WRONG)
def test_shares_and_keys_that_cannot_be_are_refused(keys, shares):
    with pytest.raises(DataError):
        split_by_hash(keys, shares, 0)
