"""Bad input and bad luck: a named error or a recovery, and nothing lost."""
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from tiny import Halt, Scripted, comparable, events, same_weights, train
from torchmetrics import MeanMetric

import nexuslab.checkpoint
import nexuslab.fit
import nexuslab.setup
from nexuslab.checkpoint import POINTERS, find_checkpoint, open_checkpoint, read_checkpoint, steps_kept
from nexuslab.config import overlay, resolve
from nexuslab.core import CheckpointError, DataError, NexusError, RunError, TrainingError, digest
from nexuslab.store import Store, ensure_store, write_store
from nexuslab.evaluate import evaluate, evaluation_table
from nexuslab.fit import fit
from nexuslab.metrics import Part
from nexuslab.run import Run, read_rows, row_of
from nexuslab.task import StepOut, get_task


@pytest.fixture
def small_disk():
    """Make a small disk of its own: size, read-only or not -> folder."""
    made = []

    def make(size: str = "2m") -> Path:
        folder = Path(tempfile.mkdtemp())
        done = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
            )
            if shutil.which("mount") else None
        )
        if done is None or done.returncode:
            folder.rmdir()
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip() if done else 'no mount'}")
        made.append(folder)
        return folder

    yield make
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def hidden(folder: Path) -> list[str]:
    """What was left half-written."""
    return [str(p) for p in folder.rglob("*.tmp") if p.name != "status.json"]


# ---- numbers


def test_nan_in_a_batch(tmp_path):
    """The error names step, examples and part; what was saved before is sound."""
    task = Scripted(epochs=2, lr=1e-3, eval_every=1, **{"loader.shuffle": "none"})
    whole = train(task, tmp_path, [Halt(5)])
    assert whole.step == 5
    task.sources[0].tensors[0][13, 1] = float("nan")  # example 13 is in the second batch of an epoch
    with pytest.raises(TrainingError) as caught:
        train(task, tmp_path)
    assert "non-finite loss part loss at step 1" in str(caught.value) and "13" in str(caught.value.found)
    [run] = [r for r in (Run(p) for p in (tmp_path / "runs" / "tiny").iterdir()) if r.path != whole.run.path]
    assert run.status["state"] == "failed" and "non-finite" in run.status["reason"]
    [event] = events(run, "nonfinite")
    assert event["step"] == 1 and event["ids"] == list(range(8, 16)) and event["parts"]["loss"] is None
    skipped = train(task, tmp_path, **{"guard.nonfinite": "skip"})
    assert skipped.step == 8 and all(torch.isfinite(p).all() for p in skipped.model.parameters())
    rates = skipped.run.history()["train/learning_rate"].tolist()
    assert [s for s, r in enumerate(rates) if r == 0] == [1, 5]  # a skipped step has no rate


def test_exploding_loss(tmp_path):
    """A rate far too large: a spike is told, then the run stops with a report, and the last checkpoint is finite."""
    task = Scripted(lr=1e9, steps=200, save_every=1, **{"loader.shuffle": "none"})
    with pytest.raises(TrainingError, match="non-finite.*at step") as caught:
        train(task, tmp_path)
    assert "lower lr" in caught.value.remedy
    [run] = [Run(p) for p in (tmp_path / "runs" / "tiny").iterdir()]
    assert events(run, "spike") and run.status["state"] == "failed"
    saved = open_checkpoint(run.path / "checkpoints", "last")
    assert saved.manifest["step"] == run.status["step"] > 1
    assert all(torch.isfinite(w).all() for w in saved.weights().values())


def test_overflow_of_a_scaled_loss_is_no_fault(tmp_path, monkeypatch):
    """fp16 finds its loss scale by overflowing: such steps are left out; a fault of the loss itself stops."""
    monkeypatch.setattr(nexuslab.setup, "pick_precision", lambda *asked: ("fp16", None))
    task = Scripted(factor=lambda step: 100.0, lr=1e-4, steps=30, device="cpu")
    done = train(task, tmp_path, [Halt(20)])
    found = events(done.run, "rescaled")
    assert [e["scale"] for e in found] == [2.0 ** (15 - i) for i in range(len(found))] and found[3]["step"] == 3
    assert len(found) < 12 and not events(done.run, "nonfinite") and done.run.history()["train/loss"].iloc[-1] > 0
    again = train(task, tmp_path, run=done.run, resume="last")
    assert len(events(again.run, "rescaled")) == len(found) and same_weights(again.model, train(task, tmp_path).model)
    task.factor = lambda step: float("nan") if step == 2 else 1.0
    with pytest.raises(TrainingError, match="non-finite loss part loss at step 2"):
        train(task, tmp_path)
    endless = Scripted(steps=60, device="cpu")
    endless.loss = lambda model, batch: (model(batch[0]).float() * 0).sqrt().sum()  # finite, and its slope is not
    with pytest.raises(TrainingError, match="non-finite gradient at step 16"):  # 65,536 is 2 to the 16th
        train(endless, tmp_path)


