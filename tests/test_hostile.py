"""A stranger's run directories in a real browser: scripts in every name and value are shown as text, and none runs."""
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import nbformat
import pytest
from browser import needs_browser, run_all
from conftest import ROOT
from hostile import CONTEXTS, KINDS, PNG, make_all, payload

from nexuslab.run import comparison
from nexuslab.views import comparison_report, report, summary_cells, write_html

pytestmark = [needs_browser, pytest.mark.xdist_group("browser")]


class Listener:
    """Notes what a page asks of it, and what runs in a page."""

    def __init__(self):
        asked = self.asked = set()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.add(self.path)
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()

            do_POST = do_GET

            def log_message(self, *args):
                return

        self.ran = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def watch(self, page) -> None:
        """Give every page and frame the function that payloads call."""
        page.expose_function("told", lambda kind, place: self.ran.add((kind, place)))
        page.add_init_script("window.ran = (kind, place) => { window[`ran_${kind}_${place}`] = 1; told(kind, place); }")

    def found(self) -> set:
        """Kind and place of what ran or was asked for since the last time."""
        told = [re.match(r"/(\d+)/(\d+)", path) for path in self.asked - {"/", "/favicon.ico"}]
        found = self.ran | {(int(t[1]), int(t[2])) if t else "another address" for t in told}
        self.ran.clear(), self.asked.clear()
        return found


@pytest.fixture(scope="module")
def listener(lab):
    made = Listener()
    made.watch(lab.page)
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def received(lab, listener):
    """A project with a run of every kind, where JupyterLab can open its files."""
    root = lab.folder / "received"
    return root, make_all(root, listener.address)


def provoke(page) -> None:
    """Click what a payload may have made clickable, focus what it may have made focusable, and let time pass."""
    page.evaluate("""() => {
        const odd = a => !/^(https?:|#|[/]|$)/.test(a.getAttribute("href") ?? a.getAttribute("xlink:href") ?? "");
        for (const a of document.querySelectorAll("a")) if (odd(a)) a.dispatchEvent(new MouseEvent("click"));
        for (const e of document.querySelectorAll("[autofocus]")) e.focus();
    }""")
    page.wait_for_timeout(300)


def text_of(kind: int, place: str, address: str) -> str:
    """How a payload reads in a page: white space runs together."""
    return " ".join(payload(kind, place, address).split())


def test_payloads_run_where_nothing_is_escaped(lab, listener):
    """The detector hears every kind that can run, in the place that it was made for."""
    silent, page = set(), None
    for kind, (name, (_, context)) in enumerate(KINDS.items()):
        text = payload(kind, "run", listener.address).replace("\n```\n", "\n")
        if page is None:
            page = lab.page.context.new_page()
            listener.watch(page)
        page.goto(listener.address)  # an empty page
        page.set_content(CONTEXTS.get(context, "%s") % text, wait_until="load")
        leaves = name in ("meta refresh", "form")  # the page, by itself
        page.wait_for_timeout(300) if leaves else provoke(page)
        if leaves:
            page = page.close()
        if not listener.found():
            silent.add(name)
    assert silent <= {"LaTeX"}, silent


def test_reports_from_disk(lab, listener, received):
    """Names, values, notebooks and pictures of the runs in files that are opened without a server."""
    root, runs = received
    page = lab.page.context.new_page()
    listener.watch(page)
    whole = report(runs[0])
    cells = [cell for run in runs for cell in summary_cells(run)]
    summaries = write_html(nbformat.v4.new_notebook(cells=cells), root / "summaries.html", runs[2].path.name)
    (root / f"{runs[3].path.name[:100]}.png").write_bytes(PNG)
    compared = comparison_report(comparison(runs), root / f"{runs[3].path.name[:100]}.png", root / "comparison.html")
    for path in (whole, summaries, compared):
        page.goto(path.as_uri())
        provoke(page)
        assert not listener.found(), path.name
        assert page.locator("meta[http-equiv=Content-Security-Policy]").count() == 1
    page.goto(summaries.as_uri())
    text = page.evaluate("() => document.body.textContent.replace(/\\s+/g, ' ')")
    for place in ("figure", "baseline", "command", "package", "reason", "split"):
        lacking = [kind for kind, name in enumerate(KINDS) if text_of(kind, place, listener.address) not in text]
        odd = {"LaTeX", "terminal", "markdown", "obfuscated link"}  # what the table or markdown itself changes
        assert {list(KINDS)[kind] for kind in lacking} <= odd, place
    page.close()


