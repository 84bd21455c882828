"""The pages that name places (what a guide's term is called here, what helps in trouble), and the check that each place
exists."""
import ast
import importlib
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import yaml
from execution import ROOT, find_modules

LIST = ROOT / "docs" / "pages" / "coming_from.yaml"
REMEDIES = ROOT / "docs" / "pages" / "troubleshooting.yaml"
KINDS = {
    "command": "Commands", "option": "Options", "key": "Configuration keys", "class": "Classes and functions",
    "metric": "Metrics", "figure": "Figures", "data": "Data", "file": "Files",
}


def read() -> dict:
    """The list."""
    return yaml.safe_load(LIST.read_text(encoding="utf-8"))


def system_of(place: str) -> str | None:
    """The system that a place belongs to, if it belongs to one."""
    kind, _, what = place.partition(":")
    if kind in ("in", "preset", "figure") or kind == "key" and "/" in what:
        return what.split("/")[0]
    if kind == "scalar":
        head = what.split("/")[0]
        return None if head in ("train", "val", "system") else head
    if kind == "notebook" and what.startswith("systems/"):
        return what.split("/")[1]
    return None


@cache
def public_names(system: str) -> dict[str, str]:
    """Name -> module, of all that a system's package defines."""
    found = {}
    for module, path in find_modules().items():
        if module.startswith(f"nexuslab.systems.{system}"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                targets = (
                    node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign)
                    else []
                )
                names = (
                    [node.name] if isinstance(node, (ast.ClassDef, ast.FunctionDef))
                    else [t.id for t in targets if isinstance(t, ast.Name)]
                )
                found |= {n: module for n in names}
    return found


@cache
def source(prefix: str) -> str:
    """The code of the package, or of a system."""
    return "\n".join(p.read_text(encoding="utf-8") for m, p in find_modules().items() if m.startswith(prefix))


