"""What a tracker was told is read back from its own files; a server that cannot be reached costs seconds, never a run.
"""
import json
import socket
import struct
import threading
import time
import warnings
from pathlib import Path

import pytest
import yaml
from tiny import Halt, Scripted, train

import nexuslab.run
from nexuslab.core import RunError
from nexuslab.listen import Mirror
from nexuslab.run import ExperimentTracker, Tracker, read_rows, silence

BLOCK = 32768  # of the record format, which is LevelDB's log: crc (4 bytes), length (2), kind (1), data


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """No key and no server of the machine's own."""
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))


def wandb_records(path: Path):
    """The protocol messages of a .wandb file, up to the last that is written completely."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    if not data:
        return
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        if place + 7 + size > len(data):  # wandb's own process is still writing it
            return
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or last of a record
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_content(folder: Path) -> dict:
    """Run, configuration and history of the only offline run in a folder."""
    [file] = (folder / "wandb").glob("offline-run-*/*.wandb")
    return wandb_file(file)


def wandb_file(file: Path) -> dict:
    """Run, configuration and history of an offline file."""
    found = {"run": None, "config": {}, "history": []}
    end = time.time() + 20  # wandb's own process closes the file
    while "exit" not in [r.WhichOneof("record_type") for r in wandb_records(file)]:
        assert time.time() < end, f"{file} has no end: {[r.WhichOneof('record_type') for r in wandb_records(file)]}"
        time.sleep(0.1)
    for record in wandb_records(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
        if kind in ("run", "config"):
            updates = record.run.config.update if kind == "run" else record.config.update
            found["config"] |= {u.key or ".".join(u.nested_key): json.loads(u.value_json) for u in updates}
        if kind == "history":
            row = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            found["history"].append(row | {"_step": record.history.step.num})
    return found


def test_wandb_offline(tmp_path):
    """Every row and the whole configuration are in the offline file, under the run's names and tags."""
    done = train(
        Scripted(
            name="mine", wandb=True,
            **{"track.project": "proj", "track.entity": "team", "track.tags": ("a", "b"), "eval_every": 4},
        ),
        tmp_path,
    )
    found = wandb_content(done.run.path)
    assert (
        found["run"].project, found["run"].entity, found["run"].display_name, sorted(found["run"].tags)
    ) == ("proj", "team", "mine", ["a", "b"])
    assert found["config"]["optim.lr"] == 0.05 and found["config"]["budget.steps"] == 12
    history = done.run.history()
    assert [row["_step"] for row in found["history"]] == history["step"].tolist() == list(range(1, 13))
    for name in ("train/loss", "train/learning_rate", "train/grad_norm"):
        assert [row[name] for row in found["history"]] == history[name].tolist()
    assert {
        row["_step"]: row["val/loss"] for row in found["history"] if "val/loss" in row
    } == history.dropna(subset=["val/loss"]).set_index("step")["val/loss"].to_dict()


def test_wandb_goes_on(tmp_path):
    """A run that was stopped and resumed twice is one run at W&B: three offline files of one identity, whose rows are
    the history."""
    task = Scripted(name="mine", wandb=True, eval_every=4)
    run = train(task, tmp_path, [Halt(5)]).run
    train(task, tmp_path, [Halt(8)], run=run, resume="last")
    train(task, tmp_path, run=run, resume="last", lr=0.01)
    files = [wandb_file(f) for f in (run.path / "wandb").glob("offline-run-*/*.wandb")]
    files.sort(key=lambda f: f["history"][0]["_step"])
    assert [[row["_step"] for row in f["history"]] for f in files] == [
        list(range(1, 6)), list(range(6, 9)), list(range(9, 13))
    ]
    assert {f["run"].run_id for f in files} == {(run.path / "wandb_id").read_text()}
    assert {f["run"].display_name for f in files} == {"mine"}
    assert [row["train/loss"] for f in files for row in f["history"]] == run.history()["train/loss"].tolist()
    assert [f["config"]["optim.lr"] for f in files] == [0.05, 0.05, 0.01]


