"""`nexuslab doctor`: a run that is damaged in each way is told, mended where that invents nothing, and goes on."""
import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import time

import pytest
from tiny import Halt, Scripted, comparable, same_weights, train

from nexuslab.config import overlay, resolve
from nexuslab.checkpoint import step_name
from nexuslab.core import LEFT, SEAL, RunError, held, read_json, write_json, write_sealed
from nexuslab.doctor import as_text, diagnose, next_step, survey, verdict
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.jobs import main
from nexuslab.run import Run, checked, left_out, runs_table
from nexuslab.sample import sample
from nexuslab.task import get_task
from nexuslab.views import plot_curves

TASK = get_task("toy_graphs")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of which everything was asked, and its data; copied, never changed."""
    home = tmp_path_factory.mktemp("made")
    cfg = resolve(TASK, "smoke", {"save_every": 1, "name": "whole"})
    run = fit(TASK, cfg, Run.create(cfg, home)).run
    evaluate(TASK, run)
    sample(TASK, run, 3)
    run.keep("curves", plot_curves([run]))
    run.write_text("report.ipynb", json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return run


@pytest.fixture
def run(made, home):
    """A copy of it in a project of the test's own."""
    shutil.copytree(made.root, home, dirs_exist_ok=True)
    return Run(home / "runs" / "toy_graphs" / made.path.name)


def cut(path, size=-20):
    path.write_bytes(path.read_bytes()[:size])


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def times(path, line, count):
    """Let a line stand so many times."""
    lines = path.read_bytes().splitlines(keepends=True)
    place = range(len(lines))[line]
    path.write_bytes(b"".join(lines[:place] + lines[place : place + 1] * count + lines[place + 1 :]))


def begin_row(path):
    path.write_bytes(path.read_bytes() + b'{"step": 9, "ep')


def pointer(run, name):
    return run.path / "checkpoints" / f"{name}.json"


def content(run):
    return {p: p.read_bytes() for p in sorted(run.path.rglob("*")) if p.is_file()}


def last(run):
    return run.checkpoint("last")


def sheet(run):
    return next((run.path / "samples").glob("*.png"))


def store(run):
    return next((run.path / "samples").glob("*.h5"))


def edit_status(run, **changes):
    kept = {k: v for k, v in read_json(run.path / "status.json").items() if k != SEAL}
    write_json(run.path / "status.json", kept | changes)


