"""What the dashboard costs: 20 runs of 100,000 points, followed five times a second, in a real browser; 200 runs opened."""
import json
import multiprocessing
import shutil
import time
from pathlib import Path

import nbformat
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
            file.writelines(line(s, 1 / (1 + s / 100) + 0.05 * ((s * 7919 + seed) % 101) / 101) + "\n" for s in range(POINTS))
        made.append(run.path / "metrics.jsonl")
    return made


def keep_writing(paths: list[str], seconds: float) -> None:
    """Add a row to every run ten times a second."""
    step, end = POINTS, time.monotonic() + seconds
    while time.monotonic() < end:
        for path in paths:
            with open(path, "a") as file:
                file.write(line(step, 0.02) + "\n")
        step += 1
        time.sleep(0.1)


@needs_browser
def test_twenty_long_runs(home, capsys):
    paths = write_runs(home)
    folder = home / "notebooks"
    folder.mkdir()
    cells = ["from nexuslab.dashboard import Dashboard", "dashboard = Dashboard(scalars=['train/loss'])\ndashboard.live()", "dashboard.table.selected = [row['id'] for row in dashboard.table.rows]\nprint('chosen')"]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata={"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}), folder / "bench.ipynb")
    with jupyter_lab(folder, home) as address, browser_page() as page:
        page.goto(address("bench.ipynb"))
        run_all(page)
        page.wait_for_function("() => [...document.querySelectorAll('.nexuslab-chart')].some(c => +c.dataset.points >= 20 * 1900)", timeout=240_000)
        kernel = next(p for p in psutil.process_iter(["cmdline"]) if any("ipykernel_launcher" in part for part in p.info["cmdline"] or []) and str(home) in str(p.environ().get("NEXUSLAB_HOME")))
        writer = multiprocessing.get_context("spawn").Process(target=keep_writing, args=([str(p) for p in paths], 2 * SECONDS + 15))
        writer.start()
        time.sleep(4)
        newest = "() => Math.max(...[...document.querySelectorAll('.nexuslab-chart')].map(c => +c.dataset.last || 0))"
        before, started, seen = kernel.cpu_times(), time.monotonic(), page.evaluate(newest)
        time.sleep(SECONDS)
        after, spent = kernel.cpu_times(), time.monotonic() - started
        share = (after.user + after.system - before.user - before.system) / spent
        moved = page.evaluate(newest) - seen
        on_disk = json.loads(paths[0].read_text()[-200:].splitlines()[-1])["step"]
        late = (on_disk - page.evaluate(newest)) * 0.1
        rate = page.evaluate("""async () => {
            const charts = [...document.querySelectorAll('.nexuslab-chart')].filter(c => +c.dataset.points > 1000), first = performance.now();
            let frames = 0;
            while (performance.now() - first < 5000) { charts.forEach(c => c.redraw()); await new Promise(requestAnimationFrame); frames += 1; }
            return frames / 5;
        }""")
        milliseconds = page.evaluate("() => Math.max(...[...document.querySelectorAll('.nexuslab-chart')].map(c => +c.dataset.milliseconds || 0))")
        points = page.evaluate("() => Math.max(...[...document.querySelectorAll('.nexuslab-chart')].map(c => +c.dataset.points || 0))")
        writer.terminate()
    with capsys.disabled():
        print(f"\n{RUNS} runs of {POINTS:,} points: kernel {share:.1%} of a core, {rate:.0f} frames/s when every frame is drawn ({milliseconds:.1f} ms, {points:,.0f} points), newest point at most {late:.1f} s behind")
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
        print(f"\nopening {len(board.table.rows)} runs: {opened:.2f} s, {opened / floor:.0f} times the bare reading of their files")
    assert len(board.table.rows) == 200 and row_of(source, time.time())["status"] == "created"
