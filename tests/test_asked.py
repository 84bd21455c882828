"""What was asked is done, or refused by name: no option, key, preset, choice or file is ignored in silence."""

import shutil

import pandas as pd
import pytest

from nexuslab.config import resolve
from nexuslab.core import ConfigError
from nexuslab.data import Store
from nexuslab.evaluate import keep_answers, predict, sample
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.task import get_task


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """A short run of each kind of system, all under one project root."""
    root, made = tmp_path_factory.mktemp("asked"), {}
    for system, changes in (
        ("toy_graphs", {"epochs": 2, "save_every": 1}),
        ("toy_tokens", {"steps": 2, "eval_every": 2}),
        ("collatz", {"steps": 2, "eval_every": 2, "model.kind": "causal"}),
    ):
        task = get_task(system)
        cfg = resolve(task, "smoke", changes)
        task.prepare(cfg, root)
        made[system] = fit(task, cfg, Run.create(cfg, root)).run
    return made


# ---- samples and answers


def test_another_call_writes_another_file(runs):
    """Samples of another number, seed, checkpoint or choice stand beside the first; the same call writes the same file."""
    task, run = get_task("toy_graphs"), runs["toy_graphs"]
    calls = [{"n": 3}, {"n": 4}, {"n": 3, "seed": 5}, {"n": 3, "scale": 2.0}, {"n": 3, "scale": 2.0, "seed": 5}]
    calls = [c | {"checkpoint": f"step_{step}"} for c in calls for step in (5, 10)]
    files = [sample(task, run, **call) for call in calls]
    assert len(set(files)) == len(calls) and [sample(task, run, **call) for call in calls] == files
    told = [Store(f).manifest for f in files]
    assert [t["step"] for t in told] == [5, 10] * 5
    assert [t["how"] for t in told] == [{}] * 6 + [{"scale": 2.0}] * 4
    assert all(f.with_suffix(".png").exists() for f in files)


def test_other_weights_of_the_same_step_write_another_file(runs, tmp_path):
    """The name follows the weights: the run trained again with another seed has a file of its own for the same step."""
    task, run = get_task("toy_graphs"), runs["toy_graphs"]
    cfg = resolve(task, "smoke", {"epochs": 2, "seed": 1})
    task.prepare(cfg, tmp_path)
    other = fit(task, cfg, Run.create(cfg, tmp_path)).run
    assert other.checkpoint("last").name == run.checkpoint("last").name
    names = {sample(task, r, 3, "last", seed=5).name for r in (run, other)}
    assert len(names) == 2


def test_answers_are_kept_apart(runs):
    """Answers to other inputs, or with another choice, are another file; the same answers are the same file."""
    task, run = get_task("collatz"), runs["collatz"]
    numbers = list(range(1, 81, 2))
    plain, wide, few = predict(task, run, numbers), predict(task, run, numbers, beam=16), predict(task, run, [27, 31])
    assert (plain.predicted != wide.predicted).any(), "the beam did not reach the answers"
    assert plain.truth.equals(wide.truth) and wide.attrs["how"] == {"beam": 16}
    files = [keep_answers(run, t) for t in (plain, wide, few)]
    assert len(set(files)) == 3 and keep_answers(run, predict(task, run, numbers)) == files[0]
    assert pd.read_csv(files[2]).n.tolist() == [27, 31]


def test_a_choice_that_is_not_understood_is_refused(runs):
    """By name, with what there is, before a checkpoint is read; for every system, without a line of its own."""
    asked = [
        ("collatz", predict, {"inputs": [27]}, {"nosuch": 1}, "beam"),
        ("collatz", predict, {"inputs": [27]}, {"bean": 3}, "did you mean beam?"),
        ("collatz", predict, {"inputs": [27]}, {"beam": 0}, "greater than or equal to 1"),
        ("collatz", predict, {"inputs": [27]}, {"beam": "three"}, "valid integer"),
        ("collatz", predict, {"inputs": [27]}, {"beam": True}, "not a boolean"),
        ("toy_graphs", sample, {"n": 1}, {"nosuch": 1}, "scale"),
        ("toy_graphs", sample, {"n": 1}, {"scale": -1}, "greater than 0"),
        ("toy_tokens", predict, {"inputs": [[1, 2]]}, {"nosuch": 1}, "no choice"),
    ]
    for system, call, what, how, words in asked:
        with pytest.raises(ConfigError, match=words):
            call(get_task(system), runs[system], **what, checkpoint="step_999", **how)


def test_circuits_refuses_a_choice(tmp_path):
    """A system that offers no choice refuses one before anything is looked at."""
    task = get_task("circuits")
    with pytest.raises(ConfigError, match="nosuch"):
        sample(task, Run.create(resolve(task, "smoke"), tmp_path), 3, nosuch=1)
    shutil.rmtree(tmp_path / "runs")
