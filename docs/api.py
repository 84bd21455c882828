"""The reference, read from the exported modules: signatures, a row a parameter with its shape and unit, and the cell
where each name is explained."""
import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

from execution import origin

LINE = 72  # characters of a signature that stands on one line
MARK = re.compile(r"^# %% (?:\.\./)*nbs/(?P<notebook>.+)\.ipynb #(?P<cell>\w+)")


@dataclass
class Row:
    """A parameter or a field."""

    name: str
    kind: str = ""
    default: str = ""
    meaning: str = ""


@dataclass
class Entry:
    """A public class, function or method."""

    name: str  # as it is written after the module's
    module: str
    kind: str  # class, function or method
    signature: str
    doc: str
    rows: list[Row]
    place: tuple[str, str] | None  # notebook under nbs/, id of the cell
    bases: list[str] = field(default_factory=list)
    members: list["Entry"] = field(default_factory=list)

    @property
    def full(self) -> str:
        """The dotted name."""
        return f"{self.module}.{self.name}"


@dataclass
class Module:
    """An exported module."""

    name: str
    doc: str
    entries: list[Entry]
    notebook: str  # the chapter it is exported from


def comments_of(text: str) -> dict[int, str]:
    """Line -> the comment at its end."""
    return {
        t.start[0]: t.string.lstrip("# ").strip() for t in tokenize.generate_tokens(io.StringIO(text).readline)
        if t.type == tokenize.COMMENT
    }


def brief(node: ast.expr | None) -> str:
    """An expression as text, shortened when it is long."""
    text = ast.unparse(node) if node is not None else ""
    return text if len(text) <= 60 else text[:57] + "..."


def parameters(node: ast.FunctionDef, comments: dict[int, str]) -> list[Row]:
    """The parameters of a function, with the comments beside them."""
    given = node.args
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    rows = [(a, d, a.arg) for a, d in zip(plain, defaults)]
    rows += [(given.vararg, None, f"*{given.vararg.arg}")] if given.vararg else []
    rows += [(a, d, a.arg) for a, d in zip(given.kwonlyargs, given.kw_defaults)]
    rows += [(given.kwarg, None, f"**{given.kwarg.arg}")] if given.kwarg else []
    alone = [a.lineno for a, *_ in rows]
    return [
        Row(
            name, brief(a.annotation), brief(d),
            comments.get(a.lineno, "") if alone.count(a.lineno) == 1 and a.lineno != node.lineno else "",
        )
        for a, d, name in rows if name not in ("self", "cls")
    ]


