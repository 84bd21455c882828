"""A short seed of every attack: no unnamed error, no hang, no figure that changes without a word. All: `make attack`.
"""
import io
import json
import os
import pickle
import subprocess
import time

import pytest
import torch
import yaml
from attack import hostile
from attack.__main__ import attacks
from attack.driver import LIMIT, Altered, Case, judged, report, run_cases, table, worst

from nexuslab.core import NexusError, RunError

SHORT = {"mutations": 60, "hostile": 40, "operations": 14, "configurations": 400, "texts": 300, "commands": 60,
         "records": 60}


@pytest.mark.xdist_group("attack")  # one project for all
@pytest.mark.parametrize("name", SHORT)
def test_short(name):
    module = attacks()[name]
    tally = run_cases(name, list(module.cases(1, SHORT[name])), 1, vars(module).get("LIMIT", LIMIT))
    report(tally)
    print(table([tally]))
    assert sum(tally.counts.values()) == SHORT[name] and not tally.faults


def raises(error: BaseException):
    raise error


def test_the_driver_notices():
    """Each kind of outcome is told from the others, and neither a hang nor a death ends the cases after it."""
    sound = lambda: None
    cases = [
        Case("same", sound), Case("named", lambda: raises(RunError("x", remedy="y"))),
        Case("no remedy", lambda: raises(NexusError("x"))), Case("unnamed", lambda: raises(KeyError("x"))),
        Case("altered", lambda: raises(Altered("x"))), Case("hang", lambda: time.sleep(60)),
        Case("killed", lambda: os.kill(os.getpid(), 9)),
        Case("memory", lambda: bytearray(2**40) and None), Case("refused", lambda: raises(SystemExit(2))),
        Case("judged", lambda: ("altered", "told")), Case("after", sound),
    ]
    tally = run_cases("driver", cases, 0, limit=1)
    assert {f.name: f.kind for f in tally.faults} == {
        "no remedy": "unnamed", "unnamed": "unnamed", "altered": "altered", "hang": "hang", "killed": "unnamed",
        "memory": "unnamed", "judged": "altered"}
    assert tally.counts["same"] == 2 and tally.counts["named"] == 2 and "driver" in table([tally])
    assert worst([("a", "same", ""), ("b", "hang", "x"), ("c", "named", "y")]) == ("hang", "b: x")
    assert judged(lambda: raises(SystemExit(3)))[0] == "unnamed"


def test_payloads_run_where_files_may_carry_code():
    """Unpickled, read by an unsafe loader, evaluated: what the attack looks for is made then."""
    runs = (pickle.loads, lambda data: torch.load(io.BytesIO(data), weights_only=False), yaml.unsafe_load,
            yaml.unsafe_load, eval, lambda data: exec(json.loads(data)["cells"][0]["source"]),
            lambda data: subprocess.run(data, shell=True))
    for run, data in zip(runs, hostile.programs(), strict=True):
        run(data)
        assert hostile.CANARY.is_dir(), data
        hostile.CANARY.rmdir()
