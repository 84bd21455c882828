"""A user's own model, data, optimiser and metrics: trained, resumed, evaluated; in a session, from the shell."""
import functools
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from conftest import ROOT
from kills import execute, in_child
from tiny import Halt, comparable, same_weights
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader as GraphLoader
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassRecall,
)

from nexuslab.config import Config, overlay
from nexuslab.core import CheckpointError, ConfigError, DataError, NexusError, RunError
from nexuslab.data import Source, Tensors
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.own import OwnTask
from nexuslab.setup import set_up
from nexuslab.run import Run
from nexuslab.task import SESSION, get_task, list_tasks
from nexuslab.tune import tune

RUN = "import sys; from nexuslab.jobs import main; sys.exit(main(sys.argv[1:]))"
X = torch.randn(48, 3, generator=torch.Generator().manual_seed(0))
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]])
TEST = TensorDataset(X[40:], 2 * Y[40:])


class Jittered(Dataset):
    """Rows with noise from the default generators, as transforms draw it."""

    def __len__(self):
        return 32

    def __getitem__(self, i):
        return X[i] + 0.1 * torch.randn(3) + 0.1 * np.random.random(), Y[i]


def graphs(first, last):
    return [Data(x=X[i : i + 1], y=Y[i] * (2 if i >= 40 else 1)) for i in range(first, last)]


def squared(model, batch):
    x, y = (batch.x, batch.y[:, None]) if isinstance(batch, Data) else batch
    answer = model(x)
    return (answer - y).square().mean(), {"error": (answer, y)}


def make(name="own", train=None, val=None, test=TEST, **more):
    """A linear regression that is over in 8 steps."""
    train = TensorDataset(X[:32], Y[:32]) if train is None else train
    val = TensorDataset(X[32:40], Y[32:40]) if val is None else val
    more = {"metrics": lambda: {"error": MeanSquaredError()}, "config": settings(name)} | more
    return OwnTask(name, lambda: nn.Linear(3, 1), squared, train, val, test=test, **more)


def settings(name, **changes):
    base = Config(system=name, budget={"epochs": 2}, track={"log_every": 1}, optim={"lr": 0.1})
    return overlay(base, {"batch_size": 8, "stop.restore_best": False} | changes)


def trained(task, root, **more):
    cfg = task.presets["base"]()
    return fit(task, cfg, Run.create(cfg, root), **more)


PARTS = (X[:32], Y[:32]), (X[32:40], Y[32:40]), TEST.tensors
ENDS = (0, 32), (32, 40), (40, 48)
DATA = {  # train, val, test
    "source": lambda: [Tensors(*part) for part in PARTS],
    "dataset": lambda: [TensorDataset(*part) for part in PARTS],
    "examples": lambda: [list(zip(*part)) for part in PARTS],
    "loader": lambda: [DataLoader(TensorDataset(*part), batch_size=8, shuffle=True) for part in PARTS],
    "graphs": lambda: [GraphLoader(graphs(*ends), batch_size=8, shuffle=True) for ends in ENDS],
}


@pytest.mark.parametrize("kind", DATA)
def test_any_kind_of_data_is_trained_on_and_evaluated(kind, tmp_path):
    result = trained(make("own", *DATA[kind]()), tmp_path)
    row = result.run.history().iloc[-1]
    assert result.step == 8 and row["val/error"] == pytest.approx(row["val/loss"], rel=1e-5)
    figures = evaluate(make("own", *DATA[kind]()), result.run, "test", "last")
    with torch.no_grad():
        expected = (result.model(X[40:]) - TEST.tensors[1]).square().mean().item()
    assert figures["error"] == pytest.approx(expected, rel=1e-5)


def test_a_loader_gives_its_batch_size_unless_two_are_given():
    train = DataLoader(TensorDataset(X, Y), batch_size=5, drop_last=True)
    loader = make(train=train, config=None).presets["base"]().loader
    assert loader.batch_size == 5 and loader.drop_last
    with pytest.raises(ConfigError, match="5 in the DataLoader, 8 in the configuration"):
        make(train=train)