# what is done -> the file, what becomes of it, a word of what is said
DAMAGES = {
    "an empty pointer": (lambda r: cut(pointer(r, "last"), 0), "last.json", "mended", "names step"),
    "a pointer that is gone": (lambda r: pointer(r, "best").unlink(), "best.json", "mended", "missing"),
    "a changed pointer": (lambda r: flip(pointer(r, "best"), 12), "best.json", "mended", "names step"),
    "a pointer to nothing": (lambda r: write_json(pointer(r, "last"), {"step": 77}), "last.json", "mended", "step 77"),
    "weights cut short": (lambda r: cut(last(r) / "model.safetensors"), "step_", "lost", "truncated"),
    "a changed manifest": (lambda r: flip(last(r) / "manifest.json", 40), "step_", "lost", "moved to damaged-step_"),
    "a missing file of a checkpoint": (lambda r: (last(r) / "state.json").unlink(), "step_", "lost", "missing"),
    "a half checkpoint": (lambda r: shutil.copytree(last(r), last(r).with_name(".step_00000099.tmp")), ".step_",
                          "mended", "removed"),
    "a temporary file": (lambda r: (r.path / f".status.json.0a1b2c3d{LEFT}").touch(), ".status", "mended", "removed"),
    "one of an older version": (lambda r: store(r).with_name(f".{store(r).name}.ab12cd3_.tmp").touch(), ".h5",
                                "mended", "removed"),
    "a status cut short": (lambda r: cut(r.path / "status.json"), "status.json", "mended", "finished at step"),
    "a status that is gone": (lambda r: (r.path / "status.json").unlink(), "status.json", "mended", "from the record"),
    "a folder as status": (lambda r: ((r.path / "status.json").unlink(), (r.path / "status.json").mkdir()),
                           "status.json", "mended", "from the record"),
    "a dead process": (lambda r: r.set_status(state="running", pid=2**22 + 1), "status.json",
                       "mended", "now says died"),
    "a configuration cut short": (lambda r: cut(r.path / "config.yaml", 3), "config.yaml", "mended", "from step_"),
    "a configuration that is gone": (lambda r: (r.path / "config.yaml").unlink(), "config.yaml",
                                     "mended", "from step_"),
    "rows with other figures": (lambda r: flip(r.path / "metrics.jsonl", 300), "metrics.jsonl",
                                "lost", "1 damaged row"),
    "a row twice": (lambda r: times(r.path / "metrics.jsonl", 2, 2), "metrics.jsonl", "lost", "1 damaged row"),
    "another text of the log": (lambda r: flip(r.path / "log.txt", 30), "log.txt", "lost", "has changed"),
    "a log that is gone": (lambda r: (r.path / "log.txt").unlink(), "log.txt", "lost", "is missing"),
    "a row cut short": (lambda r: cut(r.path / "metrics.jsonl"), "metrics.jsonl", "lost", "cut short"),
    "a record without its last row": (lambda r: times(r.path / "metrics.jsonl", -1, 0), "metrics.jsonl",
                                      "lost", "bytes"),
    "a row that was being written": (lambda r: begin_row(r.path / "metrics.jsonl"), "metrics.jsonl", "mended",
                                     "cut short"),
    "other figures": (lambda r: flip(r.path / "evaluation.json", 120), "evaluation.json", "lost", "nexuslab evaluate"),
    "half a picture": (lambda r: cut(r.path / "figures" / "curves.png"), "curves.png", "mended", "moved to"),
    "half a contact sheet": (lambda r: cut(sheet(r), 100), "samples", "mended", "moved to"),
    "changed samples": (lambda r: cut(store(r), 900), "samples", "lost", "nexuslab sample"),
    "half an executed notebook": (lambda r: cut(r.path / "report.ipynb", 12), "report.ipynb", "lost", "again"),
    "half a drawing": (lambda r: cut(r.path / "figures" / "curves.svg"), "curves.svg", "mended", "moved to"),
    "half a page": (lambda r: r.write_text("report.html", "<html><body>"), "report.html", "mended", "nexuslab report"),
    "an environment that is gone": (lambda r: (r.path / "environment.json").unlink(), "environment",
                                    "lost", "not known"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_each_damage_is_told_and_mended(what, run, home, capsys):
    """First only told, then mended or moved aside; a second look finds nothing, and the run can be loaded."""
    act, place, outcome, word = DAMAGES[what]
    assert verdict(diagnose(run, mend=False)) == "sound"
    act(run)
    before = content(run)
    told = diagnose(run, mend=False)
    assert content(run) == before, "a dry run changes nothing"
    code = main(["doctor", str(run.path), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [f["place"] for f in said["findings"]][:1] == [f.place for f in told.findings][:1]
    found = said["findings"][0]
    assert place in found["place"] and found["outcome"] == outcome and word in found["fault"] + found["done"], found
    assert code == (outcome == "lost") == any(f["outcome"] == "lost" for f in said["findings"])
    nowhere = re.compile("environment|bytes are missing|^log.txt is missing")
    gone = [f for f in told.findings if nowhere.search(f"{f.place} {f.fault}")]
    if outcome == "lost" and not gone:  # nothing is destroyed
        assert list(run.path.rglob("damaged-*"))
    after = diagnose(run)
    lasting = [f for f in after.findings if "environment" in f.place or "bytes are missing" in f.fault]
    assert after.findings == lasting and bool(lasting) <= bool(gone) and run.load("last") and run.load("best")
    assert next_step(after) in as_text(after)


def test_what_was_mended_goes_on_as_if_nothing_had_happened(made, run):
    """Pointers, status and configuration lost at once, of a run that is to be trained further."""
    longer = overlay(run.config, {"epochs": 3})
    for name in ("config.yaml", "status.json", "checkpoints/last.json", "checkpoints/best.json"):
        (run.path / name).write_bytes(b"{")
    assert verdict(diagnose(run)) == "4 mended" and run.config == made.config
    kept = ("state", "step", "best", "best_step", "attempt", "reason")
    assert {k: run.status[k] for k in kept} == {k: made.status[k] for k in kept}
    for folder in ("last", "best"):
        assert run.checkpoint(folder).name == made.checkpoint(folder).name
    whole = fit(TASK, longer, Run(shutil.copytree(made.path, run.path.with_name("beside"))), resume="last")
    again = fit(TASK, longer, run, resume="last")
    assert same_weights(again.model, whole.model) and comparable(again.run).equals(comparable(whole.run))


def test_the_last_sound_checkpoint_is_named_by_the_record(run):
    """The best one is damaged: `best` becomes the best before it, and not the newest."""
    saved = [e for e in run.events() if e["event"] == "saved"]
    best = [e["step"] for e in saved if e["best"]]
    assert len(best) >= 2
    cut(run.path / "checkpoints" / f"step_{best[-1]:08d}" / "model.safetensors")
    e = diagnose(run)
    assert run.checkpoint("best").name == f"step_{best[-2]:08d}" and verdict(e) == "1 lost, 2 mended"
    assert max(e.sound) == int(run.checkpoint("last").name.removeprefix("step_"))


def test_a_run_of_an_older_version_is_sound(run):
    """Without seals and checks, and with checkpoints of format 1."""
    for name in ("status.json", "evaluation.json"):
        later = (SEAL, "record", "log_bytes", "log_check")
        write_json(run.path / name, {k: v for k, v in read_json(run.path / name).items() if k not in later})
    record = run.path / "metrics.jsonl"
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    record.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "check"}) + "\n"
                              for row in rows if row.get("event") != "saved"))
    for folder in (run.path / "checkpoints").glob("step_*"):
        manifest = read_json(folder / "manifest.json")
        write_json(folder / "manifest.json", {k: v for k, v in manifest.items() if k != SEAL} | {"format": 1})
    for name in ("last", "best"):
        write_json(pointer(run, name), {"step": read_json(pointer(run, name))["step"]})
    assert verdict(diagnose(run)) == "sound"
    for name in ("last", "best"):
        (run.path / "checkpoints" / f"{name}.json").unlink()
    cut(last(run) / "state.safetensors")
    before = sorted((run.path / "checkpoints").glob("step_*"))[-2].name
    assert verdict(diagnose(run)) == "1 lost, 2 mended"
    assert (run.checkpoint("last").name, run.checkpoint("best").name) == (before, before)


