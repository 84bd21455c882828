"""What must be true of the repository as a whole: notebooks, modules, imports, cells, words. Each guard counts what it
examined."""
import ast
import copy
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from xdist.remote import WorkerInteractor

from nexuslab.setup import Loop, Progress

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
ENGINE = [p for p in NOTEBOOKS if p.parent.name == "engine"]
MODULES = sorted(
    p for p in (ROOT / "nexuslab").rglob("*.py")
    if p.name not in ("__init__.py", "_modidx.py") and "job_notebooks" not in p.parts
)
CELL_LINES, FUNCTION_LINES = 40, 60  # non-blank lines of an exported cell with its directives, lines of a function

# Each list of exceptions may only shrink: an entry that is no longer needed fails its test.
# (chapter, chapter of a larger number that it imports at the top)
EARLY_IMPORTS = {("dashboard", "parameters"), ("dashboard", "plans")}
LATE_IMPORTS = {  # the same inside a function
    ("core", "systems"),  # the folder of systems is the registry
    ("run", "checkpoint"),  # a run names its checkpoints and loads them, whatever was imported before
}
LONG_FUNCTIONS: set[str] = set()  # module.function
LONG_CELLS: set[str] = set()  # notebook: first definition, or the cell's id
# pieces of the loop's state that `resume` writes, too, when it puts a checkpoint back; and times, by the row
SHARED_STATE = {"measures", "metrics", "saved_at", "clock"}
IDLE: set[str] = set()  # module: definition that nothing uses
OPEN_ENDED: set[str] = set()  # notebooks that assert nothing after their last definition
UNPROVED: set[str] = set()  # notebook: section
THIN: set[str] = set()  # notebooks with fewer than one proof for two cells that define


def only_shrinks(found: set, known: set, what: str) -> None:
    """Compare what breaks a rule with the list of known exceptions."""
    assert not found - known, f"{what}: {sorted(found - known)}"
    assert not known - found, f"no longer needed in the list of exceptions, remove: {sorted(known - found)}"


def tracked() -> list[Path]:
    """The files that git knows."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    told = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in told.split("\0") if name and (ROOT / name).is_file()]


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def directives(cell: dict) -> set[str]:
    """The `#|` lines of a code cell."""
    return (
        {
            line.removeprefix("#|").split()[0] for line in source(cell).splitlines()
            if line.startswith("#|") and len(line) > 3
        }
        if cell["cell_type"] == "code" else set()
    )


def exported(cell: dict) -> bool:
    return bool(directives(cell) & {"export", "exporti", "exports"})


def module_name(path: Path) -> str | None:
    """The module that a notebook writes, without `nexuslab.`."""
    found = [
        line.split()[2] for c in cells(path) if c["cell_type"] == "code" for line in source(c).splitlines()
        if line.startswith("#| default_exp ")
    ]
    return found[0] if found else None


def is_job(path: Path) -> bool:
    return path.parent.name == "nbs" and re.match(r"(0[1-8]|11)_", path.name) is not None


# ---- notebooks and modules


def test_there_is_something_to_examine():
    assert len(ENGINE) >= 15 and len(MODULES) >= 15 and sum(map(is_job, NOTEBOOKS)) == 9


@pytest.mark.xdist_group("one")
def test_a_group_stays_on_one_worker(request):
    """xdist writes the group of a test into its id. A pytest that lets nobody change an id (9.2) makes each fixture of
    a module once in every worker."""
    assert "--dist loadgroup" in (ROOT / "Makefile").read_text(encoding="utf-8")
    test = copy.copy(request.node)
    WorkerInteractor.pytest_collection_modifyitems(None, SimpleNamespace(getvalue=lambda name: True), [test])
    assert "::test_a_group_stays_on_one_worker@one" in test.nodeid


def test_notebooks_and_modules_in_sync(tmp_path):
    """Exporting every notebook into an empty folder gives the modules that are there, and no others."""
    program = (
        "import sys; from pathlib import Path; from nbdev.export import nb_export\n"
        "for name in sys.argv[2:]: nb_export(name, lib_path=sys.argv[1])\n"
    )
    writing = [p for p in NOTEBOOKS if module_name(p)]
    library = tmp_path / "nexuslab"
    done = subprocess.run(
        [sys.executable, "-c", program, str(library), *map(str, writing)], cwd=ROOT / "nbs", capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    fresh = {p.relative_to(library): p for p in library.rglob("*.py") if p.name not in ("__init__.py", "_modidx.py")}
    here = {p.relative_to(ROOT / "nexuslab"): p for p in MODULES}
    assert set(fresh) == set(here), "a module without a notebook, or a notebook that was not exported"
    # the way to the notebook depends on where the library is
    place = re.compile(r"(# %% |File to edit: )\S*?(?=\S*nbs/)\S*?nbs/")
    plain = lambda text: place.sub(r"\1nbs/", text)
    different = [
        str(name) for name in fresh
        if plain(fresh[name].read_text(encoding="utf-8")) != plain(here[name].read_text(encoding="utf-8"))
    ]
    assert not different, "export these: make export"
    assert len(fresh) == len(writing) >= 15


def test_jobs_have_parameters():
    """Each job has one cell tagged `parameters`, of plain defaults with a comment each, which is all it exports."""
    examined = 0
    for path in filter(is_job, NOTEBOOKS):
        held = cells(path)
        tagged = [c for c in held if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1 and module_name(path) == f"defaults.{path.stem[3:]}", path.name
        for node in ast.parse(source(tagged[0])).body:
            assert isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(
                ast.literal_eval(node.value), (str, int, float, bool, list, type(None))
            ), f"{path.name}: {ast.unparse(node)}"
            examined += 1
        for cell in held:
            if cell["cell_type"] == "code":
                assert exported(cell) == (cell is tagged[0]), path.name
                code = "\n".join(line for line in source(cell).splitlines() if not line.lstrip().startswith(("%", "!")))
                assert not [
                    n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))
                ], f"{path.name} defines something"
    assert examined >= 40


def test_cells_hold_imports_or_code():
    """An import cell holds imports only: the documentation's build executes it."""
    examined = 0
    for path in NOTEBOOKS:
        for cell in cells(path):
            if cell["cell_type"] != "code" or "parameters" in cell["metadata"].get("tags", []):
                continue
            body = ast.parse(
                "\n".join(line for line in source(cell).splitlines() if not line.lstrip().startswith(("%", "!")))
            ).body
            imports = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))]
            examined += bool(imports)
            assert not imports or len(imports) == len(body), f"{path.relative_to(ROOT)}: {source(cell)[:80]}"
    assert examined >= 20