ROWS = TensorDataset(X, Y)
SAYS = [  # a DataLoader, and what it says
    (
        {"batch_sampler": BatchSampler(SequentialSampler(ROWS), 4, True)},
        {"batch_size": 4, "drop_last": True, "shuffle": "none"},
    ),
    ({"batch_size": 8, "shuffle": False}, {"batch_size": 8, "drop_last": False, "shuffle": "none"}),
    ({"batch_size": 8, "shuffle": True, "drop_last": True}, {"drop_last": True, "shuffle": "full"}),
    (
        {"num_workers": 2, "prefetch_factor": 3},
        {"batch_size": 1, "num_workers": 2, "prefetch": 3, "persistent_workers": False},
    ),
]


@pytest.mark.parametrize("given, expected", SAYS)
def test_what_a_loader_says_is_done(given, expected):
    """With no configuration, and with one that says nothing, or the same, of it; one that says otherwise is refused."""
    train = DataLoader(ROWS, **given)
    size = expected.get("batch_size", 8)
    for config in (None, Config(system="own"), Config(system="own", loader={"batch_size": size})):
        loader = make(train=train, config=config).presets["base"]().loader
        assert {key: getattr(loader, key) for key in expected} == expected
    for key, value in expected.items():
        other = {"full": "none", "none": "full"}.get(value) or (not value if isinstance(value, bool) else value + 1)
        with pytest.raises(ConfigError, match=f"loader.{key}"):
            make(train=train, config=Config(system="own", loader={key: other}))


def test_a_held_out_loader_is_done_too():
    val = DataLoader(ROWS, batch_size=3)
    assert make(val=val).presets["base"]().loader.eval_batch_size == 3
    for name in ("val", "test"):
        with pytest.raises(ConfigError, match="drop_last"):
            make(**{name: DataLoader(ROWS, batch_size=32, drop_last=True)})


def test_examples_in_order_are_trained_in_order(tmp_path):
    task = make(train=DataLoader(TensorDataset(X[:32], Y[:32]), batch_size=8), config=None)
    loop = set_up(task, task.presets["base"](), Run(tmp_path / "runs" / "own" / "probe"))
    assert [loop.plan.micro(step)[0].ids.tolist() for step in (0, 5)] == [list(range(8)), list(range(8, 16))]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(zip(X, Y))


WRONG = [
    (Endless(), "Endless without length"), (list(zip(X[:0], Y[:0])), "list without"), (graphs(0, 4), "Data"),
    (DataLoader(TensorDataset(X, Y), sampler=WeightedRandomSampler([1.0] * 48, 48)), "WeightedRandomSampler"),
    (
        DataLoader(ROWS, batch_sampler=BatchSampler(WeightedRandomSampler([1.0] * 48, 48), 4, False)),
        "WeightedRandomSampler",
    ),
    (DataLoader(ROWS, sampler=SequentialSampler(range(10))), "SequentialSampler"),
    (DataLoader(ROWS, sampler=RandomSampler(ROWS, num_samples=7)), "RandomSampler"),
    (DataLoader(ROWS, shuffle=True, generator=torch.Generator()), "generator"),
    (DataLoader(ROWS, num_workers=1, worker_init_fn=print, timeout=5), "worker_init_fn, timeout"),
]


@pytest.mark.parametrize("data, word", WRONG)
def test_data_that_cannot_be_ordered_or_batched_are_refused(data, word):
    with pytest.raises(DataError, match=word):
        make(train=data)


# ---- the same data, and others


def test_a_run_goes_on_with_the_same_data_only(tmp_path):
    cfg = settings("own")
    run = Run.create(cfg, tmp_path)
    fit(make(), cfg, run, [Halt(4)])
    other = TensorDataset(X[:32], Y[:32] + 1e-3)
    with pytest.raises(CheckpointError, match="data"):
        fit(make(train=other), cfg, run, resume="last")
    again = fit(make(), cfg, run, resume="last")
    assert same_weights(again.model, trained(make(), tmp_path).model)
    with pytest.raises(RunError, match="fingerprint"):
        evaluate(make(test=TensorDataset(X[40:], Y[40:])), run, "test")


def test_figures_of_a_test_that_is_the_validation_set_say_so(tmp_path):
    task = make(test=None)
    run = trained(task, tmp_path).run
    with pytest.warns(UserWarning, match="no test set"):
        figures = evaluate(task, run, "test", "last")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert evaluate(task, run, "val", "last") == figures


class Counted(Source):
    """A source that is more than can be read in full."""

    def __init__(self, size, changed=()):
        self.size, self.changed, self.read = size, set(changed), 0

    def batch(self, ids, setting, generator):
        self.read += len(ids)
        return torch.tensor([[float(i) + (i in self.changed)] for i in ids]), torch.ones(len(ids), 1)