def test_the_data_are_verified_and_never_built(run, home):
    [file] = (home / "data" / "toy_graphs").glob("*.h5")
    whole = file.read_bytes()
    for spoil, word in ((file.unlink, "nexuslab prepare"), (lambda: file.write_bytes(whole[:2000]), "mend this")):
        spoil()
        e = diagnose(run)
        assert [f.outcome for f in e.findings] == ["noted"] and word in e.findings[0].done
        assert file.exists() == (word == "mend this") and main(["doctor", run.path.name]) == 0
        file.write_bytes(whole)
    assert verdict(diagnose(run)) == "sound"


def test_a_run_that_is_being_trained_is_not_touched(run, home, capsys):
    cut(run.path / "checkpoints" / "last.json", 0)
    with run.exclusive():
        assert main(["doctor", run.path.name]) == 2 and main(["doctor", "last", "--dry-run"]) == 2
        assert capsys.readouterr().err.count("a process that trains in it") == 2
        assert main(["doctor"]) == 0 and "not examined" in capsys.readouterr().out
    run.set_status(state="running", pid=os.getpid(), process_started=None)
    assert main(["doctor", run.path.name]) == 2 and (run.path / "checkpoints" / "last.json").read_bytes() == b""
    run.set_status(state="finished")
    with held(run.path / "status.json") as busy:  # of an evaluation, say
        assert main(["doctor", run.path.name]) == 0 and busy.exists()


def test_all_runs_a_line_each(run, home, capsys):
    other = Run(shutil.copytree(run.path, run.path.with_name("other")))
    (other.path / "config.yaml").unlink()
    cut(run.path / "evaluation.json")
    (run.path.parent / f".third.0a1b2c3d{LEFT}").mkdir()
    assert main(["doctor", "--dry-run"]) == 1 and (run.path.parent / f".third.0a1b2c3d{LEFT}").exists()
    said = capsys.readouterr().out
    assert re.search(r"other: 1 to mend; .*\n2 runs, 1 with losses, 1 temporary files beside them to remove", said)
    assert main(["doctor", "--json"]) == 1 and len(json.loads(capsys.readouterr().out)["runs"]) == 2
    assert main(["doctor", "--system", "toy_graphs"]) == 0 and capsys.readouterr().out.count(": sound\n") == 2
    assert main(["doctor", "last", "--system", "toy_graphs"]) == 0 and main(["doctor", "nothing"]) == 2


def test_files_of_a_person_stay(run):
    """Beside the run's own, with endings that doctor examines: nothing is moved, whole or not."""
    rows = run.path / "figures" / ".rows.tmp"
    for name in (".notes.20261122.tmp", ".draft.chapter1.tmp", "figures/.x.original.tmp", "samples/.x.h5.ab12cd3_.tmp",
                 ".status.json.notahexa.nexuslab.tmp"):
        (run.path / name).write_text("mine")
    for place in ("", "figures", "samples"):
        for name in ("notes.html", "photo.png", "fig.svg", "table.csv", "mine.ipynb", "data.h5", ".rows.tmp"):
            (run.path / place / name).write_text("mine")
    before = content(run)
    e = diagnose(run)
    assert content(run) == before and rows.read_text() == "mine"
    assert {f.outcome for f in e.findings} == {"noted"} and len(e.findings) == 18


