"""What the loop costs: `fit` a step against a hand-written loop and Lightning Fabric, and the start of the command
`nexuslab train`."""
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nexuslab.config import Checkpoint, Config, Loader, Optim, Schedule, Track
from nexuslab.core import mix
from nexuslab.data import Tensors, epoch_order
from nexuslab.fit import fit
from nexuslab.listen import Listener
from nexuslab.own import OwnTask
from nexuslab.optim import parameter_groups
from nexuslab.run import Run

STEPS, WARM, REPEATS, BATCH, EVERY, PIECE = 1000, 100, 24, 8, 10, 20
WIDTHS = {289: [16], 100_717: [308, 308]}  # parameters of the model: widths of its hidden layers
X = torch.randn(4096, 16, generator=torch.Generator().manual_seed(0))
Y = X.square().sum(1, keepdim=True)
TOYS = Path(__file__).parents[1] / "toys"


def make(parameters):
    layers, width = [], X.shape[1]
    for hidden in WIDTHS[parameters]:
        layers += [nn.Linear(width, hidden), nn.Tanh()]
        width = hidden
    model = nn.Sequential(*layers, nn.Linear(width, 1))
    assert sum(p.numel() for p in model.parameters()) == parameters
    return model


def loss_of(model, batch):
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def batches(steps):
    """The batches of `fit`: an epoch's permutation, cut into rows."""
    per = len(X) // BATCH
    for step in range(steps):
        epoch, place = divmod(step, per)
        if place == 0:
            order = torch.from_numpy(epoch_order(len(X), 0, epoch))
        rows = order[place * BATCH : (place + 1) * BATCH]
        yield X[rows], Y[rows]


def cosine(step, steps):
    return 1e-3 * 0.5 * (1 + math.cos(math.pi * step / (steps - 1)))


def adamw(model):
    """PyTorch's own, as the configuration asks for it by default; no decay on biases."""
    config = Optim()
    groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in
              parameter_groups(model, config.weight_decay)]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


class Log:
    """A mean of the loss and a line of JSON, every tenth step."""

    def __init__(self, path):
        self.file, self.losses = open(path, "w", encoding="utf-8"), []

    def add(self, step, loss, rate, norm):
        self.losses.append(loss.detach())
        if step % EVERY == 0:
            mean = sum(float(v) for v in self.losses) / len(self.losses)
            self.losses.clear()
            self.file.write(
                json.dumps(
                    {
                        "step": step, "time": time.time(), "train/loss": mean, "train/learning_rate": rate,
                        "train/grad_norm": norm,
                    }
                )
                + "\n"
            )
            self.file.flush()


def clocks():
    """Wall-clock and processor time [s]: the second is the same on a busy machine, since all three loops are one
    thread."""
    return np.array([time.perf_counter(), time.process_time()])


