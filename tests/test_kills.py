"""A few of the 300 kills that `python -m kills` makes: jobs die at a file operation, and are asked for again."""
import warnings

import kills
import pytest

SOME = ("prepare", "train", "evaluate", "sample", "tune")


@pytest.fixture(scope="module")
def cases():
    """Two kills of each of these jobs, at another operation in each half."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("NEXUSLAB_HOME", "")
        yield kills.cases(2, 2 * len(SOME), SOME)


@pytest.mark.parametrize("number", range(2 * len(SOME)))
def test_nothing_is_wrong_or_left_over(cases, number, monkeypatch):
    monkeypatch.setenv("NEXUSLAB_HOME", "")  # put back afterwards
    told, kill = cases[number]
    assert kill() == "same", told


def test_a_job_that_writes_half_would_be_noticed(cases, tmp_path):
    """The harness itself: what it counts, and what it calls left over."""
    count, expected = kills.undisturbed("sample")
    assert count > 50 and expected["toy_graphs/graphs"]["samples"]
    (tmp_path / "a.png").write_bytes(b"half")
    (tmp_path / "b.svg").write_text("<svg>")
    (tmp_path / ".c.tmp").touch()
    assert sorted(kills.halves(tmp_path)) == ["a.png", "b.svg"] and kills.left_over(tmp_path) == [".c.tmp"]
