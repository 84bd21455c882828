"""Design from a specification: who proposes the better graphs at equal numbers of analyses, and what can be bought.

`python tests/benchmarks/bench_circuits_design.py responses --n 100` and `... specifications --n 200`, from the project,
with the data of `nexuslab prepare --system circuits --preset ladders`.
"""
import argparse
import time

import numpy as np
import pandas as pd

from nexuslab.config import resolve
from nexuslab.core import project_root
from nexuslab.systems.circuits.design import Wish, asked_for, by_ngspice, deck, design, in_turn, search, shape_of, snap
from nexuslab.systems.circuits.fit import DB, logs_of, stack, transfer, graph_of
from nexuslab.systems.circuits.propose import Library, analyses_of, by_chance, nearest, textbook
from nexuslab.systems.circuits.specification import follow, spread_out
from nexuslab.task import get_task

SOLVED = 0.5  # dB within 20 dB of the peak
FINE = np.linspace(-0.04, 0.04, 33)  # decades about a shift of the library's grid


def library_and_arrays():
    """The circuits that a designer knows, and the file with those held out."""
    task = get_task("circuits")
    splits = task.data(resolve(task, "ladders"), project_root())
    return Library(splits.train.arrays, splits.train.members), splits.train.arrays


def curve_of(arrays, row):
    """Frequencies and levels of a circuit over six decades about its corner, and its analysis."""
    known = analyses_of(arrays, [row])[0]
    hz = arrays["cutoff_hz"][row] * np.geomspace(1e-3, 1e3, 6001)
    return hz, DB * np.log(np.maximum(np.abs(known.response(hz)), 1e-12))


def met(library, target, f0) -> bool:
    """Whether a known circuit has this response already, only scaled."""
    known = nearest(library, target, f0, 40)
    one = stack([p.graph for p in known])
    u = np.zeros(one.kind.shape)
    for row, p in zip(u, known, strict=True):
        row[: len(p.u)] = p.u
    for shift in FINE:
        H = transfer(one, u, 2 * np.pi * target.hz * 10**shift)[0]
        if np.abs(target.off(DB * np.log(np.maximum(np.abs(H), 1e-12)))).max(1).min() <= SOLVED:
            return True
    return False


def error_of(circuit, hz, level) -> float:
    """Largest distance from a curve on all its points within 20 dB of the peak, and above that limit elsewhere [dB]."""
    whole = follow(hz, level)
    H = transfer(stack([graph_of(circuit)]), logs_of([circuit]), 2 * np.pi * hz)[0]
    return float(np.abs(whole.off(DB * np.log(np.maximum(np.abs(H), 1e-12)))).max())


def responses(n: int, seed: int) -> pd.DataFrame:
    """Held-out responses of order 3 to 6 that no known circuit meets, by source and budget."""
    library, arrays = library_and_arrays()
    order = np.diff(arrays["pole_offset"])
    pool = np.isin(arrays["split"], (2, 3)) & ~arrays["beyond"] & (order >= 3) & (order <= 6)
    rows, seen, begun = [], 0, time.process_time()
    for row in np.random.default_rng(seed).permutation(np.flatnonzero(pool)):
        if len(rows) == n:
            break
        hz, level = curve_of(arrays, row)
        chosen = spread_out(hz, level)
        target, seen = follow(hz[chosen], level[chosen]), seen + 1
        kind, f0 = shape_of(target)
        if met(library, target, f0):
            continue
        sources = {"textbook": textbook(kind, f0), "nearest": nearest(library, target, f0, 200),
                   "random": by_chance(200, int(row))}
        told = {}
        for budget in (200, 2000):
            for name, proposals in (sources | {"all in turn": in_turn(list(sources.values()))}).items():
                best = search(target, proposals[: budget // 10], 1, budget)[0][0]
                told[f"{name}, {budget}"] = error_of(best.circuit, hz, level) <= SOLVED
                if (name, budget) == ("all in turn", 2000):
                    bought = min(error_of(way, hz, level) for way in snap(target, best.circuit, "E24"))
                    told["all in turn, 2000, then E24"] = bought <= SOLVED
        rows.append(told)
        if len(rows) % 20 == 0:
            print(len(rows), "of", seen, pd.DataFrame(rows).mean().round(3).to_dict(), flush=True)
    spent = time.process_time() - begun
    print(f"{seen} looked at, {len(rows)} met by no known circuit; {spent:.0f} s of processor time")
    return pd.DataFrame(rows).mean().rename("share solved").to_frame()


def measured(kind: str, circuit, f0: float) -> tuple[float, float]:
    """Centre and quality of a band read off ngspice's own curve."""
    hz, level = by_ngspice(deck(circuit, "measured", f0 / 30, f0 * 30).replace("dec 50", "dec 4000"))
    passing = kind == "band_pass"
    at = level.argmax() if passing else level.argmin()
    inside = np.flatnonzero((level >= level.max() - DB * np.log(2) / 2) == passing)
    return hz[at], hz[at] / (hz[inside[-1]] - hz[inside[0]])


def specifications(n: int, seed: int) -> pd.DataFrame:
    """Band-pass and band-stop filters of second order with parts of E24, measured by ngspice."""
    library, _ = library_and_arrays()
    rng, rows = np.random.default_rng(seed), []
    for k in range(n):
        kind, f0, q = ("band_pass", "band_stop")[k % 2], 10 ** rng.uniform(3, 5.477), 10 ** rng.uniform(-0.222, 1.301)
        begun = time.process_time()
        asked = asked_for(kind, f0, q, None, None, None, None)
        sources = [textbook(kind, f0, parts=6), nearest(library, asked.target, f0, 100, parts=6)]
        one = design(asked.target, in_turn(sources), 1, Wish())[0]
        spent = time.process_time() - begun
        f_found, q_found = measured(kind, one.circuit, f0)
        rows.append({"f0 error": abs(f_found / f0 - 1), "q error": abs(q_found / q - 1), "yield": one.row["yield"],
                     "parts": one.row["parts"], "before E24 [dB]": one.row["before_series_db"], "seconds": spent})
    table = pd.DataFrame(rows)
    good = (table["f0 error"] <= 0.05) & (table["q error"] <= 0.1)
    print(f"within 5 % of f0 and 10 % of q: {good.mean():.3f}; met within 0.5 dB before E24: "
          f"{(table['before E24 [dB]'] <= SOLVED).mean():.3f}")
    return table.quantile([0.5, 0.95, 1.0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["responses", "specifications"])
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    found = {"responses": responses, "specifications": specifications}[said.what](said.n, said.seed)
    print(found.round(4).to_string())
