"""Run directories as a stranger could send them: scripts and markup in every name and value that somebody may look at.

`python tests/hostile.py FOLDER` makes them in FOLDER/runs. What runs calls `ran(kind, place)` of the page that shows
it, or asks for `<address>/<kind>/<place>`.
"""
import base64
import json
import shutil
import sys
from pathlib import Path

import nbformat
import yaml

from nexuslab.config import Config
from nexuslab.core import read_sealed, write_sealed
from nexuslab.run import Run, checked

# Kind -> the payload, and the place of a page in which a careless program would put it as it is.
KINDS = {
    "script tag": ("<script>JS</script>", "text"),
    "script from elsewhere": ("<script src=URL></script>", "text"),
    "event handler": ('<img src=x onerror="JS">', "text"),
    "event handlers without a click": ("<details open ontoggle=JS><input autofocus onfocus=JS>", "text"),
    "media": ("<video><source onerror=JS></video><video poster=URL>", "text"),
    "SVG": ("<svg onload=JS></svg>", "text"),
    "SVG script": ("<svg><script>JS</script></svg>", "text"),
    "SVG animation": ("<svg><animate onbegin=JS attributeName=x dur=1s></svg>", "text"),
    "MathML": ("<math><mtext><img src=x onerror=JS></mtext><a xlink:href=javascript:JS>m</a></math>", "text"),
    "mutation": ('<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=x onerror=JS&gt;">'
                 "</table></math><img src=x onerror=JS>", "text"),
    "iframe srcdoc": ('<iframe srcdoc="<script>JS</script>"></iframe>', "text"),
    "iframe": ("<iframe src=javascript:JS></iframe><iframe src=URL></iframe>", "text"),
    "javascript link": ('<a href="javascript:JS">link</a>', "text"),
    "obfuscated link": ('<a href=" \x01java\tscript:JS">link</a>', "text"),
    "data link": ("<object data='data:text/html,<script>JS</script>'></object><embed src=URL>", "text"),
    "style sheet": ("<style>@import url(URL);</style><link rel=stylesheet href=URL>", "text"),
    "style": ('<p style="background:url(URL);width:expression(JS)">x</p>', "text"),
    "comment": ("--><img src=x onerror=JS><!--", "comment"),
    "closing script": ("</script><script>JS</script>", "string"),
    "closing textarea": ("</textarea></title></style></pre><img src=x onerror=JS>", "textarea"),
    "double quote": ('" autofocus onfocus=JS x="', "attribute"),
    "single quote": ("' autofocus onfocus=JS x='", "single"),
    "JSON in a script": ('";JS;"', "string"),
    "template literal": ("${JS}`+JS+`", "template"),
    "meta refresh": ('<meta http-equiv=refresh content="0;url=URL">', "text"),
    "base": ("<base href=URL/><img src=picture.png>", "text"),
    "form": (
        "<form action=URL><button id=go>x</button></form><svg onload=document.querySelector('#go').click()>", "text"
    ),
    "markdown": ("\n```\n\n<img src=x onerror=JS>\n\n[a](javascript:JS) ![b](URL) <javascript:JS>\n\n```\n", "text"),
    "LaTeX": (
        r"$\href{javascript:JS}{x}$ \(\require{html}\style{background:url(URL)}{y}\) $$\href{data:text/html,JS}z$$",
        "none",
    ),
    "terminal": ("\x1b[31m\x1b]8;;javascript:JS\x07link\x1b]8;;\x07\u202e\u2028<img src=x onerror=JS>\x1b[0m", "text"),
}
CONTEXTS = {
    "text": "<body>%s</body>", "comment": "<!-- %s -->", "string": '<script>let a = "%s"</script>',
    "textarea": "<textarea>%s</textarea>", "attribute": '<input value="%s">', "single": "<input value='%s'>",
    "template": "<script>let a = `%s`</script>",
}
PLACES = (
    "run", "system", "preset", "experiment", "tag", "configuration key", "configuration value", "metric", "part",
    "value",
    "note", "event", "message", "spike", "state", "reason", "host", "split", "figure", "figure's value", "baseline",
    "baseline's figure", "command", "commit", "hardware", "package", "sample", "picture", "log", "markdown cell",
    "code cell", "stream", "HTML output", "markdown output", "LaTeX output", "SVG output", "JavaScript output",
    "traceback",
    "widget", "raw cell", "attachment", "metadata",
)
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def payload(kind: int, place: str, address: str) -> str:
    """The text of a kind that tells where it stood."""
    number = PLACES.index(place)
    text = list(KINDS.values())[kind][0]
    return text.replace("JS", f"ran({kind},{number})").replace("URL", f"{address}/{kind}/{number}")


def file_name(text: str, most: int = 150) -> str:
    """A payload as the name of a file: only the slash is refused by file systems, and what is too long."""
    return text.replace("/", "\u2215")[:most]


