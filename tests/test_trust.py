"""Run directories that are damaged, foreign or shared: a named error or a mark, and never another figure."""
import contextlib
import functools
import json
import os
import re
import shutil
import sys
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from tiny import Scripted, train

from nexuslab.checkpoint import save_checkpoint
from nexuslab.config import Config, resolve
from nexuslab.core import (
    LEFT, ConfigError, FileError, FormatError, NexusError, RunError, digest, held, read_json, write_json,
)
from nexuslab.dashboard import Follower, difference_table, row_of
from nexuslab.store import ensure_store
from nexuslab.evaluate import evaluate, evaluation_table, kept_figures, write_evaluation
from nexuslab.jobs import main
from nexuslab.plans import planned
from nexuslab.run import (
    Record, Run, comparison, damaged_rows, find_runs, left_out, open_run, read_lines, runs_table,
)
from nexuslab.task import get_task
from nexuslab.tune import Journal, StudyError, tune
from nexuslab.views import received_cells, summary_cells

ENTRY = {"checkpoint": "best", "step": 3, "figures": {"loss": 0.25}, "baselines": {}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small trained run with figures of one split; copied, never changed."""
    run = train(Scripted(steps=4), tmp_path_factory.mktemp("made")).run
    write_evaluation(run, "test", ENTRY)
    return run


@pytest.fixture
def run(made, home):
    """A copy of that run in a project root of the test's own."""
    return Run(shutil.copytree(made.path, home / "runs" / "tiny" / made.path.name))


# ---- one bad directory

BAD = {
    "config.yaml": [b"", b"a: [", b"preset: base\n", b"- 1\n", b"system: 3\npreset: x\n", b"system: \xe9",
                    b"[" * 200_000, None],
    "status.json": [b"", b"{}", b"[]", b'{"state": 3}', b'{"step": 3}', b'{"state": "running", "pid": "x"}',
                    b'{"state"', b'{"state": "running", "updated": "now"}', b"\xff\xfe", None],
    "evaluation.json": [b"", b"[]", b'{"test": 3}', b'{"test": {}}', b"\xff", None],
}


def spoil(run: Run, file: str, content: bytes | None) -> None:
    """Put these bytes, or a folder, in the place of a file."""
    (run.path / file).unlink()
    if content is None:
        (run.path / file).mkdir()
    else:
        (run.path / file).write_bytes(content)


def test_one_bad_directory_stops_nobody(run, home, capsys):
    """Each damage is a row that says so, here, in the dashboard and in the comparison; named errors elsewhere."""
    spoilt = []
    for file, contents in BAD.items():
        for number, content in enumerate(contents):
            copy = Run(shutil.copytree(run.path, home / "runs" / "bad" / f"{file}-{number}"))
            spoil(copy, file, content)
            spoilt.append((copy, file))
    assert len(spoilt) == 24 and len(find_runs(home)) == 25 and open_run(run.path.name, home).path == run.path
    table = runs_table(home).set_index("run")
    beside = comparison([run, *(copy for copy, _ in spoilt)])
    assert table.state[run.path.name] == beside[run.path.name]["state"] == "finished"
    assert beside[run.path.name]["loss"] == 0.25
    for copy, file in spoilt:
        name = copy.path.name
        said = beside[name]["state"]
        assert open_run(f"bad/{name}", home).path == copy.path and said.startswith("damaged: ") and file in said
        if file == "evaluation.json":
            assert table.state[name] == "finished"
            with pytest.raises(FormatError, match="evaluation.json"):
                evaluation_table(copy)
            with pytest.raises(FormatError, match="evaluation.json"):
                write_evaluation(copy, "val", ENTRY)
            continue
        assert table.state[name] == said == row_of(copy)["status"]
        with pytest.raises(FormatError, match=file):
            copy.tree, copy.status
    assert "damaged: config.yaml" in difference_table([Follower(r) for r in (run, spoilt[0][0])])
    assert main(["runs"]) == 0 and capsys.readouterr().out.count("damaged: ") == 18


def test_half_a_configuration_stops_no_comparison(run, home):
    """One that is cut at the end of any line: told, wherever it is read, and the other run is shown."""
    copy = Run(shutil.copytree(run.path, home / "runs" / "bad" / "half"))
    lines = (run.path / "config.yaml").read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines)):
        (copy.path / "config.yaml").write_bytes(b"".join(lines[:count]))
        with pytest.warns(UserWarning, match="config.yaml of half is not as nexuslab wrote it") if count > 1 else (
                contextlib.nullcontext()):
            beside, table = comparison([run, copy]), runs_table(home).set_index("run")
        assert beside[run.path.name]["best"] == run.status["best"] and table.state[run.path.name] == "finished"
        assert table.state["half"] == "finished" or table.state["half"].startswith("damaged: config.yaml")


