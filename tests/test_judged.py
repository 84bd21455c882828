"""What an evaluation says of a figure: its direction, its arithmetic, and whether it was measured at all."""
import math

import pytest
from tiny import points
from torch import nn
from torchmetrics import MeanMetric, MeanSquaredError

from nexuslab.config import Config, overlay
from nexuslab.core import ConfigError, ModelError
from nexuslab.evaluate import REACHED, evaluate, evaluation_table, files_of
from nexuslab.fit import fit
from nexuslab.own import OwnTask
from nexuslab.run import Run
from nexuslab.task import get_task
from nexuslab.views import render_views

FIGURES = {  # figure -> of the untrained model, of a trained one
    "recall": (0.9, 0.4), "precision": (0.2, 0.8), "slope": (1.02, 1.3), "cost": (7.0, 9.0), "steps": (3.0, 8.0),
}
WAYS = {"rec*": "max", "precision": "max", "slope": 1.0, "cost": "min"}  # nobody says of steps which way is better


class Judged(OwnTask):
    """A line whose examined figures are those of a table, and say whether the model was trained."""

    said = WAYS

    def examine(self, model, splits, split, cfg, at):
        return {name: values[at.step > 0] for name, values in FIGURES.items()}

    def directions(self, cfg):
        return self.said


def squared(model, batch):
    answer = model(batch[0])
    return (answer - batch[1]).square().mean(), {"error": (answer, batch[1])}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A task with a metric that no step feeds, and its run in bf16."""
    base = overlay(Config(system="judged"), {"epochs": 8, "batch_size": 8, "precision": "bf16", "lr": 0.3})
    task = Judged("judged", lambda: nn.Linear(3, 1), squared, points(32, 1), points(8, 2), base,
                  metrics=lambda: {"error": MeanSquaredError(), "idle": MeanMetric()})
    with pytest.warns(UserWarning, match="never fed by the step, and left out: metric idle"):
        run = fit(task, base, Run.create(base, tmp_path_factory.mktemp("judged"))).run
    return task, run


def test_an_untrained_model_that_is_better_on_an_examined_figure_is_marked(judged):
    task, run = judged
    evaluate(task, run, "val")
    told = run.evaluation["val"]["untrained"]
    assert {"recall", "slope", "cost"} <= set(told["reached"]) and not {"precision", "error"} & set(told["reached"])
    assert told["unknown"] == ["steps"]
    marks = evaluation_table(run, "val")[REACHED]
    assert marks[["recall", "slope", "cost", "precision", "steps"]].tolist() == ["yes", "yes", "yes", "", "?"]


def test_kept_figures_depend_on_the_modules_that_a_system_imports(tmp_path, monkeypatch):
    """Of its own package, or of files beside it, in turn; not of what is installed."""
    texts = {"outer/__init__.py": "import torch\nimport beside\nfrom .inner.deep import y", "outer/x.py": "a = 1",
             "outer/inner/__init__.py": "", "outer/inner/deep.py": "from ..x import a\ny = a",
             "beside.py": "import further", "further.py": "", "other.py": ""}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    names = {str(file.relative_to(tmp_path)) for file in files_of("outer")}
    assert names == texts.keys() - {"other.py"}
    assert len(files_of("beside")) == 2 and len(files_of("outer.inner.deep")) == 2


@pytest.mark.parametrize("way", ["higher", None, True, math.nan])
def test_a_direction_that_is_none_is_refused(judged, monkeypatch, way):
    monkeypatch.setattr(Judged, "said", {"steps": way})
    with pytest.raises(ModelError, match="direction of 'steps'"):
        evaluate(*judged, "val")


@pytest.mark.parametrize("monitor, right", [("val/recall", "max"), ("val/cost", "min"), ("val/error", "min"),
                                            ("val/loss", "min")])
def test_a_best_that_would_be_the_worst_is_refused_before_the_first_step(judged, tmp_path, monitor, right):
    task, wrong = judged[0], {"min": "max", "max": "min"}[right]
    changes = {"stop.monitor": monitor, "checkpoint.examine_every": 1, "stop.mode": wrong}
    run = Run.create(cfg := overlay(task.presets["base"](), changes), tmp_path)
    with pytest.raises(ConfigError, match=f"stop.mode(.|\n)*{right}: the task or its metric"):
        fit(task, cfg, run)
    assert not run.history().size


def test_a_metric_that_is_never_fed_is_no_figure(judged, tmp_path):
    """Neither in the record nor in the table, which had it as 0; it can be no monitor either."""
    task, run = judged
    with pytest.warns(UserWarning, match="never fed"):
        figures = evaluate(task, run, "val")
    assert "idle" not in figures and "val/idle" not in run.history() and "val/error" in run.history()
    cfg = overlay(task.presets["base"](), {"stop.monitor": "val/idle"})
    with pytest.raises(ConfigError, match="stop.monitor"):
        fit(task, cfg, Run.create(cfg, tmp_path))


def test_the_arithmetic_of_an_evaluation_is_chosen_and_named(judged):
    """fp32 unless asked; as in training it gives what the record has, and the untrained model is computed alike."""
    task, run = judged
    recorded = run.status["best"]
    found = {}
    for precision in ("fp32", "auto", "bf16"):
        found[precision] = evaluate(task, run, "val", precision=precision)["loss"]
        used = "fp32" if precision == "fp32" else "bf16"
        assert run.evaluation["val"]["precision"] == used and ("model" if used == "fp32" else "model, bf16") in (
            evaluation_table(run, "val"))
    assert found["fp32"] != found["auto"] == found["bf16"] == pytest.approx(recorded, abs=1e-7)
    coarse = run.evaluation["val"]["baselines"]["untrained"]["loss"]
    evaluate(task, run, "val")
    assert 0 < abs(coarse - run.evaluation["val"]["baselines"]["untrained"]["loss"]) < 0.1


@pytest.mark.parametrize("system", ["circuits", "collatz", "lattice"])
def test_every_system_says_which_way_its_figures_are_better(system):
    task = get_task(system)
    ways = task.directions(task.presets["smoke"]())
    assert len(ways) > 5 and {"min", "max"} <= set(ways.values()) <= {"min", "max", 1.0}


def test_a_view_is_given_a_run_that_knows_its_task(judged, monkeypatch):
    """The task that the views were asked of, also if it is another one of that name than the session knew before."""
    task, run = judged
    seen = []
    monkeypatch.setattr(Judged, "views", lambda self: {"mine": lambda given: (seen.append(given), given.history())[1]})
    again = Judged("judged", task.make, squared, points(32, 1), points(8, 2), task.presets["base"]())
    render_views(task, run, write=seen.append)
    assert seen[0] is run and run.task is task is not again
    render_views(again, Run(run.path), write=seen.append)
    assert run.task is again and run.config == task.presets["base"]()
