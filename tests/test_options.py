"""Every option of a configuration acts: each is proved by the test that `PROVED` names."""
import json
import shutil
import time
import warnings

import pytest
import torch
from tiny import Halt, Scripted, comparable, events, points, rates, same_weights, train
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchmetrics import MeanMetric

import nexuslab.data
import nexuslab.fit
import nexuslab.setup
from nexuslab.checkpoint import find_checkpoint, open_checkpoint, steps_kept
from nexuslab.config import Config, Schedule, fields_of, overlay
from nexuslab.core import CheckpointError, ConfigError, TrainingError
from nexuslab.setup import Recomputes, emit, pick_device, pick_precision, placed, set_up
from nexuslab.optim import SGD, Adam, AdamW, Muon, learning_rate
from nexuslab.run import Run
from nexuslab.task import StepOut

PROVED = {  # option -> the test that shows it acting; "file::test" where it is another file's
    "system": "test_names_and_seed", "preset": "test_names_and_seed", "name": "test_names_and_seed",
    "seed": "test_names_and_seed",
    "debug": "test_debug", "init_from": "test_init_from", "init_partial": "test_init_partial",
    "compute.device": "test_devices", "compute.precision": "test_bf16_on_cpu", "compute.compile": "test_compile",
    "compute.threads": "test_threads",
    "compute.processes": "test_contract.py::test_contract",
    "compute.gradient_checkpointing": "test_gradient_checkpointing",
    "loader.batch_size": "test_order_of_examples", "loader.eval_batch_size": "test_order_of_examples",
    "loader.shuffle": "test_order_of_examples",
    "loader.block_size": "test_order_of_examples", "loader.drop_last": "test_drop_last",
    "loader.num_workers": "test_loader_processes",
    "loader.prefetch": "test_loader_processes", "loader.pin_memory": "test_loader_processes",
    "loader.persistent_workers": "test_loader_processes",
    "budget.epochs": "test_budgets", "budget.steps": "test_budgets", "budget.max_minutes": "test_max_minutes",
    "budget.unit": "test_unit",
    "optim.name": "test_optimisers", "optim.lr": "test_schedule_shapes", "optim.betas": "test_optimisers",
    "optim.eps": "test_optimisers",
    "optim.momentum": "test_optimisers", "optim.step_rms": "test_step_rms", "optim.weight_decay": "test_optimisers",
    "optim.clip": "test_clip", "optim.accumulate": "test_accumulate",
    "schedule.name": "test_schedule_shapes", "schedule.min_lr": "test_schedule_shapes",
    "schedule.warmup_steps": "test_warm_up", "schedule.warmup_ratio": "test_warm_up",
    "schedule.step_size": "test_step_schedule", "schedule.gamma": "test_step_schedule",
    "schedule.patience": "test_plateau", "schedule.factor": "test_plateau",
    "stop.enabled": "test_patience", "stop.monitor": "test_monitor_and_mode", "stop.mode": "test_monitor_and_mode",
    "stop.patience": "test_patience",
    "stop.min_delta": "test_min_delta", "stop.baseline": "test_baseline", "stop.restore_best": "test_restore_best",
    "stop.verbose": "test_verbose",
    "checkpoint.eval_every": "test_budgets", "checkpoint.examine_every": "test_examine_every",
    "checkpoint.save_every": "test_periodic_checkpoints",
    "checkpoint.best_only": "test_periodic_checkpoints",
    "checkpoint.save_total_limit": "test_periodic_checkpoints", "checkpoint.save_minutes": "test_save_minutes",
    "guard.nonfinite": "test_skip_nonfinite", "guard.max_skips": "test_skip_nonfinite", "guard.spike": "test_spike",
    "guard.outlier": "test_an_outlier_is_left_out",
    "guard.overfit": "test_overfit_event",
    "guard.halve_on_oom": "test_halve_on_oom",
    "track.log_every": "test_log_every", "track.wandb": "test_trackers.py::test_wandb_offline",
    "track.wandb_mode": "test_trackers.py::test_unreachable_server",
    "track.tensorboard": "test_trackers.py::test_tensorboard", "track.project": "test_trackers.py::test_wandb_offline",
    "track.entity": "test_trackers.py::test_wandb_offline", "track.tags": "test_trackers.py::test_wandb_offline",
}


def test_every_option_is_proved():
    """Each field of the configuration has a test, and each test named here exists."""
    from pathlib import Path

    options = {k for k in fields_of(Config)} - {"data", "model", "loss"}  # these three belong to the systems
    assert len(options) > 50
    assert set(PROVED) == options
    for place in PROVED.values():
        file, _, name = place.rpartition("::")
        assert f"def {name}(" in (
            Path(__file__).parent / (file or Path(__file__).name)
        ).read_text(encoding="utf-8"), place