class Stranger:
    """Makes a run with a payload of one kind in every place."""

    def __init__(self, root: Path, address: str):
        self.root, self.address = root, address

    def say(self, kind: int, place: str) -> str:
        return payload(kind, place, self.address)

    def make(self, model: Run, kind: int) -> Run:
        """A run of that kind."""
        say = lambda place: self.say(kind, place)
        name = f"20260101-0000{kind:02}-{file_name(say('run'))}"
        path = self.root / "runs" / file_name(say("system")) / name
        run = Run(shutil.copytree(model.path, path))
        tree = model.tree | {"system": say("system"), "preset": say("preset"), "name": say("experiment")}
        tree |= {say("configuration key"): say("configuration value"), "value": kind}
        tree["track"] |= {"tags": [say("tag")]}
        (path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        status = {"state": say("state"), "reason": say("reason"), "host": say("host"), "step": 3, "updated": 1.7e9}
        write_sealed(path / "status.json", status)
        entry = {
            "figures": {say("figure"): 0.5, "loss": say("figure's value")},
            "baselines": {say("baseline"): {say("baseline's figure"): 1, "loss": 0.5}},
        }
        write_sealed(path / "evaluation.json", {"test": entry, say("split"): entry})
        about = read_sealed(path / "environment.json") | {"command": say("command"), "commit": say("commit")}
        about["hardware"] |= {"machine": say("hardware")}
        about["packages"] |= {say("package"): say("package")}
        write_sealed(path / "environment.json", about)
        (path / "samples" / f"{file_name(say('sample'))}.png").write_bytes(PNG)
        (path / "figures" / f"{file_name(say('picture'))}.png").write_bytes(PNG)
        (path / "log.txt").write_text(say("log"), encoding="utf-8")
        self.record(run, kind)
        return run

    def record(self, run: Run, kind: int) -> None:
        """Its metrics.jsonl."""
        say = lambda place: self.say(kind, place)
        scalars = {"train/loss": 0.5, f"train/{say('metric')}": 1.0, f"train/weighted_{say('part')}": 0.5}
        rows = [{"event": "start", "message": say("message")}, scalars | {"note": say("note")}]
        rows += [{f"val/{say('metric')}": say("value")}, {"event": say("event"), "message": say("message")}]
        rows += [{"event": "spike", "loss": say("spike")}, {"train/loss": 0.4, "val/loss": 0.6}]
        lines = [{"step": step, "epoch": 0.0, "time": 1e9 + step, "attempt": 0} | row for step, row in enumerate(rows)]
        text = b"".join(checked(json.dumps(line).encode()) + b"\n" for line in lines)
        (run.path / "metrics.jsonl").write_bytes(text + say("log").encode().replace(b"\n", b" ") + b"\n")

    def notebook(self) -> nbformat.NotebookNode:
        """A notebook with every kind in its cells, outputs, widgets and metadata."""
        cells = [cell for kind in range(len(KINDS)) for cell in self.cells(kind)]
        models = {}
        for kind in range(len(KINDS)):
            models |= self.models(kind)
        state = {"application/vnd.jupyter.widget-state+json": {"version_major": 2, "version_minor": 0, "state": models}}
        made = nbformat.v4.new_notebook(cells=cells, metadata={"widgets": state, "title": self.say(0, "metadata")})
        made.metadata["kernelspec"] = {"name": "python3", "display_name": self.say(2, "metadata"), "language": "python"}
        return made

    def cells(self, kind: int) -> list:
        """Its cells of one kind."""
        say, v4 = (lambda place: self.say(kind, place)), nbformat.v4
        script = f"ran({kind},{PLACES.index('JavaScript output')})"
        shown = {
            "text/html": say("HTML output"), "text/markdown": say("markdown output"), "text/latex": say("LaTeX output"),
            "image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{say('SVG output')}</svg>",
            "application/javascript": script, "application/vnd.jupyter.widget-view+json": {"model_id": f"h{kind}"},
        }
        outputs = [v4.new_output("display_data", {mime: value, "text/plain": "-"}) for mime, value in shown.items()]
        outputs += [v4.new_output("stream", name="stdout", text=say("stream"))]
        outputs += [v4.new_output("error", ename=say("traceback"), evalue="-", traceback=[say("traceback")])]
        code = v4.new_code_cell(
            say("code cell"), outputs=outputs, metadata={"tags": [say("metadata").replace(",", ";")]}
        )
        picture = {"a.svg": {"image/svg+xml": base64.b64encode(f"<svg>{say('attachment')}</svg>".encode()).decode()}}
        marked = v4.new_markdown_cell(f"{say('markdown cell')}\n\n![a](attachment:a.svg)", attachments=picture)
        return [marked, code, v4.new_raw_cell(say("raw cell"), metadata={"raw_mimetype": "text/html"})]

    def models(self, kind: int) -> dict[str, dict]:
        """Saved widgets: markup in an HTML widget, and a module of an anywidget."""
        script = f"ran({kind},{PLACES.index('widget')}); export default {{render() {{}}}};"
        controls = {
            "model_module": "@jupyter-widgets/controls", "model_module_version": "2.0.0", "model_name": "HTMLModel"
        }
        html = {"value": self.say(kind, "widget"), "description": self.say(kind, "widget"), "_view_name": "HTMLView"}
        module = {
            "_esm": script, "_css": "", "_anywidget_id": "hostile", "_view_name": "AnyView", "_model_name": "AnyModel"
        }
        module |= {"_model_module": "anywidget", "_view_module": "anywidget"}
        own = {"model_module": "anywidget", "model_module_version": "~0.11.*", "model_name": "AnyModel"}
        return {f"h{kind}": controls | {"state": html}, f"a{kind}": own | {"state": module}}


def make_all(root: Path, address: str) -> list[Run]:
    """A run of every kind; the first also has a report and an analysis with all kinds."""
    stranger = Stranger(root, address)
    model = Run.create(Config(system="model"), root)
    runs = [stranger.make(model, kind) for kind in range(len(KINDS))]
    shutil.rmtree(model.path.parent)
    for name in ("report", "analyse"):
        nbformat.write(stranger.notebook(), runs[0].path / f"{name}.ipynb")
    return runs


if __name__ == "__main__":
    for run in make_all(Path(sys.argv[1]), "http://127.0.0.1:9"):
        print(repr(run.path.name))
