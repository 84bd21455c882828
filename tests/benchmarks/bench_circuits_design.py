"""Design from a specification: who proposes the better graphs at equal numbers of analyses, and what can be bought.

`python tests/benchmarks/bench_circuits_design.py responses --n 100`, `... recall`, `... larger --n 24`, `... masks` and
`... specifications --n 200`, from the project, with the data of `nexuslab prepare --system circuits --preset ladders`.
"""
import argparse
import time
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
from scipy import special

from nexuslab.config import resolve
from nexuslab.core import project_root
from nexuslab.systems.circuits.analysis import topology_hash
from nexuslab.systems.circuits.data import circuit_at
from nexuslab.systems.circuits.design import (
    PART, TRIED, Band, Wish, asked_for, band_yield, by_ngspice, deck, design, error_of_parts, in_turn, kept_band,
    search, shape_of, snap, within_tolerance,
)
from nexuslab.systems.circuits.edit import LOOK, Grown, hidden, raced
from nexuslab.systems.circuits.fit import (
    DB, Target, circuit_of, graph_of, levels, logs_of, stack, transfer, with_points,
)
from nexuslab.systems.circuits.propose import Library, analyses_of, by_chance, nearest, textbook
from nexuslab.systems.circuits.specification import follow, second_order, spread_out
from nexuslab.task import get_task

SOLVED = 0.5  # dB within 20 dB of the peak
SEVERAL = 4  # solutions whose values are fixed
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


