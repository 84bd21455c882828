"""The outputs on the site are fresh: each notebook is executed in a copy of the project, and again only when it or the
code it stands on changed. What a long training gave is shown as it was saved."""
import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

from nexuslab.parameters import read_parameters

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "_proc" / "docs"
TREE = WORK / "tree"  # the copy of the project in which notebooks are executed
HOME = WORK / "home"  # data/ and runs/ of the jobs
EXECUTED = WORK / "executed"  # the cache: one notebook a key
VERSION = 1  # of the way notebooks are executed; part of every key
# parameters of a job on the site, where it declares them
SMOKE = {"preset": "smoke", "trials": 3, "largest": 64, "n": 8}
STORED = re.compile(r"^#\| stored$", re.MULTILINE)  # a cell that shows finished trainings: its output is what was saved
# names that reach systems and jobs which no import shows
WHOLE = ("get_task", "list_tasks", "check_task", "run_job", "nexuslab ")


class StaleError(Exception):
    """What the site shows is not what the notebooks say."""


@dataclass(frozen=True)
class Chapter:
    """A notebook: where it stands under nbs/, and the project tree it was read from."""

    name: str  # such as engine/08_fit
    root: Path

    @property
    def path(self) -> Path:
        """The notebook."""
        return self.root / "nbs" / f"{self.name}.ipynb"

    @property
    def folder(self) -> str:
        """"" for the top level, engine, or systems/<name>."""
        return self.name.rpartition("/")[0]

    def cells(self) -> list[dict]:
        """The notebook's cells."""
        return json.loads(self.path.read_text(encoding="utf-8"))["cells"]

    def parameters(self) -> list[str]:
        """Names that a job declares; none for other notebooks."""
        tagged = [c for c in self.cells() if "parameters" in c["metadata"].get("tags", [])]
        return [name for cell in tagged for name in read_parameters("".join(cell["source"]))]

    def stored(self) -> dict[str, dict]:
        """The cells marked `#| stored`, by id: they show finished trainings, whose minutes are not repeated for the
        site."""
        return {c["id"]: c for c in self.cells() if c["cell_type"] == "code" and STORED.search("".join(c["source"]))}


def find_chapters(root: Path = ROOT) -> list[Chapter]:
    """All notebooks under nbs/, by being there."""
    found = sorted(
        p.relative_to(root / "nbs").with_suffix("").as_posix() for p in (root / "nbs").rglob("*.ipynb")
        if not any(part.startswith((".", "_")) for part in p.relative_to(root / "nbs").parts)
    )
    return [Chapter(name, root) for name in found]


def find_modules(root: Path = ROOT) -> dict[str, Path]:
    """Module name -> file, of the exported package."""
    files = sorted(
        p for p in (root / "nexuslab").rglob("*.py") if p.name != "_modidx.py" and "job_notebooks" not in p.parts
    )
    return {".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in files}


def origin(node: ast.ImportFrom, package: str) -> str:
    """The module that an import statement of a package names."""
    parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*parts, *filter(None, [node.module])])


def imported(code: str, module: str, modules: dict[str, Path]) -> set[str]:
    """The package's modules that a piece of code imports, at its head or inside a function."""
    found = set()
    package = module if modules.get(module, Path()).name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = origin(node, package)
            found |= {base} | {f"{base}.{a.name}" for a in node.names}
    return found & modules.keys()


def plain_code(chapter: Chapter) -> str:
    """The code of a notebook without magics."""
    lines = [
        line for c in chapter.cells() if c["cell_type"] == "code" for line in [*"".join(c["source"]).splitlines(), ""]
    ]
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


@dataclass(frozen=True)
class Package:
    """The exported package: the text of each module, and what each imports."""

    text: dict[str, str]
    imports: dict[str, set[str]]

    @classmethod
    def read(cls, root: Path = ROOT) -> "Package":
        """Parse the modules of a project."""
        modules = find_modules(root)
        text = {name: path.read_text(encoding="utf-8") for name, path in modules.items()}
        return cls(text, {name: imported(code, name, modules) for name, code in text.items()})


def stands_on(chapter: Chapter, package: Package) -> set[str]:
    """Every module whose change may change a notebook's outputs."""
    code = plain_code(chapter)
    if chapter.parameters() or any(word in code for word in WHOLE):
        return set(package.text)
    reached, waiting = set(), imported(code, "", find_modules(chapter.root))
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= package.imports[name] - reached
    return reached


def key_of(chapter: Chapter, package: Package) -> str:
    """The name of a notebook's outputs: a hash of its cells and of the code it stands on."""
    cells = [(c["cell_type"], "".join(c["source"]), c["metadata"].get("tags", [])) for c in chapter.cells()]
    cells += [c["outputs"] for c in chapter.stored().values()]
    code = {m: package.text[m] for m in sorted(stands_on(chapter, package))}
    settings = SMOKE if chapter.parameters() else None
    return hashlib.sha256(json.dumps([VERSION, chapter.name, cells, code, settings]).encode()).hexdigest()[:20]


def keys_of(root: Path = ROOT) -> dict[str, str]:
    """Notebook -> key; the jobs share one, for each stands on the runs of those before it."""
    chapters, package = find_chapters(root), Package.read(root)
    keys = {c.name: key_of(c, package) for c in chapters}
    jobs = [c.name for c in chapters if c.parameters()]
    joint = hashlib.sha256("".join(keys[j] for j in jobs).encode()).hexdigest()[:20]
    return keys | dict.fromkeys(jobs, joint)