# ---- imports


def chapter_numbers() -> dict[str, str]:
    """Where each chapter stands: 08a, 08b, ... are the parts of 08, which shows the whole first."""
    stems = {module_name(p): p.stem.split("_")[0] for p in ENGINE if module_name(p)}
    return {name: stem if len(stem) == 3 else stem + "~" for name, stem in stems.items()}


def imported(node: ast.AST, package: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The modules of nexuslab that an import statement names, as their parts; `package` is where the statement stands.
    """
    if isinstance(node, ast.Import):
        return [tuple(a.name.split(".")[1:]) for a in node.names if a.name.split(".")[0] == "nexuslab"]
    if not isinstance(node, ast.ImportFrom):
        return []
    if node.level:
        base = package[: len(package) - node.level + 1]
    elif (node.module or "").split(".")[0] == "nexuslab":
        base = ()
    else:
        return []
    parts = (node.module or "").split(".") if node.level else node.module.split(".")[1:]
    path = (*base, *filter(None, parts))
    return [path] if path else [(a.name,) for a in node.names]


def imports_of(path: Path) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """What a module of nexuslab imports from nexuslab: at the top, and inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = path.relative_to(ROOT / "nexuslab").parts[:-1]
    top = [m for n in tree.body for m in imported(n, package) if m]
    everything = [m for n in ast.walk(tree) for m in imported(n, package) if m]
    late = list(everything)
    for m in top:
        late.remove(m)
    return top, late


def test_engine_chapters_import_smaller_numbers():
    """A chapter imports those of smaller numbers, and its own parts."""
    numbers, examined, early, late_found = chapter_numbers(), 0, set(), set()
    assert len(numbers) >= 14 and len(set(numbers.values())) == len(numbers)
    for name, number in numbers.items():
        top, late = imports_of(ROOT / "nexuslab" / f"{name}.py")
        for module in top:
            assert module[0] in numbers, f"{name} imports {'.'.join(module)}, which is no chapter"
            early |= {(name, module[0])} if numbers[module[0]] >= number else set()
            examined += 1
        late_found |= {(name, m[0]) for m in late if numbers.get(m[0], "99") >= number}
    assert examined >= 30
    only_shrinks(early, EARLY_IMPORTS, "a chapter imports a larger number")
    only_shrinks(late_found, LATE_IMPORTS, "a function imports a chapter of a larger number")


def test_lines_fit_beside_each_other():
    """No line of code, in notebooks, tests and the site's builder, is wider than 120 characters."""
    texts = [(p.name, source(c)) for p in NOTEBOOKS for c in cells(p) if c["cell_type"] == "code"]
    written = [p for p in tracked() if p.suffix == ".py" and ROOT / "nexuslab" not in p.parents]
    texts += [(p.name, p.read_text(encoding="utf-8")) for p in written]
    wide = [f"{name}: {line[:60]}" for name, text in texts for line in text.splitlines() if len(line) > 120]
    assert not wide and len(texts) > 500


def test_few_names_are_exported():
    """A module offers at most 25 names; what only the package itself uses is not among them."""
    listed = [path for path in MODULES if "__all__" in path.read_text(encoding="utf-8")]
    offered = {path.relative_to(ROOT).as_posix(): literal(path, "__all__") for path in listed}
    many = {name: len(names) for name, names in offered.items() if len(names) > 25}
    assert not many and len(offered) >= 30


def test_chapters_of_a_system_stand_in_the_order_of_dependence():
    """A chapter imports only those before it, but a task names views, designs, variations; a number is a topic."""
    topics, examined = {"data": 1, "model": 2, "task": 4, "views": 5}, 0
    for folder in sorted(p for p in (ROOT / "nbs" / "systems").iterdir() if p.is_dir()):
        names = {p.stem.split("_", 1)[1]: p.stem for p in folder.glob("0*.ipynb")}
        wrong = [name for name, number in topics.items() if name in names and not names[name].startswith(f"0{number}_")]
        assert not wrong, f"{folder.name}: {wrong}"
        for name, stem in names.items():
            top, late = imports_of(ROOT / "nexuslab" / "systems" / folder.name / f"{name}.py")
            for module in top + late:
                named = module[2:3] in (("views",), ("design",), ("variations",))
                usual = (name, module in late) == ("task", True) and named
                if module[:2] == ("systems", folder.name) and not usual:
                    assert names[module[2]] < stem, f"{folder.name}/{stem} imports {names[module[2]]}"
                    examined += 1
    assert examined >= 20


def test_systems_stand_alone():
    """Systems import the engine and themselves; the engine imports no system."""
    examined = 0
    for path in MODULES:
        parts = path.relative_to(ROOT / "nexuslab").parts
        top, late = imports_of(path)
        for module in top + late:
            examined += 1
            if parts[0] == "systems":
                own = module[0] != "systems" or module[1:2] == parts[1:2]
                assert own, f"{'/'.join(parts)} imports {'.'.join(module)}"
            else:
                assert module[0] != "systems" or len(module) == 1, f"{path.name} imports {'.'.join(module)}"
    assert examined >= 40


def test_engine_names_no_system():
    """No engine module has a system's name in it."""
    systems = [p.name for p in (ROOT / "nexuslab" / "systems").iterdir() if p.is_dir() and not p.name.startswith("_")]
    assert systems
    for path in MODULES:
        if "systems" not in path.parts and "defaults" not in path.parts:
            text = path.read_text(encoding="utf-8")
            quoted = [s for s in systems if f'"{s}"' in text or f"'{s}'" in text or f"systems.{s}" in text]
            assert not quoted, f"{path.name} names {quoted}"


def test_a_sixth_system_is_a_folder(tmp_path):
    """A folder dropped into a copy of the package is found, trained, evaluated and sampled, with no other edit."""
    package = shutil.copytree(ROOT / "nexuslab", tmp_path / "nexuslab", ignore=shutil.ignore_patterns("__pycache__"))
    folder = package / "systems" / "sixth"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    text = (ROOT / "tests" / "toys" / "toy_graphs.py").read_text(encoding="utf-8")
    assert text.count("toy_graphs") >= 3
    (folder / "task.py").write_text(text.replace("toy_graphs", "sixth"), encoding="utf-8")
    program = """
import nexuslab, sys
from pathlib import Path
from nexuslab.config import resolve
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.sample import sample
from nexuslab.task import get_task, list_tasks
root = Path(sys.argv[1])
assert Path(nexuslab.__file__).is_relative_to(root), nexuslab.__file__
assert "sixth" in list_tasks()
task = get_task("sixth")
cfg = resolve(task, "smoke", {"epochs": 1})
run = fit(task, cfg, Run.create(cfg, root)).run
figures = evaluate(task, Run.open("last", root))
assert run.status["state"] == "finished" and "auroc" in figures and sample(task, run, 3).exists()
assert not [m for m in sys.modules if m.startswith("nexuslab.systems.") and not m.startswith("nexuslab.systems.sixth")]
print("trained", run.path.parent.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=tmp_path,
        env={
            "PATH": "", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "HOME": str(tmp_path)
        },
        capture_output=True, text=True,
    )
    assert done.returncode == 0 and "trained sixth" in done.stdout, done.stderr[-2000:]


# ---- cells that prove


def definitions(cell: dict) -> list[str]:
    """The functions and classes of an exported cell."""
    return [
        n.name for n in ast.parse(source(cell)).body
        if isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef))
    ]


def asserts(cell: dict) -> bool:
    """Whether a live cell, not exported and not skipped by nbdev_test, asserts something."""
    if cell["cell_type"] != "code" or exported(cell) or directives(cell) & {
        "slow", "stored", "notest"
    } or "eval: false" in source(cell):
        return False
    code = "\n".join(line for line in source(cell).splitlines() if not line.lstrip().startswith(("%", "!")))
    helpers = ("test_eq", "test_close", "test_fail", "assert_")
    return any(
        isinstance(n, ast.Assert) or (isinstance(n, ast.Raise) and "AssertionError" in ast.unparse(n)) or (
            isinstance(n, ast.Call) and ast.unparse(n.func).rsplit(".", 1)[-1].startswith(helpers)
        )
        for n in ast.walk(ast.parse(code))
    )


def sections(path: Path) -> list[tuple[str, list[dict]]]:
    """The cells under each heading of the second level."""
    found: list[tuple[str, list[dict]]] = [("", [])]
    for cell in cells(path):
        if cell["cell_type"] == "markdown" and source(cell).startswith("## "):
            found.append((source(cell).splitlines()[0].removeprefix("## "), []))
        found[-1][1].append(cell)
    return found


def test_every_definition_is_followed_by_a_proof():
    """Every exported definition is followed, in its notebook, by a live cell that asserts; and in its own section, but
    for the list."""
    examined, unproved, open_ended, thin = 0, set(), set(), set()
    for path in NOTEBOOKS:
        for title, members in sections(path):
            defining = [i for i, c in enumerate(members) if c["cell_type"] == "code" and exported(c) and definitions(c)]
            if not defining:
                continue
            examined += 1
            if not any(asserts(c) for c in members[defining[0] :]):
                unproved.add(f"{path.relative_to(ROOT / 'nbs')}: {title}")
        proofs = [i for i, c in enumerate(cells(path)) if asserts(c)]
        last = max(
            (i for i, c in enumerate(cells(path)) if c["cell_type"] == "code" and exported(c) and definitions(c)),
            default=-1,
        )
        if last >= 0 and not (proofs and proofs[-1] > last):
            open_ended.add(path.relative_to(ROOT / "nbs").as_posix())
        cells_that_define = [c for c in cells(path) if c["cell_type"] == "code" and exported(c) and definitions(c)]
        if 2 * len(proofs) < len(cells_that_define):
            thin.add(path.relative_to(ROOT / "nbs").as_posix())
    assert examined >= 60
    only_shrinks(unproved, UNPROVED, "a section defines and proves nothing")
    only_shrinks(open_ended, OPEN_ENDED, "nothing is asserted after the last definition")
    only_shrinks(thin, THIN, "fewer than one proof for two cells that define")


def test_a_module_imports_what_it_uses_and_no_more():
    """A notebook may have a name from a cell that is not exported: then the module lacks it."""
    asked = ["--select", "F401,F821", "--exclude", "_modidx.py", "--output-format", "concise", "--no-cache"]
    done = subprocess.run([sys.executable, "-m", "ruff", "check", str(ROOT / "nexuslab"), *asked], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout


def test_every_public_definition_is_used_in_a_proof():
    """A name that a notebook exports is mentioned by a live cell of some notebook, by a test, or by another module."""
    live = "\n".join(source(c) for p in NOTEBOOKS for c in cells(p) if c["cell_type"] == "code" and not exported(c))
    live += "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__))
    words, examined, idle = set(re.findall(r"\w+", live)), 0, []
    code = {p: p.read_text(encoding="utf-8") for p in MODULES}
    counts: dict[str, int] = {}
    for text in code.values():
        for word in re.findall(r"\w+", text):
            counts[word] = counts.get(word, 0) + 1
    for path, text in code.items():
        for node in ast.parse(text).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                examined += 1
                listed = 1 if f"'{node.name}'" in text else 0
                if node.name not in words and counts[node.name] <= 1 + listed:
                    idle.append(f"{path.name}: {node.name}")
    assert examined >= 200
    only_shrinks(set(idle), IDLE, "defined, and used by nothing")


def test_cells_and_functions_are_short():
    examined, long_cells, long_functions = 0, set(), set()
    for path in NOTEBOOKS:
        for cell in cells(path):
            if cell["cell_type"] == "code" and exported(cell):
                examined += 1
                lines = [line for line in source(cell).splitlines() if line.strip()]
                if len(lines) > CELL_LINES:
                    long_cells.add(f"{path.relative_to(ROOT / 'nbs')}: {(definitions(cell) or [cell['id']])[0]}")
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                examined += 1
                if node.end_lineno - node.lineno + 1 > FUNCTION_LINES:
                    long_functions.add(f"{path.stem}.{node.name}")
    assert examined >= 300
    only_shrinks(long_cells, LONG_CELLS, f"a cell of more than {CELL_LINES} lines")
    only_shrinks(long_functions, LONG_FUNCTIONS, f"a function of more than {FUNCTION_LINES} lines")


def test_first_cells():
    """A notebook begins with `# Title` and a line that says what it is about; its module's docstring is that line."""
    examined = 0
    for path in NOTEBOOKS:
        if path.name == "index.ipynb" and path.parent.name != "nbs":
            continue
        first = cells(path)[0]
        assert first["cell_type"] == "markdown" and re.match(r"# \S.*\n\n?> \S", source(first)), path.relative_to(ROOT)
        examined += 1
    assert examined >= 25


def test_public_definitions_have_docstrings():
    examined = 0
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"
                examined += 1
    assert examined >= 200


def test_no_loose_habits():
    """No star imports, no swallowed exceptions, no attribute probing."""
    examined = 0
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            examined += 1
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom):
                assert all(a.name != "*" for a in node.names), where
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None and not all(isinstance(s, ast.Pass) for s in node.body), where
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "hasattr", where
    assert examined >= 10_000