# ---- schedules


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_schedule_shapes(name, tmp_path):
    found = rates(train(Scripted(scheduler=name, lr=0.1, min_lr=0.01, steps=21), tmp_path).run)
    middle, last = {"cosine": (0.055, 0.01), "linear": (0.055, 0.01), "constant": (0.1, 0.1)}[name]
    assert found[0] == 0.1 and found[10] == pytest.approx(middle) and found[20] == pytest.approx(last, rel=1e-12)
    if name == "linear":
        assert all(a - b == pytest.approx(0.0045) for a, b in zip(found, found[1:]))
    if name == "cosine":
        assert found[5] == pytest.approx(0.01 + 0.09 * (1 + 2**-0.5) / 2)


def test_step_schedule(tmp_path):
    """step_size counts epochs under an epoch budget, and steps under a step budget."""
    shape = {"scheduler": "step", "lr": 0.1, "schedule.step_size": 2, "schedule.gamma": 0.5, "min_lr": 0.03}
    by_epoch = rates(train(Scripted(epochs=5, **shape), tmp_path).run)
    assert by_epoch == pytest.approx([0.1] * 8 + [0.05] * 8 + [0.03] * 4)  # 4 steps an epoch; 0.025 is below min_lr
    by_step = rates(train(Scripted(steps=6, **shape), tmp_path).run)
    assert by_step == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.03, 0.03])


def test_plateau(tmp_path):
    """The rate falls after `patience` evaluations without improvement of the monitored scalar, counted in evaluations,
    down to min_lr."""
    flat = {
        "scheduler": "plateau", "lr": 0.1, "min_lr": 0.03, "eval_every": 2, "schedule.patience": 1,
        "schedule.factor": 0.5, "steps": 14,
    }
    found = rates(train(Scripted(script=lambda step: 1.0, **flat), tmp_path).run)
    # evaluations at 2 (best), 4, 6 -> halved; 8, 10 -> floor
    assert found == pytest.approx([0.1] * 6 + [0.05] * 4 + [0.03] * 4)
    falling = {"monitor": "val/score", "stop.mode": "max"}
    assert set(rates(train(Scripted(script=lambda step: 1 / step, **flat, **falling), tmp_path).run)) == {0.1}
    assert rates(train(Scripted(script=lambda step: step, **flat, **falling), tmp_path).run)[-1] == 0.03


def test_warm_up(tmp_path):
    found = rates(train(Scripted(scheduler="cosine", lr=0.1, warmup_steps=4, steps=12), tmp_path).run)
    assert found[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1]) and found[-1] == 0.0
    both = rates(train(Scripted(scheduler="linear", lr=0.1, warmup_steps=4, warmup_ratio=0.5, steps=12), tmp_path).run)
    assert both[:6] == pytest.approx([0.1 * k / 6 for k in range(1, 7)]) and both[-1] == 0.0


# ---- budgets, order, loading


def test_budgets(tmp_path):
    """An epoch budget counts evaluations in epochs, a step budget in steps."""
    by_epoch = train(Scripted(eval_every=2, epochs=5), tmp_path)
    assert by_epoch.step == 20 and by_epoch.reason == "budget reached" and by_epoch.run.status["state"] == "finished"
    evaluated = by_epoch.run.history().dropna(subset=["val/loss"])
    assert evaluated["step"].tolist() == [8, 16, 20] and evaluated["epoch"].tolist() == [2, 4, 5]
    by_step = train(Scripted(eval_every=5), tmp_path, steps=11)
    assert by_step.run.history().dropna(subset=["val/loss"])["step"].tolist() == [5, 10, 11]


@pytest.mark.parametrize(("task", "change", "evaluated"), [
    ({"epochs": 5}, {"steps": 7}, [4, 7]), ({"epochs": 5}, {"steps": 7, "eval_every": 3}, [3, 6, 7]),
    ({"steps": 99, "eval_every": 3}, {"epochs": 2}, [3, 6, 8]), ({"steps": 7}, {"budget.unit": "epochs"}, [4, 7]),
])
def test_unit(task, change, evaluated, tmp_path):
    """A budget in the other unit leaves `eval_every` as it was meant: one epoch, 4 steps, does not become one step."""
    run = train(Scripted(**task), tmp_path, **change).run
    assert run.history().dropna(subset=["val/loss"])["step"].tolist() == evaluated


def test_order_of_examples(tmp_path):
    """shuffle, block_size, batch_size and eval_batch_size decide what the sources are asked for."""
    def asked(**changes):
        task = Scripted(epochs=2, **changes)
        train(task, tmp_path)
        return task.sources

    source, held = asked(**{"loader.shuffle": "none", "loader.eval_batch_size": 3})
    assert source.asked == [list(range(i, i + 8)) for i in (0, 8, 16, 24)] * 2
    assert held.asked == [[0, 1, 2], [3, 4, 5], [6, 7]] * 2
    source, held = asked(**{"loader.shuffle": "full"})
    first, second = sum(source.asked[:4], []), sum(source.asked[4:], [])
    assert sorted(first) == sorted(second) == list(range(32)) and first != second and first != sorted(first)
    assert held.asked == [list(range(8))] * 2
    source, _ = asked(batch_size=4, **{"loader.shuffle": "block", "loader.block_size": 4})
    assert all(max(b) - min(b) == 3 and len(b) == 4 for b in source.asked) and len(source.asked) == 16


