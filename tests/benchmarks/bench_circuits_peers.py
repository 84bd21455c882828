"""What other codes of the six families cost, beside Shannon's bound: a plain dense autoencoder on fresh draws, the slot
VAE at its best settings, codes that learn nothing, memory, and the untrained model.

`python tests/benchmarks/bench_circuits_peers.py RUN`, from the project; RUN is a run of the preset base with seed 0,
for the graph model's curve. Settings are chosen on validation circuits of seed 0, by the least rate over bound among
those with `EXACT` of the graphs from a sample; the test circuits of seeds 0, 1 and 2 are asked once with each.
"""
import argparse
import json
import math
import time
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from nexuslab.config import Budget, resolve
from nexuslab.core import project_root
from nexuslab.evaluate import untrained_model
from nexuslab.run import Run
from nexuslab.systems.circuits.analysis import PARTS
from nexuslab.systems.circuits.loss import divergence
from nexuslab.systems.circuits.model import SlotVAE, mlp, slot_ends
from nexuslab.systems.circuits.population import RANGES
from nexuslab.systems.circuits.reconstruct import (
    _slot_rows, graph_entropy, judge, nearest_circuits, rate, reconstruct, shannon_bound,
)
from nexuslab.systems.circuits.task import slots, train_peer
from nexuslab.task import get_task

EXACT = 0.995  # of the graphs, from a sample
DRAWS = 4  # samples of each posterior: the median error of one leaves half a percent of the ratio to chance
PRECISIONS = (0.01, 0.02, 0.04)  # relative deviation that a code is asked for
NODES, WIDTH = 4, 24  # of the six families; latent numbers
SLOTS = len(slot_ends(NODES)[0])
DENSE = [(layers, hidden, weight) for layers, hidden in ((2, 128), (3, 128), (2, 256)) for weight in (4.0, 8.0)]
SLOT = [(256, kl) for kl in (1e-3, 5e-4)]
SHORT, LONG = 4000, 14_000  # steps of a dense model while settings are chosen, and of those that are reported
EPOCHS = 400  # of a slot VAE; at 100 every setting costs more than twice the bound