def test_a_notebook_of_another_format_is_refused(run):
    """Its cells fit their seal, but their outputs would be looked for elsewhere, and left out without a word."""
    cells = [{"cell_type": "code", "execution_count": None, "id": "a", "metadata": {}, "source": "x",
              "outputs": [{"output_type": "stream", "name": "stdout", "text": "loss 1.5"}]}]
    book, path = {"cells": cells, "metadata": {"seal": digest(cells, 64)}, "nbformat_minor": 5}, run.path / "a.ipynb"
    write_json(path, book | {"nbformat": 4})
    assert received_cells(path)[0].outputs[0].text == "loss 1.5"
    for other in ({}, {"nbformat": 3}, {"metadata": {"seal": digest(cells, 64), "nbformat": 4}}):
        write_json(path, book | other)
        with pytest.raises(FormatError, match="a.ipynb is not a notebook"):
            received_cells(path)


def test_wrong_names_of_runs_and_systems(home):
    for system in ("/", "..", "../..", "a/b", ""):
        with pytest.raises(RunError, match="system"):
            runs_table(home, system)
    assert main(["runs", "--system", "/"]) == 2
    for name in ("x" * 5000, "a\0b", "/", ".."):
        with pytest.raises(RunError, match="exactly one"):
            open_run(name, home)


def test_a_run_of_another_machine_that_says_nothing_is_lost(run):
    """Its process cannot be seen: minutes without a word end what it says of itself."""
    run.set_status(state="running", host="elsewhere")
    assert run.status["state"] == "running"
    old = {k: v for k, v in read_json(run.path / "status.json").items() if k != "seal"}
    write_json(run.path / "status.json", old | {"updated": time.time() - 600})
    assert run.status["state"] == runs_table(run.root).state[0] == "lost"
    assert train(Scripted(steps=6), run.root, run=run, resume="last", steps=6).run.status["state"] == "finished"


# ---- shared and changed files


def put(path, number: int) -> None:
    """What one of several processes writes."""
    for split in range(number, number + 3):
        write_evaluation(Run(path), f"split_{split}", ENTRY)
        Run(path).set_status(**{f"field_{split}": split})


def test_nothing_is_lost_when_many_write(run):
    forked([functools.partial(put, run.path, 3 * n) for n in range(8)])
    assert set(run.evaluation) == {"test", *(f"split_{n}" for n in range(24))}
    assert [run.status[f"field_{n}"] for n in range(24)] == list(range(24)) and run.status["state"] == "finished"


