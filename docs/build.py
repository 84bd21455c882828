"""The documentation site, in _docs/: `make docs`. It is built from the notebooks, offline, and a warning fails the
build."""
import argparse
import base64
import configparser
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import api
import coming_from
import nbformat
from convert import Names, convert, page_of, title_of
from execution import ROOT, TREE, WORK, StaleError, check_fresh, execute, find_modules, keys_of, outputs_of
from matplotlib.image import imread

DOCS = ROOT / "docs"
SOURCE = WORK / "source"
SITE = ROOT / "_docs"
# their order in the contents; others follow by name
SYSTEMS = ["circuits", "collatz", "lattice", "icecube", "language"]
GALLERY = 9  # figures on the first page


def put_bytes(name: str, data: bytes) -> None:
    """Write a picture of the source."""
    path = SOURCE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    written.add(path)


def put(name: str, text: str) -> None:
    """Write a source page, and leave it alone when it says the same: Sphinx then has nothing to do."""
    path = SOURCE / name
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    written.add(path)


written: set[Path] = set()


def toctree(names: list[str], caption: str = "", hidden: bool = True, depth: int = 1) -> str:
    """A table of contents."""
    options = [f":caption: {caption}"] if caption else []
    options += [":hidden:"] if hidden else []
    return "```{toctree}\n" + "\n".join([*options, f":maxdepth: {depth}", "", *names]) + "\n```\n"


def order(system: str) -> tuple[int, str]:
    """Where a system stands."""
    return (SYSTEMS.index(system) if system in SYSTEMS else len(SYSTEMS), system)


def systems_of(chapters: list[str]) -> list[str]:
    """The systems that have notebooks."""
    return sorted({c.split("/")[1] for c in chapters if c.startswith("systems/")}, key=order)


def figures_of(notebook: nbformat.NotebookNode) -> list[bytes]:
    """The pictures in a notebook's outputs."""
    data = [
        o.data["image/png"] for c in notebook.cells if c.cell_type == "code" for o in c.outputs
        if o.output_type in ("display_data", "execute_result") and "image/png" in o.data
    ]
    return [base64.b64decode(d) for d in data]


def drawn(picture: bytes) -> bool:
    """Whether there is anything on a picture: more than one pixel in a thousand is not white."""
    return float((imread(io.BytesIO(picture))[..., :3].min(-1) < 0.9).mean()) > 1e-3


def gallery(outputs: dict, titles: dict[str, tuple[str, str]]) -> str:
    """The last figure of each chapter of a system, and of the jobs that show results."""
    wanted = [n for n in outputs if n.startswith("systems/") and any(map(drawn, figures_of(outputs[n][0])))]
    wanted.sort(key=lambda n: (not n.endswith("views"), order(n.split("/")[1]), n))
    wanted += [n for n in outputs if re.match(r"(00|03|06|07|09)_", n) and any(map(drawn, figures_of(outputs[n][0])))]
    cards = []
    for name in wanted[:GALLERY]:
        picture = max([f for f in figures_of(outputs[name][0]) if drawn(f)][-3:], key=len)
        file = f"{hashlib.sha256(picture).hexdigest()[:16]}.png"
        put_bytes(f"_gallery/{file}", picture)
        title, summary = titles[name]
        where = name.split("/")[1] if name.startswith("systems/") else "a job"
        cards.append(
            f":::{{container}} figure-card\n![{title}: "
            f"{summary}](_gallery/{file})\n\n[{title}](/{page_of(name)}.ipynb) <span "
            f"class=\"where\">{where}</span>\n:::\n"
        )
    return ":::::{container} gallery\n" + "\n".join(cards) + ":::::\n" if cards else ""