def cached(name: str, key: str) -> Path:
    """Where the executed notebook of a key is kept."""
    return EXECUTED / f"{name.replace('/', '__')}.{key}.ipynb"


def copy_project() -> None:
    """Copy what notebooks may read, so that a build never writes into the sources and sees one state of them."""
    for part in ("nbs", "nexuslab", "tests/toys"):
        shutil.rmtree(TREE / part, ignore_errors=True)
        if (ROOT / part).is_dir():
            shutil.copytree(
                ROOT / part, TREE / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
    shutil.copy(ROOT / "settings.ini", TREE / "settings.ini")


def environment(home: Path | None) -> dict[str, str]:
    """The environment of a notebook's kernel."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NEXUSLAB_HOME", "NEXUSLAB_REPORT", "MPLBACKEND")}
    path = os.pathsep.join([str(TREE), *filter(None, [os.environ.get("PYTHONPATH")])])
    fixed = {
        "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    return kept | fixed | ({"NEXUSLAB_HOME": str(home)} if home else {})


def run_notebook(chapter: Chapter, output: Path, home: Path | None, parameters: dict | None = None) -> None:
    """Execute a notebook of the copy by papermill; a failure says which and why."""
    partial = output.with_suffix(".partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    given, stored = partial.with_suffix(".given.ipynb"), chapter.stored()
    notebook = nbformat.read(chapter.path, as_version=4)
    saved = {cell.id: cell for cell in notebook.cells if cell.id in stored}
    notebook.cells = [nbformat.v4.new_code_cell(id=cell.id) if cell.id in saved else cell for cell in notebook.cells]
    nbformat.write(notebook, given)
    command = [
        sys.executable, "-m", "papermill", str(given), str(partial), "--cwd", str(chapter.path.parent),
        "--no-progress-bar", "--execution-timeout", "1200", "--kernel", "python3",
    ]
    if parameters:
        command += ["-y", yaml.safe_dump(parameters)]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True)
    given.unlink()
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise StaleError(f"{chapter.name} cannot be executed:\n{done.stderr[-3000:]}")
    notebook = nbformat.read(partial, as_version=4)
    notebook.cells = [saved.get(cell.id, cell) for cell in notebook.cells]
    nbformat.write(notebook, partial)
    os.replace(partial, output)


def keep(chapter: Chapter, key: str, home: Path | None, parameters: dict | None = None) -> None:
    """Execute into the cache, and drop what it replaces."""
    start = time.monotonic()
    run_notebook(chapter, cached(chapter.name, key), home, parameters)
    print(f"  executed {chapter.name} in {time.monotonic() - start:.0f} s", flush=True)
    for old in EXECUTED.glob(f"{chapter.name.replace('/', '__')}.*.ipynb"):
        if old != cached(chapter.name, key):
            old.unlink()


def run_jobs(jobs: list[Chapter], keys: dict[str, str]) -> None:
    """All jobs in their order on the smoke preset, in a project root of their own; a second run makes a comparison."""
    shutil.rmtree(HOME / "runs", ignore_errors=True)
    for job in jobs:
        given = {k: v for k, v in SMOKE.items() if k in job.parameters()}
        if job.name.endswith("_train"):
            run_notebook(job, WORK / "second.ipynb", HOME, given | {"name": "slower", "lr": 1e-3})
            given["name"] = "first"
        if "run" in job.parameters():
            given["run"] = "first"
        keep(job, keys[job.name], HOME, given)


def execute(workers: int = 2) -> dict[str, str]:
    """Bring the cache up to date; returns notebook -> key."""
    copy_project()
    keys, chapters = keys_of(TREE), find_chapters(TREE)
    stale = [c for c in chapters if not cached(c.name, keys[c.name]).exists()]
    jobs = [c for c in chapters if c.parameters()]
    top = [c for c in stale if not c.folder and c not in jobs]
    if any(c in stale for c in jobs) or (top and not (HOME / "runs").is_dir()):
        run_jobs(jobs, keys)
    for chapter in top:
        keep(chapter, keys[chapter.name], HOME)
    with ThreadPoolExecutor(workers) as pool:
        running = [pool.submit(keep, c, keys[c.name], None) for c in stale if c.folder]
    failed = [str(done.exception()) for done in running if done.exception()]
    if failed:
        raise StaleError("\n\n".join(failed))
    return keys


def outputs_of(keys: dict[str, str], stored: bool = False, root: Path = TREE) -> dict[
    str, tuple[nbformat.NotebookNode, bool]
]:
    """Notebook -> (its executed form, whether that is fresh); `stored` lets a stale one show what was saved in it."""
    found = {}
    for name, key in keys.items():
        path = cached(name, key)
        if not path.exists() and not stored:
            raise StaleError(f"{name} was not executed since it or the code it stands on changed: run `make docs`")
        found[name] = (
            nbformat.read(path if path.exists() else root / "nbs" / f"{name}.ipynb", as_version=4), path.exists()
        )
    return found


def check_fresh(site: Path) -> None:
    """Refuse a site whose pages show other notebooks or other code than the project has now."""
    shown = json.loads((site / "outputs.json").read_text(encoding="utf-8"))
    now = keys_of(ROOT)
    stale = [name for name in {**shown, **now} if shown.get(name) != now.get(name)]
    if stale:
        raise StaleError(f"stale pages: {', '.join(sorted(stale))}; run `make docs`")