@pytest.mark.parametrize("solve", [lambda: torch.linalg.inv(torch.zeros(2, 2)), lambda: np.linalg.inv(np.eye(2) * 0)])
def test_equations_without_a_solution(solve, tmp_path):
    """A solver's failure is a step that cannot be used, and in an evaluation a named end."""
    task = Scripted(steps=8, factor=lambda step: solve() if step in (3, 4) else 1.0)
    with pytest.raises(TrainingError, match="(?i)singular.* at step 3"):
        train(task, tmp_path)
    done = train(task, tmp_path, **{"guard.nonfinite": "skip"})
    assert done.step == 8 and [e["step"] for e in events(done.run, "unsolvable")] == [3, 4]
    with pytest.raises(TrainingError, match="(?i)singular.* at step 4.*\n.*2 steps in a row"):
        train(task, tmp_path, **{"guard.nonfinite": "skip", "guard.max_skips": 1})
    with pytest.raises(TrainingError, match="the evaluation after step 2.*\n.*(?i:singular)"):
        train(Scripted(script=lambda step: solve() if step == 2 else 1.0), tmp_path)


class Masked(Scripted):
    """A line whose targets are given for some examples only: `keep` of each micro-batch counts the items."""

    def step(self, model, batch, cfg, at):
        error = (model(batch[0]) - batch[1]).square()[:, 0]
        return StepOut((error * batch[2]).sum() / batch[2].sum(), self.count_items(batch))

    def count_items(self, batch):
        return float(batch[2].sum())


def masked(keep, **changes):
    """Thirty-two examples in their order, of which `keep` says which have a target."""
    task = Masked(**{"loader.shuffle": "none", "restore_best": False}, **changes)
    for source in task.sources:
        source.tensors = (*source.tensors, torch.ones(source.size))
    task.sources[0].tensors[2][:] = torch.tensor([float(keep(i)) for i in range(32)])
    return task


def test_batches_without_items(tmp_path):
    """A micro-batch whose targets are all masked adds nothing; a step of nothing else is left out and counted."""
    some = masked(lambda i: i % 8 < 4, batch_size=4, steps=4, **{"optim.accumulate": 2})
    whole = masked(lambda i: i % 8 < 4, batch_size=8, steps=4)
    assert same_weights(train(some, tmp_path).model, train(whole, tmp_path).model)
    sparse = masked(lambda i: i < 8, batch_size=4, steps=4, **{"optim.accumulate": 2})
    done = train(sparse, tmp_path)
    assert done.step == 4 and [e["step"] for e in events(done.run, "empty")] == [1, 2, 3]
    assert all(torch.isfinite(p).all() for p in done.model.parameters())
    with pytest.raises(TrainingError, match="no item in any micro-batch at step 2.*\n.*2 steps in a row"):
        train(sparse, tmp_path, **{"guard.max_skips": 1})


class Named(Scripted):
    """A task that calls a part, or a metric, by a name that is taken."""

    part = metric = None

    def step(self, model, batch, cfg, at):
        out = super().step(model, batch, cfg, at)
        parts = {name: Part(out.loss, out.n) for name in ("fit", self.part) if name}
        return StepOut(out.loss, out.n, parts, {self.metric: (out.loss.detach(), out.n)} if self.metric else {})

    def metrics(self, cfg):
        return {self.metric: MeanMetric()} if self.metric else {}


@pytest.mark.parametrize("taken", ["part loss", "part weighted_fit", "metric loss", "metric fit"])
def test_names_that_are_taken(taken, tmp_path):
    kind, name = taken.split()
    task = Named(steps=2)
    setattr(task, kind, name)
    with pytest.raises(TrainingError, match=f"a {kind}.* is called '{name}'"):
        train(task, tmp_path)


def test_a_start_that_fails(tmp_path):
    """The status of a run that never began says why; that of a run that was trained stays."""
    def last():
        return max((Run(p) for p in (tmp_path / "runs" / "tiny").iterdir()), key=lambda r: r.path.stat().st_mtime_ns)

    endless = Scripted(epochs=2)
    endless.sources[0].size = None
    absent, orphan = {"device": "cuda:99"}, {"init_from": "nothing"}
    starts = ((Scripted(), absent, "lacks"), (Scripted(), orphan, "nothing"), (endless, {}, "endless"))
    for task, changes, word in starts:
        with pytest.raises(NexusError):
            train(task, tmp_path, **changes)
        assert last().status["state"] == "failed" and word in last().status["reason"]
    run = train(Scripted(), tmp_path, [Halt(2)]).run
    with pytest.raises(NexusError):
        train(Scripted(), tmp_path, run=run, resume="last", device="cuda:99")
    assert run.status["state"] == "stopped"
    assert train(Scripted(), tmp_path, run=run, resume="last").run.status["reason"] == "budget reached"


