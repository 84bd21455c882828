"""From an executed notebook to a page: nbdev's directives obeyed, names linked to the reference, machine paths made
relative."""
import itertools
import json
import re
from pathlib import Path

import nbformat
from api import Entry, Module
from execnb.nbio import dict2nb
from execution import HOME, ROOT, TREE
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, rm_header_dash, strip_ansi
from nbformat import NotebookNode

PROCESSORS = [strip_ansi, hide_line, filter_stream_, clean_magics, rm_header_dash, hide_]
SPAN = re.compile(r"(?<![`\[])`([A-Za-z_][\w./]*)(\(\))?`(?!`|\])")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+\.ipynb)(#[^)]*)?\)")


class Names:
    """What a code span may mean: a public name of the package, or a notebook."""

    def __init__(self, modules: list[Module], chapters: list[str]):
        every = [e for m in modules for e in [*m.entries, *(x for e in m.entries for x in e.members)]]
        self.by_name: dict[str, list[Entry]] = {}
        self.by_place: dict[tuple[str, str] | None, list[Entry]] = {}  # of a chapter and a cell
        for entry in every:
            self.by_name.setdefault(entry.name, []).append(entry)
            self.by_place.setdefault(entry.place, []).append(entry)
        self.chapters = {
            c.rpartition("/")[2]: c for c in chapters
            if sum(o.rpartition("/")[2] == c.rpartition("/")[2] for o in chapters) == 1
        } | {c: c for c in chapters}
        self.modules = {m.name for m in modules}

    def meaning(self, word: str, chapter: str) -> Entry | None:
        """The entry that a word in a chapter means, when there is no doubt."""
        found = self.by_name.get(word, [])
        own = [e for e in found if e.place and e.place[0] == chapter]
        telling = (
            len(word) > 3 and ("_" in word or "." in word or word != word.lower())
            or word in ("fit", "evaluate", "resolve", "predict")
        )
        if own:
            return own[0]
        return found[0] if len(found) == 1 and telling else None

    def link(self, match: re.Match, chapter: str) -> str:
        """A code span, as a link when it names something."""
        word = match[1].removesuffix(".ipynb").removeprefix("nbs/")
        if word in self.chapters and word[:2].isdigit() | ("/" in word):
            return f"[`{match[1]}`](/{page_of(self.chapters[word])}.ipynb)"
        entry = self.meaning(match[1], chapter)
        return f"{{py:obj}}`{match[1]}{match[2] or ''} <{entry.full}>`" if entry else match[0]


def page_of(chapter: str) -> str:
    """The page of a notebook: the map has another name than the site's first page."""
    return "map" if chapter == "index" else chapter


def outside_code(text: str, change) -> str:
    """Apply a change to Markdown, but not inside fences and equations."""
    parts = re.split(r"(```.*?```|\$\$.*?\$\$|^(?: {4}|\t).*?$)", text, flags=re.S | re.M)
    return "".join(p if i % 2 else change(p) for i, p in enumerate(parts))


def local_link(match: re.Match, chapter: str, chapters: set[str]) -> str:
    """A link between notebooks, as a link between pages."""
    target = Path(chapter).parent.joinpath(match[2])
    parts: list[str] = []
    for part in target.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    name = "/".join(parts).removesuffix(".ipynb").removeprefix("nbs/")
    if name not in chapters:
        raise ValueError(f"{chapter} links to {match[2]}, which is no notebook here")
    return f"[{match[1]}](/{page_of(name)}.ipynb)"


def markdown(text: str, chapter: str, names: Names, chapters: set[str], doc_host: str) -> str:
    """A Markdown cell with its links."""
    text = re.sub(re.escape(doc_host) + r"/([\w/.-]+?)\.html", lambda m: f"/{m[1]}.ipynb", text)
    text = outside_code(text, lambda t: LINK.sub(lambda m: local_link(m, chapter, chapters), t))
    return outside_code(
        text,
        lambda t: "\n".join(
            line if line.startswith("#") else SPAN.sub(lambda m: names.link(m, chapter), line) for line in t.split("\n")
        ),
    )


def relative(value):
    """Outputs without the folders of the machine that made them."""
    if isinstance(value, str):
        for folder in (HOME, TREE):
            value = value.replace(f"{folder}/", "").replace(str(folder), ".")
        return value.replace(str(ROOT), "nexuslab")
    if isinstance(value, list):
        return [relative(v) for v in value]
    return {k: relative(v) for k, v in value.items()} if isinstance(value, dict) else value


def new_cell(kind: str, source: str, id: str, **more) -> NotebookNode:
    """A cell, which is checked with its notebook when that is written."""
    return nbformat.from_dict({"cell_type": kind, "id": id, "metadata": {}, "source": source} | more)


def only_imports(source: str) -> bool:
    """Whether a cell holds imports and nothing else."""
    text = re.sub(r"\([^)]*\)", "()", source)
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return bool(lines) and all(re.match(r"(from\s+\S+\s+)?import\b", line) for line in lines)


def anchors(cell: NotebookNode, names: Names, chapter: str) -> NotebookNode:
    """What stands before an exported cell: the place the reference points to, and the way there."""
    defined = re.findall(r"^(?:class|def)\s+([A-Za-z]\w*)", cell.source, re.M)
    here = names.by_place.get((chapter, cell.id), [])
    entries = [e for d in defined for e in here if e.name == d or e.name.endswith(f".{d}")]
    links = " ".join(
        f"{{py:obj}}`{e.name} <{e.full}>`"
        for e in dict.fromkeys(e.full for e in entries) and {e.full: e for e in entries}.values()
    )
    text = f'<span id="cell-{cell.id}" class="cell-anchor"></span>\n'
    return new_cell(
        "markdown", text + (f"\n:::{{container}} api-links\n{links}\n:::\n" if links else ""), f"a{cell.id}"[:60]
    )


def joined(outputs: list[dict]) -> list[NotebookNode]:
    """Outputs, with what was printed in one go in one piece."""
    kept: list[NotebookNode] = []
    for output in map(nbformat.from_dict, outputs):
        text = output.get("text", "")
        output = output | {"text": "".join(text)} if output["output_type"] == "stream" else output
        if kept and output["output_type"] == "stream" == kept[-1]["output_type"] and kept[-1]["name"] == output["name"]:
            kept[-1]["text"] += output["text"]
        else:
            kept.append(nbformat.from_dict(output))
    return kept


def code_cell(cell: NotebookNode) -> NotebookNode | None:
    """A code cell as it is shown; None for one that is not."""
    source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("#|")).strip("\n")
    if not source:
        return None
    metadata = {}
    if only_imports(source):
        metadata = {"tags": ["hide-input"], "mystnb": {"code_prompt_show": "Imports", "code_prompt_hide": "Imports"}}
    outputs = joined([relative(o) for o in cell.get("outputs", []) if o["output_type"] != "error"])
    return new_cell("code", source, cell.id, metadata=metadata, execution_count=None, outputs=outputs)


