"""What the latent space of a trained circuit model is good for, beside rivals that need none.

`python tests/benchmarks/bench_circuits_latent.py published RUN`, `... paths RUN --n 60`, `... search RUN --n 24` and
`... temperature RUN --n 3000`, from the project; RUN is a run of the preset base or ladders.
"""
import argparse
import time

import numpy as np
import optuna
import pandas as pd
import torch
from torch.nn import functional as F

from bench_circuits_design import off_target, only_raced

from nexuslab.core import mix
from nexuslab.evaluate import untrained_model
from nexuslab.run import Run
from nexuslab.systems.circuits.data import circuit_at, generate
from nexuslab.systems.circuits.design import shape_of
from nexuslab.systems.circuits.fit import graph_of, logs_of, stack, start_fits, usual_limits
from nexuslab.systems.circuits.model import SURE, collate, flatten, slot_targets
from nexuslab.systems.circuits.paths import LOWEST, STEPS, cross_fade, largest_step, levels_of
from nexuslab.systems.circuits.propose import Library, Proposal, nearest
from nexuslab.systems.circuits.published import published_table
from nexuslab.systems.circuits.reconstruct import analysed, verdict
from nexuslab.systems.circuits.variations import decode, encode_circuit, own_target

TEMPERATURES = (0.9, 1.0, 1.1, 1.2, 1.3, 1.5, 2.0, 2.2)
SOLVED = 0.5  # dB within 20 dB of the peak


def opened(name):
    """Model, statistics, splits and seed of a run, and the untrained model of its configuration."""
    run = Run.open(name)
    model, cfg, meta = run.load("best")
    splits = run.task.data(cfg, run.root)
    return model, np.asarray(meta["statistics"]), splits, cfg.seed, untrained_model(run.task, cfg, splits)


def published(name, n, seed):
    """Butterworth, Chebyshev and elliptic ladders through the code of a run, and the untrained model's rate."""
    model, statistics, splits, own, untrained = opened(name)
    table = published_table(model, splits.train.arrays, statistics, own)
    table["nats, untrained"] = published_table(untrained, splits.train.arrays, statistics, own)["nats"]
    return table


def chain(ends, known, hz):
    """Least possible largest step, over the distance of the ends, of any chain of known circuits in STEPS steps."""
    whole = np.concatenate([ends, known])
    size = np.square(whole).sum(1)
    far = np.sqrt(np.maximum(size[:, None] + size - 2 * whole @ whole.T, 0) / len(hz))
    low, high = 0.0, far[0, 1]
    while high - low > 0.005 * far[0, 1]:
        middle, reached = (low + high) / 2, np.arange(len(far)) == 0
        near = far <= middle
        for _ in range(STEPS):
            reached = reached | near[reached].any(0)
        low, high = (low, middle) if reached[1] else (middle, high)
    return high / far[0, 1]


def paths(name, n, seed):
    """Pairs of test circuits of different kinds: straight lines in the latent space, cross-fades, chains of memory."""
    model, statistics, splits, own, _ = opened(name)
    source, rng = splits.test, np.random.default_rng(mix(seed, "pairs"))
    arrays, rows = source.arrays, []
    train = [circuit_at(arrays, r) for r in rng.choice(np.flatnonzero(arrays["split"] == 0), 1000, replace=False)]
    while len(rows) < n:
        a, b = rng.choice(source.members, 2, replace=False)
        if arrays["kind"][a] == arrays["kind"][b]:
            continue
        begun = time.process_time()
        ends = [circuit_at(arrays, a), circuit_at(arrays, b)]
        path = cross_fade(*ends)
        spent, told = time.process_time() - begun, path.clean()
        between = np.linspace(*(encode_circuit(model, c, statistics).mean for c in ends), STEPS + 1)
        line = [c if analysed(c) is not None else None for c in decode(model, between, statistics)]
        level = np.full((STEPS + 1, len(path.hz)), LOWEST)
        held = [k for k, c in enumerate(line) if c is not None]
        level[held] = levels_of([line[k] for k in held], path.hz)
        rows.append({
            "cross-fade": path.largest, "straight line": largest_step(level),
            "chain of 1,000 training circuits": chain(path.levels[[0, -1]], levels_of(train, path.hz), path.hz),
            "clean on the way": told.count("clean") / len(told), "all clean": told.count("clean") == len(told),
            "most parts": max(len(c.parts) for c in path.circuits),
            "parts of the ends": sum(len(c.parts) for c in ends) / 2,
            "valid on the line": len(held) / len(line), "why not": next((t for t in told if t != "clean"), ""),
            "seconds": spent,
        })
    table = pd.DataFrame(rows)
    for column in ("cross-fade", "straight line", "chain of 1,000 training circuits"):
        print(f"{column}: median {table[column].median():.3f}, at most 0.3 in {(table[column] <= 0.3).mean():.3f}")
    print(f"all clean: {table['all clean'].mean():.3f}; {table['why not'].value_counts().to_dict()}")
    return table.drop(columns="why not").astype(float).describe().loc[["mean", "min", "25%", "50%", "75%", "max"]]


