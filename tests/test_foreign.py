"""Files that are sound by themselves and stand in the wrong place: of another step, run or baseline; and links."""
import json
import os
import shutil

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from tiny import Scripted, points, train
from torch.utils.data import DataLoader

from nexuslab.checkpoint import find_checkpoint, open_checkpoint, point, pointed, step_name, steps_saved
from nexuslab.core import CheckpointError, FormatError, RunError, digest, write_json
from nexuslab.data import Fetch, Key
from nexuslab.doctor import diagnose
from nexuslab.evaluate import kept_figures, write_evaluation
from nexuslab.jobs import main
from nexuslab.kernels import RunStore
from nexuslab.run import Run, comparison, find_runs, given_up, left_out, open_run, record_changed, runs_table
from nexuslab.views import report

CADENCE = {"checkpoint.eval_every": 2, "checkpoint.save_every": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two trained runs that differ in their seed; copied, never changed."""
    root = tmp_path_factory.mktemp("made")
    return [train(Scripted(steps=6, **CADENCE), root, seed=seed).run for seed in (0, 1)]


@pytest.fixture
def pair(made, home):
    """Copies of them in a project root of the test's own."""
    return [Run(shutil.copytree(run.path, home / "runs" / "tiny" / run.path.name)) for run in made]


def test_a_checkpoint_stands_in_its_own_place(pair):
    """That of another step, or of another run, is refused, though its files are those of its manifest."""
    run, other = (one.path / "checkpoints" for one in pair)
    earlier, later = sorted(run.glob("step_*"))[-2:]
    assert open_checkpoint(run, "last").path == later
    shutil.rmtree(later)
    shutil.copytree(earlier, later)
    with pytest.raises(CheckpointError, match="under another's name"):
        open_checkpoint(run, "last")
    shutil.rmtree(later)
    shutil.copytree(other / later.name, later)
    with pytest.raises(CheckpointError, match="record"):
        open_checkpoint(run, "last")
    new = run / "step_00000009"  # a step that this run never saved
    shutil.copytree(earlier, new)
    manifest = dict(open_checkpoint(run, earlier.name).manifest) | {"step": 9}
    write_json(new / "manifest.json", manifest | {"seal": digest(manifest, 64)})
    with pytest.raises(CheckpointError, match="neither the run's record nor its pointers"):
        open_checkpoint(run, "step_9")


def test_a_pointer_without_a_seal_counts_in_runs_without_seals_only(pair):
    folder = pair[0].path / "checkpoints"
    best = pointed(folder, "best")
    write_json(folder / "best.json", {"step": 2 if best != 2 else 4})
    assert pointed(folder, "best") == best, "the record says which"
    point(folder, "best", best)
    assert pointed(folder, "best") == best


def test_figures_of_another_run_are_marked(pair):
    """evaluation.json copied from one run to another: every table says that it is not this run's."""
    for run, loss in zip(pair, (0.5, 0.25)):
        saved = open_checkpoint(run.path / "checkpoints", "last")
        entry = {"checkpoint": "last", "step": 6, "manifest": saved.seal, "figures": {"loss": loss}, "baselines": {}}
        write_evaluation(run, "test", entry)
    assert not any(map(given_up, pair))
    shutil.copy(pair[1].path / "evaluation.json", pair[0].path)
    assert "does not know" in given_up(pair[0])["test"]
    record = pair[1].path / "metrics.jsonl"
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[:8]))
    assert not given_up(pair[1]), "a record that is cut accuses nobody: the pointers know the checkpoint"
    table = comparison(pair)
    assert "does not know" in table.loc["figures", pair[0].path.name]
    assert table.isna().loc["figures", pair[1].path.name]


def test_figures_without_their_seal_are_refused(pair):
    write_evaluation(pair[0], "test", {"checkpoint": "last", "step": 6, "figures": {"loss": 0.5}, "baselines": {}})
    unsealed = {"test": pair[0].evaluation["test"] | {"figures": {"loss": 0.001}}}
    write_json(pair[0].path / "evaluation.json", unsealed)
    with pytest.raises(FormatError, match="no seal"):
        pair[0].evaluation