def test_a_changed_byte_is_no_other_figure(run):
    """Every byte of evaluation.json and status.json, one at a time: an error, or the same content."""
    for name, read in (("evaluation.json", lambda: run.evaluation), ("status.json", lambda: run.status)):
        path, whole = run.path / name, read()
        data = path.read_bytes()
        refused = 0
        for place in range(len(data)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            try:
                assert read() == whole, place
            except NexusError:
                refused += 1
        assert refused > 0.8 * len(data)
        path.write_bytes(data)
    text = (run.path / "evaluation.json").read_text().replace("0.25", "0.20")
    (run.path / "evaluation.json").write_text(text)
    assert comparison([run])[run.path.name]["state"].startswith("damaged: evaluation.json")
    assert main(["runs", "--latest"]) == 2


def test_files_from_before_there_were_seals(run):
    record = run.path / "metrics.jsonl"  # of such a run, which knows no seals of checkpoints
    rows = [{k: v for k, v in row.items() if k != "manifest"} for row in read_lines(record)[0]]
    record.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("evaluation.json", "status.json"):
        write_json(run.path / name, {k: v for k, v in read_json(run.path / name).items() if k != "seal"})
    assert run.evaluation["test"]["figures"] == {"loss": 0.25} and run.status["state"] == "finished"
    write_evaluation(run, "val", ENTRY)
    assert set(run.evaluation) == {"test", "val"} and len(json.loads((run.path / "evaluation.json").read_text())) == 3


# ---- the record


def test_damaged_rows_are_counted_and_left_out(run):
    """Any changed byte of a row takes the row away, with a word; no figure of it comes through changed."""
    path = run.path / "metrics.jsonl"
    data, (rows, _, none) = path.read_bytes(), read_lines(path)
    assert len(rows) == data.count(b"\n") > 4 and none == 0
    start, end = (found.start() for found in list(re.finditer(rb"\n", data))[1:3])
    for place in range(start + 1, end):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        kept, _, damaged = read_lines(path)
        assert damaged >= 1 and all(row in rows for row in kept) and len(kept) == len(rows) - 1
    with pytest.warns(UserWarning, match="1 damaged"):
        assert len(run.history()) <= len(rows)
    follower = Follower(run)
    follower.poll()
    assert follower.damaged == 1
    text = b"".join(json.dumps(row).encode() + b"\n" for row in rows)  # as older runs have it
    path.write_bytes(text + b"5\n[]\n" + b"[" * 100_000 + b'\n{"a": 1}\n{"step": 9, "val/loss": "x"}\n')
    assert read_lines(path)[0] == rows and read_lines(path)[2] == 5


def test_every_reader_says_how_many_rows_are_left_out(run, home, capsys):
    """The table of runs, an evaluation and its file, the report."""
    path = run.path / "metrics.jsonl"
    assert left_out(run) == ""
    path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": 3'))
    lines = damaged_rows(path)
    assert lines == read_lines(path)[2] >= 1
    assert main(["runs", "--latest"]) == 0 and f"record: {lines} damaged rows" in capsys.readouterr().out
    with pytest.warns(UserWarning, match=f"{lines} damaged rows of metrics.jsonl, or of another .*nexuslab doctor"):
        evaluate(Scripted(steps=4), run, "val")
    assert str(lines) in run.evaluation["val"]["record"] and "record" not in run.evaluation["test"]
    assert left_out(run) in "".join(cell.source for cell in summary_cells(run))
    path.write_bytes(path.read_bytes() * 2)
    assert damaged_rows(path) == 2 * lines + 1  # and one that goes back


def test_a_table_of_runs_reads_no_record(run, home, capsys, monkeypatch):
    """It says that a record has become shorter, which its size tells."""
    assert main(["runs"]) == 0 and "remark" not in capsys.readouterr().out
    path, opened, reading = run.path / "metrics.jsonl", [], []
    sys.addaudithook(lambda event, args: event == "open" and reading and opened.append(str(args[0])))
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    reading.append(1)
    said = runs_table(home).remark.tolist()
    reading.clear()
    assert opened and str(path) not in opened
    assert re.fullmatch(r"damaged: \d+ bytes of metrics.jsonl are missing", said[0])
    assert main(["runs"]) == 0 and said[0] in capsys.readouterr().out


def test_a_line_that_stands_twice_is_damage(run):
    """Each line of the record in turn: it is left out and counted, by all who read it, at once or in pieces."""
    path, follower = run.path / "metrics.jsonl", Follower(run)
    lines, rows = path.read_bytes().splitlines(keepends=True), read_lines(path)[0]
    follower.poll()
    for place in range(len(lines)):
        path.write_bytes(b"".join([*lines[: place + 1], *lines[place:]]))
        assert read_lines(path)[::2] == (rows, 1) and damaged_rows(path) == 1
        half = sum(map(len, lines[: place + 1]))
        assert read_lines(path, half)[::2] == (rows[place + 1 :], 1)
    with pytest.warns(UserWarning, match="1 damaged"):
        assert len(run.events()) == len([r for r in rows if "event" in r])
    assert not follower.poll() and follower.damaged == 1 and len(follower.events) == len(run.events())


def test_a_row_is_written_once_though_the_clock_stands(tmp_path, monkeypatch):
    """What readers take as damage is never written: the same words at the same time are one row."""
    monkeypatch.setattr(time, "time", lambda: 1e9)
    record = Record(tmp_path / "metrics.jsonl")
    for step in (1, 1, 2, 2, 1):
        record.write(step, 0, {"event": "spike"})
    rows, _, damaged = read_lines(record.path)
    assert [r["step"] for r in rows] == [1, 2, 1] and damaged == 0


def test_the_log_is_that_of_the_training(run):
    """A change of any byte is told; lines that a later training adds are none."""
    path = run.path / "log.txt"
    data = path.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "new best" in run.log
        longer = train(Scripted(steps=6), run.root, run=run, resume="last", steps=6).run.log
        assert longer.startswith(data.decode()) and len(longer) > len(data)
    whole = path.read_bytes()
    for changed in (whole[:-1], b"", *(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :] for k in (0, 9, -2))):
        path.write_bytes(changed)
        run.set_status(note="x")
        with pytest.warns(UserWarning, match="log.txt of .* is not as nexuslab wrote it"):
            assert run.log == changed.decode("utf-8", "replace")
    path.unlink()
    with pytest.warns(UserWarning, match="log.txt"):
        assert run.log == ""