def test_a_tracker_that_cannot_be_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.warns(UserWarning, match="a tracker failed .*Error: .*tensorboard.*metrics.jsonl goes on"):
        done = train(Scripted(), tmp_path, tensorboard=True)
    assert done.step == 12 and done.run.status["state"] == "finished"


def test_a_record_that_cannot_be_opened(tmp_path):
    """A run does not stay in the state "running" when its start fails late."""
    run = Run.create(Scripted().config, tmp_path)
    (run.path / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        train(Scripted(), tmp_path, run=run)
    assert run.status["state"] == "failed" and "cannot write" in run.status["reason"]


# ---- disks


def test_read_only_run_directory(small_disk):
    root = small_disk("8m")
    task = Scripted(steps=4)
    done = train(task, root)
    graphs = get_task("toy_graphs")
    cfg = resolve(graphs, "smoke")
    built = graphs.prepare(cfg, root)
    subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
    with pytest.raises(RunError, match="cannot write"):
        train(task, root, run=done.run, resume="last", steps=8)
    with pytest.raises(RunError, match="cannot create"):
        Run.create(task.config, root)
    with pytest.raises(RunError, match="cannot create"):
        Run.create(task.config.model_copy(update={"system": "another"}), root)
    with pytest.raises(DataError, match="could not write"):
        graphs.prepare(overlay(cfg, {"seed": 1}), root)
    assert Store(built).verify() and graphs.prepare(cfg, root) == built  # what is there already can be used
    assert done.run.status["state"] == "finished" and open_checkpoint(done.run.path / "checkpoints", "last")


def test_full_disk_while_building_data(small_disk):
    """Nothing half-written is left; with room again the same call builds the file."""
    root = small_disk("2m")
    path, arrays = root / "data" / "x" / "a.h5", {"x": np.random.default_rng(0).random((200_000,))}
    with pytest.raises(DataError, match="no room"):
        ensure_store(path, {"generator": "test"}, lambda: arrays)
    (root / "filler").write_bytes(b"0" * (1 << 20))  # now the estimate fits at first, and the disk fills up on the way

    def make():
        return {"x": arrays["x"][:10_000]}

    real = shutil.disk_usage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda p: real("/tmp"))
        with pytest.raises(DataError, match="could not write"):
            ensure_store(path, {"generator": "test"}, lambda: arrays | {"y": arrays["x"] + 1})
        with pytest.raises(DataError, match="could not write"):  # in the middle of blocks
            ensure_store(path, {"generator": "test"}, lambda: ({"x": arrays["x"][:20_000]} for _ in range(10)))
    assert not path.exists() and not hidden(root)
    (root / "filler").unlink()
    assert Store(ensure_store(path, {"generator": "test"}, make)).verify()["x"].shape == (10_000,)


def test_full_disk_while_saving(small_disk):
    """The run fails by name, its earlier checkpoints are whole, and with room again it ends as if nothing had happened.
    """
    wide = lambda: torch.nn.Sequential(torch.nn.Linear(3, 20_000), torch.nn.Linear(20_000, 1))  # 400 kB a checkpoint
    task = Scripted(make=wide, lr=1e-6, steps=12, eval_every=3, save_every=3, save_total_limit=None, restore_best=False)
    root = small_disk("64m")
    whole = train(task, root)
    for pretend in (False, True):
        run = Run.create(task.config, root)
        filler = root / "filler"

        def fill(snapshot, filler=filler):
            if snapshot.step == 8:
                room = shutil.disk_usage(root).free - (300 << 10)
                filler.write_bytes(b"0" * room)

        with pytest.MonkeyPatch.context() as patch:
            if pretend:  # the estimate is fooled, and the disk fills up in the middle of a file
                patch.setattr(nexuslab.checkpoint, "require_space", lambda folder, needed: None)
            with pytest.raises(NexusError, match="no room to write|could not write"):
                train(task, root, [Halt(look=fill)], run=run)
        assert run.status["state"] == "failed" and steps_kept(run.path / "checkpoints") == [3, 6]
        assert not hidden(run.path) and not list((run.path / "checkpoints").glob(".step_*"))
        for step in (3, 6):
            read_checkpoint(run.path / "checkpoints" / f"step_{step:08d}")
        filler.unlink()
        again = train(task, root, run=run, resume="last")
        assert same_weights(again.model, whole.model) and comparable(run).equals(comparable(whole.run))