def targets_of(tree: ast.Module, module: str) -> dict[str, str]:
    """Name -> dotted name, of what a module defines or imports from the package: two systems may each have a Batch."""
    package = module.rpartition(".")[0]
    found = {n.name: f"{module}.{n.name}" for n in tree.body if isinstance(n, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("nexuslab")):
            found |= {a.asname or a.name: f"{origin(node, package)}.{a.name}" for a in node.names}
    return found


class Linked(ast.NodeTransformer):
    """Annotations whose names are written in full, after a tilde: Sphinx links the whole name and shows its last part.
    """

    def __init__(self, targets: dict[str, str]):
        self.targets = targets

    def visit_Name(self, node: ast.Name) -> ast.expr:
        """A name that the package has."""
        return ast.parse(f"~{self.targets[node.id]}", mode="eval").body if node.id in self.targets else node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        """A type in quotes."""
        return self.visit(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node


def signature(node: ast.FunctionDef, bound: bool, typed: bool, targets: dict[str, str]) -> str:
    """Names, defaults and the result; types where no table tells them."""
    copy, linked = ast.parse(f"def f({ast.unparse(node.args)}): ...").body[0].args, Linked(targets)
    for argument in (*copy.posonlyargs, *copy.args, *copy.kwonlyargs, *filter(None, [copy.vararg, copy.kwarg])):
        argument.annotation = linked.visit(argument.annotation) if typed and argument.annotation else None
    if bound and copy.args:
        copy.args = copy.args[1:]
        copy.defaults = copy.defaults[-len(copy.args):] if copy.args else []
    returns = ast.parse(ast.unparse(node.returns), mode="eval").body if node.returns else None
    return f"({ast.unparse(copy)})" + (f" -> {ast.unparse(linked.visit(returns))}" if returns else "")


def seen(signature: str) -> str:
    """A signature as the page shows it."""
    return re.sub(r"~[\w.]+\.(\w+)", r"\1", signature)


def described(value: ast.expr | None) -> str | None:
    """The description in a pydantic Field."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        return next(
            (k.value.value for k in value.keywords if k.arg == "description" and isinstance(k.value, ast.Constant)), ""
        )
    return None


def fields(node: ast.ClassDef, comments: dict[int, str]) -> list[Row]:
    """The annotated attributes of a class."""
    rows = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith("_"):
            meaning, default = described(item.value), brief(item.value)
            if meaning is not None:
                first = (
                    item.value.args[0] if item.value.args
                    else next((k.value for k in item.value.keywords if k.arg == "default"), None)
                )
                default = brief(first)
            rows.append(
                Row(
                    item.target.id, brief(item.annotation), default,
                    comments.get(item.lineno, "") if meaning is None else meaning,
                )
            )
    return rows


def of_function(
    node: ast.FunctionDef, module: str, comments: dict[int, str], targets: dict[str, str], place,
    owner: str | None = None,
) -> Entry:
    """A function, or a method of `owner`."""
    static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
    name = f"{owner}.{node.name}" if owner else node.name
    rows = parameters(node, comments)
    told = any(r.meaning for r in rows)
    return Entry(
        name, module, "method" if owner else "function", signature(node, bool(owner) and not static, not told, targets),
        ast.get_docstring(node) or "", rows if told else [], place,
    )


def of_class(node: ast.ClassDef, module: str, comments: dict[int, str], targets: dict[str, str], place) -> Entry:
    """A class with its documented methods."""
    methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
    start, rows = methods.get("__init__"), fields(node, comments)
    rows = parameters(start, comments) if start else rows
    told = any(r.meaning for r in rows)
    shown = signature(start, True, not told, targets) if start else ""
    rows = rows if told or not start else []
    members = [
        of_function(n, module, comments, targets, place, node.name) for k, n in methods.items()
        if not k.startswith("_") and ast.get_docstring(n)
    ]
    return Entry(
        node.name, module, "class", shown, ast.get_docstring(node) or "", rows, place,
        [ast.unparse(b) for b in node.bases], members,
    )


def extended(node: ast.FunctionDef, classes: set[str]) -> str | None:
    """The class that a function is a method of, by the annotation of its first parameter."""
    first = next(iter(node.args.args), None)
    if first is None or first.arg != "self" or first.annotation is None:
        return None
    owner = ast.unparse(first.annotation).strip("'\"")
    return owner if owner in classes else None


def read_module(name: str, path: Path, classes: set[str] = frozenset()) -> Module:
    """The public names of a module, in the order of its chapter."""
    text = path.read_text(encoding="utf-8")
    tree, comments, lines = ast.parse(text), comments_of(text), text.splitlines()
    targets = targets_of(tree, name)
    marks = {i: MARK.match(line) for i, line in enumerate(lines, 1) if MARK.match(line)}
    known = classes | {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
    entries = []
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
            continue
        mark = (
            marks[max((i for i in marks if i <= node.lineno), default=0)] if marks and min(marks) <= node.lineno
            else None
        )
        place = (mark["notebook"], mark["cell"]) if mark else None
        entries.append(
            of_class(node, name, comments, targets, place) if isinstance(node, ast.ClassDef)
            else of_function(node, name, comments, targets, place, extended(node, known))
        )
    notebooks = [e.place[0] for e in entries if e.place] + [m["notebook"] for m in marks.values()]
    return Module(name, ast.get_docstring(tree) or "", entries, notebooks[0] if notebooks else "")


def read_package(modules: dict[str, Path]) -> list[Module]:
    """All modules that have public names."""
    read = [read_module(name, path, {"Run"}) for name, path in modules.items()]
    return [m for m in read if m.entries]


def cell_text(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def code(text: str) -> str:
    """Text as code in a cell of a Markdown table."""
    return f"`{cell_text(text)}`" if text else ""


def table(rows: list[Row], head: str) -> str:
    """Parameters or fields as a table; nothing when nothing is known of them."""
    if not any(r.kind or r.meaning for r in rows):
        return ""
    lines = [f"| {head} | type | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join(
        lines
        + [f"| {code(r.name)} | {code(r.kind)} | {code(r.default)} | {prose(cell_text(r.meaning))} |" for r in rows]
    )


def prose(text: str) -> str:
    """Text of a docstring or a comment as Markdown: what Markdown would take for markup is escaped, code spans are not,
    and a formula is shown as code."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"\$([^$\n]+)\$", r"`\1`", text))
    return "".join(p if p.startswith("`") else re.sub(r"([*_<>\[\]$#{}~^])", r"\\\1", p) for p in parts)


def up(module: str) -> str:
    """The way from a page of the reference to the site's root."""
    return "../"


def render(entry: Entry, chapters: set[str], depth: int = 6) -> str:
    """An entry as a directive of Sphinx's Python domain."""
    fence = ":" * depth
    head = "fields" if entry.kind == "class" and not entry.signature else "parameter"
    link = (
        f'<p class="explained"><a href="{up(entry.module)}{entry.place[0]}.html#cell-{entry.place[1]}">explained in '
        'its chapter</a></p>'
        if entry.place and entry.place[0] in chapters and depth == 6 else ""
    )
    bases = "Bases: " + ", ".join(f"`{b}`" for b in entry.bases) if entry.bases else ""
    body = [
        prose(entry.doc), bases, table(entry.rows, head), *(render(m, chapters, depth - 1) for m in entry.members), link
    ]
    option = ":single-line-parameter-list:\n" if len(seen(entry.signature)) <= LINE else ""
    return f"{fence}{{py:{entry.kind}}} {entry.name}{entry.signature}\n{option}\n" + "\n\n".join(
        b for b in body if b
    ) + f"\n\n{fence}"


def page(module: Module, chapters: set[str]) -> str:
    """The reference page of a module."""
    chapter = f"Explained in [{module.notebook}](/{module.notebook}.ipynb).\n\n" if module.notebook in chapters else ""
    body = "\n\n".join(render(e, chapters) for e in module.entries)
    head = f"# {module.name.removeprefix('nexuslab.')}\n\n:::{{py:module}} {module.name}\n:::\n\n"
    return f"{head}{prose(module.doc)}\n\n{chapter}{body}\n"


def overview(modules: list[Module]) -> str:
    """The first page of the reference."""
    rows = [f"| [{m.name}]({m.name}.md) | {prose(cell_text(m.doc))} |" for m in modules]
    tree = "\n".join(m.name for m in modules)
    return ("# Reference\n\nEvery public name, with its signature, and the shape and unit of each parameter where they "
            "are declared. A name links to the chapter that derives, shows and tests it.\n\n"
            "| module | what it holds |\n| --- | --- |\n" + "\n".join(rows)
            + f"\n\n```{{toctree}}\n:hidden:\n\n{tree}\n```\n")
