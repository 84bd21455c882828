"""YAML and JSON of any bytes: parsed, or refused by name, within a second."""
import base64
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from attack.driver import Case, dice, judged, worst
from attack.mutations import WAYS
from attack.place import SYSTEM, folder, project
from nexuslab.config import resolve
from nexuslab.core import parse_json, parse_yaml
from nexuslab.task import get_task

FULL = 10_000
LIMIT = 10.0
PIECES = (
    "- ", "? ", ": ", "&a ", "*a", "*b", "<<: ", "!!python/object:os.system ", "!!binary ", "!!set ", "!!omap ", "!x ",
    "!!timestamp ", "!!int ", "!!float ", "|\n", ">\n", "---\n", "...\n", "%YAML 1.1\n", "%TAG ! tag:x\n", "\t", "\n",
    "\r", "  ", "    ", "[", "]", "{", "}", ",", '"', "'", "\\", "#", "@", "`", "%", "=", "~", "null", "true", "yes",
    "2026-02-30", "2026-02-30T25:61:61", "1e999", "-.inf", ".nan", "0x", "0o9", "1_0", "190:20:30", "1" * 5000,
    "\0", "\x85", "\u2028", "\ufeff", "é", "😀", "\x1b", "system", "preset", "epochs", "model", "hidden", "optim.lr",
    "base", "smoke", SYSTEM, "__proto__", "__class__", "[" * 500, "{a: " * 200, "&a [*a]", "&a {a: *a}",
    "a: &a [x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c]\n",
)
CODINGS = ("utf-8", "latin-1", "utf-16", "utf-16-le", "utf-32", "utf-7", "cp037", "utf-8-sig")


def text(draw: Random) -> bytes:
    """Pieces of YAML in a random order, or a sound configuration that has changed; in some encoding."""
    if draw.random() < 0.3:
        return with_other_digits(sound(), draw).encode()
    if draw.random() < 0.4:
        data = sound().encode(draw.choice(CODINGS))
        for _ in range(draw.randrange(1, 4)):
            data = draw.choice(WAYS)(data, draw) or b" "
        return data
    if draw.random() < 0.1:
        return draw.randbytes(draw.randrange(500))
    words = "".join(draw.choice(PIECES) for _ in range(draw.randrange(40)))
    return words.encode(draw.choice(CODINGS), "replace")


def with_other_digits(data: str, draw: Random) -> str:
    """Some digits are others: mostly legal."""
    places = [place for place, letter in enumerate(data) if letter.isdigit()]
    for place in draw.sample(places, draw.randrange(4)):
        data = data[:place] + draw.choice("0123456789") + data[place + 1:]
    return data


def sound() -> str:
    return (project() / "runs" / SYSTEM / "sound" / "config.yaml").read_text(encoding="utf-8")


def attacked(key: tuple, place: Path) -> tuple[str, str]:
    """Parse a text in all ways in which it may arrive."""
    data = text(dice(*key))
    path = place / "asked.yaml"
    path.write_bytes(data)
    ways = {
        "YAML": lambda: parse_yaml(data), "JSON": lambda: parse_json(data),
        "typed": lambda: parse_yaml(data.decode("utf-8", "surrogateescape")),
        "file": lambda: resolve(get_task(SYSTEM), "smoke", file=path),
        "base64": lambda: parse_yaml(base64.b64encode(data)),
    }
    found = {name: judged(lambda way=way: str(way())[:0] or None) for name, way in ways.items()}
    kind, said = worst((name, *outcome) for name, outcome in found.items())
    return found["file"] if kind == "named" else (kind, said)  # what is YAML is hardly ever JSON too


def cases(seed: int, count: int) -> Iterator[Case]:
    place = folder("texts")
    for number in range(count):
        yield Case(f"{number}: a text", partial(attacked, ("texts", seed, number), place))