NEVER = 1e6  # cost of what is no circuit
BATCH = 20  # of the evolution strategy


def latent_cost(model, statistics, target):
    """Cost and largest distance [dB] of latent vectors; what is no valid circuit costs an analysis too."""
    known = {}

    def cost(z):
        found, told = decode(model, z, statistics), np.full((2, len(z)), NEVER)
        for k, c in enumerate(found):
            name = None if c is None else (c.n_nodes, c.typed)
            if name not in known:
                known[name] = verdict(c) == "valid"
        held = [k for k, c in enumerate(found) if c is not None and known[c.n_nodes, c.typed]]
        if held:
            some = [found[k] for k in held]
            fits = start_fits(stack([graph_of(c) for c in some]), logs_of(some), target)
            told[:, held] = fits.cost, fits.worst
        return told

    return cost


def value_cost(graph, target):
    """The same for places in the ranges of a graph's values, (n, P) in 0 to 1, and P."""
    limits = usual_limits(stack([graph]))

    def cost(x):
        u = limits.low + (limits.high - limits.low) * np.clip(x, 0, 1)
        fits = start_fits(stack([graph] * len(u)), u, target)
        return np.stack([fits.cost, fits.worst])

    return cost, limits.low.shape[1]


def evolve(cost, draw, budget, rng):
    """(1 + 20) evolution strategy from the best of a fifth of the budget; the least distance found."""
    x = draw(budget // 5)
    told = cost(x)
    best, least, width, seen = x[told[0].argmin()], told[0].min(), 0.3 * x.std(), list(told[1])
    while len(seen) < budget:
        x = best + width * rng.standard_normal((min(BATCH, budget - len(seen)), len(best)))
        told = cost(x)
        seen += list(told[1])
        better = told[0].min() < least
        best, least = (x[told[0].argmin()], told[0].min()) if better else (best, least)
        width *= 1.3 if better else 0.87
    return min(seen)


def by_tpe(cost, size, low, high, budget, seed):
    """Optuna's tree-structured Parzen estimator, one analysis at a time."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, multivariate=False))
    seen = []
    for _ in range(budget):
        trial = study.ask()
        x = np.array([[trial.suggest_float(str(k), low, high) for k in range(size)]])
        told = cost(x)[:, 0]
        seen.append(told[1])
        study.tell(trial, float(np.log(told[0] + 1e-6)))
    return min(seen)


def as_proposals(circuits):
    """Circuits to begin least squares from."""
    return [Proposal(graph_of(c), logs_of([c])[0], "") for c in circuits]


def searched(model, statistics, library, arrays, row, budget, rng, tpe):
    """The least distance [dB] that each way of searching finds for the response of one circuit."""
    true = circuit_at(arrays, row)
    target, width = own_target(true), sum(model.latent)
    latent, normal = latent_cost(model, statistics, target), lambda n: rng.standard_normal((n, width))
    values, size = value_cost(graph_of(true), target)
    others = [circuit_at(arrays, r) for r in rng.choice(library.rows, budget // 10)]
    of_other, size_of_other = value_cost(graph_of(others[0]), target)
    drawn = [c for c in decode(model, normal(budget // 10), statistics) if verdict(c) == "valid"]
    kind, f0 = shape_of(target)
    told = {
        "latent, random": min(latent(normal(budget))[1]), "latent, evolution": evolve(latent, normal, budget, rng),
        "values of the true graph, random": min(values(rng.random((budget, size)))[1]),
        "values of the true graph, evolution": evolve(values, lambda n: rng.random((n, size)), budget, rng),
        "values of a training graph, evolution": evolve(
            of_other, lambda n: rng.random((n, size_of_other)), budget, rng),
    }
    starts = {"draws from the prior": as_proposals(drawn), "random training circuits": as_proposals(others),
              "nearest training circuits": nearest(library, target, f0, budget // 10),
              "true graph": [Proposal(graph_of(true), u, "") for u in logs_of([true]) + rng.normal(0, 2, (5, size))]}
    for k, v in starts.items():
        told[f"least squares, {k}"] = float(np.abs(off_target(only_raced(target, v, budget)[0], target)).max())
    if tpe and budget <= 200:  # a minute of processor time: each of 56 numbers has a density of its own
        seed = int(rng.integers(2**31))
        told["latent, TPE"] = by_tpe(latent, width, -3, 3, budget, seed)
        told["values of the true graph, TPE"] = by_tpe(values, size, 0, 1, budget, seed)
        told["values of a training graph, TPE"] = by_tpe(of_other, size_of_other, 0, 1, budget, seed)
    return told


def search(name, n, seed, tpe=False):
    """Responses of test circuits: searches of the latent space and of log values, at equal numbers of analyses."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    model, statistics, splits, _, _ = opened(name)
    arrays, rng, tables = splits.test.arrays, np.random.default_rng(mix(seed, "targets")), []
    library = Library(splits.train.arrays, splits.train.members)
    rows = rng.choice(splits.test.members, n, replace=False)
    for budget in (200, 2000):
        told = []
        for row in rows:
            told.append(searched(model, statistics, library, arrays, row, budget, rng, tpe))
        table = pd.DataFrame(told)
        told = {f"solved, {budget}": (table <= SOLVED).mean(), f"median dB, {budget}": table.median()}
        tables.append(pd.DataFrame(told))
        print(pd.concat(tables, axis=1).round(3).to_string(), flush=True)
    return pd.concat(tables, axis=1)


def temperature(name, n, seed):
    """Nats of the graphs of n fresh random networks at temperatures of the reader: all, and those training lacks."""
    model, _, splits, own, _ = opened(name)
    fresh, known = generate({"population": "ladders", "circuits": n}, seed=mix(seed, own) % 2**32), splits.train.arrays
    new, flat, nats = ~np.isin(fresh["topology"], known["topology"][known["split"] == 0]), flatten(fresh), []
    for rows in np.array_split(np.arange(n), -(-n // 512)):
        batch = collate(flat, rows, roots=False)
        with torch.no_grad():
            logits = model.reader(batch)
        there = slot_targets(batch, logits)
        told = [F.binary_cross_entropy_with_logits((logits / t).clamp(-SURE, SURE), there, reduction="none").sum(1)
                for t in TEMPERATURES]
        nats.append(torch.stack(told, 1).numpy())
    nats = np.concatenate(nats)
    print(f"{new.mean():.3f} of {n} have a graph that training lacks")
    return pd.DataFrame({"all": nats.mean(0), "new": nats[new].mean(0)}, index=TEMPERATURES)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["published", "paths", "search", "temperature"])
    parser.add_argument("run")
    parser.add_argument("--n", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tpe", action="store_true", help="search with Optuna's estimator too")
    said = parser.parse_args()
    begun, more = time.process_time(), {"tpe": said.tpe} if said.what == "search" else {}
    ways = {"published": published, "paths": paths, "search": search, "temperature": temperature}
    found = ways[said.what](said.run, said.n, said.seed, **more)
    print(found.round(4).to_string(), f"\n{time.process_time() - begun:.0f} s of processor time")
