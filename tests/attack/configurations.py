"""Configuration trees of any keys and values: resolved, or refused by name; what is resolved comes back from its YAML.
"""
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random

import yaml

from attack.driver import Altered, Case, dice
from attack.place import SYSTEM, folder, project
from nexuslab.config import RENAMED, SHORT, Config, fields_of, overlay, put, resolve, sections_of, validated
from nexuslab.core import parse_yaml, plain
from nexuslab.task import get_task

FULL = 10_000
LIMIT = 10.0
SYSTEMS = (SYSTEM, "toy_tokens", "collatz", "circuits")
VALUES = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**400, 0.0, -0.0, 0.5, 1e-300, 1e308, float("nan"), float("inf"),
    -float("inf"), "", " ", "x", "auto", "cpu", "cuda:99", "base", "smoke", "none", "null", "1", "1e-3", "../..", "a/b",
    "\0", "\x85", "\u2028", "\ud800", "é" * 50, "n" * 5000, b"x", b"\xff", (), (0.9, 0.999), [], [1], [[1]],
    ["a"] * 1000,
    {}, {"a": 1}, {1: 2}, {None: None}, {"a": {"b": {"c": 1}}}, {"lr": 1}, {"": 1}, {"__proto__": {"x": 1}}, set(),
    {1.5}, 1j, object, Path("x"),
)
ODD = ("", ".", "..", "a.b.c.d", "model.", ".model", "optim.lr.x", "__class__", "__proto__", "model_config",
       "model_fields", "MODEL", "sistem", "é", "\0", "x" * 5000, 3, None, True, 1.5, ("a",), b"x")


def key_of(draw: Random, cls: type[Config]) -> object:
    """A key that exists, in one of its spellings, or one that does not."""
    names = draw.choice((sorted(fields_of(cls)), sorted(fields_of(cls)), sorted(SHORT), sorted(RENAMED),
                         sorted(sections_of(cls)), ODD))
    return draw.choice(names)


def nested(deep: int) -> object:
    value: object = 1
    for _ in range(deep):
        value = {"a": value}
    return value


def near(draw: Random, value: object) -> object:
    """A value like that which stands there: of its kind, and often a legal one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.choice((value, value + 1, 2 * value, max(1, value // 2)))
    if isinstance(value, float):
        return value * draw.choice((0.5, 0.9, 1.0, 1.5))
    return list(value) if isinstance(value, tuple) else value


def sensible(draw: Random) -> str | None:
    """Change a few keys a little, by overrides or as a file: each has the new value then, and comes back with it."""
    task = get_task(draw.choice(SYSTEMS))
    preset = draw.choice(sorted(task.presets))
    base = task.presets[preset]()
    names = sorted(key for key in fields_of(type(base)) if key not in ("system", "preset"))
    changes = {}
    for name in draw.sample(names, draw.choice((1, 1, 2, 3))):
        with suppress(KeyError, TypeError):  # a key of a section that is absent here
            changes[name] = near(draw, value_at(base.tree(), name))
    if draw.random() < 0.5:
        cfg = resolve(task, preset, changes)
    else:
        file = folder("configurations") / "asked.yaml"
        file.write_text(yaml.safe_dump(changes), encoding="utf-8")
        cfg = resolve(task, preset, file=file)
    for name, value in changes.items():
        if plain(value_at(cfg.tree(), name)) != plain(value):
            raise Altered(f"{name}: {value!r} was asked for, {value_at(cfg.tree(), name)!r} is set, of {changes!r}")
    return comes_back(cfg, changes)


def value_at(tree: dict, name: str) -> object:
    for part in name.split("."):
        tree = tree[part]
    return tree


def comes_back(cfg: Config, changes: dict) -> None:
    """A configuration that was resolved is read again from its YAML."""
    if validated(type(cfg), parse_yaml(cfg.yaml())).yaml() != cfg.yaml():  # NaN is not equal to itself
        raise Altered(f"{changes!r} comes back otherwise from its own YAML")


def attacked(key: tuple) -> str | None:
    """Resolve random changes of a random system, by overrides, as a file or as a whole tree; half of them sensible."""
    draw = dice(*key)
    if draw.random() < 0.5:
        return sensible(draw)
    task = get_task(draw.choice(SYSTEMS))
    preset = draw.choice([*task.presets, *task.presets, "nosuch", None])
    base = task.presets["smoke"]()
    way = draw.randrange(3)
    deep = nested(200 if way == 2 else 2000)  # a tree is copied before it is judged
    changes = {key_of(draw, type(base)): draw.choice(VALUES) if draw.random() < 0.98 else deep
               for _ in range(draw.randrange(1, 5))}
    if way == 0:
        cfg = resolve(task, preset, changes)
    elif way == 1:
        cfg = overlay(base, changes)
    else:
        tree = base.tree()
        for name, value in changes.items():
            put(tree, name, value) if isinstance(name, str) else tree.update({name: value})
        cfg = validated(type(base), tree)
    return comes_back(cfg, changes)


def cases(seed: int, count: int) -> Iterator[Case]:
    project()
    for number in range(count):
        yield Case(f"{number}: a configuration", partial(attacked, ("configurations", seed, number)))
