"""A stranger's file in the place of one of ours: of another kind, too large, too deep, in another encoding, with lies.
"""
import contextlib
import functools
import io
import json
import os
import pickle
import re
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

import h5py
import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from attack.driver import Altered, Case, compared, dice, judged, worst
from attack.place import READERS, copied, files, known, project
from nexuslab.core import SEAL, digest
from nexuslab.store import arrays_digest
from nexuslab.run import checked
from nexuslab.tune import link

FULL = 300
NOBODY = 65534  # a user without rights
HOSTILE_VALUES = (None, True, -1, 10**400, 2.5, 1e308, "", "x", "../..", "\0", "<script>1</script>", "__proto__", [],
                  [[]], {}, {"__proto__": {"x": 1}}, {"a": [1]}, "n" * 5000)


# ---- any file


def empty(path: Path, draw: Random) -> None:
    path.write_bytes(b"")


def folder(path: Path, draw: Random) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path, draw: Random) -> None:
    path.unlink()
    os.mkfifo(path)


def a_socket(path: Path, draw: Random) -> None:
    path.unlink()
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def dangling(path: Path, draw: Random) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def circular(path: Path, draw: Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def device(path: Path, draw: Random) -> None:
    path.unlink()
    path.symlink_to(draw.choice(("/dev/zero", "/dev/null", "/dev/full", "/proc/self/mem")))


def forbidden(path: Path, draw: Random) -> None:
    path.chmod(0)


def sparse(path: Path, draw: Random) -> None:
    os.truncate(path, 2**36)


def nul_bytes(path: Path, draw: Random) -> None:
    path.write_bytes(bytes(draw.choice((1, 100, 10_000))))


def encoded(path: Path, draw: Random) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    path.write_bytes(("é" + text).encode(draw.choice(("utf-16", "latin-1", "utf-8-sig", "utf-32", "cp037")), "replace"))


def marked(path: Path, draw: Random) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def deep(path: Path, draw: Random) -> None:
    opening, closing = draw.choice((("[", "]"), ('{"a":', "}"), ("- ", "")))
    count = draw.choice((150, 5000, 200_000))
    path.write_bytes((opening * count + "1" + closing * count).encode())


def digits(path: Path, draw: Random) -> None:
    number = draw.choice(("9" * 5000, "1e999", "0x" + "f" * 5000, "NaN", "-Infinity", ".inf", "2026-02-30"))
    path.write_text(draw.choice((f'{{"step": {number}}}\n', f"step: {number}\n", number)))


def bomb(path: Path, draw: Random) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    path.write_text(draw.choice(("\n".join(lines), "&a [*a]", "&a {a: *a}", "a: &a\n  <<: *a\n")))


def twice(path: Path, draw: Random) -> None:
    text = path.read_text(encoding="utf-8", errors="replace")
    path.write_text(draw.choice((text + text, '{"step": 1, "step": 2}', "system: a\nsystem: b\n")))


CANARY = Path(tempfile.gettempdir()) / f"nexuslab-canary-{os.getpid()}"  # what a payload makes when it runs


class Payload:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (str(CANARY),)


def programs() -> list[bytes]:
    """Code in the forms in which files carry it: pickles, torch's own, YAML's tags, Python, a notebook, a shell's."""
    saved = io.BytesIO()
    torch.save({"weights": torch.zeros(2), "x": Payload()}, saved)
    python = f"__import__('os').mkdir({str(CANARY)!r})"
    cell = {"cell_type": "code", "source": python, "outputs": [], "metadata": {}, "execution_count": None, "id": "a"}
    book = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    tag = f"!!python/object/apply:os.mkdir [{CANARY}]\n"
    return [pickle.dumps(Payload()), saved.getvalue(), tag.encode(), f"system: {tag}preset: base\n".encode(),
            python.encode(), json.dumps(book).encode(), f"$(mkdir {CANARY})`mkdir {CANARY}`\n".encode()]


def program(path: Path, draw: Random) -> None:
    path.write_bytes(draw.choice(programs()))


ANY = (empty, folder, fifo, a_socket, dangling, circular, device, forbidden, sparse, nul_bytes, encoded, marked, deep,
       digits, bomb, twice, program, program)
HOSTILE_VALUES += (f"__import__('os').mkdir({str(CANARY)!r})", f"!!python/object/apply:os.mkdir [{CANARY}]")


# ---- of a kind


def wrong_key(path: Path, draw: Random) -> None:
    """A value of another type at some key, sealed as we seal it, or not at all."""
    read, write = (yaml.safe_load, yaml.safe_dump) if path.suffix == ".yaml" else (json.loads, json.dumps)
    value = read(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        return empty(path, draw)
    node, seal = value, value.pop(SEAL, None)
    while True:
        key = draw.choice(list(node))
        if not (isinstance(node[key], dict) and node[key] and draw.random() < 0.7):
            break
        node = node[key]
    kind = draw.randrange(4)
    if kind == 0:
        del node[key]
    else:
        node[draw.choice(("__proto__", "../x", "")) if kind == 1 else key] = draw.choice(HOSTILE_VALUES)
    path.write_text(write(value | ({SEAL: digest(value, 64)} if seal and draw.random() < 0.7 else {})))
    return None


def lying_row(path: Path, draw: Random) -> None:
    """Rows of a record with values of another type, with checks as we make them, or without."""
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    for row in draw.sample(rows, 3):
        row[draw.choice(list(row))] = draw.choice(HOSTILE_VALUES)
    for row in rows:
        row.pop("check", None)
    forged = draw.random() < 0.7
    path.write_bytes(b"".join((checked(t) if forged else t) + b"\n" for t in (json.dumps(r).encode() for r in rows)))


def lying_header(path: Path, draw: Random) -> None:
    """Safetensors whose header lies about sizes, places or types."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    name = draw.choice([k for k in header if k != "__metadata__"] or ["x"])
    entry = header.setdefault(name, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})
    way = draw.randrange(8)
    if way == 0:
        path.write_bytes(struct.pack("<Q", draw.choice((2**63, 2**40, 0, size + 1))) + data[8:])
        return
    changes = {1: {"dtype": draw.choice(("F64", "F16", "X9", 3, None))}, 2: {"shape": [-1]}, 3: {"shape": [2**62, 4]},
               4: {"data_offsets": [0, 2**62]}, 5: {"data_offsets": [4, 0]}, 6: {"shape": "x"},
               7: {"shape": [2**31] * 9}}
    entry.update(changes[way])
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data[8 + size :])


def other_tensors(path: Path, draw: Random) -> None:
    """Sound safetensors of somebody else's model."""
    tensors = load_file(path)
    kinds = (torch.float64, torch.int8, torch.bool, torch.bfloat16)
    way = draw.randrange(4)
    other = {k: v.to(draw.choice(kinds)) if way == 0 else torch.zeros(3) if way == 1 else v for k, v in tensors.items()}
    if way == 2:
        other = {f"__proto__.{k}": v for k, v in other.items()}
    save_file(other | ({"../x": torch.full((2,), float("nan"))} if way == 3 else {}), path)


def resealed(path: Path, change: Callable[[Path, Random], None], draw: Random) -> None:
    """Change a file of a checkpoint, and make the manifest agree with it, as a forger would."""
    change(path, draw)
    manifest = path.with_name("manifest.json")
    if path.is_file() and manifest != path:
        told = json.loads(manifest.read_text(encoding="utf-8"))
        told.pop(SEAL, None)
        told["files"][path.name] = digest(path.read_bytes(), 64)
        told["format"] = draw.choice((1, 2))
        manifest.write_text(json.dumps(told | ({SEAL: digest(told, 64)} if told["format"] == 2 else {})))


def other_state(path: Path, draw: Random) -> None:
    """A state of a checkpoint that is no state."""
    path.write_text(json.dumps(draw.choice((
        3, [], {"items": 3}, {"list": [{"plain": 1}]}, {"tensor": "x"}, {"items": [["progress", {"plain": None}]]},
        {"items": [["a"]]}, {"float": "x"}, {"float": 3}, {"a": 1, "b": 2}, {"items": [[["x"], {"plain": 1}]]}, None))))


def store_of(path: Path, fill: Callable[[h5py.File], None], keep: bool = True) -> None:
    """A dataset that somebody else wrote, with our manifest."""
    with h5py.File(path, "r") as file:
        manifest, held = file.attrs["manifest"], {k: file[k][()] for k in file}
    path.unlink()
    with h5py.File(path, "w") as file:
        if keep:
            file.attrs["manifest"] = manifest
            for name, array in held.items():
                file[name] = array
        fill(file)
        with contextlib.suppress(Exception):  # a digest of what was put there, where it can have one
            arrays = {k: file[k][()] for k in file}
            counts = {k: list(array.shape) for k, array in arrays.items()}
            told = json.loads(file.attrs["manifest"]) | {"digest": arrays_digest(arrays), "counts": counts}
            file.attrs["manifest"] = json.dumps(told)


def other_store(path: Path, draw: Random) -> None:
    """HDF5 with links, groups, types and manifests that are not ours."""
    def put(name: str, value: object) -> Callable[[h5py.File], None]:
        def fill(file: h5py.File) -> None:
            if name in file:
                del file[name]
            file[name] = value
        return fill

    def attribute(value: object) -> Callable[[h5py.File], None]:
        return lambda file: file.attrs.__setitem__("manifest", value)

    with h5py.File(path, "r") as file:
        name = draw.choice(sorted(file))
    pair = np.zeros(3, [("a", "i4"), ("b", "f8")])
    ways = (
        put(name, h5py.ExternalLink("/etc/passwd", "/x")), put(name, h5py.SoftLink(f"/{name}")), put(name, pair),
        put(name, h5py.SoftLink("/nowhere")), put(name, "text"), put(name, 1.0), put(name, np.zeros((0, 3))),
        put(name, np.full(7, np.nan)), put(name, np.array([2**60, -1])), put("../x", 1.0), put("__proto__", [1.0]),
        put(name, np.array([b"a", b"b"])), put(name, h5py.Empty("f4")), put("extra", np.arange(4)),
        lambda file: (file.pop(name), file.create_group(name)),
        lambda file: (file.pop(name), file.create_dataset(name, (2**40,), "f8", chunks=True)),
        attribute("{"), attribute("[]"), attribute("3"), attribute(3), attribute("{}"), attribute('{"digest": 3}'),
        attribute(np.zeros(4)), attribute("[" * 100_000), attribute(b"\xff"), attribute(h5py.Empty("f4")),
    )
    store_of(path, draw.choice(ways), keep=draw.random() < 0.9)


def other_notebook(path: Path, draw: Random) -> None:
    """A notebook that is none."""
    texts = ('{"cells": 3}', '{"cells": [3], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "[]",
             '{"nbformat": 99}',
             '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code", "outputs": [3]}]}',
             '{"worksheets": [], "nbformat": 3, "nbformat_minor": 0}')
    path.write_text(draw.choice(texts))


def other_journal(path: Path, draw: Random) -> None:
    """A journal with operations that are none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    odd = ('{"op_code": 99}', '{"op_code": 6, "trial_id": 99, "state": 1, "values": [0.0]}', "{}", "[]", "{", "3",
           '{"op_code": 0, "worker_id": "x", "study_name": "study", "directions": [1]}', '{"op_code": "x"}')
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(odd))
    if draw.random() < 0.7:  # chained anew, as a forger would
        check = ""
        for number, text in enumerate(lines):
            bare = re.sub(r',"check":"[0-9a-f]{8}"}$', "}", text)
            check = link(bare, check)
            lines[number] = f'{bare[:-1]},"check":"{check}"}}'
    path.write_text("\n".join(lines) + "\n")


def ways_of(name: str) -> list[Callable[[Path, Random], None]]:
    """What can stand in the place of a file."""
    path = Path(name)
    own: dict[str, tuple] = {
        ".yaml": (wrong_key,), ".safetensors": (lying_header, other_tensors), ".h5": (other_store,),
        ".ipynb": (other_notebook,), ".jsonl": (lying_row,), ".log": (other_journal,),
        ".json": (other_state,) if path.name == "state.json" else (wrong_key,),
    }
    found = list(own.get(path.suffix, ())) * 6
    if "checkpoints/step_" in name and path.name != "manifest.json":
        found = [*found, *(functools.partial(resealed, change=change) for change in found)]
    return [*ANY, *found]


# ---- a case


def attacked(name: str, way: Callable, key: tuple) -> tuple[str, str]:
    """Put a hostile file in the place of one of ours, and read with all that read it."""
    with copied(project()) as root:
        way(root / name, draw=dice(*key))
        if way is forbidden:
            rights(root)
        found = worst(
            (reader, *judged(lambda reader=reader, expected=expected: expected_or_told(reader, root, expected, way)))
            for reader, (expected, opened) in known().items() if name in opened)
        if CANARY.exists():
            CANARY.rmdir()
            raise Altered("a file ran code")
        return found


def expected_or_told(reader: str, root: Path, expected: str, way: Callable) -> str:
    """A forger can write what he likes into a file that carries no secret: what he wrote is shown, without a crash."""
    if way in ANY:
        return compared(partial(READERS[reader], root), expected)
    READERS[reader](root)
    return "same"


def rights(root: Path) -> None:
    """Give up the rights of the superuser, who may read everything, for the rest of this process's case."""
    if os.geteuid() == 0:
        for path in (root, *root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)


def given_back(name: str, way: Callable, key: tuple) -> tuple[str, str]:
    """The case, and the rights of before."""
    user = os.geteuid()
    try:
        return attacked(name, way, key)
    finally:
        os.seteuid(user)


def cases(seed: int, count: int) -> Iterator[Case]:
    names = [n for n in files(project()) if any(n in opened for _, opened in known().values())]
    for number in range(count):
        key = ("hostile", seed, number)
        draw = dice(*key, "way")
        name = names[number % len(names)]
        way = draw.choice(ways_of(name))
        told = way.__name__ if not isinstance(way, functools.partial) else f"resealed {way.keywords['change'].__name__}"
        yield Case(f"{number}: {told} in {name}", partial(given_back, name, way, (*key, "what")))
