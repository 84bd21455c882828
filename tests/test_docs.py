"""The documentation site: built without a warning, whole, self-contained, and read in a real browser."""
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
ARTEFACTS = Path(__file__).parent / "artefacts"
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run",
]
STILL_TO_COME: set[str] = set()  # may only shrink

sys.path.insert(0, str(ROOT / "docs"))
docs = pytest.importorskip("build", reason="the documentation tools are not installed")
import api  # noqa: E402  the path is set above
import coming_from  # noqa: E402
import convert  # noqa: E402
import execution  # noqa: E402
from furo.navigation import get_navigation_tree  # noqa: E402
from navigation import Contents  # noqa: E402

from nexuslab.task import list_tasks  # noqa: E402

pytestmark = pytest.mark.xdist_group("docs")


@pytest.fixture(scope="module")
def site():
    """The site, with the outputs that the cache or the notebooks hold: executing them is the job of `make docs`."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder = execution.WORK / f"test_site-{session}"
    execution.WORK.mkdir(parents=True, exist_ok=True)
    with FileLock(execution.WORK / "test_site.lock"):  # one build a session, whichever worker comes first
        if not (folder / "index.html").exists():
            for old in execution.WORK.glob("test_site-*"):
                shutil.rmtree(old, ignore_errors=True)
            docs.build(folder, stored=True)
    return folder


def pages(site: Path) -> dict[str, str]:
    """Page -> its HTML."""
    found = {p.relative_to(site).as_posix(): p.read_text(encoding="utf-8") for p in site.rglob("*.html")}
    assert len(found) > 30
    return found


def test_a_summary_is_whole():
    """What stands below a title, also where it goes on in a second line, as on the front page and in lists."""
    for text in ("# A\n\n> One sentence\n> in two lines.", "# A\n\n> One sentence\nin two lines.\n\nMore."):
        page = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
        assert convert.title_of(page) == ("A", "One sentence in two lines.")
    summaries = [convert.title_of(nbformat.read(c.path, 4))[1] for c in execution.find_chapters()]
    assert len(summaries) > 60 and all(text.endswith((".", "`")) for text in summaries if text)


def test_a_docstring_is_shown_as_it_was_meant():
    """What Markdown would take for markup is escaped; code and formulas are code."""
    assert api.prose("between $n$ and `k_1`, not a*b*c") == "between `n` and `k_1`, not a\\*b\\*c"


def test_the_jobs_of_the_site_are_smoke():
    """A job that trains is asked for the smoke preset, not for one that takes minutes."""
    jobs = {c.name: set(c.parameters()) for c in execution.find_chapters() if c.parameters()}
    assert len(jobs) >= 9 and execution.SMOKE.keys() <= set().union(*jobs.values())
    for job in ("01_prepare", "02_inspect", "03_train", "05_tune", "11_seeds"):
        assert "preset" in jobs[job], job


def test_the_contents_are_what_the_theme_makes():
    """On a page two levels down: the entries above it are open, its own leads nowhere, links start from its folder."""

    def contents(up: str, item: str, opened: str, link: str) -> str:
        first = f'<li class="toctree-l1{item}"><a class="reference internal" href="{up}a.html">A</a>'
        inner = f'<li class="toctree-l2{item}"><a class="{link}</a></li>'
        last = f'<li class="toctree-l1"><a class="reference internal" href="{up}c.html">C</a></li>'
        return f"<ul{opened}>\n{first}<ul{opened}>\n{inner}\n</ul>\n</li>\n{last}\n</ul>"

    plain = contents("", "", "", 'reference internal" href="s/b.html">B')
    beside_b = contents("../", " current", ' class="current"', 'current reference internal" href="#">B')
    assert Contents(get_navigation_tree(plain)).beside("s/b.html") == get_navigation_tree(beside_b)


def test_every_chapter_is_a_page_and_listed(site):
    chapters = [c.name for c in execution.find_chapters()]
    assert len(chapters) >= 20
    listed = (site / "index.html").read_text(encoding="utf-8")
    below = {
        f: (site / f / "index.html").read_text(encoding="utf-8")
        for f in {c.rpartition("/")[0] for c in chapters} - {""}
    }
    for chapter in chapters:
        name = docs.page_of(chapter)
        assert (site / f"{name}.html").is_file(), chapter
        folder, _, last = name.rpartition("/")
        assert last == "index" or f'href="{last}.html"' in (
            below[folder] if folder else listed
        ), f"{chapter} is not listed"
    for page in ("coming_from", "troubleshooting", "sixth_system", "api/index", "api/configuration", "search"):
        assert (site / f"{page}.html").is_file(), page


def test_first_page_says_what_it_is(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert 'class="flow"' in text and text.count("figure-card") >= 4 and "papermill nbs/03_train.ipynb" in text
    assert text.index("systems/circuits/index.html") < text.index("engine/index.html", text.index("toctree-l1"))


def test_pages_fetch_nothing(site):
    loaded = re.compile(
        r"<(?:script|img|iframe|source|video|audio|embed|object|link)\b[^>]*?"
        r"\b(?:src|href|data|srcset)=[\"']([^\"']+)[\"'][^>]*>",
        re.I,
    )
    for name, text in pages(site).items():
        outside = [u for u in loaded.findall(text) if re.match(r"(?:https?:)?//", u)]
        assert not outside, f"{name} loads {outside}"
        assert not re.search(r"<script[^>]*(?:require|mathjax)", text, re.I), name
    sheets = [p for p in site.rglob("*.css")]
    assert sheets
    for sheet in sheets:
        assert not re.findall(
            r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")
        ), sheet.name


def test_links_lead_somewhere(site):
    texts = pages(site)
    ids = {name: set(re.findall(r"\bid=[\"']([^\"']+)[\"']", text)) for name, text in texts.items()}
    checked = 0
    for name, text in texts.items():
        for link in map(unescape, re.findall(r"<a\b[^>]*?\bhref=[\"']([^\"']+)[\"']", text)):
            url = urlparse(link)
            if url.scheme or url.netloc:
                continue
            target = os.path.normpath(os.path.join(os.path.dirname(name), unquote(url.path))) if url.path else name
            assert (site / target).exists(), f"{name}: {link}"
            if url.fragment and target in ids:
                assert unquote(url.fragment) in ids[target], f"{name}: {link}"
            checked += 1
    assert checked > 1000


def test_reference_holds_every_public_name(site):
    modules = api.read_package(execution.find_modules())
    texts = pages(site)
    entries = [e for m in modules for e in m.entries]
    assert len(entries) > 150
    for entry in entries:
        assert f'id="{entry.full}"' in texts[f"api/{entry.module}.html"], entry.full
    data = texts["api/nexuslab.data.html"]
    assert "(B,) int64: which examples" in data and "engine/02_data.html#cell-" in data


def test_maths_is_written_out(site):
    assert "<math" in (site / "systems/circuits/03_loss.html").read_text(encoding="utf-8")
    assert all("$$" not in re.sub(r"<(pre|script|code)\b.*?</\1>", "", t, flags=re.S) for t in pages(site).values())


def test_every_term_of_the_guides_has_a_place():
    told = coming_from.read()
    assert set(told["still_to_come"]) <= STILL_TO_COME
    here = {"circuits", "collatz", "icecube", "language", "lattice"}
    assert {g["system"] for g in told["guides"]} == here | STILL_TO_COME
    assert sum(len(g["terms"]) for g in told["guides"]) > 300
    assert coming_from.problems() == []


def test_a_term_without_a_place_is_found(monkeypatch):
    told = coming_from.read()
    guides = [
        {
            "system": "circuits", "title": "",
            "terms": [
                ["option", "--x", "option:train.x", ""], ["class", "X", "name:nexuslab.fit.X", ""],
                ["class", "Y", "in:circuits/Y", ""], ["key", "z", "key:optim.z", ""],
            ],
        }
    ]
    monkeypatch.setattr(coming_from, "read", lambda: told | {"guides": guides, "still_to_come": ["circuits"]})
    assert coming_from.problems()[0] == "circuits is here: take it off still_to_come"
    monkeypatch.setattr(coming_from, "read", lambda: told | {"guides": guides})
    assert len(coming_from.problems()) == 4


def test_every_remedy_exists():
    assert sum(len(s["rows"]) for s in coming_from.remedies()) > 20
    assert coming_from.unknown_remedies() == []


def test_remedies_may_name_a_key_of_any_system(monkeypatch):
    shipped = [s for s in list_tasks() if (ROOT / "nbs" / "systems" / s).is_dir()]  # tests add systems of their own
    own = [sorted(coming_from.known_keys(s) - coming_from.known_keys(None)) for s in shipped]
    assert len(own) >= 4 and all(own)
    keys = [keys[0] for keys in own]
    rows = [["symptom", "why", f"-o {key}=1", ["option:train.overrides"]] for key in [*keys, "model.nosuch"]]
    monkeypatch.setattr(coming_from, "remedies", lambda: [{"heading": "one", "rows": rows}])
    assert coming_from.unknown_remedies() == ["-o model.nosuch=1: no key model.nosuch"]


USED = """
from nexuslab.dashboard import row_of
from nexuslab.evaluate import evaluate, evaluation_table
from nexuslab.run import Run
from nexuslab.sample import predict
from nexuslab.task import get_task

