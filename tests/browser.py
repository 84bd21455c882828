"""The system's Chromium under Playwright, and JupyterLab on loopback."""
import ast
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

ARTEFACTS = Path(__file__).parent / "artefacts"
CONFIG = Path(__file__).parents[1] / "lab_config.py"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")


@contextlib.contextmanager
def browser_page(width: int = 1400, height: int = 1000):
    """A page that collects console errors and the requests that leave the machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        page.errors, page.outside = [], []
        page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
        page.on(
            "request",
            lambda request: page.outside.append(request.url) if not request.url.startswith(
                ("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:")
            ) else None,
        )
        try:
            yield page
        except Exception:
            page.screenshot(path=ARTEFACTS / "failed.png")
            raise
        finally:
            browser.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def runtime(home: Path) -> Path:
    """Where JupyterLab writes the connection files of its kernels."""
    return home / ".jupyter" / "runtime"


@contextlib.contextmanager
def kernel_of(home: Path, name: str = "*"):
    """A function that runs code in the newest kernel, between its other work, and gives an expression's value."""
    from jupyter_client import BlockingKernelClient

    files = sorted(runtime(home).glob(f"kernel-{name}.json"), key=lambda path: path.stat().st_mtime)
    client = BlockingKernelClient(connection_file=str(files[-1]))
    client.load_connection_file()
    client.start_channels(iopub=False, stdin=False, hb=False)

    def run(code: str, value: str = "None", seconds: float = 60):
        asked = client.execute(code, user_expressions={"value": f"__import__('json').dumps({value})"})
        while (reply := client.get_shell_msg(timeout=seconds))["parent_header"]["msg_id"] != asked:
            continue
        assert reply["content"]["status"] == "ok", "\n".join(reply["content"]["traceback"])
        found = reply["content"]["user_expressions"]["value"]
        assert found["status"] == "ok", found
        return json.loads(ast.literal_eval(found["data"]["text/plain"]))

    try:
        yield run
    finally:
        client.stop_channels()


@contextlib.contextmanager
def jupyter_lab(folder: Path, home: Path):
    """JupyterLab on loopback with a token; yields the address of a file name."""
    port, token = free_port(), "t" * 24
    log = open(home / "lab.log", "w")
    settings = home / ".jupyter" / "lab"
    quiet = settings / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True, exist_ok=True)
    whole = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    whole.parent.mkdir(parents=True, exist_ok=True)
    whole.write_text('{"windowingMode": "none"}')  # cells out of sight are in the page as well
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # no question about news over the charts
    places = {"NEXUSLAB_HOME": home, "JUPYTER_CONFIG_DIR": home / ".jupyter", "JUPYTERLAB_SETTINGS_DIR": settings}
    places |= {"JUPYTER_RUNTIME_DIR": runtime(home)}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(place) for name, place in places.items()}
    command = [
        sys.executable, "-m", "jupyterlab", f"--config={CONFIG}", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, (home / "lab.log").read_text()[-3000:]
                time.sleep(0.5)
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}"
    finally:
        server.terminate()
        server.wait(20)
        log.close()


def run_all(page) -> None:
    """Run all cells by the menu, as a person does."""
    page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
    # a kernel is there
    page.wait_for_function(
        "() => document.querySelector('.jp-StatusBar-Left')?.innerText.includes('| Idle')", timeout=90_000
    )
    page.click("li.lm-MenuBar-item:has-text('Run') >> nth=0")
    page.click("li.lm-Menu-item:has-text('Run All Cells') >> nth=0")


class Lab:
    """An open JupyterLab in a page: its project root, its folder of notebooks, the address of a file in it."""

    def __init__(self, home: Path, folder: Path, page, address):
        self.home, self.folder, self.page, self.address = home, folder, page, address

    def ask(self, path: str, body: dict | None = None):
        """An answer of its server."""
        base, token = self.address("").split("/lab/tree/?token=")
        request = urllib.request.Request(f"{base}/api/{path}", json.dumps(body).encode() if body else None)
        request.add_header("Authorization", f"token {token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def open(self, name: str) -> None:
        """Open a notebook with the newest kernel there is, which takes seconds less than a new one."""
        kernels = sorted(self.ask("kernels"), key=lambda k: k["last_activity"])
        if kernels and name not in [s["path"] for s in self.ask("sessions")]:
            self.ask("sessions", {"path": name, "type": "notebook", "name": "", "kernel": {"id": kernels[-1]["id"]}})
        self.page.goto(self.address(quote(name)) + "&reset")
        self.page.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)

    def kernel(self, name: str):
        """As `kernel_of`, of the kernel of an open notebook."""
        return kernel_of(self.home, next(s["kernel"]["id"] for s in self.ask("sessions") if s["path"] == name))


@contextlib.contextmanager
def open_lab(home: Path):
    """JupyterLab with an empty folder of notebooks under a project root, in a page."""
    folder = home / "notebooks"
    folder.mkdir()
    with jupyter_lab(folder, home) as address, browser_page() as page:
        yield Lab(home, folder, page, address)