def test_full_disk_while_logging(small_disk):
    """A row that does not fit ends the run by name, and the record can be read and gone on with."""
    task = Scripted(steps=40, eval_every=40, restore_best=False)
    root = small_disk("1m")
    whole = train(task, root)
    run, filler = Run.create(task.config, root), root / "filler"

    def fill(snapshot):
        if snapshot.step == 3:
            with open(filler, "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"0" * 4096)
                except OSError:
                    return

    with pytest.raises(RunError, match="cannot write.*metrics.jsonl"):
        train(task, root, [Halt(look=fill)], run=run)
    rows, _ = read_rows(run.path / "metrics.jsonl")
    assert [r["step"] for r in rows if "event" not in r][:3] == [1, 2, 3]
    filler.unlink()
    again = train(task, root, run=run)
    assert same_weights(again.model, whole.model) and comparable(run).equals(comparable(whole.run))


# ---- checkpoints


@pytest.fixture
def trained(tmp_path):
    return train(Scripted(steps=6, save_every=2, eval_every=6), tmp_path)


def rewrite(path: Path, **changes) -> None:
    """Make a run one of format 1, which knew no seals, with other fields in the manifest of a checkpoint."""
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest.pop("seal", None)
    (path / "manifest.json").write_text(json.dumps(manifest | {"format": 1} | changes), encoding="utf-8")
    record = path.parents[1] / "metrics.jsonl"
    rows = [row_of(line) for line in record.read_bytes().splitlines()]
    record.write_text("".join(json.dumps({k: v for k, v in r.items() if k != "manifest"}) + "\n" for r in rows))
    for name in POINTERS.values():
        pointer = json.loads((path.parent / name).read_text())
        (path.parent / name).write_text(json.dumps({"step": pointer["step"]}))


def test_older_format(trained, tmp_path, monkeypatch):
    """A format without a migration is refused by name; with one it is read."""
    path = find_checkpoint(trained.run.path / "checkpoints", "last")
    rewrite(path, format=0)
    with pytest.raises(CheckpointError, match="format 0"):
        train(Scripted(steps=6, save_every=2, eval_every=6), tmp_path, run=trained.run, resume="last", steps=8)
    rewrite(path, format=99)
    with pytest.raises(CheckpointError, match="newer nexuslab"):
        read_checkpoint(path)
    rewrite(path, format=0)
    monkeypatch.setitem(nexuslab.checkpoint.MIGRATIONS, 0, lambda saved: saved)
    assert train(
        Scripted(steps=6, save_every=2, eval_every=6), tmp_path, run=trained.run, resume="last", steps=8
    ).step == 8


def test_foreign_and_damaged_checkpoints(trained, tmp_path):
    def go_on(**changes):
        return train(Scripted(steps=6, save_every=2, eval_every=6), tmp_path, run=trained.run, resume="last", **changes)

    path = find_checkpoint(trained.run.path / "checkpoints", "last")
    keep = shutil.copytree(path, tmp_path / "keep")
    rewrite(path, system="circuits")
    with pytest.raises(CheckpointError, match="system circuits"):
        go_on(steps=8)
    shutil.copytree(keep, path, dirs_exist_ok=True)
    for name in ("model.safetensors", "state.safetensors", "state.json"):
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[:-7])
        with pytest.raises(CheckpointError, match=f"{name} truncated.*\n.*\n.*resume=step_00000004"):
            go_on(steps=8)
        (path / name).write_bytes(data)
    (path / "manifest.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged or not ours.*\n.*\n.*step_00000004"):
        go_on(steps=8)
    shutil.copytree(keep, path, dirs_exist_ok=True)
    rewrite(path, fingerprint="0" * 64)
    with pytest.raises(CheckpointError, match="data"):
        go_on(steps=8)
    shutil.copytree(keep, path, dirs_exist_ok=True)
    with pytest.raises(CheckpointError, match="seed: 0 -> 3"):
        go_on(steps=8, seed=3)
    with pytest.raises(CheckpointError, match="did you mean step_4"):
        train(Scripted(steps=6), tmp_path, run=trained.run, resume="step_44")
    assert go_on(steps=8).step == 8


def test_another_architecture(trained, tmp_path):
    wide = Scripted(make=lambda: torch.nn.Linear(3, 2), steps=2)
    with pytest.raises(CheckpointError, match=r"weight is \(1, 3\), not \(2, 3\)"):
        train(wide, tmp_path, init_from=trained.run.path.name)


