"""Events in the forms of GraphNeT and Kaggle: written here from simulated events, and equal to them when imported."""
import sqlite3
import tracemalloc
from contextlib import closing

import numpy as np
import pandas as pd
import pytest

from nexuslab.config import resolve
from nexuslab.core import ConfigError, DataError
from nexuslab.kernels import run_job
from nexuslab.systems.icecube.data import EventFile
from nexuslab.systems.icecube.detector import SENSORS, icecube86
from nexuslab.systems.icecube.event import dense_event, draw_event
from nexuslab.systems.icecube.imports import Reading, import_events
from nexuslab.systems.icecube.task import TASK

COLUMNS = "event_no", "dom_x", "dom_y", "dom_z", "dom_time", "charge"
TRUTH = "event_no", "energy", "zenith", "azimuth", "position_x", "position_y", "position_z"


@pytest.fixture(scope="module")
def events():
    """Simulated events: labels, signals, and two pulses for each hit as rows (event, sensor, time, charge)."""
    rng = np.random.default_rng(3)
    drawn = [draw_event(rng) for _ in range(12)]
    rows = []
    for number, (_, event) in enumerate(drawn, 10):
        for late, share in ((0.0, 0.25), (70.0, 0.75)):
            pulses = event.sensor, event.time + late, share * event.charge
            rows.append(np.column_stack([np.full(len(event.sensor), number), *pulses]))
    rows = np.concatenate(rows)
    labels, signals = np.stack([label for label, _ in drawn]), np.stack([dense_event(event) for _, event in drawn])
    return labels, signals, rows[np.argsort(rows[:, 0], kind="stable")]


def write_graphnet(path, labels, rows):
    """Tables of pulses and truth, from rows (event, sensor, time, charge)."""
    places = icecube86().position[rows[:, 1].astype(int)].astype(float)
    with closing(sqlite3.connect(path)) as base, base:
        for name, columns, values in (
            ("SRTInIcePulses", COLUMNS, np.column_stack([rows[:, 0], places, rows[:, 2:]])),
            ("truth", TRUTH, np.column_stack([np.unique(rows[:, 0]), labels])),
        ):
            base.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
            base.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", values.tolist())
    return path


def write_kaggle(folder, labels, rows, drop=()):
    """Two batches, their labels and the sensors, as in Kaggle's folder; labels of a third batch that is not there."""
    pyarrow = pytest.importorskip("pyarrow", reason="an extra: pip install 'nexuslab[kaggle]'")
    (folder / "train").mkdir()
    event, sensor, time, charge = rows.T
    table = {"sensor_id": sensor.astype(np.int16), "time": time, "charge": charge, "auxiliary": rows[:, 3] < 0.5}
    frame = pd.DataFrame(table, index=pd.Index(event.astype(np.int64), name="event_id"))
    numbers = np.unique(frame.index)
    for batch, which in ((1, frame.index < 16), (2, frame.index >= 16)):
        frame[which].drop(columns=list(drop)).to_parquet(folder / "train" / f"batch_{batch}.parquet")
    meta = {"batch_id": np.where(numbers < 16, 1, 2), "event_id": numbers, "first_pulse_index": 0}
    meta |= {"azimuth": labels[:, 2], "zenith": labels[:, 1]}
    absent = {"batch_id": [3], "event_id": [99], "first_pulse_index": [0], "azimuth": [1.0], "zenith": [1.0]}
    together = pd.concat([pd.DataFrame(meta), pd.DataFrame(absent)]).sample(frac=1, random_state=0)
    pyarrow.parquet.write_table(pyarrow.Table.from_pandas(together), folder / "train_meta.parquet")
    places = pd.DataFrame(icecube86().position, columns=list("xyz")).rename_axis("sensor_id")
    places.to_csv(folder / "sensor_geometry.csv")
    return folder


def test_a_graphnet_file_is_prepared_by_the_command(events, tmp_path, monkeypatch):
    """The job takes a database, and the imported file, whose content is that of the simulated events."""
    monkeypatch.setenv("NEXUSLAB_HOME", str(tmp_path))
    monkeypatch.delenv("NEXUSLAB_REPORT", raising=False)
    labels, signals, rows = events
    write_graphnet(tmp_path / "events.db", labels, rows)
    run_job("prepare", {"system": "icecube", "preset": "smoke", "data_path": "events.db"}, quiet=True)
    cfg = resolve(TASK, "smoke", {"data.path": "events.db"})
    [made] = (tmp_path / "data" / "icecube").glob("*.h5")
    held = EventFile(made)
    assert TASK.prepare(cfg, tmp_path) == made and held.file["event_id"][:].tolist() == list(range(10, 22))
    assert np.allclose(held.read("input", np.arange(12)), signals, rtol=1e-5)
    assert np.allclose(held.read("label", np.arange(12)), labels, rtol=1e-5)
    splits = TASK.data(cfg, tmp_path)
    assert sum(part.size for part in (splits.train, splits.val, splits.test)) == 12
    assert TASK.other(tmp_path / "events.db", cfg, splits.meta).size == 12