# ---- events


def literal(path: Path, name: str):
    """The value of a module's constant."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    constants = {ast.unparse(n.targets[0]): n.value for n in body if isinstance(n, ast.Assign)}
    return ast.literal_eval(constants[name])


def test_every_event_has_a_colour():
    """The dashboard marks every kind of event that the training loop records, and no other."""
    loop = [ROOT / "nexuslab" / f"{name}.py" for name in ("setup", "step", "watch", "resume", "fit")]
    nodes = [n for path in loop for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    calls = [n for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    said = [n.args[1] for n in calls if n.func.id == "emit"] + [n.args[0] for n in calls if n.func.id == "Unusable"]
    assert {ast.unparse(node) for node in said if not isinstance(node, ast.Constant)} == {"why.event"}  # an Unusable's
    kinds = {node.value for node in said if isinstance(node, ast.Constant)}
    assert len(kinds) >= 11 and kinds == literal(ROOT / "nexuslab" / "dashboard.py", "EVENT_COLOURS").keys()


# ---- words


HOME = "/" + "root/"
FORBIDDEN = [  # what a reader of the repository has no use for
    re.compile(pattern, flags)
    for pattern, flags in (
        (r"(?<![\w./])/work/", 0), (rf"(?<![\w.]){HOME}", 0), (r"/tmp/(?!nexuslab|b$)", 0), (r"\bscratch/nb\b", 0),
        (
            r"\b(chat" + r"gpt|clau" + r"de|open" + r"ai|anthro" + r"pic|co-?pi" + r"lot|LL" + r"M-generated|AI"
            + r"[- ]generated)\b",
            re.I,
        ),
        (r"\bissue #?\d+\b", re.I), (r"\bas an AI\b", re.I), (r"\b(sub|coding |helper )ag" + r"ents?\b", re.I),
    )
]
ALLOWED_TMP = {"tests/test_tune.py", "tests/test_faults.py", "tests/test_repository.py"}


def test_no_machine_paths_and_no_word_of_the_making():
    examined = 0
    for path in tracked():
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".png", ".h5", ".jpg", ".ico", ".gz", ".npz", ".safetensors") or name in ALLOWED_TMP:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path.suffix == ".ipynb":  # pictures are not words
            notebook = json.loads(text)
            for cell in notebook["cells"]:
                for output in cell.get("outputs", []):
                    output["data"] = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
            text = json.dumps(notebook, ensure_ascii=False)
        examined += 1
        for pattern in FORBIDDEN:
            found = pattern.search(text)
            assert not found, f"{name}: {text[max(0, found.start() - 60) : found.end() + 40]!r}"
    assert examined >= 40


def test_guards_would_notice(tmp_path):
    """The guards' own readers, on examples that break the rules."""
    bad = {"cell_type": "code", "metadata": {}, "source": "#| export\ndef f():\n    return 1", "outputs": []}
    assert exported(bad) and definitions(bad) == ["f"] and not asserts(bad)
    assert asserts({**bad, "source": "assert f() == 1"}) and not asserts({**bad, "source": "#| slow\nassert f() == 1"})
    tree = ast.parse(
        "from .fit import fit\nfrom nexuslab.views import a\nimport nexuslab.run\nfrom . import core\nfrom ..lattice "
        "import b"
    )
    assert [imported(n, ()) for n in tree.body[:4]] == [[("fit",)], [("views",)], [("run",)], [("core",)]]
    assert imported(tree.body[4], ("systems", "circuits")) == [("systems", "lattice")]
    for text in ("see /work/main/x", "at " + HOME + "x", "issue #12", "written by Chat" + "GPT"):
        assert any(p.search(text) for p in FORBIDDEN), text
    for text in ("network/work", "the issue is", "its roots/poles"):
        assert not any(p.search(text) for p in FORBIDDEN), text


