"""The dashboard in a real JupyterLab in a real browser."""
import shutil
import time

import pytest
from browser import ARTEFACTS, browser_page, jupyter_lab, needs_browser, run_all
from conftest import ROOT

from nexuslab.run import Run, find_runs


def wait_for(condition, what: str, seconds: float = 60):
    """Wait until a condition holds; returns its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"waited {seconds} s for {what}")


@needs_browser
@pytest.mark.xdist_group("browser")
def test_a_job_is_started_watched_and_stopped(home):
    folder = home / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "nbs" / "09_dashboard.ipynb", folder)
    with jupyter_lab(folder, home) as address, browser_page() as page:
        page.goto(address("09_dashboard.ipynb"))
        run_all(page)
        page.wait_for_selector(".nexuslab-table", timeout=90_000)
        page.click(".jupyter-widget-Collapse-header:has-text('start a job')")
        for name, value in {"system": "toy_graphs", "preset": "smoke", "epochs": "3000", "overrides": "{track.log_every: 5, checkpoint.eval_every: 20}"}.items():
            page.fill(f".widget-text:has(label:text-is('{name}')) input", value)
        page.click("button:has-text('start train')")
        run = wait_for(lambda: find_runs(home) and find_runs(home)[0], "the run's directory")
        box = f"tr[data-run='{run.path.name}'] input"
        page.wait_for_selector(box, timeout=60_000)
        if not page.is_checked(box):
            page.check(box)
        wait_for(lambda: Run(run.path).status["state"] == "running", "the training to begin")
        page.wait_for_function("() => [...document.querySelectorAll('.nexuslab-chart')].some(c => +c.dataset.points > 5)", timeout=60_000)
        last = page.evaluate("() => Math.max(...[...document.querySelectorAll('.nexuslab-chart')].map(c => +c.dataset.last || 0))")
        page.wait_for_function(f"() => [...document.querySelectorAll('.nexuslab-chart')].some(c => +c.dataset.last > {last} + 20)", timeout=60_000)
        page.screenshot(path=ARTEFACTS / "dashboard.png")
        page.click("button:has-text('stop')")
        wait_for(lambda: Run(run.path).status["state"] == "stopped", "the run to stop")
        page.wait_for_selector(f"tr[data-run='{run.path.name}'][data-status=stopped]", timeout=20_000)
        stopped = Run(run.path).status["step"]
        page.click("button:has-text('resume')")
        wait_for(lambda: Run(run.path).status["attempt"] == 1 and Run(run.path).status["step"] > stopped, "the run to go on")
        Run(run.path).request_stop()
        wait_for(lambda: Run(run.path).status["state"] == "stopped", "the run to stop again")
        page.screenshot(path=ARTEFACTS / "dashboard-stopped.png")
        assert not page.outside, page.outside
        mistakes = [e for e in page.errors if "nexuslab" in e or "anywidget" in e or "TypeError" in e]
        assert not mistakes, mistakes


@needs_browser
@pytest.mark.xdist_group("browser")
def test_the_tour_shows_its_curve_while_it_trains(home):
    folder = home / "notebooks"
    folder.mkdir()
    shutil.copy(ROOT / "nbs" / "00_tour.ipynb", folder)
    with jupyter_lab(folder, home) as address, browser_page() as page:
        page.goto(address("00_tour.ipynb"))
        run_all(page)
        page.wait_for_function("() => [...document.querySelectorAll('.nexuslab-chart')].some(c => +c.dataset.points > 3)", timeout=120_000)
        run = wait_for(lambda: find_runs(home) and find_runs(home)[0], "the run's directory")
        assert Run(run.path).status["state"] == "running"  # the curve moves while the kernel is busy training
        page.locator(".nexuslab-chart").first.scroll_into_view_if_needed()
        page.screenshot(path=ARTEFACTS / "tour.png")
        wait_for(lambda: Run(run.path).status["state"] == "finished", "the training to end", 180)
        assert not page.outside, page.outside
