"""Maths as MathML, written when the site is built: a page needs no script and no network to show an equation."""
import re
import unicodedata

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)


STYLES = {
    "script": "SCRIPT", "double-struck": "DOUBLE-STRUCK", "bold": "BOLD", "bold-italic": "BOLD ITALIC",
    "fraktur": "FRAKTUR", "sans-serif": "SANS-SERIF",
}
CASES = {True: "CAPITAL", False: "SMALL"}


def styled(match: re.Match) -> str:
    """A letter in a style: browsers know no styles but the upright one, Unicode has a character for each."""
    style, letter = STYLES.get(match[1]), match[2]
    if style is None or not (letter.isascii() and letter.isalpha()):
        return match[0]
    for name in (
        f"MATHEMATICAL {style} {CASES[letter.isupper()]} {letter.upper()}",
        f"{style} {CASES[letter.isupper()]} {letter.upper()}",
    ):
        try:
            return f"<mi>{unicodedata.lookup(name)}</mi>"
        except KeyError:  # some letters had a place in Unicode before the others
            continue
    return match[0]


BRACKETS = {r"\lfloor": "⌊", r"\rfloor": "⌋", r"\lceil": "⌈", r"\rceil": "⌉"}  # unknown to the converter as commands


def mathml(latex: str, display: str) -> str:
    """An equation; what the converter does not know is a warning, and so fails the build."""
    for command, sign in BRACKETS.items():
        latex = re.sub(re.escape(command) + r"(?![A-Za-z])", sign, latex)
    try:
        written = convert(latex, display=display)
    except Exception as error:  # the converter raises many kinds, none with a common base
        log.warning("equation %r cannot be written as MathML: %s %s", latex, type(error).__name__, error)
        return f"<code>{latex}</code>"
    written = re.sub(r'<mi mathvariant="([a-z-]+)">(.)</mi>', styled, written)
    unknown = re.findall(r"\\[A-Za-z]+", written)
    if unknown:
        log.warning("equation %r holds unknown commands: %s", latex, ", ".join(unknown))
    return written


def visit_inline(self, node: nodes.math) -> None:
    """An equation in a sentence."""
    self.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_block(self, node: nodes.math_block) -> None:
    """An equation of its own."""
    self.body.append(f'<div class="math-block">{mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