def test_figures_of_a_costly_baseline_are_kept(tmp_path, monkeypatch):
    """For what they are made from; a changed or damaged file is computed again, a disk that takes none is told."""
    asked = []
    ask = lambda **made_from: kept_figures(tmp_path, made_from, lambda: asked.append(1) or {"loss": 0.25})
    first = ask(width=1)
    assert ask(width=1) == first == ask(width=2) and len(asked) == 2
    for n, harm in enumerate((lambda text: text.replace("0.25", "0.75"), lambda text: text[:9], lambda text: "{}")):
        for kept in tmp_path.glob("*.json"):
            kept.write_text(harm(kept.read_text()))
        assert ask(width=1) == first == ask(width=1) and len(asked) == 3 + n
    monkeypatch.setattr("nexuslab.evaluate.write_sealed", full)
    with pytest.warns(UserWarning, match="cannot be kept"):
        assert ask(width=3) == first and len(asked) == 6


def full(path, value):
    raise FileError(f"writing {path}", found="No space left on device")


# ---- what a killed process leaves


def test_a_run_without_a_checkpoint_starts_again(home, capsys):
    cfg = resolve(get_task("toy_graphs"), "smoke")
    run = Run.create(cfg, home)
    assert planned({"resume": run.path.name})[3] is None
    assert "started again from the beginning" in capsys.readouterr().out
    about = {"system": "toy_graphs", "config": cfg.tree(), "meta": {}, "fingerprint": ""}
    save_checkpoint(run.path / "checkpoints", 1, torch.nn.Linear(1, 1), {}, about)
    assert planned({"resume": "last"})[3] == "last"


def test_half_written_files_are_removed(tmp_path):
    """Those of killed processes, by the next build in the folder; not that of one that is still at work."""
    (dead := tmp_path / f".a.h5.0a1b2c3d{LEFT}").touch()
    with held(tmp_path / "b.h5") as busy:
        ensure_store(tmp_path / "c.h5", {"generator": "test"}, lambda: {"x": np.arange(3)})
        assert not dead.exists() and busy.exists()
    ensure_store(tmp_path / "b.h5", {"generator": "test"}, lambda: {"x": np.arange(3)})
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_is_whole_or_absent(tmp_path, monkeypatch):
    """A process that dies while it makes a run leaves no run; the next one removes what it left."""
    cfg = Scripted(steps=2).config
    codes = forked([functools.partial(die_at, k, functools.partial(Run.create, cfg, tmp_path)) for k in range(1, 9)])
    assert codes == [-9] * 8 and not find_runs(tmp_path)
    assert find_runs(tmp_path) == [] and list((tmp_path / "runs" / "tiny").glob(f".*{LEFT}"))
    made = Run.create(cfg, tmp_path)
    assert list((tmp_path / "runs" / "tiny").iterdir()) == [made.path] and made.status["state"] == "created"