def prints(source, **more):
    return make(train=source, **more).data(None, None).fingerprint


def test_a_large_source_is_sampled_and_an_endless_one_declared():
    one = Counted(10**6)
    assert prints(one) == prints(Counted(10**6)) and one.read < 1100
    others = [prints(Counted(10**6 + 1)), prints(Counted(10**6, {0})), prints(Counted(10**6, {10**6 - 1}))]
    assert len({prints(one), *others, prints(one, fingerprint="release 3")}) == 5
    with pytest.raises(DataError, match="endless|no end"):
        prints(Counted(None))
    declared = [prints(Counted(None), fingerprint=text) for text in "aab"]
    assert declared[0] == declared[1] != declared[2]


class Undetermined(Jittered):
    def __getitem__(self, i):
        return X[i] + np.random.default_rng().random(), Y[i]


def test_transforms_follow_the_seed_and_what_follows_nothing_is_refused(tmp_path):
    whole = trained(make(train=Jittered()), tmp_path)
    cfg = settings("own", num_workers=2)
    run = Run.create(cfg, tmp_path)
    fit(make(train=Jittered()), cfg, run, [Halt(3)])
    again = fit(make(train=Jittered()), cfg, run, resume="last")
    assert same_weights(whole.model, again.model) and comparable(whole.run).equals(comparable(run))
    with pytest.raises(DataError, match="another one when read again"):
        prints(Undetermined())


# ---- an optimiser of one's own


def two_rates(model, cfg):
    groups = [{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}]
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9)


def test_an_optimiser_of_ones_own_keeps_its_rates_under_the_schedule(tmp_path):
    cfg = settings("own", **{"schedule.name": "linear", "optim.clip": None})
    task = make(optimizer=two_rates, config=cfg)
    start = set_up(task, cfg, Run(tmp_path / "runs" / "own" / "probe"))
    plain, rates = two_rates(start.model, cfg), []
    for step in range(8):
        rates.append(0.5 * (1 - step / 7))  # the largest of the two, linear to 0
        for group, own in zip(plain.param_groups, (0.05, 0.5)):
            group["lr"] = own * (1 - step / 7)
        [key] = start.plan.micro(step)
        plain.zero_grad()
        squared(start.model, start.splits.train.batch(key.ids, {}, None))[0].backward()
        plain.step()
    run = Run.create(cfg, tmp_path)
    fit(task, cfg, run, [Halt(3)])
    result = fit(task, cfg, run, resume="last")
    assert np.allclose(run.history()["train/learning_rate"], rates)
    assert torch.allclose(start.model.weight, result.model.weight, atol=1e-6)
    assert torch.allclose(start.model.bias, result.model.bias, atol=1e-6)


def of_the_configuration(model, cfg):
    return torch.optim.SGD(model.parameters(), lr=2 * cfg.optim.lr, weight_decay=cfg.optim.weight_decay)


def test_an_option_reaches_an_optimiser_of_ones_own_or_is_refused(tmp_path):
    """What it reads changes the weights, what it does not read is refused by name, what the loop reads is done."""
    def ended(optimizer, **changes):
        cfg = settings("own", **changes)
        return fit(make(optimizer=optimizer), cfg, Run.create(cfg, tmp_path))

    usual = {"schedule.name": "constant"}
    plain = ended(of_the_configuration, **usual)
    for changes in ({"lr": 0.2}, {"optim.weight_decay": 0.3}, {"optim.clip": 0.01}):
        result = ended(of_the_configuration, **usual | changes)
        assert not same_weights(plain.model, result.model), changes
        rate = 2 * changes.get("lr", 0.1)
        assert result.run.history()["train/learning_rate"].tolist() == [pytest.approx(rate)] * 8
    fixed = ended(two_rates, **usual)
    assert fixed.run.history()["train/learning_rate"].tolist() == [0.5] * 8
    [begun] = [e for e in fixed.run.events() if e["event"] == "start"]
    assert (begun["optimizer"], begun["rate"]) == ("SGD", 0.5)
    for optimizer, changes, told in (
        (two_rates, {"lr": 0.5}, "optim.lr"), (two_rates, {"optim.name": "muon"}, "optim.name"),
        (of_the_configuration, {"lr": 0.5, "optim.momentum": 0.5, "optim.eps": 0.1}, "optim.eps, optim.momentum"),
    ):
        with pytest.raises(ConfigError, match=f"^{told}\n"):
            ended(optimizer, **usual | changes)
    with pytest.raises(ConfigError, match="positive"):
        ended(lambda model, cfg: torch.optim.SGD(model.parameters(), lr=0.0))


