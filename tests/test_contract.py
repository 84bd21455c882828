"""The contract, on every system and both toys."""
import pytest

from nexuslab.contract import PROMISES, check_task
from nexuslab.task import get_task, list_tasks


def test_there_are_systems_to_check():
    assert {"toy_tokens", "toy_graphs"} <= set(list_tasks())


@pytest.mark.parametrize("name", list_tasks())
def test_contract(name, tmp_path):
    seen = check_task(get_task(name), tmp_path)
    assert len(seen) == len(PROMISES) >= 14 and "no figure besides the loss" not in seen["figures_have_rivals"]
    print(*(f"{k}: {v}" for k, v in seen.items()), sep="\n")