def die_at(k: int, act) -> None:
    """Call, and be killed when the k-th file is renamed or forced to the disk."""
    left = iter(range(k - 1, -1, -1))
    for name in ("fsync", "replace", "rename"):
        real = getattr(os, name)
        setattr(os, name, lambda *given, real=real: real(*given) if next(left) else os.kill(os.getpid(), 9))
    act()


@pytest.fixture
def calls(monkeypatch):
    """What is forced to the disk and renamed, in its order."""
    seen = []
    names = lambda handle: os.readlink(f"/proc/self/fd/{handle}")

    def watch(name, tell):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given: seen.append((name, *tell(*given))) or real(*given))

    watch("fsync", lambda handle: [names(handle)])
    for name in ("replace", "rename"):
        watch(name, lambda old, new: [str(old), str(new)])
    return seen


def synced_around(calls: list, target: str, content: bool) -> None:
    """The content before the last rename to a name, and the folder that holds the name after it."""
    renamed = max(i for i, call in enumerate(calls) if call[0] != "fsync" and call[2] == target)
    old, parent = calls[renamed][1], str(Path(target).parent)
    assert ("fsync", old) in calls[:renamed] or not content, target
    assert ("fsync", parent) in calls[renamed:], target


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")
def test_files_folders_and_their_parents_are_synced(tmp_path, calls):
    """Each name is on the disk after its content: pointers, checkpoints, runs, studies, data, and their folders."""
    task = Scripted(steps=4)
    task.space = lambda trial: {"optim.lr": trial.suggest_float("lr", 0.01, 0.02)}
    run = train(task, tmp_path).run
    tune(task, task.config, trials=1, study_name="mine", root=tmp_path)
    ensure_store(tmp_path / "data" / "tiny" / "a.h5", {"generator": "test"}, lambda: {"x": np.arange(3)})
    keep_picture(run)
    step = run.checkpoint("last")
    for target in (run.path, step, run.path / "checkpoints" / "last.json", run.path / "checkpoints" / "best.json",
                   run.path / "status.json", tmp_path / "data" / "tiny" / "a.h5", run.path / "figures" / "curve.png",
                   tmp_path / "runs" / ".studies" / "mine" / "best_config.yaml"):
        synced_around(calls, str(target), content=True)
    temporary = str(step.with_name(f".{step.name}.tmp"))
    for name in ("model.safetensors", "state.safetensors", "state.json", "manifest.json"):
        assert calls.index(("fsync", f"{temporary}/{name}")) < calls.index(("replace", temporary, str(step)))
    for folder in ("runs/tiny", "runs/.studies/mine", "data/tiny"):  # made new: known to the one that holds it
        for made in (tmp_path / folder, (tmp_path / folder).parent):
            assert ("fsync", str(made.parent)) in calls


def keep_picture(run: Run) -> None:
    """A figure of the run."""
    run.keep("curve", plt.figure())


# ---- names that are no names


@pytest.mark.parametrize("words", [
    ["train", "--system", "../../../esc"], ["train", "--system", "toy_graphs", "-o", "system=../../../esc"],
    ["train", "--system", "toy_graphs", "--name", "a/b"], ["train", "--system", "toy_graphs", "--name", "n" * 5000],
    ["train", "--system", "toy_graphs", "-o", "model.hidden=["], ["train", "--lr", "%"], ["train", "--epochs", "["],
    ["train", "--resume", "r" * 5000], ["tune", ""], ["runs", "--system", "../.."],
])
def test_hostile_words_are_refused(words, home, capsys):
    """Exit status 2 and an error of ours, before anything is written."""
    try:
        code = main([*words, "--dry-run"] if words[0] == "train" else words)
    except SystemExit as ended:  # argparse's own way
        code = ended.code
    told = capsys.readouterr().err
    assert code == 2 and "nexuslab" in told and "Traceback" not in told and not list(home.rglob("*"))


