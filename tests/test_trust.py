"""Run directories that are damaged, foreign or shared: a named error or a mark, and never another figure."""
import importlib
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from pydantic import ValidationError
from tiny import Scripted, train

from nexuslab.checkpoint import save_checkpoint
from nexuslab.config import Config, resolve
from nexuslab.core import FormatError, NexusError, RunError, read_json, write_json
from nexuslab.dashboard import Follower, difference_table, row_of
from nexuslab.data import ensure_store
from nexuslab.evaluate import evaluation_table, write_evaluation
from nexuslab.jobs import main, planned
from nexuslab.run import Run, comparison, find_runs, open_run, read_lines, runs_table
from nexuslab.task import get_task
from nexuslab.tune import StudyError, tune

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
        assert table.state[name] == said == row_of(copy, 0)["status"]
        with pytest.raises(FormatError, match=file):
            copy.tree, copy.status
    assert "damaged: config.yaml" in difference_table([Follower(r) for r in (run, spoilt[0][0])])
    assert main(["runs"]) == 0 and capsys.readouterr().out.count("damaged: ") == 18


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
    write_evaluation(Run(path), f"split_{number}", ENTRY)
    Run(path).set_status(**{f"field_{number}": number})


def test_nothing_is_lost_when_many_write(run):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: put(run.path, n), range(24)))
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


def test_the_cache_of_the_peer(tmp_path, monkeypatch):
    """A changed figure of the peer is computed again; one from before there were seals is read."""
    task = importlib.import_module("nexuslab.systems.circuits.task")
    asked = []
    monkeypatch.setattr(task, "train_peer", lambda *given: asked.append(1))
    monkeypatch.setattr(task, "figures", lambda *given: {"loss": 0.25})
    splits = SimpleNamespace(train=SimpleNamespace(home=tmp_path, size=64), fingerprint="f" * 64, meta={"nodes": 8})
    cfg = task.TASK.presets["smoke"]()
    first = task.peer_figures(splits, "test", cfg)
    [kept] = tmp_path.glob("*-peer-*.json")
    assert task.peer_figures(splits, "test", cfg) == first and len(asked) == 1
    kept.write_text(kept.read_text().replace("0.25", "0.75"))
    assert task.peer_figures(splits, "test", cfg) == first and len(asked) == 2
    write_json(kept, {"loss": 0.5})
    assert list(task.peer_figures(splits, "test", cfg).values()) == [{"loss": 0.5}] and len(asked) == 2


# ---- what a killed process leaves


def test_a_run_without_a_checkpoint_starts_again(home, capsys):
    cfg = resolve(get_task("toy_graphs"), "smoke")
    run = Run.create(cfg, home)
    assert planned({"resume": run.path.name})[3] is None
    assert "started again from the beginning" in capsys.readouterr().out
    about = {"system": "toy_graphs", "config": cfg.tree(), "meta": {}, "fingerprint": ""}
    save_checkpoint(run.path / "checkpoints", 1, torch.nn.Linear(1, 1), {}, about)
    assert planned({"resume": "last"})[3] == "last"


def test_half_written_stores_are_removed(tmp_path):
    """Those of killed processes, by the next build in the folder; not that of one that is still at work."""
    dead, busy = tmp_path / ".a.h5.x1_.tmp", tmp_path / ".b.h5.x2_.tmp"
    dead.touch(), busy.touch()
    with FileLock(tmp_path / "b.h5.lock"):
        ensure_store(tmp_path / "c.h5", {"generator": "test"}, lambda: {"x": np.arange(3)})
        assert not dead.exists() and busy.exists()
    ensure_store(tmp_path / "b.h5", {"generator": "test"}, lambda: {"x": np.arange(3)})
    assert not list(tmp_path.glob("*.tmp"))


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
    with pytest.raises(ValidationError, match="system"):
        Config(system="../../../esc")
    assert not list(home.rglob("*"))


def test_two_studies_at_once_each_do_what_was_asked(home):
    """The second begins while the first trial of the first is at work."""
    task = Scripted(steps=2)
    task.space = lambda trial: {"optim.lr": trial.suggest_float("lr", 0.01, 0.02)}
    inner = []

    def write(text):
        if not inner:
            inner.append(None)
            inner[0] = tune(task, task.config, trials=2, study_name="shared", root=home)

    tune(task, task.config, trials=2, study_name="shared", root=home, write=write)
    assert [t.state.name for t in inner[0].study.get_trials()] == ["COMPLETE"] * 4