def told(name, source, seed, nats, found, seconds=0.0, **more):
    """A row of the table: what came back, the rate, and Shannon's bound at the error that came back."""
    errors = judge(source.arrays, np.tile(source.members, len(found) // source.size), found).figures()
    bound = shannon_bound(source.arrays, source.members, errors["value_error_median"])
    row = {"who": name, "seed": seed, "exact": errors["graph_exact"], "error": errors["value_error_median"],
           "p90": errors["value_error_p90"], "nats": nats, "bound": bound, "ratio": nats / bound, "seconds": seconds}
    print(json.dumps(row | more), flush=True)
    return row | more


def of_model(name, model, source, seed, seconds=0.0, **more):
    """The row of a model, from some samples of each posterior."""
    nats = rate(model, source.flat, source.members)
    found = [c for k in range(DRAWS) for c in reconstruct(model, source.flat, source.members, seed=k)[1]]
    return told(name, source, seed, nats, found, seconds, **more)


class Fresh:
    """Graphs of random training circuits with values drawn anew, as presence and standardised values of all slots."""

    def __init__(self, train, seed):
        flat, self.generator = train.flat, torch.Generator().manual_seed(seed)
        self.present = torch.from_numpy(_slot_rows(flat, train.members, SLOTS, 1.0)).unflatten(1, (2, SLOTS))[:, 0]
        mean, std = torch.tensor(flat.statistics, dtype=torch.float32)[:, slot_ends(NODES)[2]]
        ends = torch.tensor([RANGES[k] for k in PARTS]).log10()[slot_ends(NODES)[2]].float()
        (self.low, self.high), self.span = ((ends.T - mean) / std), std * math.log(10)  # span: ln of a unit

    def __call__(self, n):
        rows = torch.randint(len(self.present), (n,), generator=self.generator)
        value = self.low + (self.high - self.low) * torch.rand(n, SLOTS, generator=self.generator)
        return torch.stack([self.present[rows], value * self.present[rows]], 1)


def dense(train, layers, hidden, weight, precision, steps, seed, batch=128, rate=2e-3):
    """A dense variational autoencoder after its steps on fresh draws: cross-entropy of presence with a weight, Gaussian
    errors of ln of the values of a given deviation (which falls to it over the first 0.4 of the steps), divergence."""
    torch.manual_seed(seed)
    model, draw = SlotVAE(NODES, (WIDTH - 2, 1, 1), hidden), Fresh(train, seed + 1)
    model.encoder = mlp(2 * SLOTS, *[hidden] * layers, 2 * WIDTH)
    model.decoder = mlp(WIDTH, *[hidden] * layers, 2 * SLOTS)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    for step in range(steps):
        part = step / steps
        optimizer.param_groups[0]["lr"] = rate * min(1, step / 200) * (0.5 + 0.5 * math.cos(math.pi * part)) + 1e-6
        deviation = precision * (0.5 / precision) ** max(0.0, 1 - part / 0.4)
        x = draw(batch)
        mean, log_variance = model.posterior(None, (None, model.encoder(x.flatten(1))))
        z = mean + torch.randn(mean.shape, generator=draw.generator) * (0.5 * log_variance).exp()
        logits, value = model.decoder(z).chunk(2, 1)
        graph = F.binary_cross_entropy_with_logits(logits, x[:, 0], reduction="none").sum(1).mean()
        values = ((value - x[:, 1]) * draw.span * x[:, 0] / deviation).square().sum(1).mean() / 2
        optimizer.zero_grad()
        (weight * graph + values + divergence(mean, log_variance).sum(1).mean()).backward()
        optimizer.step()
    return model.eval()


def slot(train, hidden, kl, epochs, seed):
    """The package's slot VAE, trained on the file as its baseline is."""
    cfg = slots()
    model, loss = (getattr(cfg, name).model_copy(update=new) for name, new in (("model", {"hidden": hidden}),
                                                                              ("loss", {"kl": kl})))
    cfg = cfg.model_copy(update={"model": model, "loss": loss, "seed": seed, "budget": Budget(epochs=epochs)})
    return train_peer(train, cfg, NODES)


def timed(make, *how):
    """What was made, and its processor time."""
    begun = time.process_time()
    made = make(*how)
    return made, time.process_time() - begun


def best(rows):
    """The setting with the least rate over bound among those that bring the graphs back."""
    return min(rows, key=lambda row: (row["exact"] < EXACT, row["ratio"]))["setting"]


def quantised(source, seed, precision, graph):
    """A price for the graph, and values rounded in the logarithm within their ranges: nothing is learned of values."""
    step = 4 * precision * 0.6745  # an even error within half a step has the median of a Gaussian one's magnitude
    edges = np.concatenate([np.arange(*source.arrays["edge_offset"][row : row + 2]) for row in source.members])
    there, log = source.arrays["edge_present"][edges], np.log(10) * source.arrays["edge_log_value"][edges]
    low, high = np.log(np.array([RANGES[k] for k in PARTS])).T
    cells = np.ceil((high - low) / step)
    width = (high - low) / cells
    place = np.clip(np.floor((log - low) / width), 0, cells - 1)
    error = np.abs(np.expm1((low + (place + 0.5) * width - log)[there]))
    nats = graph + float((there * np.log(cells)).sum() / len(source.members))
    bound = shannon_bound(source.arrays, source.members, float(np.median(error)))
    return {"seed": seed, "exact": 1.0, "error": float(np.median(error)), "p90": float(np.quantile(error, 0.9)),
            "nats": nats, "bound": bound, "ratio": nats / bound, "precision": precision}


def simple(splits, cfg, seed):
    """What learns nothing or only remembers."""
    test, rows = splits.test, []
    remembered = nearest_circuits(test.arrays, test.flat, test.members)
    rows.append(told("nearest training circuit, its number", test, seed, math.log(splits.train.size), remembered))
    untrained = untrained_model(get_task("circuits"), cfg, splits)
    prices = {"identity code: a bit for each slot, rounded values": SLOTS * math.log(2),
              "code book of graphs, rounded values": graph_entropy(test.arrays, test.members)}
    for precision in PRECISIONS:
        untrained.scores.precision = precision
        rows.append(of_model("untrained graph VAE", untrained, test, seed, precision=precision))
        rows += [{"who": name} | quantised(test, seed, precision, price) for name, price in prices.items()]
    return rows


def dense_rows(data, setting=None):
    """The dense model at the setting chosen, or at one that was chosen before."""
    chosen, rows = [], []
    for how in DENSE if setting is None else ():
        made, spent = timed(dense, data[0].train, *how, 0.02, SHORT, 0)
        chosen.append(of_model("validation: dense VAE", made, data[0].val, 0, spent, setting=how))
    how = setting or best(chosen)
    for precision, (seed, splits) in product(sorted(PRECISIONS, key=lambda x: x != 0.02), enumerate(data)):
        made, spent = timed(dense, splits.train, *how, precision, LONG, seed)
        rows.append(of_model("dense VAE, fresh draws", made, splits.test, seed, spent, precision=precision))
    return rows


def slot_rows(data):
    """The slot VAE at the setting chosen."""
    made = [timed(slot, data[0].train, *how, EPOCHS, 0) for how in SLOT]
    how = best([of_model("validation: slot VAE", model, data[0].val, 0, spent, setting=how)
                for how, (model, spent) in zip(SLOT, made, strict=True)])
    made = [made[SLOT.index(how)], *(timed(slot, splits.train, *how, EPOCHS, k) for k, splits in enumerate(data) if k)]
    return [of_model("slot VAE", model, data[k].test, k, spent) for k, (model, spent) in enumerate(made)]


def graph_rows(data, run):
    """The graph model of a run at several precisions."""
    model, cfg, _ = Run.open(run).load("best")
    for precision in PRECISIONS:
        model.scores.precision = precision
        yield of_model("graph VAE", model, data[cfg.seed].test, cfg.seed, precision=precision)


def main(run):
    """The table of all peers."""
    torch.set_num_threads(1)
    task, begun = get_task("circuits"), time.process_time()
    cfgs = [resolve(task, "base", {"seed": seed}) for seed in range(3)]
    data = [task.data(cfg, project_root()) for cfg in cfgs]
    rows = [row for seed, splits in enumerate(data) for row in simple(splits, cfgs[seed], seed)]
    rows += [*graph_rows(data, run), *dense_rows(data), *slot_rows(data)]
    print(f"{time.process_time() - begun:.0f} s of processor time")
    return table_of(rows)


def table_of(rows):
    """Mean and spread over seeds of each code at each precision."""
    table = pd.DataFrame(rows).drop(columns=["seed", "setting"], errors="ignore")
    return table.groupby(["who", "precision"], dropna=False, sort=False).agg(["mean", "std"]).round(4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    print(main(parser.parse_args().run).to_string())
