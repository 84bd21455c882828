"""A run comes out again from its directory alone, and what changed is named."""
import dataclasses
import json

import numpy as np
import pytest
import torch
from tiny import Halt, Scripted, train

from nexuslab.config import overlay
from nexuslab.core import ConfigError, DataError, Interrupted, RunError, write_sealed
from nexuslab.data import Tensors
from nexuslab.store import Store
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.reproduce import differences_of_figures, reproduce
from nexuslab.run import Run
from nexuslab.task import CanScore, get_task


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    task, home = get_task("toy_graphs"), tmp_path_factory.mktemp("home")
    cfg = task.presets["smoke"]()
    run = fit(task, cfg, Run.create(cfg, home)).run
    evaluate(task, run)
    return run


def test_nothing_differs(finished, capsys):
    assert reproduce(finished) == []
    assert "nothing differs" in capsys.readouterr().out


def test_a_training_that_was_cut_short_is_not_compared(finished):
    """What a signal or a person ended is no reproduction that differs."""
    for reason, kind in (("interrupted by SIGTERM", Interrupted), ("asked to stop", RunError)):
        def short(task, cfg, run, reason=reason):
            return dataclasses.replace(fit(task, cfg, run, [Halt(2)]), reason=reason)

        with pytest.raises(kind, match=f"{reason} at step 2") as refused:
            reproduce(finished, train=short)
        assert refused.value.remedy == f"nexuslab reproduce {finished.path.name}"


def data_file(run):
    """The dataset that the run was trained on, whatever stands beside it."""
    return get_task("toy_graphs").prepare(get_task("toy_graphs").presets["smoke"](), run.root)


@pytest.mark.parametrize("what", ["seed", "package", "figure", "row", "data", "code"])
def test_what_changed_is_named(finished, what):
    path = {
        "seed": "config.yaml", "package": "environment.json", "code": "environment.json", "figure": "evaluation.json",
        "row": "metrics.jsonl",
    }.get(what)
    target = finished.path / path if path else data_file(finished)
    before = target.read_bytes()
    try:
        if what == "seed":
            target.write_text(before.decode().replace("seed: 0", "seed: 1"))
        elif what == "data":
            target.unlink()  # a new file: HDF5 shares what this process has open of the old one
            target.write_bytes(before[:-3000])
        elif what == "row":
            lines = before.decode().splitlines()
            row = json.loads(lines[2])
            del row["check"]  # as the seal below
            target.write_text(
                "\n".join([*lines[:2], json.dumps(row | {"train/loss": row["train/loss"] + 1e-6}), *lines[3:]]) + "\n"
            )
        else:
            record = json.loads(before)
            del record["seal"]  # what follows is a careful forgery, not damage
            if what == "figure":
                record["test"]["figures"]["auroc"] += 0.01
            else:
                record |= {"code": "0" * 16} if what == "code" else {"packages": record["packages"] | {"torch": "1.0"}}
            write_sealed(target, record)
        found = reproduce(finished, write=lambda text: None)
        expected = {
            "seed": "seed was 0", "package": "package torch: was 1.0", "figure": "auroc was",
            "row": "train/loss at step", "data": "data file in place", "code": "code of nexuslab",
        }[what]
        assert any(expected in line for line in found), found
    finally:
        target.unlink()
        target.write_bytes(before)
    Store(data_file(finished)).verify()


def test_a_child_finds_its_parent(finished):
    """A run that began with another's weights comes out again in a folder of its own."""
    task = get_task("toy_graphs")
    cfg = overlay(task.presets["smoke"](), {"init_from": finished.path.name, "epochs": 1})
    child = fit(task, cfg, Run.create(cfg, finished.root)).run
    assert reproduce(child, write=lambda text: None) == []


def test_an_unfinished_run_is_refused(tmp_path):
    run = Run.create(get_task("toy_graphs").presets["smoke"](), tmp_path)
    with pytest.raises(RunError, match="finished"):
        reproduce(run)


class Reading(Scripted, CanScore):
    """Reads points and their values from a table."""

    def other(self, path, cfg, meta):
        rows = torch.from_numpy(np.loadtxt(path, ndmin=2)).float()
        return Tensors(rows[:, :3], rows[:, 3:])


def test_figures_of_a_file_of_ones_own(tmp_path):
    """They stand beside those of the splits, under the file's name; they are asked again, and a lost file is told."""
    task, home = Reading(steps=4), tmp_path / "home"
    run = train(task, home).run
    splits = task.data(run.config, home)
    np.savetxt(home / "mine.txt", np.hstack([part.numpy() for part in splits.val.tensors]))
    known = evaluate(task, run, "val")
    assert evaluate(task, run, data_path="mine.txt")["loss"] == pytest.approx(known["loss"], rel=1e-5)
    entry = run.evaluation["mine.txt"]
    assert set(run.evaluation) == {"val", "mine.txt"} and entry["data_path"] == "mine.txt" and entry["examples"] == 8
    assert entry["baselines"]["untrained"]["loss"] == pytest.approx(
        run.evaluation["val"]["baselines"]["untrained"]["loss"], rel=1e-5)
    assert differences_of_figures(run, run, task, splits) == []
    np.savetxt(home / "mine.txt", np.ones((2, 4)))
    assert "mine.txt loss was" in "".join(differences_of_figures(run, run, task, splits))
    (home / "mine.txt").unlink()
    assert "mine.txt cannot be evaluated again: mine.txt is gone" in "".join(
        differences_of_figures(run, run, task, splits))
    with pytest.raises(DataError, match="no such file"):
        evaluate(task, run, data_path="mine.txt")
    with pytest.raises(ConfigError, match="tiny reads no other data"):
        evaluate(Scripted(steps=4), run, data_path="mine.txt")
    assert set(run.evaluation) == {"val", "mine.txt"}
