"""What long records and many runs cost: a record of a million rows, a thousand run directories.

Each figure stands beside a floor measured in the same run: `json.loads` of every line of the record, and listing and
`stat` of the same folders.
"""
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from nexuslab.config import Config
from nexuslab.dashboard import Dashboard
from nexuslab.run import Run, checked, find_runs, runs_table

ROWS, RUNS = 1_000_000, 1000
SCALARS = ("train/loss", "train/kl", "train/learning_rate", "train/grad_norm", "system/samples_per_second",
           "system/data_wait", "system/memory")


def line(step: int, rng) -> bytes:
    """A row as a training writes it."""
    row = {"step": step, "epoch": round(step / 1000, 6), "time": 1.7e9 + step / 100, "attempt": 0}
    return checked(json.dumps(row | dict(zip(SCALARS, rng.random(len(SCALARS)).tolist()))).encode()) + b"\n"


def write_record(path: Path) -> None:
    """A record of a million rows, with an event every thousand."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for step in range(1, ROWS + 1):
            file.write(line(step, rng))
            if step % 1000 == 0:
                best = {
                    "step": step, "epoch": 0, "time": 1.7e9 + step / 100, "attempt": 0, "event": "best", "value": 1.0
                }
                file.write(checked(json.dumps(best).encode()) + b"\n")


MEASURE = """
import json, resource, sys, time
from nexuslab.dashboard import Follower
from nexuslab.run import Run
run, what = Run(sys.argv[1]), sys.argv[2]
act = {"poll": Follower(run).poll, "history": run.history}.get(what)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before, started = peak(), time.process_time()
if act: made = act()
else:
    with open(run.path / "metrics.jsonl", "rb") as file:
        for line in file: json.loads(line)
print(json.dumps([time.process_time() - started, peak() - before]))
"""


def measured(run: Run, what: str) -> tuple[float, float]:
    """Seconds of processor time and additional peak memory [MB] of reading a record, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", MEASURE, run.path, what], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def test_a_million_rows(home, capsys):
    run = Run.create(Config(system="bench"), home)
    write_record(run.path / "metrics.jsonl")
    size = (run.path / "metrics.jsonl").stat().st_size / 2**20
    floor, _ = measured(run, "floor")
    poll, memory = measured(run, "poll")
    history, more = measured(run, "history")
    board = Dashboard(home)
    follower, ticks = next(iter(board.followers.values())), 1
    while follower.stamp is None:
        board.tick()
        ticks += 1
    rng, later = np.random.default_rng(1), []
    for step in range(ROWS + 1, ROWS + 51):
        with open(run.path / "metrics.jsonl", "ab") as file:
            file.write(line(step, rng))
        started = time.perf_counter()
        assert follower.poll()
        later.append(time.perf_counter() - started)
    with capsys.disabled():
        print(f"\n{ROWS:,} rows, {size:.0f} MiB; load {os.getloadavg()[0]:.1f}; json.loads of every line {floor:.1f} s")
        print(
            f"first poll {poll:.1f} s ({poll / floor:.2f} of the floor), {memory:.0f} MB; in a dashboard {ticks} ticks"
        )
        print(f"a later poll of one row {1000 * np.median(later):.2f} ms")
        print(f"history {history:.1f} s ({history / floor:.2f} of the floor), {more:.0f} MB")
    assert len(follower.curves["train/loss"]) == ROWS + 50 and follower.damaged == 0
    assert poll < floor and history < 1.5 * floor and memory < 200 and np.median(later) < 0.005 * floor


def floor_of(home: Path) -> float:
    """Listing the folders and asking for the stamps of three files in each."""
    started = time.perf_counter()
    for system in os.scandir(home / "runs"):
        for entry in os.scandir(system.path):
            for name in ("config.yaml", "status.json", "metrics.jsonl"):
                os.stat(f"{entry.path}/{name}")
    return time.perf_counter() - started


def test_a_thousand_runs(home, capsys):
    source = Run.create(Config(system="bench"), home)
    rng = np.random.default_rng(0)
    (source.path / "metrics.jsonl").write_bytes(b"".join(line(step, rng) for step in range(1, 201)))
    for copy in range(RUNS - 1):
        shutil.copytree(source.path, source.path.with_name(f"{source.path.name}-{copy}"))
    for path in home.glob("runs/*/*/*.*"):
        os.utime(path, (1.7e9, 1.7e9))
    took = {}

    def timed(what: str, act, times: int = 5):
        started = time.perf_counter()
        for _ in range(times):
            made = act()
        took[what] = (time.perf_counter() - started) / times
        return made

    timed("floor", lambda: floor_of(home))
    table = timed("table", lambda: runs_table(home))
    command = [sys.executable, "-c", "import sys; from nexuslab.jobs import main; sys.exit(main())", "runs"]
    shown = timed("command", lambda: subprocess.run(command, capture_output=True, text=True, check=True), 3)
    bare = "import pandas, psutil, pydantic, yaml, filelock"
    timed("imports", lambda: subprocess.run([sys.executable, "-c", bare], check=True), 3)
    board = timed("opening", lambda: Dashboard(home), 1)
    timed("refresh", board.refresh_table)
    runs = find_runs(home)
    moved = [runs[k].path / "metrics.jsonl" for k in range(0, RUNS, 100)]
    for path in moved:
        path.write_bytes(path.read_bytes() + line(201, rng))
    timed("refresh, ten have moved", board.refresh_table, 1)
    with capsys.disabled():
        print(f"\n{RUNS:,} runs; load {os.getloadavg()[0]:.1f}")
        for what, seconds in took.items():
            print(f"{what}: {seconds:.3f} s, {seconds / took['floor']:.0f} times the floor")
    assert len(table) == len(board.table.rows) == RUNS and len(shown.stdout.splitlines()) == RUNS + 1
    assert took["refresh"] < 9 * took["floor"] and took["table"] < 60 * took["floor"]
    assert took["command"] < took["imports"] + 2 * took["table"] + 100 * took["floor"]
