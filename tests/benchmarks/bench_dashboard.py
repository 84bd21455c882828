"""What the dashboard costs: 20 runs of 100,000 points, followed five times a second, in a real browser; 200 runs
opened."""
import contextlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import psutil
from browser import browser_page, jupyter_lab, needs_browser, run_all

from nexuslab.config import Config
from nexuslab.dashboard import Dashboard, row_of
from nexuslab.run import Run, find_runs

RUNS, POINTS, SECONDS = 20, 100_000, 10


def line(step: int, value: float) -> str:
    return json.dumps({"step": step, "epoch": step / 1000, "time": float(step), "attempt": 0, "train/loss": value})


def write_runs(home: Path) -> list[Path]:
    """Runs with long records, as a training would have left them."""
    made = []
    for seed in range(RUNS):
        run = Run.create(Config(system="bench", seed=seed), home)
        with open(run.path / "metrics.jsonl", "w") as file:
            file.writelines(
                line(s, 1 / (1 + s / 100) + 0.05 * ((s * 7919 + seed) % 101) / 101) + "\n" for s in range(POINTS)
            )
        made.append(run.path / "metrics.jsonl")
    return made


KEEP_WRITING = """
import json, sys, time
step, paths = int(sys.argv[1]), sys.argv[2:]
print("ready", flush=True)
while True:
    for path in paths:
        with open(path, "a") as file:
            row = {"step": step, "epoch": step / 1000, "time": time.time(), "attempt": 0, "train/loss": 0.02}
            file.write(json.dumps(row) + "\\n")
    step += 1
    time.sleep(0.1)
"""  # a row to every run, ten times a second

RATE = """async draw => {
    const charts = [...document.querySelectorAll('.nexuslab-chart')].filter(c => +c.dataset.points > 1000);
    const first = performance.now();
    let frames = 0;
    while (performance.now() - first < 5000) {
        if (draw) charts.forEach(c => c.redraw());
        await new Promise(requestAnimationFrame);
        frames += 1;
    }
    return frames / 5;
}"""  # frames a second that the browser shows, with a redraw for each or without


@contextlib.contextmanager
def writing(paths):
    """A process that goes on writing all runs, from its first row on."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", KEEP_WRITING, str(POINTS), *map(str, paths)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield
    finally:
        process.kill()
        process.wait()


@needs_browser
def test_twenty_long_runs(home, capsys):
    paths = write_runs(home)
    folder = home / "notebooks"
    folder.mkdir()
    cells = [
        "from nexuslab.dashboard import Dashboard", "dashboard = Dashboard(scalars=['train/loss'])\ndashboard.live()",
        "dashboard.table.selected = [row['id'] for row in dashboard.table.rows]\nprint('chosen')",
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(c) for c in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
        ),
        folder / "bench.ipynb",
    )
    with jupyter_lab(folder, home) as address, browser_page() as page:
        page.goto(address("bench.ipynb"))
        run_all(page)
        page.wait_for_function(
            "() => [...document.querySelectorAll('.nexuslab-chart')].some(c => +c.dataset.points >= 20 * 1900)",
            timeout=240_000,
        )
        kernel = next(
            p for p in psutil.process_iter(["cmdline"])
            if any(
                "ipykernel_launcher" in part for part in p.info["cmdline"] or []
            ) and str(home) in str(p.environ().get("NEXUSLAB_HOME"))
        )
        idle = page.evaluate(RATE, False)
        with writing(paths):
            time.sleep(4)
            newest = (
                "() => Math.max(...[...document.querySelectorAll('.nexuslab-chart')].map(c => +c.dataset.last || 0))"
            )
            before, started, seen = kernel.cpu_times(), time.monotonic(), page.evaluate(newest)
            time.sleep(SECONDS)
            after, spent = kernel.cpu_times(), time.monotonic() - started
            share = (after.user + after.system - before.user - before.system) / spent
            moved = page.evaluate(newest) - seen
            behind = []
            for _ in range(20):
                shown = page.evaluate(newest)
                behind.append(0.1 * (json.loads(paths[0].read_bytes()[-200:].splitlines()[-1])["step"] - shown))
                time.sleep(0.13)
            live, drawn = page.evaluate(RATE, False), page.evaluate(RATE, True)
        milliseconds, points = (
            page.evaluate(
                f"() => Math.max(...[...document.querySelectorAll('.nexuslab-chart')].map(c => +c.dataset.{name} || 0))"
            )
            for name in ("milliseconds", "points")
        )
        name = page.evaluate(
            "() => { const g = document.createElement('canvas').getContext('webgl'); const i = g && "
            "g.getExtension('WEBGL_debug_renderer_info'); return i ? g.getParameter(i.UNMASKED_RENDERER_WEBGL) : "
            "'none'; }"
        )
    with capsys.disabled():
        print(
            f"\n{RUNS} runs of {POINTS:,} points: kernel {share:.1%} of a core; newest point {np.median(behind):.1f} s "
            f"behind the file (worst of 20: {max(behind):.1f} s)"
        )
        print(
            f"frames/s: page idle {idle:.0f}, live at 5 updates a second {live:.0f}, with a redraw of all "
            f"{points:,.0f} points for every frame {drawn:.0f} ({milliseconds:.1f} ms a redraw; renderer: {name})"
        )
    assert moved > 0


def test_opening_200_runs(home, capsys):
    source = Run.create(Config(system="bench"), home)
    (source.path / "metrics.jsonl").write_text("".join(line(s, 1.0) + "\n" for s in range(2000)))
    for copy in range(199):
        shutil.copytree(source.path, source.path.with_name(f"{source.path.name}-{copy}"))
    started = time.perf_counter()
    board = Dashboard(home)
    opened = time.perf_counter() - started
    floor = time.perf_counter()
    for run in find_runs(home):
        (run.path / "config.yaml").read_bytes(), (run.path / "status.json").read_bytes()
    floor = time.perf_counter() - floor
    with capsys.disabled():
        print(
            f"\nopening {len(board.table.rows)} runs: {opened:.2f} s, {opened / floor:.0f} times the bare reading of "
            "their files"
        )
    assert len(board.table.rows) == 200 and row_of(source)["status"] == "created"