def template(name: str, **values: str) -> str:
    """A page from docs/templates, its {{names}} filled in."""
    text = (DOCS / "templates" / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    left = re.findall(r"\{\{(\w+)\}\}", text)
    if left:
        raise ValueError(f"docs/templates/{name}: nothing fills {left}")
    return text


def system_pages(chapters: list[str], titles: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """An index page for each system that has none of its own; system -> title and line."""
    from nexuslab.task import get_task, list_tasks  # late: imports torch

    told, tasks = {}, set(list_tasks())
    for system in systems_of(chapters):
        folder = f"systems/{system}/"
        parts = [c.removeprefix(folder) for c in chapters if c.startswith(folder) and c != f"{folder}index"]
        line = get_task(system).title if system in tasks else ""
        told[system] = titles.get(f"{folder}index", (system.capitalize(), line[:1].upper() + line[1:]))
        if f"{folder}index" not in chapters:
            rows = "\n".join(
                f"| [{titles[folder + p][0]}](/{folder}{p}.ipynb) | {titles[folder + p][1]} |" for p in parts
            )
            put(
                f"{folder}index.md",
                f"# {told[system][0]}\n\n> {told[system][1]}\n\n| chapter | |\n| --- | --- "
                f"|\n{rows}\n\n{toctree(parts)}",
            )
    return told


def keys_page(systems: list[str]) -> str:
    """Every key of the configuration, the engine's and each system's."""
    from nexuslab.config import Config, explain  # late: only pages need them
    from nexuslab.task import get_task, list_tasks

    def rows(entries: list[dict]) -> str:
        lines = ["| key | short name | type | meaning |", "| --- | --- | --- | --- |"]
        return "\n".join(
            lines
            + [
                f'| <span id="key-{e["key"]}"></span>`{e["key"]}` | {api.code(e["short"])} | {api.code(e["type"])} | '
                f'{api.prose(api.cell_text(e["meaning"]))} |'
                for e in entries
            ]
        )

    common = explain(Config)
    seen = {e["key"] for e in common}
    text = (
        "# Configuration keys\n\n> Every key, with the short name it has as a parameter of a job. `-o key=value` "
        "changes any of them.\n\n## Of every system\n\n"
        + rows([e for e in common if e["key"] not in ("data", "model", "loss")])
    )
    for system in [s for s in systems if s in list_tasks()]:
        own = [e for e in explain(type(get_task(system).presets["base"]())) if e["key"] not in seen]
        presets = ", ".join(f"`{p}`" for p in get_task(system).presets)
        text += f"\n\n## {system}\n\nPresets: {presets}.\n\n" + rows(own)
    return text + "\n"


def write_source(outputs: dict, root: Path) -> None:
    """All source pages of the site."""
    written.clear()
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    host = settings["DEFAULT"]["doc_host"] + settings["DEFAULT"]["doc_baseurl"]
    chapters = list(outputs)
    titles = {name: title_of(nb) for name, (nb, _) in outputs.items()}
    modules = api.read_package(find_modules(root))
    names = Names(modules, chapters)
    for name, (notebook, _) in outputs.items():
        page = convert(notebook, name, names, set(chapters), host)
        if name.startswith("systems/") and name.endswith("/index"):
            parts = [
                c.rpartition("/")[2] for c in chapters if c.rpartition("/")[0] == name.rpartition("/")[0] and c != name
            ]
            page.cells.append(nbformat.v4.new_markdown_cell(toctree(parts), id="contents"))
        put(f"{page_of(name)}.ipynb", nbformat.writes(page))
    for module in modules:
        put(f"api/{module.name}.md", api.page(module, set(chapters)))
    put("api/index.md", api.overview(modules))
    systems = system_pages(chapters, titles)
    put("api/configuration.md", keys_page(list(systems)))
    for picture in sorted((ROOT / "nbs" / "images").glob("*.png")):
        put_bytes(f"images/{picture.name}", picture.read_bytes())
    for page in sorted((DOCS / "pages").glob("*.md")):
        put(page.name, page.read_text(encoding="utf-8"))
    put("coming_from.md", coming_from.page(chapters))
    put("troubleshooting.md", coming_from.troubleshooting())
    engine = [c for c in chapters if c.startswith("engine/")]
    head = "# The engine\n\n> A chapter a topic, in the order of dependence: it imports those before it and its parts."
    rows = "\n".join(f"| [{titles[c][0]}](/{c}.ipynb) | {titles[c][1]} |" for c in engine)
    tree = toctree([c.removeprefix("engine/") for c in engine])
    put("engine/index.md", f"{head}\n\n| chapter | |\n| --- | --- |\n{rows}\n\n{tree}")
    first_page(outputs, titles, systems)
    for stale in {p for p in SOURCE.rglob("*") if p.is_file()} - written:
        stale.unlink()


def first_page(outputs: dict, titles: dict, systems: dict[str, tuple[str, str]]) -> None:
    """The page that says what this is."""
    top = [page_of(c) for c in outputs if "/" not in c]
    start = [c for c in ("map", "00_tour") if c in top]
    jobs = [c for c in top if c not in start and c[0] == "0"]
    guides = [c for c in top if c not in start + jobs] + ["sixth_system", "troubleshooting", "coming_from"]
    kinds = {s: "ipynb" if f"systems/{s}/index" in outputs else "md" for s in systems}
    cards = "\n".join(
        f":::{{container}} system-card\n[{title}](/systems/{name}/index.{kinds[name]})\n\n{line}\n:::\n"
        for name, (title, line) in systems.items()
    )
    steps = "\n".join(f"| [{titles[c][0]}](/{c}.ipynb) | {titles[c][1]} |" for c in jobs)
    trees = [toctree([c.replace("map", "The map <map>") for c in start], "Start")] if start else []
    trees += [
        toctree(jobs, "The journey"), toctree([f"systems/{s}/index" for s in systems], "Research systems"),
        toctree(guides, "Guides"), toctree(["engine/index", "api/configuration", "api/index"], "Engine and reference"),
    ]
    first = "00_tour.html" if "00_tour" in top else "01_prepare.html"
    put(
        "index.md",
        template(
            "index.md", systems=cards, gallery=gallery(outputs, titles), jobs=steps, toctrees="\n".join(trees),
            first=first,
        ),
    )


def sphinx(site: Path) -> None:
    """Run Sphinx: a warning is an error, and after one nothing is taken from the last build; every page is written, for
    each has the contents of all beside it."""
    doctrees = WORK / "doctrees"
    command = [
        sys.executable, "-m", "sphinx", "-b", "html", "-c", str(DOCS), "-d", str(doctrees), "-a", "-W", "--keep-going",
        "-q", "-j", "2", str(SOURCE), str(site),
    ]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(DOCS)}, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(doctrees, ignore_errors=True)
        raise StaleError(f"the site was not built:\n{done.stderr[-6000:]}")


def build(site: Path = SITE, stored: bool = False, workers: int = 2) -> dict[str, bool]:
    """Build the site; returns notebook -> whether its outputs are fresh. `stored` executes nothing and shows what the
    notebooks hold."""
    root = ROOT if stored else TREE
    keys = keys_of(root) if stored else execute(workers)
    outputs = outputs_of(keys, stored, root)
    write_source(outputs, root)
    sphinx(site)
    (site / "outputs.json").write_text(
        json.dumps({n: keys[n] for n, (_, fresh) in outputs.items() if fresh}, indent=1), encoding="utf-8"
    )
    (site / ".nojekyll").touch()
    if not stored:
        check_fresh(site)
    return {n: fresh for n, (_, fresh) in outputs.items()}


def main() -> int:
    """`python docs/build.py`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--stored", action="store_true", help="execute nothing: pages show the outputs that the notebooks hold"
    )
    parser.add_argument("--site", type=Path, default=SITE, help="where the site goes")
    parser.add_argument("--workers", type=int, default=2, help="notebooks executed at a time")
    said = parser.parse_args()
    start = time.monotonic()
    try:
        fresh = build(said.site.resolve(), said.stored, said.workers)
    except StaleError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 1
    print(
        f"{said.site / 'index.html'}: {len(fresh)} notebooks, {sum(fresh.values())} with fresh outputs, "
        f"{time.monotonic() - start:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