def test_links_are_named_and_not_followed(run, tmp_path):
    """A folder, a file and a checkpoint that lie elsewhere: nothing there is touched, and the links stay."""
    for name in ("a.html", "b.png", "c.svg", "d.csv", "e.ipynb", "f.h5", "curves.png", ".x.csv.ab12cd3_.tmp"):
        (tmp_path / name).write_text("mine")
    best = run.checkpoint("best")
    shutil.move(best, tmp_path / "best")
    best.symlink_to(tmp_path / "best")
    cut(tmp_path / "best" / "state.json")
    elsewhere = lambda: {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and run.path not in p.parents}
    before, pointers = elsewhere(), [pointer(run, name).read_bytes() for name in ("last", "best")]
    noted = [(f.place, f.outcome) for f in diagnose(run).findings]
    assert (f"checkpoints/{best.name}", "noted") in noted and {outcome for _, outcome in noted} == {"noted"}
    assert [pointer(run, name).read_bytes() for name in ("last", "best")] == pointers and elsewhere() == before
    shutil.rmtree(run.path / "figures")
    (run.path / "figures").symlink_to(tmp_path)
    (run.path / "log.txt").unlink()
    (run.path / "log.txt").symlink_to(tmp_path / "d.csv")
    (run.path / "report.ipynb").write_text("{")
    e = diagnose(run)
    assert {f.place: f.outcome for f in e.findings} == dict(noted) | {
        "figures": "noted", "log.txt": "noted", "report.ipynb": "lost"}
    assert next_step(e) == f"replace figures, log.txt by copies, then nexuslab doctor {run.path.name}"
    assert elsewhere() == before and (run.path / "report.ipynb").read_text() == "{"  # nothing is written beside links


def test_checkpoints_that_are_gone_are_lost(run, home, capsys):
    """All or the newest, with or without their folder and pointers: told each time, never called mended alone."""
    folder, kept = run.path / "checkpoints", home / "kept"
    shutil.copytree(folder, kept)
    newest = step_name(read_json(folder / "last.json")["step"])
    for gone in (folder.glob("step_*"), [folder], [folder / newest], [folder / newest, folder / "last.json"]):
        for path in list(gone):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for words in (["--dry-run"], []):
            assert main(["doctor", run.path.name, *words]) == 1
            assert f"lost: checkpoints/{newest}: is not there" in (said := capsys.readouterr().out)
        left = list(folder.glob("step_*"))
        assert folder.is_dir() and (main(["doctor", run.path.name]) == 1 or left)
        assert ("nexuslab train --config" in said) == (not left)
        shutil.rmtree(folder), shutil.copytree(kept, folder)
    assert verdict(diagnose(run)) == "sound"


def test_a_run_without_the_folder_of_its_checkpoints_begins_again(made, home):
    """Killed before its first checkpoint, and copied by a tool that leaves out empty folders."""
    run = Run.create(overlay(made.config, {"epochs": 1}), home)
    for name in ("checkpoints", "figures", "samples"):
        (run.path / name).rmdir()
    assert verdict(diagnose(run, mend=False)) == "1 to mend, 1 noted"  # the data are not built here
    (run.path / "checkpoints").write_text("mine")
    assert verdict(diagnose(run)) == "2 mended, 1 noted" and (run.path / "damaged-checkpoints").is_file()
    (run.path / "checkpoints").rmdir()
    assert fit(TASK, run.config, run).run.checkpoint("last").is_dir() and verdict(diagnose(run)) == "sound"


def test_a_save_that_was_killed_is_not_lost(run):
    """The row of a checkpoint is written before the folder has its name: the process may have ended between them."""
    record = run.path / "metrics.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if b'"saved"' in line)
    record.write_bytes(b"".join(lines[: first + 1]))
    run.set_status(record=record.stat().st_size, state="died")
    shutil.rmtree(run.path / "checkpoints")
    (run.path / "evaluation.json").unlink()
    assert verdict(diagnose(run)) == "1 mended" and next_step(diagnose(run)).endswith(f"--resume {run.path.name}")