def test_a_study_of_what_an_optimiser_does_not_read_is_refused(tmp_path):
    task = make(optimizer=two_rates)
    with pytest.raises(ConfigError, match="optim.lr in the search space"):
        tune(task, settings("own"), trials=2, root=tmp_path)
    assert not list((tmp_path / "runs").glob("own/*"))
    found = tune(make(optimizer=of_the_configuration), settings("own"), 2, root=tmp_path, write=lambda text: None)
    assert found.study.trials[0].value != found.study.trials[1].value


@pytest.mark.parametrize("wrong", [lambda model, cfg: None, lambda model, cfg: torch.optim.LBFGS(model.parameters())])
def test_what_is_no_optimiser_for_this_loop_is_refused(wrong, tmp_path):
    with pytest.raises(ConfigError, match="the optimiser"):
        trained(make(optimizer=wrong), tmp_path)


# ---- found by its name


def test_a_task_of_the_session_is_found_until_the_session_ends(tmp_path):
    result = trained(make("of_this_session"), tmp_path)
    model, cfg, _ = Run(result.run.path).load("last")
    assert same_weights(model, result.model) and cfg.system == "of_this_session"
    assert get_task("of_this_session") is SESSION["of_this_session"] and "of_this_session" in list_tasks()
    del SESSION["of_this_session"]
    with pytest.raises(ConfigError, match=r"unknown system.*(\n.*)*systems/of_this_session.py with TASK"):
        result.run.load("last")
    assert evaluate(make("of_this_session"), result.run, "val", "last")


def test_a_name_of_another_system_is_refused(home):
    with pytest.raises(ConfigError, match="a name of its own"):
        trained(make("toy_graphs"), home)
    (home / "systems").mkdir()
    (home / "systems" / "circuits.py").write_text("raise RuntimeError('never read')")
    with pytest.raises(ConfigError, match="two systems 'circuits'"):
        get_task("circuits")


def test_the_example_of_the_readme_trains_and_is_evaluated_from_the_shell(home):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "TASK = OwnTask(" in block]
    (home / "systems").mkdir()
    (home / "systems" / "digits.py").write_text(code)
    task = get_task("digits")
    assert trained(task, home).step > 0
    said = [line for line in text.splitlines() if line.startswith("nexuslab evaluate last")]
    assert said and len([line for line in code.splitlines() if line.strip()]) <= 20
    command = [sys.executable, "-c", RUN, *said[0].split("#")[0].split()[1:]]
    done = subprocess.run(command, env={**os.environ}, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    [run] = (home / "runs" / "digits").iterdir()
    figure = Run(run).evaluation["test"]["figures"]["accuracy"]
    [shown] = re.findall(r"^accuracy +(\d\.\d+) +(\d\.\d+)", done.stdout, re.M)  # beside the untrained model's
    assert abs(float(shown[0]) - figure) < 1e-3 and float(shown[0]) >= 0.95 > 0.3 > float(shown[1])
    code, said = in_child(functools.partial(execute, "inspect", {"system": "digits", "steps": 5, "largest": 8}))
    assert code == 0 and (home / "data" / "digits" / "base.inspect.ipynb").exists(), said
    assert not list(home.parent.glob("*.ipynb"))  # there is no dataset file beside which it could lie


CLASSES = (X @ torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]])).argmax(1)


def classified(model, batch):
    logits = model(batch[0])
    fed = {"recall": [logits, batch[1]], "all": (logits, batch[1]), "confidence": logits.softmax(1).amax(1)}
    return nn.functional.cross_entropy(logits, batch[1]), fed