def test_no_code_in_a_checkpoint(trained):
    """A checkpoint is JSON and safetensors: nothing in it could run."""
    files = [p.name for p in find_checkpoint(trained.run.path / "checkpoints", "last").iterdir()]
    assert sorted(files) == ["manifest.json", "model.safetensors", "state.json", "state.safetensors"]


def test_used_directory_is_refused(trained, tmp_path):
    with pytest.raises(CheckpointError, match="empty run"):
        train(Scripted(steps=6), tmp_path, run=trained.run)


def test_two_trainings_in_one_directory(tmp_path):
    """The second is refused, whether it comes from this process or from another, and the first goes on."""
    task, seen = Scripted(steps=6), {}
    run = Run.create(task.config, tmp_path)

    def intrude(snapshot):
        if snapshot.step == 3:
            with pytest.raises(RunError, match="another process is training in it"):
                train(task, tmp_path, run=run)
            with multiprocessing.get_context("fork").Pool(1) as pool:
                seen["other"] = pool.apply(refused, (str(run.path),))

    done = train(task, tmp_path, [Halt(look=intrude)], run=run)
    assert seen["other"] and done.step == 6 and done.run.status["state"] == "finished"


def refused(path: str) -> bool:
    try:
        with Run(path).exclusive():
            return False
    except RunError:
        return True


# ---- results and data


def test_evaluation_that_is_not_there(home):
    task = get_task("toy_graphs")
    cfg = resolve(task, "smoke", {"epochs": 1})
    run = Run.create(cfg, home)
    with pytest.raises(RunError, match="evaluation of.*\n.*none"):
        run.evaluation
    with pytest.raises(CheckpointError, match="train it first"):
        evaluate(task, run)
    fit(task, cfg, run)
    evaluate(task, run, split="val")
    with pytest.raises(RunError, match="splits val"):
        evaluation_table(run, "test")
    with pytest.raises(DataError, match="train, val or test"):
        evaluate(task, run, split="tset")
    with pytest.raises(CheckpointError, match="did you mean"):
        evaluate(task, run, checkpoint="bset")


def test_changed_data_is_refused(home):
    """Neither evaluation nor resume uses data that the run was not trained on."""
    task = get_task("toy_graphs")
    cfg = resolve(task, "smoke", {"epochs": 1})
    run = fit(task, cfg, Run.create(cfg, home)).run
    path = task.prepare(cfg, home)
    store = Store(path)
    arrays, manifest = store.arrays(), store.manifest
    store.close()
    arrays["x"] = arrays["x"] + 1
    write_store(path, {k: manifest[k] for k in ("generator", "version", "seed", "parameters")}, arrays)
    with pytest.raises(RunError, match="fingerprint"):
        evaluate(task, run)
    with pytest.raises(CheckpointError, match="data"):
        fit(task, overlay(cfg, {"epochs": 2}), run, resume="last")


def test_damaged_store(tmp_path):
    path = tmp_path / "a.h5"
    make = lambda: write_store(path, {"generator": "test"}, {"x": np.arange(100_000.0)})
    make()
    whole = path.read_bytes()
    for data, _ in ((whole[: len(whole) // 2], "truncated"), (b"no HDF5" * 99, "foreign"), (b"", "empty")):
        path.write_bytes(data)
        with pytest.raises(DataError, match="damaged or not ours"):
            Store(path).verify()
    with h5py.File(path, "w") as file:
        file["x"] = [1.0]
    with pytest.raises(DataError, match="manifest"):
        Store(path)
    place = whole.find(np.arange(50_000.0, 50_100.0).tobytes())
    assert place > 0
    path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    with pytest.raises(DataError, match="damaged"):
        Store(path)["x"]
    make()
    with h5py.File(path, "r+") as file:  # another content with sound checksums
        file["x"][7] = -1.0
    with pytest.raises(DataError, match="digest"):
        Store(path).verify()
    with pytest.raises(DataError, match="no such file"):
        Store(tmp_path / "b.h5")


def build(path: str, log: str) -> str:
    """Build a store slowly, and note that it was built."""

    def make():
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return {"x": np.arange(1000)}

    ensure_store(Path(path), {"generator": "test"}, make)
    return digest(Path(path).read_bytes())


def test_two_builders_build_once(tmp_path):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.starmap(build, [(str(tmp_path / "a.h5"), str(tmp_path / "log"))] * 3)
    assert len(set(found)) == 1 and len((tmp_path / "log").read_text().splitlines()) == 1
    assert not hidden(tmp_path)
