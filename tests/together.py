"""Trainings that one process and a group of two do alike, and the group that does them one after the other."""
import dataclasses
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from stateful import Summing
from tiny import Halt, Scripted
from torch import nn

from nexuslab.config import Config, overlay, resolve
from nexuslab.core import NexusError
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.task import Task, get_task

ODD = {"threads": 1, "batch_size": 8, "log_every": 1, "checkpoint.save_minutes": None}
POISONED = 7  # an example without a finite target


class Resting(nn.Module):
    """A part used by every batch, one used by some, one used by none."""

    def __init__(self):
        super().__init__()
        self.always, self.sometimes, self.never = nn.Linear(3, 1), nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x):
        return self.always(x) + self.sometimes(x) if x[:, 0].max() > 1.2 else self.always(x)


class Scarce(Scripted):
    """The second process of a group has room for four examples."""

    def step(self, model, batch, cfg, at):
        second = dist.is_initialized() and dist.get_rank() == 1
        if at.training and second and len(batch[0]) > 4:
            raise torch.OutOfMemoryError("room for four examples")
        return super().step(model, batch, cfg, at)


class Poisoned(Scripted):
    """One training example has no finite target."""

    def __init__(self, **changes):
        super().__init__(**changes)
        self.sources[0].tensors[1][POISONED] = torch.nan


def line(kind=Scripted, **changes):
    """33 points of a line, in three epochs of five batches or three steps."""
    task = kind(train=33, **{"val": 20, "epochs": 3, "lr": 0.05, **ODD, **changes})
    return task, task.config


def system(name, **changes):
    """A system's smoke preset, in batches of 8."""
    return get_task(name), resolve(get_task(name), "smoke", {**ODD, **changes})


MAKERS = {
    "line": lambda: line(),
    "accumulated": lambda: line(batch_size=3, **{"optim.accumulate": 2}),
    "empty validation share": lambda: line(val=4),
    "resting parts": lambda: line(make=Resting, **{"optim.name": "adamw", "weight_decay": 0.1}),
    "running statistics": lambda: line(
        make=lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)), restore_best=False,
        **{"loader.drop_last": True}
    ),
    "a state": lambda: line(Summing),
    "memory": lambda: line(Scarce, **{"guard.halve_on_oom": True}),
    "memory refused": lambda: line(Scarce),
    "poisoned": lambda: line(Poisoned),
    "poisoned, skipped": lambda: line(Poisoned, **{"guard.nonfinite": "skip"}),
    "toy_tokens": lambda: system(
        "toy_tokens", steps=12, log_every=5, eval_every=6, save_every=3, save_total_limit=100, **{"model.dropout": 0.0}
    ),
    "toy_graphs": lambda: system("toy_graphs", epochs=2, **{"loader.eval_batch_size": 64}),
    "circuits": lambda: system("circuits", epochs=2, **{"data.circuits": 60, "data.fractions": (0.55, 0.2, 0.25)}),
    "collatz": lambda: system("collatz", steps=None, epochs=2, **{"data.num_samples": 33, "eval_every": 1}),
}


def made(name: str, processes: int) -> tuple[Task, Config]:
    """A case's task, and its configuration for one process or two: the steps are the same."""
    task, cfg = MAKERS[name]()
    return task, overlay(cfg, {"processes": processes, "optim.accumulate": cfg.optim.accumulate * 2 // processes})


def outcome(name: str, path: Path, processes: int, resume: str | None = None) -> dict:
    """Train a case in this process: what came of it, and what a listener was told."""
    task, cfg = made(name, processes)
    listener = Halt()
    try:
        result = fit(task, cfg, Run(path), [listener], resume=resume)
    except NexusError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    told = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in ("run", "model")}
    rows = [(s.step, s.epoch, s.total_steps, s.evaluated, s.note) for s in listener.rows]
    asked = task.sources[0].asked if isinstance(task, Scripted) else []
    return {"result": told, "weights": result.model.state_dict(), "rows": rows, "asked": asked}


def together(rank: int, jobs: list[tuple], folder: str) -> None:
    """One of the two processes: every job in turn, its outcome in a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for number, (name, path, resume) in enumerate(jobs):
        torch.save(outcome(name, path, 2, resume), f"{folder}/{number}-{rank}.pt")
    dist.destroy_process_group()


def group_of_two(jobs: list[tuple], folder: Path) -> list[list[dict]]:
    """Train (case, run directory, resume) one after the other in one group; the outcome of each job on each process."""
    mp.spawn(together, (jobs, str(folder)), nprocs=2)
    return [[torch.load(folder / f"{i}-{rank}.pt", weights_only=False) for rank in range(2)] for i in range(len(jobs))]