def only_raced(target, proposals, budget, good=SOLVED) -> tuple[object, int]:
    """The best circuit of a race without edits, checked between the points of the target as the designer does."""
    pool, spent = [Grown(p.graph, p.u, p.source) for p in proposals[: budget // 10]], 0
    while True:
        plan = [(max(1, budget // 20), 4), (max(1, budget // 50), 12), (max(1, budget // 250), budget)]
        done, more = raced(target, pool, plan, budget - spent, good / 2, 1, None)
        best, spent = min(done, key=lambda one: one.worst), spent + more + LOOK
        missed = hidden(target, best.circuit, good) if best.worst <= good else ()
        if not len(missed) or spent + 20 > budget:
            return best.circuit, spent
        target, pool = with_points(target, missed), sorted(done, key=lambda one: one.worst)[:10]


def held_out(n: int, seed: int, orders: tuple[int, int], beyond: bool):
    """Test circuits whose responses no known circuit meets: circuit, curve, target, and proposals by source."""
    library, arrays = library_and_arrays()
    order, found, seen = np.diff(arrays["pole_offset"]), 0, 0
    pool = np.isin(arrays["split"], (2, 3)) & (arrays["beyond"] == beyond)
    pool &= (order >= orders[0]) & (order <= orders[1])
    for row in np.random.default_rng(seed).permutation(np.flatnonzero(pool)):
        hz, level = curve_of(arrays, row)
        chosen, seen = spread_out(hz, level), seen + 1
        target = replace(follow(hz[chosen], level[chosen]), whole=follow(hz, level))
        kind, f0 = shape_of(target)
        if found == n:
            break
        if met(library, target, f0):
            continue
        found += 1
        sources = {"textbook": textbook(kind, f0), "nearest": nearest(library, target, f0, 200)}
        yield circuit_at(arrays, row), hz, level, target, sources | {"random": by_chance(200, int(row))}
    print(f"{seen} looked at, {found} met by no known circuit")


def responses(n: int, seed: int, budgets=(200, 2000), orders=(3, 6), beyond=False, asked=None,
              values=True) -> pd.DataFrame:
    """Held-out responses by source and budget: share solved, analyses, parts, processor time, share after E24."""
    rows, series = [], []
    for _, hz, level, target, sources in held_out(n, seed, orders, beyond):
        for budget in budgets:
            every = sources | {"all in turn": in_turn(list(sources.values()))}
            for name, proposals in every.items() if asked is None else ((k, every[k]) for k in asked):
                begun = time.process_time()
                circuit, spent = only_raced(target, proposals, budget)
                raced_in = time.process_time() - begun
                best, grown_spent = search(target, proposals, 1, budget)
                rows.append({
                    "budget": budget, "source": name, "raced": error_of(circuit, hz, level) <= SOLVED,
                    "grown": error_of(best[0].circuit, hz, level) <= SOLVED, "analyses raced": spent,
                    "analyses grown": grown_spent, "s raced": raced_in,
                    "s grown": time.process_time() - begun - raced_in, "parts grown": len(best[0].circuit.parts),
                })
        several = search(target, sources["nearest"], SEVERAL, budgets[-1])[0] if values else []
        errors = [error_of(snap(target, s.circuit, "E24")[0], hz, level) for s in several] or [np.nan]
        series.append({"first": errors[0] <= SOLVED, f"best of {SEVERAL}": min(errors) <= SOLVED})
        if len(series) % 10 == 0:
            told = pd.DataFrame(rows).groupby(["budget", "source"])[["raced", "grown"]].mean().round(3)
            print(len(series), told.to_dict(), pd.DataFrame(series).mean().to_dict(), flush=True)
    if values:
        print("after E24:", pd.DataFrame(series).mean().round(3).to_dict())
    return pd.DataFrame(rows).groupby(["budget", "source"]).mean()


def recall(n: int, seed: int, at=(1, 10, 50, 200)) -> pd.DataFrame:
    """How often the graph that a held-out response came from is among the first k proposals of a source."""
    library, _ = library_and_arrays()
    known, rows = set(library.topology.tolist()), []
    for true, _, _, _, sources in held_out(n, seed, (3, 6), False):
        name = topology_hash(true)
        for source, proposals in sources.items():
            names = [topology_hash(circuit_of(stack([p.graph]), p.u[None], 0)) for p in proposals[: max(at)]]
            first = names.index(name) + 1 if name in names else np.inf
            rows.append({"source": source, **{f"recall@{k}": first <= k for k in at}, "graphs": len(set(names)),
                         "in training": name in known})
    return pd.DataFrame(rows).groupby("source").mean()


def larger(n: int, seed: int) -> pd.DataFrame:
    """Responses of order 7 to 9 of circuits larger than any known, at 20,000 analyses."""
    return responses(n, seed, (20_000,), (7, 9), True, ("nearest", "textbook"), False)


def elliptic_attenuation(order: int, pass_db: float, ratio: float) -> float:
    """Stop band [dB] of an elliptic filter by its degree equation; ratio: stop over pass frequency."""
    q = np.exp(-np.pi * special.ellipk(1 - ratio**-2) / special.ellipk(ratio**-2)) ** order
    even, odd = sum(q ** ((m + 0.5) ** 2) for m in range(8)), sum(q ** (m * m) for m in range(1, 8))
    discrimination = (2 * even / (1 + 2 * odd)) ** 2
    return float(10 * np.log10(1 + (10 ** (pass_db / 10) - 1) / discrimination**2))


def steep(kind: str, pass_db: float, ratio: float) -> Target:
    """A mask at 10 kHz whose stop band asks for 85 % of the attenuation [dB] of an elliptic filter of order 5."""
    stop = -0.85 * elliptic_attenuation(5, pass_db, ratio)

    def on(points: int) -> Target:
        hz = np.r_[np.geomspace(1 / 30, 1, points), np.geomspace(ratio, 30, points)]
        passing = np.arange(2 * points) < points
        if kind == "high_pass":
            hz, passing = 1 / hz[::-1], passing[::-1]
        lower, upper = np.where(passing, -pass_db, -np.inf), np.where(passing, 0.0, stop)
        return Target(1e4 * hz, lower, upper, free=True)

    gap = np.array([1 + 1e-6, ratio * (1 - 1e-6)]) ** (1 if kind == "low_pass" else -1) * 1e4
    dense, none = on(400), np.full(2, np.inf)
    order = np.argsort(hz := np.r_[dense.hz, gap])
    lower, upper = np.r_[dense.lower, -none][order], np.r_[dense.upper, none][order]
    return replace(on(24), whole=Target(hz[order], lower, upper, free=True))


def masks(n: int, seed: int) -> pd.DataFrame:
    """18 steep masks, at most 9 parts, 20,000 analyses: met within 0.1 dB between the points too, by source."""
    library, _ = library_and_arrays()
    rows = []
    for kind, pass_db, ratio in product(("low_pass", "high_pass"), (0.2, 0.5, 1.0), (1.15, 1.3, 1.6)):
        target = steep(kind, pass_db, ratio)
        sources = {"textbook": textbook(kind, 1e4, parts=9), "nearest": nearest(library, target, 1e4, 200, parts=9)}
        for name, proposals in (sources | {"all in turn": in_turn(list(sources.values()))}).items():
            best, spent = search(target, proposals, 1, 20_000, most=9, good=0.1)
            alone, _ = only_raced(target, proposals, 20_000, 0.1)
            off = np.abs(off_target(alone, target.whole)).max()
            grown = np.abs(off_target(best[0].circuit, target.whole)).max()
            rows.append({"source": name, "raced": off <= 0.1, "grown": grown <= 0.1, "analyses": spent,
                         "parts": len(best[0].circuit.parts)})
            print(kind, pass_db, ratio, name, f"raced {off:.2f} dB, grown {grown:.2f} dB, {spent} analyses", flush=True)
    return pd.DataFrame(rows).groupby("source").mean()


def off_target(circuit, target) -> np.ndarray:
    """How far a circuit is off a target at each frequency [dB]."""
    return target.off(levels(stack([graph_of(circuit)]), logs_of([circuit]), target)[0][0])


def measured(kind: str, circuit, f0: float) -> tuple[float, float]:
    """Centre and quality of a band read off ngspice's own curve."""
    hz, level = by_ngspice(deck(circuit, "measured", f0 / 30, f0 * 30).replace("dec 50", "dec 4000"))
    passing = kind == "band_pass"
    at = level.argmax() if passing else level.argmin()
    inside = np.flatnonzero((level >= level.max() - DB * np.log(2) / 2) == passing)
    if len(inside) < 2:
        return np.nan, np.nan  # no band at all
    return hz[at], hz[at] / (hz[inside[-1]] - hz[inside[0]])


def ideal(asked, band: Band, tolerance=0.05, within=1.0, draws=2000) -> tuple[float, float]:
    "Yields, by curve and by band, of an exact filter of one R, L and C: f0 by LC, q by R and C / L."
    d = np.log1p(tolerance * np.random.default_rng(1).uniform(-1, 1, (draws, 3)))
    off = np.array([-(d[:, 0] + d[:, 1]) / 2, d[:, 2] + (d[:, 0] - d[:, 1]) / 2])
    places = np.exp(off) * [[band.f0], [band.q]]
    H = np.array([second_order(band.kind, *each, asked.target.hz) for each in places.T])
    level = DB * np.log(np.maximum(np.abs(H), 1e-12))
    if asked.target.free:
        at = np.isfinite(asked.target.lower)
        level -= (level[:, at] - asked.target.lower[at]).mean(1, keepdims=True)
    return float((np.abs(asked.target.off(level)).max(1) <= within).mean()), float(kept_band(band, off).mean())


def not_centred(target, proposals) -> object:
    """What a design by error would hand over without centring: the way nearest to the curve."""
    ways = [snap(target, s.circuit, "E24") for s in search(target, proposals, TRIED, most=6)[0]]
    errors = [error_of_parts(target, found[0]) for found in ways]
    worth = [e + PART * len(found[0].parts) * (e <= 1.0) for e, found in zip(errors, ways, strict=True)]
    return ways[int(np.argmin(worth))][0]


def yields(asked, band: Band, circuit) -> tuple[float, float, float]:
    """By curve within 1 dB, by band, and by band at extreme values, on draws that chose nothing."""
    wide = replace(band, f0_within=0.05, q_within=0.1)
    by_band = (band_yield(b, circuit, 0.05, seed=7) for b in (band, wide))
    return within_tolerance(asked.target, circuit, 0.05, 1.0, seed=7), *by_band


def specifications(n: int, seed: int) -> pd.DataFrame:
    """Band-pass and band-stop filters of second order with parts of E24, measured by ngspice; and yields at 5 %."""
    library, _ = library_and_arrays()
    rng, rows = np.random.default_rng(seed), []
    for k in range(n):
        kind, f0, q = ("band_pass", "band_stop")[k % 2], 10 ** rng.uniform(3, 5.477), 10 ** rng.uniform(-0.222, 1.301)
        asked, band = asked_for(kind, f0, q, None, None, None, None), Band(kind, f0, q)
        sources = in_turn([textbook(kind, f0, parts=6), nearest(library, asked.target, f0, 100, parts=6)])
        exact = ideal(asked, band)
        rows.append({"who": "exact R, L, C", "q": q, "parts": 3, "curve": exact[0], "band": exact[1]})
        tried = {"not centred": None, "by error": (Wish(), None), "by yield of the curve": (Wish(aim="yield"), None),
                 "by yield of f0 and q": (Wish(aim="yield"), band)}
        for who, how in tried.items():
            begun = time.process_time()
            made = design(asked.target, sources, 1, how[0], most=6, band=how[1])[0].circuit if how else not_centred(
                asked.target, sources)
            spent, (f_found, q_found) = time.process_time() - begun, measured(kind, made, f0)
            curve, by_band, extreme = yields(asked, band, made)
            rows.append({"who": who, "q": q, "f0 error": abs(f_found / f0 - 1), "q error": abs(q_found / q - 1),
                         "curve": curve, "band": by_band, "band, extreme": extreme, "parts": len(made.parts),
                         "error [dB]": error_of_parts(asked.target, made), "seconds": spent})
        if (k + 1) % 20 == 0 or k + 1 == n:
            tell(pd.DataFrame(rows))
    return pd.DataFrame(rows).groupby("who").quantile([0.05, 0.5, 0.95, 1.0]).drop(columns="q")


def tell(table: pd.DataFrame) -> None:
    """Of the specifications done so far: how many are met, and yields by quality."""
    table = table.assign(met=(table["f0 error"] <= 0.05) & (table["q error"] <= 0.1))
    print(len(table) // 5, table.groupby("who")["met"].mean().round(3).to_dict())
    by_q = table.groupby(["who", pd.cut(table["q"], [0.5, 2, 6, 20])], observed=True)[["curve", "band"]].median()
    every = table.groupby("who")[["curve", "band", "band, extreme", "parts", "error [dB]", "seconds"]].median()
    print(by_q.unstack().round(3).to_string(), every.round(3).to_string(), sep="\n", flush=True)


BENCHES = {"responses": responses, "recall": recall, "larger": larger, "masks": masks, "specifications": specifications}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=list(BENCHES))
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sources", nargs="*", help="of `responses`: nearest, random, textbook, all in turn")
    said = parser.parse_args()
    found = BENCHES[said.what](said.n, said.seed, **({"asked": said.sources} if said.sources else {}))
    print(found.round(4).to_string())
