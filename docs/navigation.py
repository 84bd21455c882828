"""The contents that stand beside every page, made once: pages differ in which entries are open, and where links start.

Sphinx and furo make them anew for each page, which takes half of a build of some hundred pages.
"""
import re

from furo.navigation import get_navigation_tree
from sphinx.application import Sphinx
from sphinx.environment.adapters.toctree import global_toctree_for_doc
from sphinx.util.osutil import relative_uri

ENTRY = re.compile(r'<li class="(?P<kind>[^"]*)"><a class="(?P<reference>[^"]*)" href="(?P<href>[^"]*)">')
PIECES = re.compile(r'(<ul>|</ul>|<li class="[^"]*"><a class="[^"]*" href="[^"]*">|</li>|<input [^>]*>)')


class Contents:
    """The tree of contents as furo draws it, cut into the pieces that differ between pages."""

    def __init__(self, html: str):
        self.pieces = PIECES.split(html)
        self.chains: dict[str, list[int]] = {}  # target -> the pieces that are open around it, its own last
        stack = []
        for number, piece in enumerate(self.pieces):
            if piece.startswith(("</ul>", "</li>")):
                stack.pop()
            elif piece == "<ul>" or ENTRY.fullmatch(piece):
                stack.append(number)
                if entry := ENTRY.fullmatch(piece):
                    self.chains.setdefault(entry["href"], stack.copy())

    def beside(self, target: str) -> str:
        """The contents on the page of a target such as `engine/index.html`."""
        chain, text, within = self.chains.get(target, []), [], False
        for number, piece in enumerate(self.pieces):
            on_the_way = number in chain
            if entry := ENTRY.fullmatch(piece):
                within = on_the_way
                last = on_the_way and number == chain[-1]
                kind = entry["kind"].replace(" has-children", "") + " current" * on_the_way
                kind += " has-children" * ("has-children" in entry["kind"]) + " current-page" * last
                href = "#" if last else relative_uri(target, entry["href"])
                text.append(f'<li class="{kind}"><a class="{"current " * last}{entry["reference"]}" href="{href}">')
            elif piece == "<ul>":
                text.append('<ul class="current">' if on_the_way else piece)
            elif piece.startswith("<input ") and within:
                text.append(piece.replace(' class="', ' checked="" class="', 1))
            else:
                text.append(piece)
        return "".join(text)


def resolve(app: Sphinx, builder) -> None:
    """Make the contents, before pages are written in several processes."""
    asked = {"collapse": False, "titles_only": True, "maxdepth": -1, "includehidden": True}
    tree = global_toctree_for_doc(app.env, app.config.root_doc, builder, tags=builder.tags, **asked)
    html = builder.render_partial(tree)["fragment"]
    app.contents = Contents(get_navigation_tree(html))


def without_contents(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Keep furo from making them."""
    context["toctree"] = lambda **asked: ""


def with_contents(app: Sphinx, pagename: str, templatename: str, context: dict, doctree) -> None:
    """Hand them over where furo would have put its own."""
    context["furo_navigation_tree"] = app.contents.beside(app.builder.get_target_uri(pagename))


def setup(app: Sphinx) -> dict:
    """Stand before and behind furo."""
    app.connect("write-started", resolve)
    app.connect("html-page-context", without_contents, priority=100)
    app.connect("html-page-context", with_contents, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