def test_odd_files_of_a_name_of_checkpoints(run, home, capsys):
    """Neither doctor nor a training stumbles over them, and what they hold or name stays."""
    folder, other = run.path / "checkpoints", Run(shutil.copytree(run.path, run.path.with_name("other")))
    (elsewhere := home / "elsewhere").mkdir()
    (elsewhere / "file").write_text("mine")

    def litter():
        (folder / ".step_x").write_text("mine")
        (folder / ".step_00000007.old").symlink_to(elsewhere)
        (folder / ".step_00000008.tmp").write_text("mine")
        (folder / ".step_00000009.tmp").touch()

    litter()
    (other.path / "status.json").unlink()
    assert main(["doctor"]) == 0 and ": 3 mended; " in capsys.readouterr().out
    assert sorted(p.name for p in folder.glob("*.tmp")) == ["damaged-step_00000008.tmp"]
    litter()
    longer = fit(TASK, overlay(run.config, {"epochs": 3}), run, resume="last").run
    assert (folder / ".step_x").read_text() == "mine" == (elsewhere / "file").read_text()
    assert verdict(diagnose(longer)) == "sound" and len(list(folder.glob("damaged-*"))) == 2


def test_a_run_that_the_system_refuses_stops_no_other(run):
    """A folder in the place of a file that doctor writes."""
    other = Run(shutil.copytree(run.path, run.path.with_name("z-other")))
    cut(pointer(other, "last"), 0)
    (run.path / "damaged-metrics.jsonl").mkdir()
    times(run.path / "metrics.jsonl", 2, 2)
    told = dict(survey(run.root))
    assert [verdict(e) for e in told.values()] == ["1 noted", "1 mended"]


def test_what_is_to_be_typed_can_be_typed(run, home, tmp_path, monkeypatch):
    """Of a run outside the project, in a folder whose name a shell would split."""
    place = tmp_path / "not here" / "runs" / "toy_graphs"
    far = Run(shutil.copytree(run.path, place / run.path.name))
    (far.path / "evaluation.json").write_text("{")
    e = diagnose(far)
    for told in (next_step(e), *(f.done.partition("; ")[2] for f in e.findings if f.outcome == "lost")):
        assert str(far.path) in shlex.split(told), told
    assert "prepare" in e.findings[-1].done and str(far.path / "config.yaml") in shlex.split(e.findings[-1].done)


def test_the_only_copy_of_a_checkpoint_is_kept(run):
    """It was moved aside for a successor, and no pointer can be read: it is sound, and gets its name again."""
    newest = last(run)
    newest.rename(newest.with_name(f".{newest.name}.old"))
    for name in ("last", "best"):
        cut(pointer(run, name), 0)
    told = diagnose(run, mend=False)
    assert [f.done for f in told.findings][:1] == ["moved back"] and "removed" not in {f.done for f in told.findings}
    assert verdict(diagnose(run)) == "3 mended" and last(run) == newest and run.load("last")


def test_a_file_that_others_left_in_a_checkpoint_is_moved_out(run):
    """Of a file manager and of Jupyter, in the folder of a checkpoint: that stays, and so do the files."""
    newest = last(run)
    (newest / ".DS_Store").write_text("mine")
    (newest / ".ipynb_checkpoints").mkdir()
    told = diagnose(run, mend=False)
    assert max(told.sound) == int(newest.name[5:]) and (newest / ".DS_Store").exists()
    assert verdict(diagnose(run)) == "2 mended" and last(run) == newest and run.load("last")
    assert (newest.parent / f"stray-{newest.name}-DS_Store").read_text() == "mine"
    (newest / "notes.txt").write_text("mine")
    cut(newest / "model.safetensors")
    assert verdict(diagnose(run)).startswith("1 lost")
    assert (newest.with_name(f"damaged-{newest.name}") / "notes.txt").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt"])
def test_line_ends_of_windows_are_no_damage(run, name):
    """A record or a log that passed through a program that writes CRLF is read, and has its own line ends again."""
    path, rows = run.path / name, len(run.history())
    before = path.read_bytes()
    path.write_bytes(before.replace(b"\n", b"\r\n"))
    assert len(run.history()) == rows and left_out(run) == ""
    assert [(f.place, f.outcome) for f in diagnose(run).findings] == [(name, "mended")]
    assert path.read_bytes() == before and verdict(diagnose(run)) == "sound"


@pytest.mark.parametrize("names", [("config.yaml", "status.json"), ("log.txt",), ("metrics.jsonl",)])
def test_what_cannot_be_written_leaves_everything_in_its_place(run, home, monkeypatch, capsys, names):
    """On a full disk: no damaged file is renamed before the new one is whole, and the command fails."""
    for name in names:
        flip(run.path / name, 0)
    before = content(run)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert main(["doctor", run.path.name]) == 1
    said = capsys.readouterr().out
    assert said.count("not done: ") == len(names) and "No space left" in said and "free some space" in said
    assert content(run) == before
    assert main(["doctor", run.path.name]) == (len(names) == 1) and verdict(diagnose(run)) == "sound"


