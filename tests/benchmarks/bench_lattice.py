"""Estimates, solutions and labelled circuits a second of one thread, each beside the plain way in the same run.

Times are processor time, so that other jobs of the machine do not count.
"""
import time

import numpy as np
import pytest
import torch

from nexuslab.systems.lattice.circuit import draw_circuits, statistics
from nexuslab.systems.lattice.data import Plan, make_block
from nexuslab.systems.lattice.model import AdvancedGNNOptimizer, predict_circuits
from nexuslab.systems.lattice.profile import get_profile
from nexuslab.systems.lattice.security import log_delta, lwe_attack, lwe_bits

MANY = 100_000
ESTIMATES, LABELLED = 100_000, 300  # a second
MOST_MS = {"rlwe": 2.0, "lnp": 8.0}  # a circuit
INFERENCE_MS = 5.0  # a circuit of 600 nodes, in a batch

pytestmark = pytest.mark.benchmark(timer=time.process_time)


def instances(many: int):
    """Dimension, log2 q, sigma and samples of drawn instances."""
    rng = np.random.default_rng(0)
    n = rng.choice([256.0, 512.0, 1024.0, 2048.0], many)
    return n, rng.uniform(12, 17, many), rng.uniform(1, 8, many), 2 * n


def one_by_one(n: float, log2_q: float, sigma: float, m: float) -> float:
    """The smallest sufficient block size, tried in order, as the scripts of the standards do."""
    q = log2_q * np.log(2)
    for beta in range(40, 4000):
        ld = float(log_delta(beta))
        a = (n + 1) * q - np.log(sigma)
        d = min(max(np.floor(np.sqrt(a / ld)), beta + 1), n + m + 1)
        if np.log(sigma) + 0.5 * np.log(beta) <= (2 * beta - d - 1) * ld + q - a / d:
            return 0.292 * beta
    return np.inf


def test_estimates_per_second(benchmark):
    n, log2_q, sigma, m = instances(MANY)
    bits = benchmark.pedantic(lwe_bits, args=(n, log2_q, sigma, sigma, m), rounds=7, warmup_rounds=1)
    start = time.process_time()
    plain = [one_by_one(*x) for x in zip(n[:30], log2_q[:30], sigma[:30], m[:30], strict=True)]
    slow = 30 / (time.process_time() - start)
    assert np.allclose(plain, np.maximum(bits[:30], 0.292 * 40))
    rate = MANY / benchmark.stats.stats.median
    benchmark.extra_info |= {
        "estimates_per_second": round(rate), "one_by_one": round(slow), "ratio": round(rate / slow)
    }
    assert rate > ESTIMATES and rate / slow > 500


def test_other_attacks_per_second(benchmark):
    n, log2_q, sigma, m = instances(4096)
    told = {}
    for name in ("dual", "bdd", "min_all"):
        start = time.process_time()
        lwe_attack(n, log2_q, sigma, sigma, m, name)
        told[name] = round(4096 / (time.process_time() - start))
    benchmark.pedantic(lwe_attack, args=(n, log2_q, sigma, sigma, m, "min_all"), rounds=3)
    benchmark.extra_info |= {f"{name}_per_second": rate for name, rate in told.items()}


def solved(benchmark, name: str, many: int) -> None:
    """Milliseconds a circuit of the exact solver, in a batch and alone."""
    rng, profile = np.random.default_rng(1), get_profile(name)
    told = statistics(draw_circuits(rng, rng.integers(10, 1000, many)))
    level, weights = rng.choice([128, 192, 256], many), rng.dirichlet([1, 1, 1], many)
    profile.solve(told, level, weights)  # tables are made once
    found = benchmark.pedantic(profile.solve, args=(told, level, weights), rounds=5)
    each = 1000 * benchmark.stats.stats.median / many
    benchmark.extra_info |= {"ms_a_circuit": round(each, 4), "circuits_per_second": round(1000 / each)}
    assert found.feasible.mean() > 0.5 and each < MOST_MS[name]


def test_rlwe_solutions(benchmark):
    solved(benchmark, "rlwe", 4096)


def test_lnp_solutions(benchmark):
    solved(benchmark, "lnp", 512)


def test_labelled_circuits_per_second(benchmark):
    """Drawn, measured and solved: circuits of 10 to 1,000 nodes, one process."""
    plan = Plan(samples=1000, nodes=(10, 1000))
    make_block((0, 250, False), plan)
    benchmark.pedantic(make_block, args=((0, 1000, False), plan), rounds=3)
    rate = 1000 / benchmark.stats.stats.median
    benchmark.extra_info["circuits_per_second"] = round(rate)
    assert rate > LABELLED


@pytest.mark.parametrize(("profile", "channels"), [("rlwe", 8), ("lnp", 4)])
def test_network_beside_solver(benchmark, profile, channels):
    """Answers a second for circuits of 600 nodes in batches of 32, verified: the network, and the exact solver."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"hidden_dim": 16, "num_layers": 1, "num_heads": 4, "dropout": 0.0, "channels": channels}  # of the presets
    model = AdvancedGNNOptimizer(**sizes, profile=profile)
    circuits = draw_circuits(np.random.default_rng(0), np.full(32, 600))
    predict_circuits(model, circuits)
    benchmark.pedantic(predict_circuits, args=(model, circuits), rounds=9)
    start = time.process_time()
    for _ in range(5):
        get_profile(profile).solve(statistics(circuits))
    solver = 5 * 32 / (time.process_time() - start)
    network = 32 / benchmark.stats.stats.median
    benchmark.extra_info |= {"network": round(network), "solver_with_reading": round(solver)}
    print(f"\n{profile}: answers a second, 600 nodes: {dict(benchmark.extra_info)}")
    assert 1000 / network < INFERENCE_MS
