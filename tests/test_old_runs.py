"""Run directories that version 0.1 wrote are listed, read, evaluated and resumed.

`runs_of_0.1.tar.gz` holds runs of the smoke presets, with small models: two stopped half-way by its last commit before
checkpoints were sealed, with their data, and a finished one of a model that is another one now. The machine's name and
the command are left out.
"""
import json
import tarfile
from pathlib import Path

import pytest

from nexuslab.checkpoint import read_checkpoint, step_name
from nexuslab.config import overlay
from nexuslab.core import CheckpointError, FormatError, read_json
from nexuslab.evaluate import evaluate, evaluation_table
from nexuslab.fit import fit
from nexuslab.run import Run, has_seals, left_out, runs_table
from nexuslab.task import get_task

ENDS = {"toy_tokens": (20, 2.3956256048696343), "collatz": (40, 6.607344150543213)}  # of that commit's undisturbed runs


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("old")
    with tarfile.open(Path(__file__).parent / "runs_of_0.1.tar.gz") as kept:
        kept.extractall(root, filter="data")
    return root


def test_old_runs_are_listed(old):
    table = runs_table(old)
    states = dict(zip(table.system, table.state))
    assert states == {"toy_tokens": "stopped", "collatz": "stopped", "circuits": "finished"}
    assert set(table.preset) == {"smoke"} and not table.remark.any()


@pytest.mark.parametrize("system", ENDS)
def test_an_old_run_goes_on_as_it_would_have(system, old):
    """Its figures come out again; resumed, it ends where the undisturbed run of its own version ended."""
    task, run, (steps, loss) = get_task(system), Run.open(f"{system}/0.1", old), ENDS[system]
    before = run.evaluation["val"]
    assert run.config.preset == "smoke" and "untrained" not in evaluation_table(run, "val")
    figures = evaluate(task, run, "val", "last")
    same = before["figures"].keys() & {"loss", "nll", "digits", "apex", "token_accuracy", "accuracy", "exact_match"}
    assert len(same) >= 3 and {k: figures[k] for k in same} == pytest.approx({k: before["figures"][k] for k in same})
    assert "untrained" in evaluation_table(run, "val")
    done = fit(task, run.config, run, resume="last")
    history = run.history()
    assert done.step == steps and history["val/loss"].dropna().iloc[-1] == pytest.approx(loss, rel=1e-5)
    assert history["step"].is_monotonic_increasing and history["step"].iloc[0] <= 5
    model, cfg, _ = run.load("best")
    assert cfg == run.config and evaluate(task, run)["loss"] > 0


def test_an_old_run_of_a_model_that_is_gone_is_read_and_its_weights_are_refused(old):
    """Configuration, curves and figures are shown; what asks the model says which version has it."""
    run = Run.open("circuits/0.1", old)
    assert run.config.model.hidden == 4
    assert run.history()["val/loss"].dropna().iloc[-1] == pytest.approx(20.34, rel=1e-3)
    assert evaluation_table(run).loc["loss", "model"] == pytest.approx(21.996667861938477)
    with pytest.raises(CheckpointError, match="reader.prefix(.|\n)*environment.json names"):
        run.load("best")


def test_an_old_run_keeps_its_best_checkpoint_and_figures(tmp_path):
    """Those of before it went on have no seals, and are known all the same; a new file without a seal is not."""
    with tarfile.open(Path(__file__).parent / "runs_of_0.1.tar.gz") as kept:
        kept.extractall(tmp_path, filter="data")
    run = Run.open("collatz/0.1", tmp_path)
    figures, cfg = run.evaluation, overlay(run.config, {"optim.lr": 300.0})
    done = fit(get_task("collatz"), cfg, run, resume="last")
    assert done.best_step == 20 and run.load("best") and run.evaluation == figures and has_seals(run)
    assert left_out(run) == "" and read_checkpoint(run.path / "checkpoints" / step_name(20)).seal is None
    assert fit(get_task("collatz"), run.config, run, resume="last").best_step == 20, "and once more"
    path = run.path / "evaluation.json"
    bare = {key: value for key, value in read_json(path).items() if key != "seal"}
    path.write_text(json.dumps(bare))
    with pytest.raises(FormatError, match="no seal, in a run that has seals"):
        run.evaluation