def test_memory_does_not_grow_with_the_file(tmp_path):
    rng, peaks = np.random.default_rng(0), []
    for many in (80, 320):
        number = np.repeat(np.arange(many), 150)  # more pulses than are read at once
        pulses = rng.integers(0, SENSORS, len(number)), rng.uniform(0, 5000, len(number)), np.ones(len(number))
        labels = np.tile([1e4, 1.0, 1.0, 0.0, 0.0, 0.0], (many, 1))
        path = write_graphnet(tmp_path / f"{many}.db", labels, np.column_stack([number, *pulses]))
        tracemalloc.start()
        import_events(path, tmp_path / f"{many}.h5")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_kaggles_batches_are_the_simulated_events(events, tmp_path):
    """Labels that Kaggle does not tell are refused, or the numbers that were asked for, and the file says so."""
    labels, signals, rows = events
    folder, fill = write_kaggle(tmp_path, labels, rows), {"energy": 2e4, "x": 1.0, "y": 2.0, "z": 3.0}
    with pytest.raises(DataError, match="no energy, x, y, z(.|\n)*data.fill"):
        TASK.prepare(resolve(TASK, "smoke", {"data.path": str(folder)}), tmp_path)
    cfg = resolve(TASK, "smoke", {"data.path": str(folder), "data.fill": fill})
    held = EventFile(TASK.prepare(cfg, tmp_path))
    told = np.column_stack([np.full(12, 2e4), labels[:, 1:3], np.tile([1.0, 2.0, 3.0], (12, 1))])
    assert np.allclose(held.read("label", np.arange(12)), told, rtol=1e-5)
    assert np.allclose(held.read("input", np.arange(12)), signals, rtol=1e-5)
    assert held.file.attrs["filled"] == "energy: 20000, x: 1, y: 2, z: 3"
    one = EventFile(import_events(folder / "train" / "batch_2.parquet", tmp_path / "two.h5", Reading(fill=fill)))
    assert one.file["event_id"][:].tolist() == list(range(16, 22))
    bright = EventFile(import_events(folder, tmp_path / "bright.h5", Reading(auxiliary=False, fill=fill)))
    few, all_ = ((file.read("input", np.arange(12))[:, 0] > 0).sum() for file in (bright, held))
    assert 0 < few < all_


@pytest.mark.parametrize("wrong, told", [
    (dict(drop=["charge"]), "batch_1.parquet(.|\n)*no charge"), (dict(column=1, value=5160), "sensor_id 5160"),
    (dict(column=2, value=np.nan), "event 10 of(.|\n)*time is no number"),
    (dict(column=3, value=-1.0), "event 10 of(.|\n)*charge -1"),
    (dict(column=0, value=95), "event 95 of(.|\n)*no label"),
])
def test_what_is_wrong_in_a_batch_is_named(wrong, told, events, tmp_path):
    labels, _, rows = events
    rows = rows.copy()
    if "column" in wrong:
        rows[0 if wrong["column"] else -1, wrong["column"]] = wrong["value"]
    numbers = rows[:, 0] < 90
    pytest.importorskip("pyarrow", reason="an extra: pip install 'nexuslab[kaggle]'")
    write_kaggle(tmp_path, np.concatenate([labels, labels[: (~numbers).sum()]]), rows, wrong.get("drop", ()))
    if wrong.get("column") == 0:
        meta = pd.read_parquet(tmp_path / "train_meta.parquet")
        meta[meta.event_id != 95].to_parquet(tmp_path / "train_meta.parquet")
    with pytest.raises(DataError, match=told):
        import_events(tmp_path, tmp_path / "no.h5", Reading(fill=dict.fromkeys(("energy", "x", "y", "z"), 1.0)))
    assert not (tmp_path / "no.h5").exists()


def test_choices_of_an_import_are_refused_where_nothing_is_imported():
    for key, value in (("pulses", "SRTInIcePulses"), ("auxiliary", False), ("fill", {"x": 0.0})):
        with pytest.raises(ConfigError, match="a file to import"):
            resolve(TASK, "smoke", {"data.path": "events.h5", f"data.{key}": value})
