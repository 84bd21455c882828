"""Random lines in a record, with and without a sound check: what reads records shows them, or counts them as damaged.
"""
import json
from collections.abc import Iterator
from functools import partial
from random import Random

from attack.driver import Case, dice, judged, worst
from attack.place import READERS, SYSTEM, copied, project
from nexuslab.run import checked

FULL = 10_000
NUMBERS = (0, 1, -1, 5, 10**9, 10**30, -10**400, 2.5, -0.0, 1e308, 5e-324)
WORDS = (
    "", "x", "start", "end", "saved", "best", "nan", "1", "train/loss", "\0", "é", "\ud800", "__proto__", "5" * 5000
)
KEYS = ("step", "epoch", "time", "attempt", "event", "train/loss", "val/loss", "val/", "/", "note", "check", "best",
        "manifest", "changes", "fingerprint", "reason", "system/memory", "")


def value(draw: Random, depth: int = 0) -> object:
    kind = draw.randrange(9 if depth < 3 else 6)
    if kind < 3:
        return draw.choice(NUMBERS)
    if kind < 6:
        return draw.choice((None, True, False, float("nan"), float("inf"), -float("inf"), draw.choice(WORDS)))
    if kind < 8:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice(KEYS): value(draw, depth + 1) for _ in range(draw.randrange(4))}


def row(draw: Random) -> bytes:
    """A line: a row with odd values, or no row at all; half of them carry the check that our own rows have."""
    kind = draw.randrange(6)
    if kind == 0:
        return draw.randbytes(draw.randrange(200)).replace(b"\n", b"")
    if kind == 1:
        return b"[" * draw.choice((1, 500, 50_000)) + b"1" * draw.choice((0, 5000))
    usual = {"step": draw.randrange(30), "epoch": 1.0, "time": 1e9 + draw.random(), "attempt": draw.randrange(3)}
    names = draw.sample(KEYS, draw.randrange(1, 6))
    found = (usual if kind < 5 else {}) | {name: value(draw) for name in names}
    text = json.dumps(found).encode()
    return checked(text) if draw.random() < 0.5 and found else text


def attacked(key: tuple) -> tuple[str, str]:
    """Put lines into the record of a run, and read it in every way."""
    draw = dice(*key)
    with copied(project()) as root:
        path = root / "runs" / SYSTEM / "sound" / "metrics.jsonl"
        lines = path.read_bytes().splitlines()
        for _ in range(draw.randrange(1, 6)):
            lines.insert(draw.randrange(len(lines) + 1), row(draw))
        path.write_bytes(b"\n".join(lines) + b"\n" * draw.randrange(2))
        return worst((reader, *judged(lambda reader=reader: str(READERS[reader](root)) and None))
                          for reader in ("history", "events", "follower", "row", "runs", "best", "plan"))


def cases(seed: int, count: int) -> Iterator[Case]:
    for number in range(count):
        yield Case(f"{number}: lines in metrics.jsonl", partial(attacked, ("records", seed, number)))