def test_drop_last(tmp_path):
    task = Scripted(train=20)
    kept, dropped = train(task, tmp_path, epochs=2), train(task, tmp_path, epochs=2, **{"loader.drop_last": True})
    assert (kept.step, dropped.step) == (6, 4)
    assert [len(a) for a in task.sources[0].asked] == [8, 8, 4] * 2 + [8, 8] * 2


def test_loader_processes(tmp_path, monkeypatch):
    """Loader options reach PyTorch's loader, and the weights do not depend on them."""
    made, real = [], nexuslab.data.DataLoader

    def spy(*args, **options):
        made.append(options)
        return real(*args, **options | {"pin_memory": False})

    monkeypatch.setattr(nexuslab.data, "DataLoader", spy)
    alone = train(Scripted(epochs=2), tmp_path)
    assert not made
    many = train(Scripted(epochs=2, num_workers=2, **{"loader.prefetch": 3, "loader.pin_memory": True}), tmp_path)
    assert same_weights(alone.model, many.model) and len(made) == 1
    assert (made[0]["num_workers"], made[0]["prefetch_factor"], made[0]["pin_memory"]) == (2, 3, True)
    fresh = train(Scripted(epochs=3, num_workers=1, **{"loader.persistent_workers": False}), tmp_path)
    assert len(made) == 1 + 3 and same_weights(fresh.model, train(Scripted(epochs=3), tmp_path).model)


# ---- the optimiser


def test_optimisers(tmp_path):
    def built(**changes):
        task = Scripted(make=lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1)), **changes)
        return set_up(task, task.config, Run(tmp_path / "runs" / "tiny" / "none"), None).optimizer

    settings = {"optim.betas": (0.8, 0.9), "optim.eps": 1e-3, "weight_decay": 0.3}
    for name, kind in (("adamw", AdamW), ("adam", Adam)):
        found = built(**{"optim.name": name, **settings})
        assert type(found) is kind and issubclass(kind, getattr(torch.optim, kind.__name__))
        assert [(g["betas"], g["eps"], g["weight_decay"]) for g in found.param_groups] == [
            ((0.8, 0.9), 1e-3, 0.3), ((0.8, 0.9), 1e-3, 0.0)
        ]
        # two matrices decay; biases and the norm do not
        assert [len(g["params"]) for g in found.param_groups] == [2, 4]
    sgd = built(**{"optim.momentum": 0.7})
    assert type(sgd) is SGD and sgd.param_groups[0]["momentum"] == 0.7
    muon = built(**{"optim.name": "muon", "optim.momentum": 0.7, "optim.step_rms": 0.3, **settings})
    assert type(muon) is Muon and muon.momentum == 0.7
    assert [(g["betas"], g["eps"], g["matrices"], len(g["params"])) for g in muon.param_groups] == [
        ((0.8, 0.9), 1e-3, True, 2), ((0.8, 0.9), 1e-3, False, 4)
    ]


def test_step_rms(tmp_path):
    """A matrix moves along its orthogonalised gradient by lr times step_rms, whatever the size of the gradient."""
    make, moved = lambda: nn.Sequential(nn.Linear(3, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 1)), {}
    for rms in (0.1, 0.4):
        task = Scripted(
            make=make, steps=1, lr=1e-2, **{"optim.name": "muon", "optim.step_rms": rms, "stop.restore_best": False}
        )
        start = set_up(
            task, task.config, Run(tmp_path / "runs" / "tiny" / "none"), None
        ).model[1].weight.detach().clone()
        moved[rms] = train(task, tmp_path).model[1].weight.detach() - start
    assert torch.allclose(4 * moved[0.1], moved[0.4], atol=1e-6)
    # its largest singular value is near 1
    assert 0.6 < torch.linalg.matrix_norm(moved[0.4], 2).item() / (1e-2 * 0.4 * 16**0.5) < 1.3


def test_clip(tmp_path):
    """The update of plain SGD has the clipped norm; the record has the norm before."""
    task = Scripted(steps=1, lr=1.0, **{"stop.restore_best": False})
    start = set_up(task, task.config, Run(tmp_path / "runs" / "tiny" / "none"), None).model
    for limit in (None, 1e-3):
        done = train(task, tmp_path, **({"optim.clip": limit} if limit else {}))
        moved = torch.cat(
            [(b - a).flatten() for a, b in zip(start.parameters(), done.model.parameters())]
        ).norm().item()
        norm = done.run.history()["train/grad_norm"][0]
        assert norm > 0.1 and moved == pytest.approx(limit or norm, rel=1e-3)