def test_wandb_knows_runs_apart(tmp_path, home):
    """A run directory is asked to go on with its own run; another directory, and a tracker without one, are others."""
    settings = []
    for folder in (tmp_path / "a", tmp_path / "a", tmp_path / "b", None, None):
        tracker = ExperimentTracker("wandb", "proj", "exp", folder)
        settings.append(tracker.backend.run.settings)
        tracker.finish()
    ids = [s.run_id for s in settings]
    assert ids[0] == ids[1] and len(set(ids)) == 4
    assert [s.resume for s in settings] == ["allow"] * 3 + [None] * 2


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = train(Scripted(tensorboard=True, eval_every=4), tmp_path)
    read = EventAccumulator(str(done.run.path / "tensorboard"))
    read.Reload()
    history = done.run.history()
    scalars = {c for c in history if "/" in c}
    assert set(read.Tags()["scalars"]) == scalars and len(scalars) >= 8
    for name in ("train/loss", "val/loss", "train/learning_rate"):
        rows = history.dropna(subset=[name])
        assert [e.step for e in read.Scalars(name)] == rows["step"].tolist()
        assert [e.value for e in read.Scalars(name)] == pytest.approx(rows[name].tolist(), rel=1e-6)
    text = read.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert yaml.safe_load(text.strip("`").removeprefix("yaml\n"))["optim.lr"] == 0.05


def test_both_at_once(tmp_path):
    done = train(Scripted(tensorboard=True, wandb=True, steps=2), tmp_path)
    assert list((done.run.path / "tensorboard").iterdir()) and len(wandb_content(done.run.path)["history"]) == 2


@pytest.mark.parametrize("backend", ["jsonl", "none", "tensorboard", "wandb"])
def test_on_its_own(backend, home):
    """`ExperimentTracker(backend, project_name, experiment_name)` without any training."""
    tracker = ExperimentTracker(backend, "proj", "exp")
    tracker.log_params({"lr": 0.1, "path": Path("x")})
    for step in range(3):
        tracker.log_metrics({"loss": 1.0 / (step + 1)}, step=step)
    tracker.finish()
    folder = home / "runs" / "exp"
    if backend == "jsonl":
        rows, _ = read_rows(folder / "tracker.jsonl")
        assert rows[0]["params"] == {"lr": 0.1, "path": "x"}
        assert [(r["step"], r["loss"]) for r in rows[1:]] == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    if backend == "none":
        assert not folder.exists()
    if backend == "tensorboard":
        assert list((folder / "tensorboard").glob("events*"))
    if backend == "wandb":
        found = wandb_content(folder)
        assert found["run"].project == "proj"
        assert [r["loss"] for r in found["history"]] == [1.0, 0.5, pytest.approx(1 / 3)]


def test_unknown_backend():
    with pytest.raises(RunError, match="did you mean tensorboard"):
        ExperimentTracker("tensorbord")


@pytest.fixture
def mute():
    """A server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        held, ended = [], threading.Event()

        def accept():
            while not ended.is_set():
                try:
                    held.append(server.accept())
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        ended.set()
        for connection, _ in held:
            connection.close()


@pytest.mark.parametrize("server", ["refusing", "silent"])
def test_unreachable_server(server, mute, tmp_path, monkeypatch):
    """Online without a server: a warning within seconds, an offline file, a finished run."""
    import wandb

    wandb.teardown()  # its settings are read once a process
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9" if server == "refusing" else mute)
    monkeypatch.setattr(nexuslab.run, "ANSWER_SECONDS", 2.0)
    started = time.perf_counter()
    with pytest.warns(UserWarning, match="cannot be reached.*wandb sync"):
        done = train(Scripted(wandb=True, **{"track.wandb_mode": "online"}), tmp_path)
    assert time.perf_counter() - started < 40
    assert done.run.status["state"] == "finished" and done.step == 12
    assert len(wandb_content(done.run.path)["history"]) == 12
    wandb.teardown()


def test_silence(mute):
    assert "127.0.0.1" in silence("http://127.0.0.1:9", 1) and "timed out" in silence(mute, 0.5)
    assert silence("nonsense", 1)
    with socket.socket() as server:  # an error page is an answer
        server.bind(("127.0.0.1", 0))
        server.listen(1)

        def answer():
            connection, _ = server.accept()
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        assert silence(f"http://127.0.0.1:{server.getsockname()[1]}", 5) is None


class Broken(Tracker):
    """A tracker whose library fails after three rows."""

    rows = 0

    def log_params(self, params):
        return

    def log_metrics(self, metrics, step):
        self.rows += 1
        if self.rows > 3:
            raise ConnectionError("lost")

    def finish(self):
        raise ConnectionError("lost")


def test_failing_tracker_ends_nothing(tmp_path):
    task, tracker = Scripted(), Broken()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        done = train(task, tmp_path, [Mirror(tracker, task.config)])
    assert done.step == 12 and tracker.rows == 4
    assert [str(w.message) for w in told if "tracker failed" in str(w.message)] == [
        "a tracker failed (ConnectionError: lost); metrics.jsonl goes on without it"
    ]
