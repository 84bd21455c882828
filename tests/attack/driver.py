"""Runs cases in forked children with limits of time and memory, judges what came of each, and counts."""
import faulthandler
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from typing import IO, NamedTuple

import psutil

from nexuslab.core import NexusError

KINDS = ("same", "named", "unnamed", "hang", "altered")  # from the best to the worst
GIB = 2**30
MEMORY = 3 * GIB  # that a child may take beyond what it began with
LIMIT = 30.0  # seconds of a case


class Altered(AssertionError):
    """A figure, a file or a result that is another one without a word about it."""


class Case(NamedTuple):
    """One attack: `run` gives "same" or "named", or raises what is judged."""

    name: str
    run: Callable[[], str | None | tuple[str, str]]  # or a kind and what was said, if it has judged itself


class Found(NamedTuple):
    """What came of a case."""

    name: str
    kind: str
    said: str  # of the error; empty where there was none


@dataclass
class Tally:
    """The outcomes of an attack."""

    attack: str
    seed: int
    counts: Counter = field(default_factory=Counter)
    faults: list[Found] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, found: Found) -> None:
        self.counts[found.kind] += 1
        if found.kind not in ("same", "named"):
            self.faults.append(found)

    def row(self) -> dict[str, object]:
        """A row of the table."""
        told = {kind: self.counts[kind] for kind in KINDS}
        return {"attack": self.attack, "cases": sum(self.counts.values())} | told | {
            "seconds": round(self.seconds, 1), "seed": self.seed}


def dice(*keys: object) -> random.Random:
    """A generator of a case's own, so that any one case can be made again without the others."""
    return random.Random("|".join(map(str, keys)))


# ---- one case


def judged(run: Callable[[], str | None | tuple[str, str]]) -> tuple[str, str]:
    """The outcome of a call, and what it said. An error counts as named if it is ours and says what to do."""
    try:
        came = run() or "same"
        return came if isinstance(came, tuple) else (came, "")
    except Altered as error:
        return "altered", str(error)
    except NexusError as error:
        return ("named", str(error)) if error.remedy else ("unnamed", f"no remedy: {error!r}")
    except SystemExit as ended:  # argparse's way to refuse
        return ("named", "") if ended.code == 2 else ("unnamed", f"exit {ended.code}")
    except BaseException as error:  # whatever it is, it is the attack's result
        places = traceback.extract_tb(error.__traceback__)
        own = [f"{p.filename.rsplit('/', 1)[-1]}:{p.lineno} {p.name}" for p in places if "/nexuslab/" in p.filename]
        return "unnamed", f"{type(error).__name__}: {str(error)[:300]} [{' < '.join(own[:-4:-1])}]"


def shown_by(reader: Callable[[], object]) -> tuple[str, bool]:
    """What a reader shows, as text, and whether a warning, a mark or a remedy says that something is damaged."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        text = repr(reader())
    told = any(issubclass(w.category, UserWarning) for w in caught)
    return text, told or "damaged" in text or "nexuslab doctor" in text


def compared(reader: Callable[[], object], expected: str) -> str:
    """"same" if a reader shows what it showed before, "named" if it says why it does not; else it is altered."""
    text, told = shown_by(reader)
    if text == expected:
        return "same"
    if told:
        return "named"
    place = next((i for i, (a, b) in enumerate(zip(text, expected)) if a != b), min(len(text), len(expected)))
    low = max(0, place - 60)
    raise Altered(f"{text[low : place + 60]!r} and not {expected[low : place + 60]!r}")


def worst(outcomes: Iterable[tuple[str, str, str]]) -> tuple[str, str]:
    """The worst of several readers' outcomes (reader, kind, words), with the words of all that are as bad."""
    found = list(outcomes)
    kind = max((k for _, k, _ in found), key=KINDS.index, default="same")
    return kind, "; ".join(f"{reader}: {said}" for reader, k, said in found if k == kind and said)