def use():
    task, run = get_task("bumps"), Run.open("last")
    figures, splits = evaluate(task, run), task.data(run.config, run.root)
    assert list(evaluation_table(run)) == ["model", "untrained", "untrained reaches it", "highest point"]
    answers = predict(task, run, splits.test.tensors[0][:5].tolist())
    assert answers.place.between(-1, 2).all() and len(answers) == 5
    row = row_of(run)
    assert row["system"] == "bumps" and row["status"] == "finished" and row["best"] is not None, row
    assert figures["loss"] < run.evaluation["test"]["baselines"]["untrained"]["loss"]

if __name__ == "__main__":
    use()

"""


def test_the_sixth_system_is_used_like_the_others(tmp_path):
    """The page's file, as it stands: trained by the command, evaluated, answering, in the dashboard's table, and true
    to the contract."""
    text = (ROOT / "docs" / "pages" / "sixth_system.md").read_text(encoding="utf-8")
    system, proof = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert len(system.splitlines()) <= 45 and system.count("    def ") <= 7
    (tmp_path / "systems").mkdir()
    (tmp_path / "systems" / "bumps.py").write_text(system, encoding="utf-8")
    (tmp_path / "use.py").write_text(USED + proof, encoding="utf-8")
    environment = os.environ | {"NEXUSLAB_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    environment.pop("NEXUSLAB_REPORT", None)
    command = Path(sys.executable).parent / "nexuslab"
    train = [str(command), "train", "--system", "bumps", "--preset", "smoke"]
    for call in (train, [sys.executable, "use.py"]):
        done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    assert "resume_is_exact" in done.stdout and "two_processes_agree" in done.stdout


def test_a_change_makes_outputs_stale(tmp_path):
    for part in ("nbs/engine", "nexuslab"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    before = execution.keys_of(tmp_path)
    module = tmp_path / "nexuslab" / "metrics.py"
    module.write_text(module.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    after = execution.keys_of(tmp_path)
    assert before["engine/00_core"] == after["engine/00_core"] and before["engine/08_fit"] != after["engine/08_fit"]
    with pytest.raises(execution.StaleError, match="make docs"):
        execution.outputs_of({"engine/08_fit": "0" * 20})


def test_a_site_that_shows_old_outputs_is_refused(tmp_path):
    (tmp_path / "outputs.json").write_text('{"engine/00_core": "an older key"}', encoding="utf-8")
    with pytest.raises(execution.StaleError, match="engine/00_core"):
        execution.check_fresh(tmp_path)


def test_a_warning_fails_the_build(tmp_path, monkeypatch):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "index.md").write_text(
        "# Title\n\n[nowhere](nothing.md) and $\\nosuchcommand{x}$\n", encoding="utf-8"
    )
    monkeypatch.setattr(docs, "SOURCE", tmp_path / "source")
    monkeypatch.setattr(docs, "WORK", tmp_path)
    with pytest.raises(execution.StaleError, match="nothing.md"):
        docs.sphinx(tmp_path / "site")


# --- in a browser

@pytest.fixture(scope="module")
def address(site):
    """The site, served on loopback."""
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium."""
    if not CHROMIUM.exists():
        pytest.skip(f"no Chromium at {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def watched(browser, address):
    """A function that opens a window; afterwards no window may have left the machine or complained."""
    windows, requests, complaints = [], [], []

    def opened(width: int = 1400, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.on("request", lambda r: requests.append(r.url))
        page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: complaints.append(str(e)))
        windows.append(context)
        return page

    yield opened
    for context in windows:
        context.close()
    assert requests and all(u.startswith((address, "data:", "blob:")) for u in requests), [
        u for u in requests if not u.startswith(address)
    ]
    assert not complaints, complaints


SEEN = [
    "index", "engine/08_fit", "systems/circuits/03_loss", "api/nexuslab.data", "coming_from", "03_train",
    "troubleshooting",
]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
def test_pages_are_readable(watched, address, width, scheme):
    ARTEFACTS.mkdir(exist_ok=True)
    page = watched(width, scheme)
    for name in SEEN:
        page.goto(f"{address}/{name}.html", wait_until="load")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width + 1, f"{name} is {wide} wide in a window of {width}"
        size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('article p, article')).fontSize)")
        assert size >= 12, f"{name}: letters of {size} px"
        light = page.evaluate(
            "(() => { const [r, g, b] = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number); "
            "return (r + g + b) / 3 })()"
        )
        assert (light > 128) == (scheme == "light"), f"{name}: background {light} in {scheme}"
        page.screenshot(path=ARTEFACTS / f"docs-{name.replace('/', '-')}-{width}-{scheme}.png", full_page=False)


def test_search_finds_a_name(watched, address):
    page = watched()
    page.goto(f"{address}/index.html")
    page.fill("input[name=q]", "early stopping")
    page.press("input[name=q]", "Enter")
    page.wait_for_selector("#search-results ul.search li a")
    page.screenshot(path=ARTEFACTS / "docs-search.png")
    page.goto(f"{address}/search.html?q=evaluation_table")
    page.wait_for_selector("#search-results ul.search li a")
    assert "evaluation_table" in page.inner_text("#search-results")


def test_cross_links_lead_there_and_back(watched, address):
    page = watched()
    page.goto(f"{address}/engine/08b_listen.html")
    link = page.locator(".api-links a", has_text="Snapshot").first
    link.click()
    page.wait_for_url("**/api/nexuslab.listen.html#nexuslab.listen.Snapshot")
    page.locator("dt[id='nexuslab.listen.Snapshot'] + dd .explained a").click()
    page.wait_for_url("**/engine/08b_listen.html#cell-*")
    page.goto(f"{address}/index.html")
    page.locator("a", has_text="Start here").click()
    page.wait_for_load_state()
    assert page.locator("article h1").count() == 1
