"""What all tests share: the toys on the path, a project root of their own, one thread."""
import contextlib
import io
import json
import os
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parent
TOYS = HERE / "toys"

sys.path.insert(0, str(TOYS))
# This checkout comes first in the processes that tests start: PYTHONPATH may name another one.
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TOYS), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["MPLBACKEND"] = "agg"
os.environ["WANDB_SILENT"] = "true"
torch.set_num_threads(1)
# The suite draws the same examples every time; --hypothesis-profile=default draws new ones, as `make attack` does.
hypothesis.settings.register_profile("suite", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("suite")

# Files whose tests take longest, as --durations=0 lists them: they start first, so that no worker ends alone.
LONGEST = ("test_docs", "test_resume", "test_signals", "test_launch", "test_jobs", "test_dashboard", "test_faults")


@pytest.hookimpl(tryfirst=True)  # xdist writes the groups into the ids of the tests in its own hook
def pytest_collection_modifyitems(items):
    """Let the long files start first, in their order; what a fixture makes for a file is made by one worker."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))
    for item in items:
        made = [found[-1] for found in item._fixtureinfo.name2fixturedefs.values()]
        shared = any(f.scope == "module" and f.func.__module__ == item.module.__name__ for f in made)
        if shared and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.fixture(autouse=True, scope="session")
def single_precision():
    """Precision auto is fp32 on every processor: what tests compare is computed so; those of bf16 ask for it."""
    import nexuslab.setup  # late: some tests need no torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nexuslab.setup, "has_bf16_units", lambda device: False)
        yield


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project root of the test's own: data/ and runs/ go there."""
    monkeypatch.setenv("NEXUSLAB_HOME", str(tmp_path))
    monkeypatch.delenv("NEXUSLAB_REPORT", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """One JupyterLab and one page for all tests that need them."""
    from browser import open_lab  # late: most tests need no browser

    with open_lab(tmp_path_factory.mktemp("lab")) as opened:
        yield opened


@pytest.fixture
def no_kernel(monkeypatch):
    """Jobs of the command are examined here and executed in a fork: seconds less than with a kernel."""
    from kills import execute, in_child  # late: few tests need them

    from nexuslab import core, jobs, kernels

    def run_job(verb, parameters, quiet=False, address=None):
        if refusal := kernels.refusal_of(verb, parameters):
            raise getattr(core, refusal[0])(*refusal[1:])
        code, said = in_child(lambda: told(verb, parameters, address))
        if code:
            raise core.NexusError(f"the job {verb} failed", found=said)
        print(json.loads(said))
        return kernels.place_of(address)

    def told(verb, parameters, address):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            execute(verb, parameters, address)
        return printed.getvalue()

    monkeypatch.setattr(jobs, "run_job", run_job)
