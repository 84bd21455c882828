"""A random change of the bytes of any file of a run directory, a dataset, a study or a cache; then every reader of it.
"""
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

from attack.driver import Case, compared, dice, judged, worst
from attack.place import READERS, copied, files, known, project

FULL = 10_000


def flip(data: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]


def write(data: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + draw.choice(b"0123456789.-\"{}[],:\n \0\xff").to_bytes(1, "big") + data[place + 1 :]


def delete(data: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(data))
    return data[:place] + data[place + draw.choice((1, 1, 2, 16, 512)) :]


def insert(data: bytes, draw: Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.randbytes(draw.choice((1, 1, 4, 512))) + data[place:]


def truncate(data: bytes, draw: Random) -> bytes:
    return data[: draw.randrange(len(data))]


def swap(data: bytes, draw: Random) -> bytes:
    size = draw.choice((1, 8, 64, 512))
    if len(data) < 2 * size:
        return data[::-1]
    one = draw.randrange(len(data) - 2 * size + 1)
    two = draw.randrange(one + size, len(data) - size + 1)
    return data[:one] + data[two : two + size] + data[one + size : two] + data[one : one + size] + data[two + size :]


def zeros(data: bytes, draw: Random) -> bytes:
    size, place = draw.choice((8, 64, 512, 4096)), draw.randrange(len(data))
    return data[:place] + bytes(len(data[place : place + size])) + data[place + size :]


def line(data: bytes, draw: Random) -> bytes:
    """A line less, or one twice."""
    lines = data.splitlines(keepends=True)
    place = draw.randrange(len(lines))
    return b"".join(lines[:place] + lines[place : place + 1] * draw.choice((0, 2)) + lines[place + 1 :])


WAYS = (flip, flip, write, delete, insert, truncate, swap, zeros, line)


def attacked(name: str, way, key: tuple) -> tuple[str, str]:
    """Change one file, and read with all that read it."""
    with copied(project()) as root:
        path, draw = root / name, dice(*key)
        data = path.read_bytes()
        changed = way(data, draw)
        return worst(verdicts(root, name) if write_bytes(path, changed) != data else [])


def write_bytes(path: Path, data: bytes) -> bytes:
    path.write_bytes(data)
    return data


def verdicts(root: Path, name: str) -> Iterator[tuple[str, str, str]]:
    """What each reader of a file makes of it."""
    for reader, (expected, opened) in known().items():
        if name in opened:
            yield reader, *judged(lambda reader=reader, expected=expected: compared(
                partial(READERS[reader], root), expected))


def cases(seed: int, count: int) -> Iterator[Case]:
    """Every file in turn, so that small ones are met as often as large ones."""
    names = [n for n in files(project()) if any(n in opened for _, opened in known().values())]
    for number in range(count):
        key = ("mutations", seed, number)
        name = names[number % len(names)]
        way = dice(*key, "way").choice(WAYS)
        yield Case(f"{number}: {way.__name__} in {name}", partial(attacked, name, way, (*key, "what")))