def import_name(dotted: str):
    """The object that a dotted name means; an AttributeError or an ImportError when there is none."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(dotted)


@cache
def known_keys(system: str | None) -> frozenset[str]:
    """The keys of the configuration, of the engine or of a system."""
    from nexuslab.config import Config, fields_of  # late: the page needs no import

    if system is None:
        return frozenset(fields_of(Config))
    from nexuslab.task import get_task

    return frozenset(fields_of(type(get_task(system).presets["base"]())))


def quoted(text: str, code: str) -> bool:
    """Whether a word is a string of the code, alone or at the end of a path."""
    return (
        any(f"{before}{text}{after}" in code for before in "\"'/" for after in "\"'") or f"{text}: " in code
        or f"{text}=" in code
    )


def problem(place: str) -> str | None:
    """Why a place does not exist; None when it does."""
    from nexuslab.jobs import COMMANDS  # late: the page needs no import
    from nexuslab.parameters import job_notebooks, parameters_of

    kind, _, what = place.partition(":")
    system, word = system_of(place), what.split("/", 1)[-1]
    if kind == "option":
        verb, name = what.split(".")
        return (
            None if verb in job_notebooks() and name in parameters_of(job_notebooks()[verb])
            else f"no parameter {name} of the job {verb}"
        )
    if kind == "key":
        return None if word in known_keys(system) else f"no key {word}"
    if kind == "preset":
        from nexuslab.task import get_task

        return None if word in get_task(system).presets else f"no preset {word} of {system}"
    if kind == "name":
        try:
            import_name(what)
        except (ImportError, AttributeError):
            return f"nothing to import as {what}"
        return None
    if kind == "in":
        return None if word in public_names(system) else f"no public name {word} in nexuslab.systems.{system}"
    if kind in ("scalar", "figure", "run"):
        where = f"nexuslab.systems.{system}" if system else "nexuslab."
        return None if quoted(word if system else what, source(where)) else f"{what} is named nowhere in {where}"
    if kind == "program":
        return (
            None if shutil.which(what, path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
            else f"no program {what}"
        )
    paths = {
        "notebook": ROOT / "nbs" / f"{what}.ipynb", "page": ROOT / "docs" / "pages" / f"{what}.md", "file": ROOT / what
    }
    if kind in paths:
        return None if paths[kind].exists() else f"no file {paths[kind]}"
    return None if kind == "verb" and what in [*job_notebooks(), *COMMANDS] else f"unknown kind of place {kind!r}"


def problems() -> list[str]:
    """Terms without a place, and lists that claim too much."""
    from nexuslab.task import list_tasks

    told, found = read(), []
    waiting = set(told["still_to_come"])
    here = set(list_tasks())
    found += [f"{s} is here: take it off still_to_come" for s in sorted(waiting & here)]
    terms = [(guide["system"], *term) for guide in told["guides"] for term in guide["terms"]]
    for system, kind, term, place, _ in terms:
        if kind not in KINDS:
            found.append(f"{system}: {term} is of no known kind ({kind})")
        if system_of(place) not in waiting and (why := problem(place)):
            found.append(f"{system}: {term} -> {place}: {why}")
    return found


def shown(place: str, chapters: list[str], waiting: list[str]) -> str:
    """A place, with the way there."""
    kind, _, what = place.partition(":")
    system, word = system_of(place), what.split("/", 1)[-1]
    coming = system in waiting
    notebooks = {c.split("_", 1)[1]: c for c in chapters if "/" not in c and "_" in c}
    if kind == "option":
        verb, name = what.split(".")
        return (
            f"[`nexuslab {verb} --{name.replace('_', '-')}`](/{notebooks[verb]}.ipynb)" if verb in notebooks
            else f"`nexuslab {verb} --{name.replace('_', '-')}`"
        )
    if kind == "key":
        return (
            f"`{word}`" if coming
            else f'<a href="api/configuration.html#key-{word}"><code class="docutils literal">{word}</code></a>'
        )
    if kind == "preset":
        return f"`--preset {word}`"
    if kind == "name":
        return f"{{py:obj}}`~{what}`" if what.startswith("nexuslab.") else f"`{what}`"
    if kind == "in":
        module = None if coming else public_names(system).get(word)
        classes = (
            module
            and any(
                isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == word
                for n in ast.parse(find_modules()[module].read_text(encoding="utf-8")).body
            )
        )
        return (
            f"{{py:obj}}`~{module}.{word}`" if classes else f"[`{word}`](/api/{module}.md)" if module else f"`{word}`"
        )
    if kind in ("scalar", "figure"):
        return f"`{word}` of {system}" if system else f"`{what}`"
    if kind == "run":
        return f"`{what}` of the [run directory](/engine/06_run.ipynb)"
    if kind == "notebook":
        return f"[`{what}`](/{what}.ipynb)" if what in chapters else f"`{what}`"
    return f"[{what}](/{what}.md)" if kind == "page" else f"`{what}`"


def page(chapters: list[str]) -> str:
    """The page, from the list."""
    told = read()
    waiting = told["still_to_come"]
    text = (
        "# Coming from the guides\n\n> Each command, option, key, class, metric and file of the five guides, and its "
        "place here.\n\nOld configuration keys are refused with the new name in the message, so a forgotten one cannot "
        "be ignored.\n"
    )
    for guide in told["guides"]:
        note = (
            f"\n:::{{note}}\nThe system `{guide['system']}` is still to come. What belongs to the engine is here; "
            "names of the system itself stand without a link.\n:::\n"
            if guide["system"] in waiting else ""
        )
        text += f"\n## {guide['title']}\n{note}"
        for kind, heading in KINDS.items():
            rows = [f"| `{t}` | {shown(p, chapters, waiting)} | {n} |" for k, t, p, n in guide["terms"] if k == kind]
            if rows:
                text += f"\n**{heading}**\n\n| in the guide | here | |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"
    return text


def remedies() -> list[dict]:
    """The list of symptoms and remedies."""
    return yaml.safe_load(REMEDIES.read_text(encoding="utf-8"))


def unknown_remedies() -> list[str]:
    """Remedies that name an option, a key or a place that is not here."""
    from nexuslab.parameters import job_notebooks, parameters_of  # late: the page needs no import
    from nexuslab.task import list_tasks

    options = {
        p.replace("_", "-") for path in job_notebooks().values() for p in parameters_of(path)
    } | {"dry-run", "logdir"}
    keys = set().union(*(known_keys(s) for s in list_tasks()))
    found = []
    for section in remedies():
        for symptom, _, remedy, places in section["rows"]:
            found += [f"{symptom or remedy}: {p}: {why}" for p in places if (why := problem(p))]
            found += [f"{remedy}: no option --{o}" for o in re.findall(r"--([a-z][a-z-]+)", remedy) if o not in options]
            found += [f"{remedy}: no key {k}" for k in re.findall(r"-o ([a-z_.]+)=", remedy) if k not in keys]
            found += [] if places else [f"{remedy}: names no place"]
    return found


def troubleshooting() -> str:
    """The page of symptoms and remedies."""
    text = (
        "# Troubleshooting\n\n> What one sees, why, and what to do. Every remedy names an option or a function that is "
        "here.\n\nErrors of this project say what was found, what was expected and what to do: read the last line "
        "first. Options below are those of `nexuslab train` unless another verb stands before them.\n"
    )
    for section in remedies():
        text += f"\n## {section['heading']}\n\n| symptom | why | remedy |\n| --- | --- | --- |\n"
        text += "\n".join(f"| {s} | {w} | {r} |" for s, w, r, _ in section["rows"]) + "\n"
    return text