def convert(notebook: NotebookNode, chapter: str, names: Names, chapters: set[str], doc_host: str) -> NotebookNode:
    """The page of a notebook."""
    processed = NBProcessor(nb=dict2nb(json.loads(nbformat.writes(notebook))), procs=PROCESSORS, rm_directives=True)
    processed.process()
    cells: list[NotebookNode] = []
    for cell in processed.nb.cells:
        directives = cell.get("directives_", {})
        if cell.cell_type == "markdown":
            cells.append(new_cell("markdown", markdown(cell.source, chapter, names, chapters, doc_host), cell.id))
        elif cell.cell_type == "code" and (shown := code_cell(cell)) is not None:
            exported = any(str(d).startswith("export") for d in directives)
            cells += [anchors(shown, names, chapter)] if exported else []
            cells.append(shown)
    heading = cells[0].source.lstrip() if cells else ""
    if not heading.startswith("# "):
        raise ValueError(f"{chapter}: the first cell must be `# Title` and a line that begins with `>`")
    page = nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        },
    )
    return page


def title_of(notebook: NotebookNode) -> tuple[str, str]:
    """Title and summary from the first cell; the summary may go on over several lines."""
    lines = notebook.cells[0].source.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(">")), len(lines))
    said = itertools.takewhile(str.strip, lines[start:])
    return lines[0].lstrip("# ").strip(), " ".join(line.lstrip("> ").strip() for line in said)