def hand_written(folder, parameters, steps=STEPS):
    """The loop one would write: seeds, clipping, finiteness, schedule and log included. It pauses after each
    piece."""
    torch.manual_seed(0)
    model = make(parameters)
    optimizer, log = adamw(model), Log(folder / "hand.jsonl")
    for step, batch in enumerate(batches(steps), 1):
        torch.default_generator.manual_seed(mix(0, "step", step, 0))
        loss = loss_of(model, batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        if not math.isfinite(norm):
            raise RuntimeError("a non-finite gradient")
        rate = cosine(step - 1, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.add(step, loss, rate, norm)
        if step % PIECE == 0:
            yield


def fabric(folder, parameters, steps=STEPS):
    """The same loop on Lightning Fabric."""
    from lightning_fabric import Fabric

    torch.manual_seed(0)
    runner = Fabric(accelerator="cpu", devices=1)
    model, optimizer = runner.setup(module := make(parameters), adamw(module))
    log = Log(folder / "fabric.jsonl")
    for step, batch in enumerate(batches(steps), 1):
        torch.default_generator.manual_seed(mix(0, "step", step, 0))
        loss = loss_of(model, batch)
        runner.backward(loss)
        norm = runner.clip_gradients(model, optimizer, max_norm=1.0, error_if_nonfinite=False).item()
        if not math.isfinite(norm):
            raise RuntimeError("a non-finite gradient")
        rate = cosine(step - 1, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        log.add(step, loss, rate, norm)
        if step % PIECE == 0:
            yield


class Clock(Listener):
    """Reads the clocks after each piece, and lets another loop do its own piece in between."""

    def __init__(self, other):
        self.other, self.began, self.pieces = other, clocks(), []

    def on_row(self, snapshot):
        if snapshot.step % PIECE == 0:
            mine = clocks()
            next(self.other)
            after = clocks()
            self.pieces.append((mine - self.began, after - mine))
            self.began = clocks()

    def close(self):
        return


def engine(folder, parameters, other, steps=STEPS):
    """`fit` and another loop by turns: wall-clock and processor time [s] of each one's pieces, (pieces, 2, 2)."""
    config = Config(
        system="bench", budget={"steps": steps}, loader=Loader(batch_size=BATCH), optim=Optim(
            lr=1e-3, clip=1.0
        ), schedule=Schedule(name="cosine"),
        track=Track(log_every=EVERY), checkpoint=Checkpoint(eval_every=steps, save_minutes=None),
    )
    task = OwnTask("bench", lambda: make(parameters), loss_of, Tensors(X, Y), Tensors(X[:8], Y[:8]), config)
    clock = Clock(other)
    fit(task, config, Run.create(config, folder), [clock])
    return np.array(clock.pieces)


@pytest.mark.parametrize("parameters", WIDTHS)
def test_step(parameters, tmp_path, capsys):
    """Two loops take turns, 20 steps each, so that both meet the same machine; medians of the pieces of each repeat."""
    torch.set_num_threads(1)
    for name, loop in {"hand-written": hand_written, "Lightning Fabric": fabric}.items():
        found = []
        for _ in range(REPEATS):
            pieces = engine(tmp_path, parameters, loop(tmp_path, parameters))
            found.append(1e6 * np.median(pieces[WARM // PIECE : -1], axis=0) / PIECE)  # the last has the evaluation
        ratios = np.quantile([own / other for own, other in found], (0.25, 0.5, 0.75), axis=0)
        with capsys.disabled():
            print(f"\n{parameters:,} parameters, {REPEATS} repeats of {STEPS} steps, `fit` and {name} by turns")
            for which, clock in enumerate(("wall", "processor")):
                own, other = np.median(found, axis=0)[:, which]
                low, middle, high = ratios[:, which]
                print(f"  {clock:<10}{own:8.0f} against {other:6.0f} microseconds a step: "
                      f"{middle:.3f} (quartiles {low:.3f} to {high:.3f})")
        assert np.isfinite(found).all() and (np.array(found) > 0).all()
    last = [json.loads(line) for line in (tmp_path / "hand.jsonl").read_text().splitlines()][-1]
    assert last["step"] == STEPS and last["train/loss"] > 0


START = """
import sys, time
t = [time.time()]
import torch
t.append(time.time())
import nexuslab.fit
t.append(time.time())
from nexuslab.task import get_task
from nexuslab.config import resolve
from nexuslab.optim import parameter_groups
from nexuslab.run import Run
task = get_task("toy_graphs")
cfg = resolve(task, "smoke")
t.append(time.time())
run = Run.create(cfg)
t.append(time.time())
nexuslab.fit.fit(task, cfg, run)
t.append(time.time())
print("MARKS", *t)
"""


@pytest.mark.parametrize("cache", ["warm"])
def test_start(cache, tmp_path, capsys):
    """From the process's start to the first row of metrics, by the command and by plain Python, with its parts."""
    environment = os.environ | {
        "NEXUSLAB_HOME": str(tmp_path), "PYTHONPATH": str(TOYS), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"
    }
    command = [str(Path(sys.executable).parent / "nexuslab"), "train", "--system", "toy_graphs", "--preset", "smoke"]
    rows = []
    for _ in range(3):
        before, started = set((tmp_path / "runs" / "toy_graphs").glob("*")), time.time()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        ended = time.time()
        [run] = set((tmp_path / "runs" / "toy_graphs").glob("*")) - before
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        environment_at = (run / "config.yaml").stat().st_mtime, (run / "environment.json").stat().st_mtime
        first, start = next(r["time"] for r in lines if "event" not in r), lines[0]["time"]
        rows.append(
            {
                "to the run directory": environment_at[1] - started, "to `fit` begun": start - started,
                "to the first row": first - started, "to the end": ended - started,
            }
        )
    plain = []
    for _ in range(3):
        started = time.time()
        done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        marks = [float(v) for v in done.stdout.split("MARKS")[1].split()]
        plain.append(
            dict(
                zip(
                    (
                        "interpreter", "torch", "nexuslab.fit", "system and configuration", "run directory",
                        "fit, 2 epochs",
                    ),
                    np.diff([started, *marks]),
                )
            )
        )
    with capsys.disabled():
        print("\nnexuslab train, smoke preset of toy_graphs, warm cache [s], best of 3:")
        for key in rows[0]:
            print(f"  {key:<26}{min(r[key] for r in rows):>7.2f}")
        print("the parts in plain Python [s], best of 3:")
        for key in plain[0]:
            print(f"  {key:<26}{min(r[key] for r in plain):>7.2f}")
    assert all(0 < r["to the run directory"] <= r["to the first row"] <= r["to the end"] for r in rows)