def test_a_row_in_another_place_is_told(pair):
    """A row of the record over an earlier one: the steps go back, and what stood there is missing."""
    record = pair[0].path / "metrics.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    assert left_out(pair[0]) == ""
    record.write_bytes(b"".join([*lines[:2], lines[-2], *lines[3:]]))
    assert "1 damaged rows" in left_out(pair[0])


def test_a_baseline_under_another_name_is_computed_again(tmp_path, capsys):
    asked, other = {"baseline": "mean", "split": "test"}, {"baseline": "mean", "split": "val"}
    assert kept_figures(tmp_path, other, lambda: {"loss": 2.0}) == {"loss": 2.0}
    shutil.copy(tmp_path / f"{digest(other)}.json", tmp_path / f"{digest(asked)}.json")
    assert kept_figures(tmp_path, asked, lambda: {"loss": 1.0}) == {"loss": 1.0}
    assert "another's file" in capsys.readouterr().out
    assert kept_figures(tmp_path, asked, lambda: {"loss": 3.0}) == {"loss": 1.0}


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "figures"])
def test_nothing_is_written_through_a_link(pair, tmp_path, name):
    """A received run directory may hold links to files of its reader."""
    run, elsewhere = pair[0], tmp_path / "elsewhere"
    own = run.path / name
    shutil.rmtree(own) if own.is_dir() else own.unlink(missing_ok=True)
    elsewhere.mkdir() if name == "figures" else elsewhere.write_text("mine\n")
    own.symlink_to(elsewhere)
    task = Scripted(steps=9, **CADENCE)
    for act in (
        lambda: train(task, run.root, run=run, resume="last"), lambda: run.set_status(state="running"),
        lambda: run.keep("curves", plt.figure()),
    ):
        with pytest.raises(RunError, match=f"links: {name}"):
            act()
    assert not list(elsewhere.iterdir()) if name == "figures" else elsewhere.read_text() == "mine\n"
    plt.close("all")


def test_a_name_cannot_command_the_terminal(pair, capsys, monkeypatch):
    """Escapes in the name of a run directory are printed as escapes."""
    run = pair[0].path.rename(pair[0].path.with_name("x\033]0;title\007\033[31m\u202e"))
    monkeypatch.chdir(run.parent)
    assert main(["report", str(run)]) == 0
    told = capsys.readouterr().out
    assert "\\x1b]0;title\\x07" in told and not set(told) & set("\033\007\u202e")


def test_a_source_reaches_spawned_workers():
    """The workers of a training that was itself spawned are spawned as well."""
    keys = [Key(step=0, ids=np.arange(2), setting=None)]
    fetch = Fetch(points(4, 0), 1)
    loader = DataLoader(fetch, sampler=keys, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    [(x, y)] = list(loader)
    assert torch.equal(x, fetch[keys[0]][0]) and len(y) == 2


def test_a_notebook_without_a_seal_is_told(pair):
    """In a run whose files are sealed, a notebook that its job did not write is shown as what it is."""
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("loss 0.001")])
    path = pair[0].path / "report.ipynb"
    nbformat.write(book, path)
    with pytest.warns(UserWarning, match="not as its job wrote it"):
        text = report(pair[0]).read_text(encoding="utf-8")
    assert "report.ipynb is not as its job wrote it" in text and "loss 0.001" in text
    RunStore.write(nbformat.writes(book), f"nexuslab://train/x.ipynb?{path}")
    assert "not as its job wrote it" not in report(pair[0]).read_text(encoding="utf-8")


def test_a_notebook_and_a_picture_of_another_run_are_told(pair):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("loss 0.001")])
    RunStore.write(nbformat.writes(book), f"nexuslab://train/x.ipynb?{pair[1].path / 'report.ipynb'}")
    assert "another run" not in report(pair[1]).read_text(encoding="utf-8")
    for name in ("report.ipynb", "figures/curves.png"):
        shutil.copy(pair[1].path / name, pair[0].path / name)
    with pytest.warns(UserWarning, match="report.ipynb is another run's"):
        text = report(pair[0]).read_text(encoding="utf-8")
    assert "report.ipynb is another run's" in text
    curves = "figures/curves.png"
    assert (pair[0].path / curves).read_bytes() != (pair[1].path / curves).read_bytes(), "drawn from its own record"