def test_names_of_studies(home):
    task = Scripted(steps=4)
    for name in ("..", ".", "a/b", "../x", ".hidden", "s" * 101):
        with pytest.raises(StudyError, match="study name"):
            tune(task, task.config, trials=1, study_name=name, root=home)
    with pytest.raises(ConfigError, match="system"):
        Config(system="../../../esc")
    assert not list(home.rglob("*"))


# ---- several processes


def forked(acts: list) -> list[int]:
    """Call each in a fork of its own, all at once; their exit statuses."""
    children = []
    for act in acts:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                act()
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


class Counted(Scripted):
    """Trials of a study whose number is known; the process dies in a step of the given one."""

    def __init__(self, killed=None):
        super().__init__(steps=3)
        self.killed, self.number = killed, None

    def space(self, trial):
        self.number = trial.number
        return {"optim.lr": trial.suggest_float("lr", 0.01, 0.02)}

    def step(self, model, batch, cfg, at):
        if self.number == self.killed is not None:
            os.kill(os.getpid(), 9)
        return super().step(model, batch, cfg, at)


def ask(home, trials=5, killed=None, write=lambda text: None):
    """A study of that many trials."""
    task = Counted(killed)
    return tune(task, task.config, trials=trials, study_name="shared", root=home, write=write)


def test_studies_at_once_make_one_of_the_size_that_was_asked(home):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert forked([functools.partial(ask, home)] * 3) == [0] * 3
    done = ask(home)
    states = {trial.state.name for trial in done.study.get_trials()}  # which are cut depends on who is first
    assert states <= {"COMPLETE", "PRUNED"} and len(done.study.get_trials()) == len(find_runs(home)) == 5
    assert len({t.params["lr"] for t in done.study.get_trials()}) == 5  # each proposes something of its own


def test_a_killed_trial_is_done_again(home, tmp_path):
    """By the next call, with the same parameters: the study gives what an undisturbed one gives."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert forked([functools.partial(ask, home, 3, number) for number in (1,)]) == [-9]
    done, whole = ask(home, 3), ask(tmp_path / "undisturbed", 3)
    assert [t.state.name for t in done.study.get_trials()] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    kept = [(t.params, t.value) for t in done.study.get_trials() if t.state.name == "COMPLETE"]
    assert kept == [(t.params, t.value) for t in whole.study.get_trials()] and done.config == whole.config


def test_a_torn_line_of_a_journal_is_removed(home):
    """As a machine that died may leave it; appending to it would make the journal unreadable."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ask(home, 1)
    journal = home / "runs" / ".studies" / "shared" / "journal.log"
    journal.write_bytes(journal.read_bytes() + b'{"op_code":4,"wor')
    assert len(ask(home, 2).trials) == 2 and journal.read_bytes().endswith(b"\n")


def test_a_journal_that_was_cut_at_a_line_is_told(home):
    """At the end of each line: a word about it, and the trials that are lost are done again."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert forked([functools.partial(ask, home, 2)]) == [0]
    journal = home / "runs" / ".studies" / "shared" / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    for count in range(1, len(lines)):
        journal.write_bytes(b"".join(lines[:count]))
        with pytest.warns(UserWarning, match="bytes at its end are missing"):
            list(Journal(journal).read_logs(0))
    journal.write_bytes(b"".join(lines[: len(lines) // 2]))
    with pytest.warns(UserWarning, match="bytes at its end are missing"):
        assert len(ask(home, 2).study.get_trials(states=(TrialState.COMPLETE,))) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(Journal(journal).read_logs(0))
