"""Command lines of any words: done, or refused by name with exit status 2; a refused one writes nothing.

Jobs are asked for with `--dry-run`, so that no kernel is started. What a run would cost is measured for the toys
alone: the other systems' data take minutes.
"""
from collections.abc import Iterator
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from random import Random

from attack.driver import Altered, Case, dice
from attack.place import SYSTEM, copied, project
from nexuslab import views
from nexuslab.config import GONE, RENAMED, SHORT, fields_of
from nexuslab.jobs import main
from nexuslab.parameters import job_notebooks, parameters_of
from nexuslab.task import get_task

FULL = 10_000
LIMIT = 120.0  # a dry run of a system builds its data where they are missing
JOBS = ("prepare", "inspect", "train", "evaluate", "tune", "sample", "analyse", "compare")
WORDS = (
    "", " ", "-", "--", "-o", "-h", "%", "%s", "%(x)s", "[", "]", "{", "{}", "[]", "{a: 1}", "[1, 2]", "null", "~",
    "true",
    "false", "0", "1", "3", "-1", "0.5", "1e999", ".nan", "9" * 5000, "10", "x", "é", "\udcff", "\0", "\n", "a b",
    "a=b",
    "=", "a=", "=b", "model.hidden=8", "model.hidden=[", "lr=0.1", "optim.lr=0.1", "system=../../../esc", "name=a/b",
    SYSTEM, "toy_tokens", "circuits", "nosuch", "smoke", "base", "paper", "sound", "other", "last", "best", "last@best",
    "sound@step_5", "sound@nosuch", "step_5", "step_0", "..", "../..", "/", "/etc/passwd", "/dev/zero", "/dev/null",
    ".",
    "n" * 5000, "a/b", "val", "test", "train", "cpu", "cuda:99", "val/loss", "latent", "config.yaml", "&a [*a]",
    "!!set",
    "--help", "--dry-run", "--dry", "--no-dry-run", "-p", "--version", "@file", "*", "$HOME", "`id`", "; id",
    "<script>",
)


def option(draw: Random, verb: str) -> list[str]:
    """An option that the job has, or one that another program has, with or without a value."""
    names = list(parameters_of(job_notebooks()[verb])) if verb in JOBS else ["run", "system", "latest", "output"]
    kind = draw.randrange(10)
    keys = sorted(fields_of(type(get_task(SYSTEM).presets["smoke"]())))
    if kind < 3:
        return ["-o", f"{draw.choice([*keys, *SHORT, *RENAMED, 'nosuch'])}={draw.choice(WORDS)}"]
    name = draw.choice(names if kind < 9 else [*RENAMED, *GONE, *SHORT])
    flag = f"--{'no-' * (draw.random() < 0.1)}{name.replace('_', '-')}"
    return draw.choice(
        ([flag], [flag, draw.choice(WORDS)], [flag, draw.choice(WORDS)], [f"{flag}={draw.choice(WORDS)}"])
    )


def words_of(draw: Random) -> list[str]:
    """A command line."""
    verb = draw.choice([*JOBS, *JOBS, "runs", "report", "reproduce", *WORDS])
    found = [verb]
    if verb in JOBS:
        usual = {"train": ["--system", SYSTEM, "--preset", "smoke"], "evaluate": ["--run", "sound"]}
        usual |= dict.fromkeys(("prepare", "inspect", "tune"), usual["train"])
        usual |= dict.fromkeys(("sample", "analyse"), usual["evaluate"])
        found += usual.get(verb, []) * (draw.random() < 0.7)
    for _ in range(draw.randrange(4)):
        found += option(draw, verb) if draw.random() < 0.8 else [draw.choice(WORDS)]
    if verb in JOBS:
        found.insert(draw.randrange(1, len(found) + 1) if draw.random() < 0.1 else len(found), "--dry-run")
    return found


def state(root: Path) -> dict[str, tuple]:
    """The files of a project, with sizes and times; locks hold nothing."""
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in root.rglob("*")
            if not p.name.endswith(".lock") and p.is_file()}


def costs(task, cfg) -> dict[str, object]:
    """What a run would cost, for the toys."""
    return measured(task, cfg) if task.name.startswith("toy") else {}


measured = views.cost_of_run


def attacked(words: list[str]) -> str | None:
    """Say a command line, and look at what it answered, and at the files."""
    with copied(project()) as root, redirect_stderr(StringIO()) as told:
        before, code, refused, views.cost_of_run = state(root), 0, False, costs
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
        if code not in (0, 2):
            raise Altered(f"exit status {code}: {told.getvalue()[-300:]}")
        refused = code == 2
        if refused and ("Traceback" in told.getvalue() or "nexuslab" not in told.getvalue()):
            raise Altered(f"refused without a word of ours: {told.getvalue()[-300:]}")
        if refused and state(root) != before:
            raise Altered(f"refused, and wrote {sorted(set(state(root).items()) ^ set(before.items()))[:3]}")
        if outside := [p.name for p in root.parent.iterdir() if p.name.startswith("esc")]:
            raise Altered(f"wrote outside the project: {outside}")
    return "named" if refused else None


def cases(seed: int, count: int) -> Iterator[Case]:
    project()
    for number in range(count):
        words = words_of(dice("commands", seed, number))
        yield Case(f"{number}: nexuslab {words!r}"[:400], partial(attacked, words))