def test_each_piece_of_the_loops_state_has_one_writer():
    """What `fit` knows of a run (`Loop` and its `Progress`) is assigned in one function of the engine."""
    state, writers = {f.name for c in (Loop, Progress) for f in dataclasses.fields(c)}, {}
    for path in (p for p in MODULES if p.parent == ROOT / "nexuslab" and p.stem not in ("contract", "views")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for node in ast.walk(function) if isinstance(function, ast.FunctionDef) else ():
                given = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                for target in (t for g in given for t in getattr(g, "elts", [g])):
                    owner = ast.unparse(target.value) if isinstance(target, ast.Attribute) else ""
                    if owner in ("loop", "p", "loop.progress") or owner == "self" and path.stem == "setup":
                        if target.attr in state:
                            writers.setdefault(target.attr, set()).add(f"{path.stem}.{function.name}")
    assert {"overdue", "reason", "best", "waited", "skipped", "step"} <= writers.keys()
    nested = {"watch.signals"}  # a function in it is the writer
    rehearsed = {"fit.rehearse"}  # of a loop that is never run
    many = {name for name, found in writers.items() if len(found - nested - rehearsed) > 1}
    only_shrinks(many, SHARED_STATE, "a piece of state that several functions write")


# ---- figures


def test_figures_have_one_look_and_one_writer():
    """A notebook that draws has the look of the house, keeps its colours and widths, and writes by `write_figure`."""
    examined, plain, wide, other, written = 0, [], [], [], []
    for path in NOTEBOOKS:
        code = [c for c in cells(path) if c["cell_type"] == "code"]
        text, name = "\n".join(map(source, code)), path.relative_to(ROOT / "nbs").as_posix()
        sizes = re.findall(r"figsize=\((?:min\()?([\d.]+)", text) if path.stem != "06a_figures" else []
        wide += [f"{name}: {size} inches" for size in sizes if float(size) > 9.6]
        if path.stem != "06a_figures":
            other += [f"{name}: {found}" for found in re.findall(r"tab10|tab:\w+|\"C\d\"|dpi=\d+", text)]
        if "savefig(" in text and path.stem not in ("06a_figures", "13_dashboard", "15_doctor"):
            written.append(name)
        if any("plt.subplots(" in source(c) and not exported(c) for c in code):
            examined += 1
            plain += [] if re.search(r"plt\.style\.use\((figures\.)?STYLE\)", text) else [name]
    assert not plain and not wide and not other and not written and examined >= 40, (plain, wide, other, written)
