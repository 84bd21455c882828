"""A step of Muon beside PyTorch's own, on the matrices of a small transformer, interleaved; and what it adds to a
training step."""

import statistics
import time

import torch

from nexuslab.config import resolve
from nexuslab.optim import Muon
from nexuslab.systems.collatz.task import TASK
from nexuslab.task import At

ROUNDS, STEPS = 5, 10
CEILING, SHARE = 0.7, 0.6  # of PyTorch's Muon, of forward and backward


def seconds(do) -> float:
    """The mean time of one call."""
    start = time.perf_counter()
    for _ in range(STEPS):
        do()
    return (time.perf_counter() - start) / STEPS


def matrices() -> list[torch.nn.Parameter]:
    """Those of four blocks of width 96, with gradients."""
    generator = torch.Generator().manual_seed(0)
    found = [
        torch.nn.Parameter(torch.randn(shape, generator=generator))
        for shape in [(288, 96), (96, 96), (384, 96), (96, 384)] * 4
    ]
    for p in found:
        p.grad = torch.randn(p.shape, generator=generator)
    return found


def test_muon():
    torch.set_num_threads(1)
    own = Muon([{"params": matrices(), "weight_decay": 0.01, "matrices": True}])
    peer = torch.optim.Muon(matrices(), adjust_lr_fn="match_rms_adamw")
    own.step(), peer.step()
    pairs = [(seconds(own.step), seconds(peer.step)) for _ in range(ROUNDS)]
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"\nMuon {1e3 * statistics.median(a for a, _ in pairs):.1f} ms, PyTorch's "
        f"{1e3 * statistics.median(b for _, b in pairs):.1f} ms a step of {len(matrices())} matrices: {ratio:.2f}"
    )
    assert ratio < CEILING


def test_share_of_a_training_step(tmp_path):
    torch.set_num_threads(1)
    cfg = resolve(TASK, "base")
    splits = TASK.data(cfg, tmp_path)
    model = TASK.model(cfg, splits.meta)
    batch = splits.train.batch(range(cfg.loader.batch_size), {"tilt": 1.0}, None)

    def backward():
        model.zero_grad()
        TASK.step(model, batch, cfg, At(training=True)).loss.backward()

    backward()
    own = Muon(
        [{"params": [p for p in model.blocks.parameters() if p.ndim == 2], "weight_decay": 0.01, "matrices": True}]
    )
    pairs = [(seconds(own.step), seconds(backward)) for _ in range(ROUNDS)]
    share = statistics.median(a / b for a, b in pairs)
    print(f"\nMuon adds {share:.0%} to {1e3 * statistics.median(b for _, b in pairs):.0f} ms of forward and backward")
    assert share < SHARE