# ---- children


def limit_memory() -> None:
    """A case that asks for too much gets a MemoryError, and not the whole machine."""
    now = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def child(cases: list[Case], first: int, out: int, limit: float, where: IO) -> None:
    """Run cases from `first` on, and write a line about each; one that takes too long writes down where it is."""
    limit_memory()
    for case in cases[first:]:
        faulthandler.dump_traceback_later(0.8 * limit, file=where)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            try:
                kind, said = judged(case.run)
            except MemoryError:
                kind, said = "unnamed", "no memory is left"
        os.write(out, json.dumps([kind, said[:2000]]).encode() + b"\n")


def start(cases: list[Case], first: int, limit: float, where: IO) -> tuple[int, int]:
    """Fork a child for the cases from `first` on; its process id, and where its lines arrive."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid:
        os.close(send)
        return pid, receive
    try:
        os.close(receive)
        os.setpgid(0, 0)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        child(cases, first, send, limit, where)
    finally:
        os._exit(0)


def at_work(pid: int) -> float | None:
    """The processor time [s] of a child that is running or could run; None of one that waits for something."""
    process = psutil.Process(pid)
    times = process.cpu_times()
    return times.user + times.system if process.status() == psutil.STATUS_RUNNING else None


def end(pid: int, receive: int, killed: bool) -> str:
    """Wait for a child, with whatever it started; how it ended."""
    if killed:
        os.killpg(pid, signal.SIGKILL)
    os.close(receive)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return f"the process was killed by signal {-code}" if code < 0 else f"the process ended with status {code}"


def run_cases(
    attack: str, cases: list[Case], seed: int, limit: float = LIMIT, tell: Callable = lambda found: None
) -> Tally:
    """Run all cases; one that hangs, or takes its process with it, ends no other."""
    tally, began, done = Tally(attack, seed), time.perf_counter(), 0
    while done < len(cases):
        where = tempfile.TemporaryFile("w+")
        pid, receive = start(cases, done, limit, where)
        text, why, spent = b"", "", 0.0
        while done < len(cases):
            if b"\n" in text:
                line, _, text = text.partition(b"\n")
                tally.add(Found(cases[done].name, *json.loads(line)))
                tell(tally)
                done, spent = done + 1, at_work(pid) or 0.0
            elif not select.select([receive], [], [], limit)[0]:
                if (now := at_work(pid)) is not None and now - spent < limit:
                    continue  # others take the processor
                why = "hang"
                break
            else:
                more = os.read(receive, 1 << 16)
                text += more
                if not more:
                    break
        ended = end(pid, receive, killed=bool(why))
        if done < len(cases):
            where.seek(0)
            said = f"no end within {limit:g} s: {' < '.join(where.read().split(chr(10))[1:12])}" if why else ended
            tally.add(Found(cases[done].name, why or "unnamed", said))
            done += 1
    tally.seconds = time.perf_counter() - began
    return tally


# ---- the table


def table(tallies: list[Tally]) -> str:
    """All attacks, one a line."""
    rows = [tally.row() for tally in tallies]
    widths = {k: max(len(k), *(len(str(r[k])) for r in rows)) for k in rows[0]}
    line = lambda values: "  ".join(str(v).rjust(widths[k]) if k != "attack" else str(v).ljust(widths[k])
                                    for k, v in zip(widths, values))
    return "\n".join([line(widths), *(line(row.values()) for row in rows)])


def report(tally: Tally, most: int = 40) -> None:
    """The faults of an attack, grouped by what was said."""
    groups: dict[str, list[Found]] = {}
    for found in tally.faults:
        groups.setdefault(f"{found.kind} | {found.said[-160:]}", []).append(found)
    for alike in sorted(groups.values(), key=len, reverse=True)[:most]:
        print(f"{len(alike)} x {alike[0].kind}: {alike[0].said[:700]}\n    as in: {alike[0].name}", file=sys.stderr)