LOOK = """
dashboard.root = __import__("pathlib").Path(ROOT)
dashboard.refresh_table()
dashboard.table.selected = [row["id"] for row in dashboard.table.rows]
dashboard.stack.value = True
dashboard.tick()
dashboard.scalars.value = [name for name in dashboard.scalars.options if "weighted" not in name]
dashboard.tick()
"""


def test_the_dashboard_shows_text(lab, listener, received):
    """Rows, differences, curves, parts of the loss, events and notes of thirty runs at once."""
    root, runs = received
    page, name = lab.page, "strangers.ipynb"
    shutil.copy(ROOT / "nbs" / "09_dashboard.ipynb", lab.folder / name)
    lab.open(name)
    run_all(page)
    page.wait_for_selector(".nexuslab-table", timeout=90_000)
    with lab.kernel(name) as kernel:
        kernel(LOOK.replace("ROOT", repr(str(root))))
        assert kernel("", "len(dashboard.charts)") > 60
        page.wait_for_function("() => document.querySelectorAll('.nexuslab-chart canvas').length > 60")
        page.click(".jupyter-widget-Collapse-header:has-text('what differs')")
        page.click("button:has-text('stop')")
        page.locator(".widget-html", has_text=": is ").first.wait_for(timeout=10_000)
        page.mouse.move(*middle(page.locator(".nexuslab-chart canvas").first))
        provoke(page)
        shown = page.eval_on_selector_all("td.nexuslab-run", "cells => cells.map(c => c.textContent)")
        assert sorted(shown) == sorted(run.path.name for run in runs)
        text = page.evaluate("() => document.body.innerText.replace(/\\s+/g, ' ')")
        for kind in range(len(KINDS)):
            assert text_of(kind, "configuration value", listener.address) in text, list(KINDS)[kind]
        kernel("dashboard.root, dashboard.table.selected = dashboard.root / 'nothing', []\ndashboard.tick()")
    assert not listener.found()


def middle(found) -> tuple[float, float]:
    """The middle of what was found."""
    box = found.bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


TABLES = """
import pandas as pd
from IPython.display import display
from nexuslab.evaluate import evaluation_table
from nexuslab.run import comparison, find_runs, runs_table
runs = find_runs(ROOT)
display(runs_table(ROOT), comparison(runs))
"""
SHOW = """
for run in runs[START : START + 8]:
    display(run, evaluation_table(run), run.history(), pd.DataFrame(run.events()), run.tree)
print("shown", START)
"""  # JupyterLab shows fifty outputs of a cell


def test_tables_in_a_notebook_show_text(lab, listener, received):
    """Comparison, evaluations, histories and events, as a trusted cell shows them."""
    root, runs = received
    sources = [TABLES.replace("ROOT", repr(str(root))), *(SHOW.replace("START", str(k)) for k in (0, 8, 16, 24))]
    name, cells = "tables.ipynb", [nbformat.v4.new_code_cell(source) for source in sources]
    kernelspec = {"name": "python3", "display_name": "python3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernelspec}), lab.folder / name)
    lab.open(name)
    run_all(lab.page)
    lab.page.locator(".jp-OutputArea-output", has_text="shown 24").wait_for(timeout=60_000)
    provoke(lab.page)
    cells = lab.page.eval_on_selector_all("td, th", "cells => cells.map(c => c.textContent.replace(/\\s+/g, ' '))")
    texts = [payload(kind, "baseline", listener.address) for kind, name in enumerate(KINDS) if name != "LaTeX"]
    plain = [text for text in texts if text.isprintable()]  # of the rest a table shows the escapes; LaTeX is set
    assert len(plain) > 24 and not [text for text in plain if not any(text in cell for cell in cells)]
    assert not listener.found()


def test_a_strangers_notebook_runs_nothing(lab, listener, received):
    """Cells, outputs, attachments, widgets and metadata of a notebook that JupyterLab opens without trust."""
    root, runs = received
    path = runs[0].path / "report.ipynb"
    lab.open(path.relative_to(lab.folder).as_posix())
    lab.page.wait_for_timeout(3000)
    provoke(lab.page)
    assert len(lab.page.query_selector_all(".jp-Cell")) == 3 * len(KINDS)
    assert not listener.found()
