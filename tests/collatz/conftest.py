"""One small training that the tests of this system share."""
import pytest

from nexuslab.config import resolve
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.systems.collatz.task import TASK


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Run:
    """A hundred steps of a causal decoder whose outputs stop at an end token, evaluated; shared, not to be changed."""
    root = tmp_path_factory.mktemp("collatz")
    changes = {
        "model.kind": "causal", "data.ending": "end", "loss.apex": 0.0, "data.base": 10, "data.test_size": 250,
        "steps": 100, "eval_every": 50, "batch_size": 32, "loader.eval_batch_size": 250, "threads": 1,
    }
    cfg = resolve(TASK, "smoke", changes)
    run = fit(TASK, cfg, Run.create(cfg, root)).run
    evaluate(TASK, run)
    return run