def test_what_users_commonly_give_works(tmp_path):
    """Arrays in a tuple; a collection of metrics; figures by class; arguments in a list, or one by itself."""
    columns = [(X[a:b].numpy().astype(np.float64), CLASSES[a:b].numpy()) for a, b in ENDS]
    metrics = lambda: {
        "recall": MulticlassRecall(3, average=None), "confidence": MeanMetric(),
        "all": MetricCollection({"accuracy": MulticlassAccuracy(3, average="micro"), "f1": MulticlassF1Score(3)}),
    }
    base = overlay(settings("columns"), {"stop.monitor": "val/all_accuracy", "stop.mode": "max"})
    task = OwnTask("columns", lambda: nn.Linear(3, 3), classified, *columns[:2], base, test=columns[2], metrics=metrics)
    run, halt = Run.create(base, tmp_path), Halt(3)
    fit(task, base, run, [halt])
    assert run.status["step"] == 3
    history = fit(task, base, run, resume="last").run.history()
    last, figures = history.iloc[-1], evaluate(task, run, "test", "last")
    assert last["train/recall_2"] >= 0 and {"val/all_f1", "train/all_f1", "val/confidence"} <= set(history)
    with torch.no_grad():
        answers = run.load("last")[0](X[40:]).argmax(1)
    assert figures["all_accuracy"] == pytest.approx((answers == CLASSES[40:]).float().mean().item())
    for k in range(3):
        mine = CLASSES[40:] == k
        assert figures[f"recall_{k}"] == pytest.approx((answers[mine] == k).float().mean().item() if mine.any() else 0)


def broken(**more):
    return lambda: make("broken", test=None, **more)


MISTAKES = {  # what a user gets wrong -> what the error names
    "no mean": (broken(), lambda m, b: (m(b[0]) - b[1]).square(), "the loss of a step(.|\n)*shape \\(8, 1\\)"),
    "no tensor": (broken(), lambda m, b: squared(m, b)[0].item(), "the loss of a step(.|\n)*float"),
    "no gradient": (broken(), lambda m, b: squared(m, b)[0].detach(), "the loss of a step(.|\n)*without a gradient"),
    "nothing": (broken(), lambda m, b: None, "the loss of a step"),
    "three things": (broken(), lambda m, b: (squared(m, b)[0], {}, 1), "the loss of a step(.|\n)*tuple"),
    "no names": (broken(), lambda m, b: (squared(m, b)[0], m(b[0])), "what loss of OwnTask gives(.|\n)*Tensor"),
    "one argument of two": (broken(), lambda m, b: (squared(m, b)[0], {"error": m(b[0])}), "metric 'error'"),
    "other shapes": (broken(), lambda m, b: (squared(m, b)[0], {"error": (m(b[0])[:2], b[1])}), "metric 'error'"),
    "an undeclared metric": (broken(), lambda m, b: (squared(m, b)[0], {"eror": 1}), "metric 'eror'"),
    "metrics that are none": (broken(metrics=lambda: {"error": max}), squared, "metric 'error'"),
    "metrics without names": (broken(metrics=MeanSquaredError), squared, "what metrics of OwnTask gives"),
    "a matrix of figures": (broken(metrics=lambda: {"error": MulticlassConfusionMatrix(2)}),
                            lambda m, b: (squared(m, b)[0], {"error": (b[1][:, 0] > 0, b[1][:, 0] > 0)}),
                            "metric 'error'(.|\n)*shape \\(2, 2\\)"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_in_ones_own_task_is_named(kind, tmp_path, monkeypatch):
    """Never an error of PyTorch's or torchmetrics' alone, and never a run that learnt nothing."""
    task, loss, message = MISTAKES[kind]
    monkeypatch.setattr(task := task(), "loss", loss)
    with pytest.raises(NexusError, match=message):
        trained(task, tmp_path)


GIVEN = {
    "make": nn.Linear(3, 1), "loss": nn.MSELoss(), "metrics": {"error": MeanSquaredError()},
    "optimizer": torch.optim.SGD(nn.Linear(3, 1).parameters()),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_made_already_is_refused_where_a_function_is_expected(name):
    given = {"make": lambda: nn.Linear(3, 1), "loss": squared} | {name: GIVEN[name]}
    with pytest.raises(ConfigError, match=f"{name} of OwnTask"):
        OwnTask("early", train=ROWS, val=ROWS, **given)


@pytest.mark.parametrize("columns", [(X, Y[:40]), (X, "labels"), (X.numpy(), np.array(["a"] * 48)), (X[:0], Y[:0])])
def test_a_tuple_of_odd_arrays_is_refused(columns):
    with pytest.raises(DataError, match="tuple of arrays"):
        make(train=columns)