def test_an_older_pointer_is_not_followed(pair):
    """A pointer out of a backup, or a copy of the other one: sound by itself, and the record knows better."""
    folder = pair[0].path / "checkpoints"
    saved = steps_saved(folder, "last")
    for name, step in (("last", saved[-2]), ("best", saved[0]), ("best", saved[-1])):
        truth = pointed(folder, name)
        if step == truth:
            continue
        before = (folder / f"{name}.json").read_bytes()
        point(folder, name, step)
        with pytest.warns(UserWarning, match=f"{name}.json names step {step}, and the record step {truth}"):
            assert find_checkpoint(folder, name).name == step_name(truth)
        (folder / f"{name}.json").write_bytes(before)
    shutil.rmtree(folder / step_name(saved[-1]))
    point(folder, "last", saved[-2])
    assert find_checkpoint(folder, "last").name == step_name(saved[-2]), "what is not there is not named"


def spoil_record(kind, record, other):
    """One of the ways in which a record gets rows that are not its own."""
    lines, foreign = (path.read_bytes().splitlines(keepends=True) for path in (record, other))
    row = json.loads(lines[2])
    row.pop("check")
    edited = json.dumps(row | {"train/loss": 0.001}).encode() + b"\n"
    new = {"another run's": foreign, "appended": lines + foreign, "a foreign row": [*lines[:2], foreign[2], *lines[3:]],
           "edited": [*lines[:2], edited.rjust(len(lines[2])), *lines[3:]]}[kind]
    data = b"".join(new)
    record.write_bytes(data.ljust(len(b"".join(lines)), b"\n"))


@pytest.mark.parametrize("kind", ["another run's", "appended", "a foreign row", "edited"])
def test_rows_of_another_run_are_told(pair, kind):
    """By every reader of the record, and still after the run has gone on."""
    run, other = pair
    assert left_out(run) == "" and not record_changed(run)
    spoil_record(kind, run.path / "metrics.jsonl", other.path / "metrics.jsonl")
    assert "metrics.jsonl" in left_out(run) and record_changed(run)
    with pytest.warns(UserWarning, match="metrics.jsonl"):
        run.history()
    assert "metrics.jsonl" in report(run).read_text(encoding="utf-8")
    assert any(f.place == "metrics.jsonl" for f in diagnose(run, mend=False).findings)


def test_a_changed_record_is_remembered_when_the_run_goes_on(pair):
    run = pair[0]
    spoil_record("edited", run.path / "metrics.jsonl", pair[1].path / "metrics.jsonl")
    train(Scripted(steps=8, **CADENCE), run.root, run=run, resume="last", seed=0)
    assert run.status["odd"] == 1 and not record_changed(run) and "not as nexuslab wrote it" in left_out(run)


def test_an_older_status_is_told(pair):
    """The status of a backup made while it was trained: the record has gone on, and ended."""
    run = pair[0]
    size = len(b"".join((run.path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:5]))
    run.set_status(state="running", pid=1, process_started=1.0, step=2, record=size, record_bytes=size, record_check=0)
    row = runs_table(run.root).set_index("run").loc[run.path.name]
    assert row.state == "died" and row.remark == "status.json is older than the record, which ended at step 6"


def test_the_last_run_is_the_newest_one(pair):
    """Also where an older one was renamed."""
    first, second = pair
    os.utime(first.path / "config.yaml", (1e9, 1e9))
    first.path.rename(first.path.with_name("zebra"))
    assert [run.path.name for run in find_runs(second.root)] == ["zebra", second.path.name]
    assert open_run("last", second.root).path == second.path


def test_a_cut_record_is_said_in_the_report(pair):
    record = pair[0].path / "metrics.jsonl"
    record.write_bytes(b"".join(record.read_bytes().splitlines(keepends=True)[:6]))
    assert "bytes of metrics.jsonl are missing" in report(pair[0]).read_text(encoding="utf-8")