def test_accumulate(tmp_path):
    """Four micro-batches of two give the step of one batch of eight."""
    whole = train(Scripted(dtype=torch.float64), tmp_path)
    parts = train(Scripted(dtype=torch.float64, batch_size=2, **{"optim.accumulate": 4}), tmp_path)
    assert whole.step == parts.step == 12
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(whole.model.parameters(), parts.model.parameters()))


# ---- best, early stopping


def falling_until(turn):
    return lambda step: max(turn - step, 0) + 1.0


def test_patience(tmp_path):
    task = Scripted(script=falling_until(5), eval_every=1, steps=30)
    assert train(task, tmp_path).step == 30
    early = train(task, tmp_path, early_stopping=True, patience=3)
    assert (early.step, early.best_step) == (8, 5) and early.reason.startswith("early stop")
    assert early.run.status["state"] == "finished"
    assert (early.run.path / "checkpoints" / "step_00000005").is_dir()


def test_min_delta(tmp_path):
    """Too small an improvement does not reset the patience, but it is still the best."""
    task = Scripted(script=lambda step: 1 - 0.01 * step, eval_every=1, steps=10, early_stopping=True, patience=5)
    assert train(task, tmp_path).step == 10
    early = train(task, tmp_path, **{"stop.min_delta": 0.1})
    assert (early.step, early.best_step) == (6, 6)


def test_monitor_and_mode(tmp_path):
    task = Scripted(script=falling_until(5), eval_every=1, steps=12)
    assert train(task, tmp_path, monitor="val/score", **{"stop.mode": "max"}).best_step == 5
    assert train(task, tmp_path, monitor="val/score", **{"stop.mode": "min"}).best_step == 1
    with pytest.raises(ConfigError, match="val/score"):
        train(task, tmp_path, monitor="val/nothing")


class Examined(Scripted):
    """A line whose quality is worst far from step 4, with a draw that must not move the training."""

    def examine(self, model, splits, split, cfg, at):
        return {"quality": -abs(at.step - 4.0), "draw": float(torch.rand(()))}


def test_examine_every(tmp_path):
    """Figures that the system examines join every fourth evaluation; best, patience and plateau follow them only."""
    task = Examined(script=lambda step: -step, eval_every=1, steps=20, restore_best=False, early_stopping=True)
    plain = train(task, tmp_path)
    assert plain.step == plain.best_step == 20 and "val/quality" not in plain.run.history()
    often = {"checkpoint.examine_every": 4}
    assert same_weights(plain.model, train(task, tmp_path, **often).model)
    often |= {"monitor": "val/quality", "stop.mode": "max", "patience": 2, "scheduler": "plateau"}
    early = train(task, tmp_path, **often, **{"schedule.patience": 0})
    shown = early.run.history().set_index("step")[["val/quality", "val/draw"]].dropna()
    assert (early.step, early.best_step) == (12, 4) and shown.index.tolist() == [4, 8, 12]
    assert shown["val/draw"].nunique() == 1 and rates(early.run) == [0.05] * 8 + [0.025] * 4
    halted = train(task, tmp_path, [Halt(6)], **often, **{"schedule.patience": 0})
    again = train(task, tmp_path, run=halted.run, resume="last", **often, **{"schedule.patience": 0})
    assert comparable(again.run).equals(comparable(early.run)) and same_weights(again.model, early.model)
    for monitor, more in (("val/quality", {}), ("val/qualty", {"checkpoint.examine_every": 4})):
        with pytest.raises(ConfigError, match=f"stop.monitor\n.*{monitor}\n.*checkpoint.examine_every"):
            train(task, tmp_path, monitor=monitor, **more)


def test_baseline(tmp_path):
    task = Scripted(
        script=lambda step: 1.0 - 0.01 * step, eval_every=1, steps=12, early_stopping=True, patience=4,
        **{"stop.min_delta": 0.0},
    )
    assert train(task, tmp_path, **{"stop.baseline": 0.5}).step == 4
    assert train(task, tmp_path, **{"stop.baseline": 0.98}).step == 12


def test_restore_best(tmp_path):
    task = Scripted(script=falling_until(5), eval_every=1)
    at_five = train(task, tmp_path, [Halt(5)])
    assert at_five.run.status["state"] == "stopped"
    best, last = train(task, tmp_path), train(task, tmp_path, restore_best=False)
    assert same_weights(best.model, at_five.model) and not same_weights(last.model, best.model)