def test_a_line_is_a_finding(run, home, capsys):
    """Line feeds and escapes in the names of files, splits, figures and of the run make no line of their own."""
    odd = Run(run.path.rename(run.path.with_name("a\nnext: rm -rf ~\033[A\033[K\r")))
    (odd.path / "a\nnext: rm -rf ~\nb.csv").write_text("x")
    (odd.path / "l\nnext: rm -rf ~").symlink_to("nowhere")
    figures = {k: v for k, v in odd.evaluation.items()}
    other = figures["test"] | {"manifest": "0" * 64, "figures": {"\033[A\rloss\nforged": 0.5}}
    write_sealed(odd.path / "evaluation.json", figures | {"val\nnext: rm -rf ~": other})
    assert main(["doctor", str(odd.path)]) == 0
    said = capsys.readouterr().out
    assert sum(line.startswith("next: ") for line in said.splitlines()) == 1 and not set(said) & set("\033\r")
    typed = said.splitlines()[-1].removeprefix("next: ").partition(", then ")[2]
    shown = subprocess.run(["bash", "-c", f"set -- {typed}; printf %s \"$3\""], capture_output=True).stdout.decode()
    assert shown == odd.path.name
    (odd.path / "l\nnext: rm -rf ~").unlink()
    edit = {k: v for k, v in read_json(odd.path / "status.json").items() if k != SEAL}
    write_sealed(odd.path / "status.json", edit | {"reason": "\033[A\033[Krun: good\nforged: yes"})
    for words in (["runs", "--latest"], ["report", str(odd.path)], ["evaluate", str(odd.path), "--dry-run"],
                  ["doctor"], ["runs"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert not set(said) & set("\033\r") and not re.search("^(forged|next: rm)", said, re.M), words


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two runs that differ in their seed, and what the first one's files said at its step 4; copied, never changed."""
    root, early = tmp_path_factory.mktemp("pair"), {}
    task = Scripted(steps=8, **{"checkpoint.eval_every": 2, "checkpoint.save_every": 2,
                                "checkpoint.save_total_limit": None})
    run = Run.create(task.config, root)

    def look(snapshot):
        if snapshot.step == 5 and not early:
            early.update({name: (run.path / name).read_bytes() for name in ("metrics.jsonl", "status.json")})
            early.update({f"{name}.json": pointer(run, name).read_bytes() for name in ("last", "best")})
            early["log.txt"] = (run.path / "log.txt").read_bytes()

    fit(task, run.config, run, [Halt(look=look)])
    time.sleep(0.01)
    other = train(task, root, seed=1).run
    edit_status(other, started=run.status["started"] + 60)  # of the next minute
    shift = [json.loads(line) for line in (other.path / "metrics.jsonl").read_bytes().splitlines()]
    rows = [json.dumps({k: v + 60 if k == "time" else v for k, v in row.items() if k != "check"}) for row in shift]
    (other.path / "metrics.jsonl").write_bytes(b"".join(checked(row.encode()) + b"\n" for row in rows))
    return run, other, early


@pytest.fixture
def two(pair, home):
    """Copies of them, and the early files."""
    shutil.copytree(pair[0].root, home, dirs_exist_ok=True)
    return *(Run(home / "runs" / "tiny" / run.path.name) for run in pair[:2]), pair[2]


def test_a_foreign_record_accuses_no_checkpoint(two):
    """The record of the run next door: it is moved aside, the checkpoints stay, and its own fits again."""
    run, other, _ = two
    own, kept = (run.path / "metrics.jsonl").read_bytes(), sorted((run.path / "checkpoints").glob("step_*"))
    pointers = [pointer(run, name).read_bytes() for name in ("last", "best")]
    shutil.copy(other.path / "metrics.jsonl", run.path)
    told = diagnose(run, mend=False)
    assert len(told.sound) == len(kept) == 4 and lost(told) == ["metrics.jsonl"]
    e = diagnose(run)
    assert [f.place for f in e.findings if f.outcome == "lost"] == ["metrics.jsonl"] and len(e.sound) == 4
    assert sorted((run.path / "checkpoints").glob("step_*")) == kept and last(run) == kept[-1]
    assert [pointer(run, name).read_bytes() for name in ("last", "best")] == pointers
    assert (run.path / "foreign-metrics.jsonl").read_bytes() == (other.path / "metrics.jsonl").read_bytes()
    (run.path / "metrics.jsonl").write_bytes(own)
    assert not lost(diagnose(run)) and last(run) == kept[-1]


def lost(e):
    return [f.place for f in e.findings if f.outcome != "noted" or "step_" in f.place]


def test_an_older_record_accuses_no_checkpoint(two):
    """A backup of the record: what it does not tell of stays, told, and is sound once the record is back."""
    run, _, early = two
    own = (run.path / "metrics.jsonl").read_bytes()
    (run.path / "metrics.jsonl").write_bytes(early["metrics.jsonl"])
    e = diagnose(run)
    assert lost(e) == ["metrics.jsonl", "checkpoints/step_00000006"] and e.unread == {6} and 8 in e.sound
    assert "lost: metrics.jsonl" in left_out(run)
    (run.path / "metrics.jsonl").write_bytes(own)
    after = diagnose(run)
    assert not lost(after) and not after.before and not (run.path / "doctor.json").exists()


def test_a_checkpoint_that_was_moved_aside_comes_back(two):
    """With the pointers that were emptied meanwhile: once the record knows it again."""
    run, other, _ = two
    folder = run.path / "checkpoints"
    for path in list(folder.glob("step_*")):
        path.rename(path.with_name(f"damaged-{path.name}"))
    for name in ("last", "best"):
        write_sealed(pointer(run, name), {"step": None, "manifest": None})
    stranger = folder / "damaged-step_00000009"
    shutil.copytree(last(other), stranger)
    e = diagnose(run)
    assert len(e.sound) == 4 and last(run).name == "step_00000008" and stranger.is_dir()
    assert pointer(run, "best").read_bytes() and run.checkpoint("best").is_dir() and not lost(diagnose(run))


def test_a_checkpoint_of_another_run_is_still_moved(two):
    """In the place of the run's own: the record and the others agree, and it does not."""
    run, other, _ = two
    shutil.rmtree(last(run))
    shutil.copytree(other.path / "checkpoints" / "step_00000008", run.path / "checkpoints" / "step_00000008")
    assert "checkpoints/step_00000008" in lost(diagnose(run))
    shutil.rmtree(run.path / "checkpoints")
    shutil.copytree(other.path / "checkpoints", run.path / "checkpoints")
    assert sum(place.startswith("checkpoints/step_") for place in lost(diagnose(run))) == 4


def test_a_stale_pointer_is_written_anew(two):
    """Of a backup, or a copy of the other pointer: the record says what came after."""
    run, _, early = two
    for content in (early["last.json"], pointer(run, "best").read_bytes()):
        before = pointer(run, "last").read_bytes()
        pointer(run, "last").write_bytes(early["last.json"])
        assert lost(diagnose(run)) == ["checkpoints/last.json"] and pointer(run, "last").read_bytes() == before


@pytest.mark.parametrize("whose", ["older", "foreign"])
def test_a_status_is_compared_with_the_record(two, whose):
    """Of a backup, or of the run next door: it is written anew, and neither the record nor the log is accused."""
    run, other, early = two
    was, log = run.status, (run.path / "log.txt").read_bytes()
    said = json.loads(early["status.json"]) | {"pid": 2**22 + 1} if whose == "older" else other.status
    write_sealed(run.path / "status.json", {k: v for k, v in said.items() if k != SEAL})
    assert lost(diagnose(run, mend=False)) == ["status.json"]
    assert lost(diagnose(run)) == ["status.json"] and (run.path / "log.txt").read_bytes() == log
    kept = ("state", "step", "best", "best_step", "attempt", "reason", "total_steps", "log_bytes", "config")
    assert {k: run.status.get(k) for k in kept} == {k: was.get(k) for k in kept} and not lost(diagnose(run))


def test_a_folder_as_record_is_moved(two):
    run, *_ = two
    (run.path / "metrics.jsonl").unlink()
    (run.path / "metrics.jsonl").mkdir()
    e = diagnose(run)
    assert not e.failed and lost(e)[0] == "metrics.jsonl" and len(e.sound) == 4


def test_an_edited_configuration_is_a_finding(two, capsys, recwarn):
    """Once, with the keys; and still after the status was lost."""
    run, *_ = two
    path = run.path / "config.yaml"
    whole = path.read_bytes()
    path.write_text(path.read_text().replace("lr: 0.05", "lr: 0.01"))
    for gone in (False, True, False):
        if gone:
            (run.path / "status.json").unlink()
        said = [f for f in diagnose(run).findings if "edited" in f.fault]
        assert [f.done for f in said] == ["optim.lr is 0.01, in step_00000008 0.05"] and not recwarn.list
    assert runs_table(run.root).total.tolist() == [8, 8]
    path.write_bytes(whole)
    assert not [f for f in diagnose(run).findings if "edited" in f.fault]


def test_what_was_lost_is_said_again(run, home, capsys):
    """By the table of runs, by what is left out, and by the next doctor, until it is there again."""
    best = run.checkpoint("best")
    kept = shutil.copytree(best, home / "kept")
    cut(best / "model.safetensors")
    flip(run.path / "metrics.jsonl", 300)
    assert main(["doctor", run.path.name]) == 1
    place, e = f"checkpoints/{best.name}", diagnose(run)
    assert verdict(e) == "sound" and {b["place"] for b in e.before} == {place, "metrics.jsonl"}
    assert f"lost before ({time.strftime('%Y')}" in as_text(e)
    capsys.readouterr()
    assert main(["doctor", run.path.name, "--json", "--dry-run"]) == 0
    assert len(json.loads(capsys.readouterr().out)["lost_before"]) == 2
    for told in (runs_table(run.root).remark[0], left_out(run)):
        assert told.count("lost: ") == 1 and place in told and "metrics.jsonl" in told
    shutil.copytree(kept, best)
    assert [b["place"] for b in diagnose(run).before] == ["metrics.jsonl"] and place not in left_out(run)
    flip(run.path / "doctor.json", 20)
    assert [f.place for f in diagnose(run).findings if f.outcome == "lost"] == ["doctor.json"]


def test_the_next_command_finds_the_run(run, home):
    """Without its configuration, beside another of its name, and with names that are words or options."""
    other = home / "runs" / "other"
    other.mkdir()
    for name in (run.path.name, "last", "--help", "a b"):
        run = Run(run.path.rename(run.path.with_name(name)))
        shutil.copytree(run.path, other / name)
        for beside in (True, False):
            told = next_step(diagnose(run))
            assert told.startswith("nexuslab report") and Run.open(shlex.split(told)[-1]).path == run.path
            assert (shlex.split(told)[-1] == f"toy_graphs/{name}") == (beside or name in ("last", "--help"))
            shutil.rmtree(other / name, ignore_errors=True)
    (run.path / "config.yaml").unlink()
    command = shlex.split(next_step(diagnose(run, mend=False)))
    assert command[:2] == ["nexuslab", "doctor"] and main(command[1:]) == 0 and (run.path / "config.yaml").is_file()


def test_the_next_command_does_not_fail(run, home):
    """Where the data are gone they are built first, and a configuration that cannot be used is corrected first."""
    shutil.rmtree(home / "data")
    assert next_step(diagnose(run)).startswith("nexuslab report")
    (run.path / "evaluation.json").unlink()
    build, _, command = next_step(diagnose(run)).partition(" && ")
    assert main(shlex.split(build)[1:]) == 0 and command == next_step(diagnose(run))
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("system: toy_graphs", "system: gone"))
    assert next_step(diagnose(run)).startswith("install the system of ")


def test_where_nothing_can_be_written_it_says_how_to_look(run):
    (run.path / ".lock").unlink(missing_ok=True)
    (run.path / ".lock").mkdir()
    with pytest.raises(RunError, match="cannot write") as refused:
        diagnose(run)
    command = shlex.split(refused.value.remedy.rpartition("only look: ")[2])
    assert command == ["nexuslab", "doctor", run.path.name, "--dry-run"] and main(command[1:]) == 0


def test_a_call_that_was_cut_off_counts_nothing_twice(run, monkeypatch):
    """Between the damaged lines and the record, and between the record and the status; then a real loss is told."""
    record, aside = run.path / "metrics.jsonl", run.path / "damaged-metrics.jsonl"
    flip(record, 300)
    damaged, status = record.read_bytes(), (run.path / "status.json").read_bytes()
    told = verdict(diagnose(run))
    once, whole = aside.read_bytes(), record.read_bytes()
    for left in (damaged, whole):
        record.write_bytes(left), (run.path / "status.json").write_bytes(status)
        assert verdict(diagnose(run)) == (told if left is damaged else "1 mended")
        assert aside.read_bytes() == once and record.read_bytes() == whole
        assert verdict(diagnose(run)) == "sound" and "missing" not in runs_table(run.root).remark[0]
    cut(record, -(len(lines := whole.splitlines(keepends=True)) and len(lines[-1])))
    assert [f.fault for f in diagnose(run).findings] == [f"{len(lines[-1])} bytes are missing"]
    assert f"{len(lines[-1])} bytes" in runs_table(run.root).remark[0]
