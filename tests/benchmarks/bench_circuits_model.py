"""Circuits a second through one training step of one thread: the graph model, its dense peer, and the same graph model
graph by graph."""
import time

import pytest
import torch

from nexuslab.config import Budget
from nexuslab.optim import make_optimizer
from nexuslab.systems.circuits.model import collate
from nexuslab.systems.circuits.task import TASK, CircuitData, base, objective, slots

BATCHES, ROUNDS = 8, 3  # batches timed together; the best of the rounds counts, since a shared machine only ever adds
LOOPED = 1  # batches of the loop, which is slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    cfg = base().model_copy(
        update={"data": CircuitData(circuits=1200, fractions=(0.9, 0.05, 0.05), workers=1), "budget": Budget(epochs=1)}
    )
    return TASK.data(cfg, tmp_path_factory.mktemp("circuits"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batched(model, loss, source, rows):
    """Forward and backward over a batch."""
    batch = collate(source.flat, rows)
    loss(model, batch, model(batch, torch.randn_like)).total.backward()


def looped(model, loss, source, rows):
    """The same, one graph at a time: gradients add up to those of the batch's mean."""
    for row in rows:
        batch = collate(source.flat, [row])
        (loss(model, batch, model(batch, torch.randn_like)).total / len(rows)).backward()


def rate(step, cfg, splits, batches):
    """Circuits a second, from sliced arrays to the optimiser's step, and the model's parameters."""
    torch.manual_seed(0)
    model, loss, size = TASK.model(cfg, splits.meta), objective(cfg), 128
    optimizer = make_optimizer(cfg.optim, model)
    best = float("inf")
    for _ in range(ROUNDS + 1):  # the first warms up
        start = time.perf_counter()
        for k in range(batches):
            optimizer.zero_grad()
            step(model, loss, splits.train, splits.train.members[k * size : (k + 1) * size])
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        best = min(best, time.perf_counter() - start)
    return batches * size / best, sum(p.numel() for p in model.parameters())


def test_training_circuits_per_second(data, benchmark):
    rows = {}
    rows["graph model"] = benchmark.pedantic(rate, args=(batched, base(), data, BATCHES), rounds=1)
    rows["dense peer"] = rate(batched, slots(), data, BATCHES)
    rows["graph model, graph by graph"] = rate(looped, base(), data, LOOPED)
    own = rows["graph model"][0]
    print(f"\n{'batches of 128, one thread':<30}{'parameters':>12}{'circuits/s':>12}{'ratio':>8}")
    for name, (speed, parameters) in rows.items():
        print(f"{name:<30}{parameters:>12,}{speed:>12,.0f}{own / speed:>8.2f}")
    benchmark.extra_info.update({name: round(speed) for name, (speed, _) in rows.items()})
    assert rows["graph model"][1] > 100_000 and own > 2 * rows["graph model, graph by graph"][0]


def test_the_loop_computes_the_same(data):
    torch.manual_seed(0)
    model, loss = TASK.model(base(), data.meta), objective(base())
    ids = data.train.members[:16]

    def gradient(parts):
        model.zero_grad()
        for part in parts:
            batch = collate(data.train.flat, part)
            (loss(model, batch, model(batch)).total * len(part) / len(ids)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    together, apart = gradient([ids]), gradient([[i] for i in ids])
    assert (together - apart).norm() < 1e-3 * together.norm()