def test_verbose(tmp_path, capsys):
    task = Scripted(script=falling_until(3), eval_every=1, steps=5, early_stopping=True, patience=20)
    told = (train(task, tmp_path).run.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [("new best" in t, "no improvement" in t) for t in told] == [(True, False)] * 3 + [(False, True)] * 2
    assert told[-1].endswith("no improvement 2/20") and "restored best weights" in capsys.readouterr().out
    silent = (train(task, tmp_path, **{"stop.verbose": False}).run.path / "log.txt").read_text(encoding="utf-8")
    assert "new best" not in silent and "no improvement" not in silent and "restored" not in capsys.readouterr().out


# ---- checkpoints


def kept(run) -> list[int]:
    return steps_kept(run.path / "checkpoints")


def test_periodic_checkpoints(tmp_path):
    task = Scripted(script=falling_until(3), eval_every=3, save_every=2, steps=13, save_total_limit=2)
    assert kept(train(task, tmp_path).run) == [3, 10, 12, 13]  # best, two periodic, last
    assert kept(train(task, tmp_path, **{"checkpoint.best_only": True}).run) == [3, 13]
    everything = overlay(task.config, {"save_total_limit": None})
    task.config = everything
    assert kept(train(task, tmp_path).run) == [2, 3, 4, 6, 8, 10, 12, 13]
    by_epoch = train(Scripted(script=falling_until(1), save_every=2, epochs=5), tmp_path).run
    assert kept(by_epoch) == [4, 8, 16, 20]  # best after epoch 1; every second epoch of 4 steps; last


def test_save_minutes(tmp_path):
    seen = {}

    def look(snapshot):
        pointer = tmp_path_of(look.run) / "last.json"
        seen[snapshot.step] = json.loads(pointer.read_text())["step"] if pointer.exists() else None

    task = Scripted(script=lambda step: 1.0, eval_every=12, **{"checkpoint.save_minutes": 1e-6})
    look.run = Run.create(task.config, tmp_path)
    train(task, tmp_path, [Halt(look=look)], run=look.run)
    assert seen[1] is None and seen[7] == 6 and kept(look.run) == [12]


def tmp_path_of(run):
    return run.path / "checkpoints"


@pytest.mark.parametrize("which", ["last", "best", "step_6", "step_00000006"])
def test_resume_from(which, tmp_path):
    """Going on from any checkpoint ends where the undisturbed run ended."""
    task = Scripted(
        script=lambda step: abs(step - 4) + 1.0, save_every=2, eval_every=1, scheduler="cosine", restore_best=False,
        save_total_limit=5, **{"optim.name": "adamw"},
    )
    whole = train(task, tmp_path)
    halted = train(task, tmp_path, [Halt(9)])
    again = train(task, tmp_path, run=halted.run, resume=which)
    assert again.step == 12 and again.best_step == 4 and same_weights(whole.model, again.model)
    assert rates(again.run) == rates(whole.run)
    start = events(again.run, "start")[-1]
    assert start["step"] == {"last": 9, "best": 4}.get(which, 6)
    assert find_checkpoint(again.run.path / "checkpoints", "best").name == "step_00000004"


def test_extension_replans_the_schedule(tmp_path):
    """A finished run resumed with a larger budget goes on with the rates of the larger plan, from the step it had
    reached."""
    shape = Schedule(name="cosine", min_lr=0.001)
    task = Scripted(scheduler="cosine", min_lr=0.001, lr=0.1, steps=10)
    first = train(task, tmp_path)
    assert first.run.status["state"] == "finished"
    longer = train(task, tmp_path, run=first.run, resume="last", steps=20)
    assert longer.step == 20 and longer.run.status["total_steps"] == 20
    assert rates(longer.run) == pytest.approx(
        [learning_rate(shape, 0.1, s, 10) for s in range(10)] + [
            learning_rate(shape, 0.1, s, 20) for s in range(10, 20)
        ],
        rel=1e-12,
    )
    assert rates(longer.run)[9] == pytest.approx(0.001) and rates(longer.run)[10] > 0.04
    assert rates(longer.run)[-1] == pytest.approx(0.001)
    assert events(longer.run, "start")[-1]["changes"] == {"budget.steps": [10, 20]}
    assert longer.run.tree["budget"]["steps"] == 20


def test_init_from(tmp_path):
    parent = train(Scripted(script=falling_until(5), eval_every=1), tmp_path)
    child = train(Scripted(steps=1, lr=1e-30), tmp_path, **{"init_from": parent.run.path.name})
    fresh = train(Scripted(steps=1, lr=1e-30), tmp_path)
    assert same_weights(child.model, parent.model) and not same_weights(fresh.model, parent.model)


def test_init_partial(tmp_path):
    """What fits is taken and the rest told; nothing that fits, and no run to take from, are refused."""
    done = train(Scripted(steps=3), tmp_path)
    parent = done.run

    def grown(width: int):
        model = nn.Linear(3, width)
        model.more = nn.Linear(width, 1)
        model.forward = lambda x: model.more(nn.functional.linear(x, model.weight, model.bias))
        return Scripted(make=lambda: model, steps=1, lr=1e-30)

    asked = {"init_from": parent.path.name, "init_partial": True}
    child = train(grown(1), tmp_path, **asked)
    assert torch.equal(child.model.weight, done.model.weight)
    assert events(child.run, "start")[0]["differences"] == ["more.weight is absent", "more.bias is absent"]
    with pytest.raises(CheckpointError, match="4 differences"):
        train(grown(2), tmp_path, **asked)
    with pytest.raises(CheckpointError, match="2 differences"):
        train(grown(1), tmp_path, init_from=parent.path.name)
    with pytest.raises(ConfigError, match="init_partial"):
        train(grown(1), tmp_path, init_partial=True)


def test_max_minutes(tmp_path):
    """The clock pauses; going on ends as if there had been no pause, with the same rates."""
    task = Scripted(scheduler="cosine", **{"track.log_every": 5})
    whole = train(task, tmp_path)
    slow = Scripted(factor=lambda step: time.sleep(0.05) or 1.0, scheduler="cosine", **{"track.log_every": 5})
    paused = train(slow, tmp_path, max_minutes=0.3 / 60)
    assert 0 < paused.step < 12 and paused.run.status["state"] == "paused" and "resume" in paused.reason
    again = train(task, tmp_path, run=paused.run, resume="last")
    assert again.run.status["state"] == "finished" and same_weights(again.model, whole.model)
    assert rates(again.run) == rates(whole.run)
    assert again.run.history()["train/loss"].equals(whole.run.history()["train/loss"])


# ---- guards


def test_debug(tmp_path):
    task = Scripted(steps=4, log_every=100, eval_every=100)
    assert len(train(task, tmp_path).run.history()) == 1
    assert len(train(task, tmp_path, debug=True).run.history()) == 4
    # the slope of the root at 0 is infinite, and infinity times 0 is no number
    task.loss = lambda model, batch: (model(batch[0]) * 0).sqrt().sum()
    with pytest.warns(UserWarning, match="MulBackward0"), pytest.raises(RuntimeError, match="MulBackward0.*nan"):
        train(task, tmp_path, debug=True)


def test_skip_nonfinite(tmp_path):
    """A non-finite step is left out and counted; too many in a row stop the run."""
    task = Scripted(factor=lambda step: float("nan") if step in (3, 4) else 1.0, **{"guard.nonfinite": "skip"})
    done = train(task, tmp_path, restore_best=False)
    assert done.step == 12 and [e["step"] for e in events(done.run, "nonfinite")] == [3, 4]
    assert all(torch.isfinite(p).all() for p in done.model.parameters())
    with pytest.raises(TrainingError, match="at step 4"):
        train(task, tmp_path, **{"guard.max_skips": 1})
    with pytest.raises(TrainingError, match="loss part loss at step 3") as caught:
        train(task, tmp_path, **{"guard.nonfinite": "stop"})
    assert "examples [" in str(caught.value.found)


def test_spike(tmp_path):
    task = Scripted(factor=lambda step: 1e4 if step == 6 else 1.0, lr=1e-6)
    found = events(train(task, tmp_path).run, "spike")
    assert [e["step"] for e in found] == [7] and found[0]["loss"] > 10 * found[0]["running_mean"]
    task.config = overlay(task.config, {"guard.spike": None})
    assert not events(train(task, tmp_path).run, "spike")


def test_an_outlier_is_left_out(tmp_path):
    """A finite bad batch is found at its step and moves no weight: the run ends as if the step had not been."""
    bad = lambda step: 1e4 if step == 30 else 1.0
    ends = {}
    for name, task in {"clean": Scripted(), "guarded": Scripted(factor=bad, **{"guard.outlier": 5.0}),
                       "clipped": Scripted(factor=bad)}.items():
        done = train(task, tmp_path / name, steps=60, restore_best=False)
        ends[name] = torch.cat([p.flatten() for p in done.model.parameters()])
        spikes = [e for e in events(done.run, "spike") if "why" in e]
        assert [e["step"] for e in spikes] == ([30] if name == "guarded" else [])
    far = {name: float((end - ends["clean"]).detach().norm()) for name, end in ends.items()}
    assert 0 < far["guarded"] < far["clipped"]


def test_overfit_event(tmp_path):
    task = Scripted(script=lambda step: 1e6 if step == 8 else 1e-9, eval_every=4)
    run = train(task, tmp_path).run
    found = events(run, "overfit")
    assert [e["step"] for e in found] == [8] and found[0]["val"] == 1e6 > 1.2 * found[0]["train"]
    told = (run.path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert ["overfit: val/loss is" in line for line in told] == [False, True, False]
    task.config = overlay(task.config, {"guard.overfit": None})
    assert not events(train(task, tmp_path).run, "overfit")


class Narrow(nn.Linear):
    """A layer that runs out of memory on more than two rows."""

    def forward(self, x):
        if self.training and len(x) > 2:
            raise torch.OutOfMemoryError("simulated: more than two rows")
        return super().forward(x)


def test_halve_on_oom(tmp_path):
    """Halved micro-batches give the gradient of the whole batch; without leave, the advice has the numbers."""
    changes = {"dtype": torch.float64, "restore_best": False, "track.log_every": 5}
    whole = train(Scripted(**changes), tmp_path)
    task = Scripted(make=lambda: Narrow(3, 1, dtype=torch.float64), **changes)
    halved = train(task, tmp_path, **{"guard.halve_on_oom": True})
    assert all(
        torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(whole.model.parameters(), halved.model.parameters())
    )
    assert [e["examples"] for e in events(halved.run, "halved")] == [4, 2]
    assert halved.run.history()["train/loss"].to_numpy() == pytest.approx(
        whole.run.history()["train/loss"].to_numpy(), rel=1e-12
    )
    with pytest.raises(TrainingError, match="out of memory at step 0") as caught:
        train(task, tmp_path)
    assert "batch_size 4 with optim.accumulate 2" in caught.value.remedy and "8 examples" in caught.value.found


# ---- compute


def test_devices(tmp_path):
    assert pick_device("cpu").type == "cpu" and pick_device("auto").type in ("cpu", "cuda", "mps")
    absent = ["cuda:99"] + ["cuda"] * (not torch.cuda.is_available()) + ["mps"] * (
        not torch.backends.mps.is_available()
    )
    for name in absent:
        with pytest.raises(ConfigError, match="which this machine lacks"):
            train(Scripted(device=name), tmp_path)
    with pytest.raises(ConfigError, match="compute.device"):
        overlay(Scripted().config, {"device": "gpu"})


class Noting(nn.Linear):
    """A layer that notes the type of what it gives."""

    kinds: set = set()

    def forward(self, x):
        y = super().forward(x)
        self.kinds.add(y.dtype)
        return y.float()


def test_bf16_on_cpu(tmp_path, capsys, monkeypatch):
    """bf16 is used where it is asked for; fp16 without CUDA falls back and says why."""
    monkeypatch.setattr(nexuslab.setup, "has_bf16_units", lambda device: False)
    for precision, kind in (
        ("auto", torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float32)
    ):
        Noting.kinds = set()
        done = train(Scripted(make=lambda: Noting(3, 1), precision=precision, device="cpu"), tmp_path)
        assert Noting.kinds == {kind}, precision
        assert all(p.dtype == torch.float32 for p in done.model.parameters())
        assert ("fp16 needs CUDA" in capsys.readouterr().out) == (precision == "fp16")
    assert pick_precision("fp16", torch.device("cpu"))[0] == "fp32"


def test_auto_asks_for_units_and_a_run_goes_on_as_it_began(tmp_path, capsys, monkeypatch):
    """bf16 where the device has units for it; what was chosen is on record, and holds when a run goes on elsewhere."""
    def begun(units: bool, run=None):
        monkeypatch.setattr(nexuslab.setup, "has_bf16_units", lambda device: units)
        Noting.kinds = set()
        task = Scripted(make=lambda: Noting(3, 1), device="cpu", steps=8)
        done = train(task, tmp_path, [] if run else [Halt(4)], run=run, resume="last" if run else None)
        return done.run, Noting.kinds, [e.get("precision") for e in events(done.run, "start")]

    single, kinds, noted = begun(False)
    assert kinds == {torch.float32} and noted == ["fp32"] and begun(True, single)[1:] == (kinds, ["fp32", "fp32"])
    half, kinds, noted = begun(True)
    assert kinds == {torch.bfloat16} and noted == ["bf16"] and placed(half, "cpu", "auto")[1] == "bf16"
    capsys.readouterr()
    assert begun(False, half)[1:] == ({torch.float32}, ["bf16", "fp32"])
    assert "trained in bf16 so far" in capsys.readouterr().out
    with monkeypatch.context() as before:  # when no run noted its precision
        silent = lambda loop, event, precision=None, **told: emit(loop, event, **told)
        before.setattr(nexuslab.fit, "emit", silent)
        old, _, noted = begun(False)
    assert noted == [None] and begun(True, old)[1:] == ({torch.float32}, [None, "fp32"])


def test_threads(tmp_path):
    before = torch.get_num_threads()
    try:
        train(Scripted(threads=2, steps=1), tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


class Deep(nn.Module, Recomputes):
    """Three layers that can be recomputed."""

    def __init__(self):
        super().__init__()
        self.layers, self.out, self.recompute, self.calls = nn.ModuleList(
            nn.Linear(3, 3) for _ in range(3)
        ), nn.Linear(3, 1), False, 0

    def recompute_activations(self):
        self.recompute = True

    def block(self, x):
        self.calls += 1
        for layer in self.layers:
            x = layer(x).tanh()
        return x

    def forward(self, x):
        return self.out(
            checkpoint(self.block, x, use_reentrant=False) if self.recompute and self.training else self.block(x)
        )


def test_gradient_checkpointing(tmp_path):
    task = Scripted(make=Deep, eval_every=100, restore_best=False)
    plain, again = train(task, tmp_path), train(task, tmp_path, **{"compute.gradient_checkpointing": True})
    assert same_weights(plain.model, again.model)
    # each step computes the block twice; one evaluation
    assert (plain.model.calls, again.model.calls) == (12 + 1, 24 + 1)
    with pytest.raises(ConfigError, match="gradient_checkpointing.*\n.*Linear"):
        train(Scripted(), tmp_path, **{"compute.gradient_checkpointing": True})


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="torch.compile needs a C++ compiler"
)
def test_compile(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = train(Scripted(steps=4, eval_every=4, **{"compute.compile": True}), tmp_path)
    plain = train(Scripted(steps=4, eval_every=4), tmp_path)
    assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(plain.model.parameters(), compiled.model.parameters()))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


# ---- the rest


def test_names_and_seed(tmp_path):
    task = Scripted()
    one, two, other = train(task, tmp_path, name="mine"), train(task, tmp_path), train(task, tmp_path, seed=1)
    assert "mine-" in one.run.path.name and one.run.path.parent.name == "tiny" and "base-" in two.run.path.name
    assert same_weights(one.model, two.model) and not same_weights(one.model, other.model)


def test_log_every(tmp_path):
    done = train(Scripted(log_every=5, eval_every=100), tmp_path)
    assert done.run.history()["step"].tolist() == [5, 10, 12]
    means = done.run.history()["train/loss"]
    each = train(Scripted(eval_every=100), tmp_path).run.history()["train/loss"]
    assert means[0] == pytest.approx(each[:5].mean()) and means[2] == pytest.approx(each[10:].mean())


def test_listeners(tmp_path):
    """A listener sees every row, its reason ends the run, and it is closed."""
    watcher = Halt(7)
    done = train(Scripted(), tmp_path, [watcher])
    assert done.step == 7 and done.reason == "asked to stop at 7" and watcher.closed
    assert [s.step for s in watcher.rows] == list(range(1, 8)) and done.run.status["state"] == "stopped"
    assert open_checkpoint(done.run.path / "checkpoints", "last").manifest["step"] == 7


def test_empty_training_split(tmp_path):
    task = Scripted()
    task.sources = (points(0, 1), points(4, 2))
    with pytest.raises(nexuslab.data.DataError, match="training split"):
        train(task, tmp_path)


# ---- what an evaluation leaves behind


@pytest.mark.parametrize("whole", [False, True])
def test_modes_of_modules(whole, tmp_path):
    """A part that its model holds in evaluation mode stays there; a model that comes so as a whole is trained."""
    def make():
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
        model[2].bias.requires_grad_(False)
        return model.eval() if whole else (model[1].eval(), model)[1]

    done = train(Scripted(make=make, steps=4, restore_best=False), tmp_path)
    assert bool(done.model[1].running_mean.any()) is whole  # the statistics of a frozen layer do not move
    fresh = set_up(Scripted(make=make), Scripted().config, Run(tmp_path / "runs" / "tiny" / "none"), None).model
    assert torch.equal(done.model[2].bias, fresh[2].bias) and not torch.equal(done.model[2].weight, fresh[2].weight)


def test_throughput_is_that_of_training(tmp_path, monkeypatch):
    """Evaluations, checkpoints and listeners take no part in the examples a second; nor do earlier attempts."""
    now, real = [0.0], nexuslab.fit.save

    def pass_seconds(seconds, value=1.0):
        now[0] += seconds
        return value

    monkeypatch.setattr(nexuslab.fit.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(nexuslab.fit, "save", lambda *args, **options: pass_seconds(1000, real(*args, **options)))
    script = lambda step: pass_seconds(500)
    task = Scripted(script, factor=lambda step: pass_seconds(2), steps=12, eval_every=4, log_every=2)
    run = train(task, tmp_path, [Halt(6, look=lambda snapshot: pass_seconds(70))]).run
    found = train(task, tmp_path, run=run, resume="last", log_every=5).run.history()
    assert found["step"].tolist() == [2, 4, 6, 8, 10, 12] and set(found["system/samples_per_second"]) == {4.0}
    assert set(found["system/tokens_per_second"]) == {4.0}


class Measured(Scripted):
    """A line with a metric: the mean number of the step, weighted by items."""

    def step(self, model, batch, cfg, at):
        out = super().step(model, batch, cfg, at)
        return StepOut(out.loss, out.n, {}, {"when": (float(at.step), out.n)})

    def metrics(self, cfg):
        return {"when": MeanMetric()}


def test_metrics_of_training(tmp_path):
    """`train/<metric>` stands where `val/<metric>` does, over the steps logged since the last; resume is exact."""
    task = Measured(steps=12, eval_every=5, log_every=2)
    history = train(task, tmp_path).run.history()
    found = history.dropna(subset=["val/when"])
    assert found["step"].tolist() == [5, 10, 12] and history["train/when"].count() == 3
    expected = [(1 + 3 + 4) / 3, (5 + 7 + 9) / 3, 11.0]  # a step is told how many were before it
    assert found["train/when"].tolist() == pytest.approx(expected)
    run = train(task, tmp_path, [Halt(8)]).run
    assert train(task, tmp_path, run=run, resume="last").run.history()["train/when"].equals(history["train/when"])
