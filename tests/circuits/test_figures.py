"""The figures of the circuits say what they are: means and samples, valid and clean draws, what needs no training."""

from collections import Counter

import numpy as np
import pytest
import torch

from nexuslab.config import resolve
from nexuslab.core import DataError
from nexuslab.data import Splits
from nexuslab.evaluate import evaluate, evaluation_table, untrained_model
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.sample import read_samples, sample
from nexuslab.systems.circuits.analysis import analyse, from_netlist, idle_edges, merge, response, topology_hash
from nexuslab.systems.circuits.data import circuit_at, generate
from nexuslab.systems.circuits.loss import divergence
from nexuslab.systems.circuits.model import Batch, GraphVAE
from nexuslab.systems.circuits.population import sound
from nexuslab.systems.circuits.reconstruct import (
    GAUSSIAN_MEDIAN,
    analysed,
    appraise,
    families_of,
    judge,
    posteriors,
    prior_figures,
    rate,
    reconstruct,
    shannon_bound,
    to_circuits,
    verdict,
)
from nexuslab.systems.circuits.task import (
    Circuits,
    as_circuits,
    at_the_true_graph,
    by_group,
    came_back,
    guesses,
    statistics_of,
)
from nexuslab.task import get_task

LOW_PASS = "low-pass\nV1 in 0\nR1 in out 1k\nC1 out 0 100n\nR2 out 0 1k\n"
DRAWS = {  # a hand-made draw for each thing that may be said of one
    "clean": LOW_PASS,
    "empty": None,
    "not one network": LOW_PASS + "R3 a b 1k",
    "no path from input to output": "split\nV1 in 0\nR1 in 0 1k\nR2 out 0 1k\nC1 out 0 1n",
    "no resistive load": "open\nV1 in 0\nR1 in out 1k\nC1 out 0 100n",
    "mode without decay": "charge\nV1 in 0\nC1 in a 1n\nC2 a out 1n\nR1 out 0 1k",
    "order 0": "divider\nV1 in 0\nR1 in out 1k\nR2 out 0 1k",
    "dangling node": LOW_PASS + "L1 out a 1m",
    "part without effect": LOW_PASS + "C2 in 0 1n",
    "value out of range": LOW_PASS.replace("R2 out 0 1k", "R2 out 0 2e21"),
    "rings too long": "resonator\nV1 in 0\nL1 in out 100u\nC1 out 0 1u\nR1 out 0 100k",
    "accidental cancellation": "twin-T\nV1 in 0\nR1 in a 10k\nR2 a out 10k\nC1 a 0 2n\nC2 in b 1n\nC3 b out 1n\n"
    "R3 b 0 5k\nR4 out 0 100k",
    "output too small": "divider\nV1 in 0\nR1 in out 100k\nC1 out 0 1n\nR2 out 0 10",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run that has learnt 360 circuits in seconds, evaluated."""
    task = get_task("circuits")
    cfg = resolve(task, "smoke", {"epochs": 30})
    run = fit(task, cfg, Run.create(cfg, tmp_path_factory.mktemp("figures"))).run
    evaluate(task, run, "val")
    return run


@pytest.fixture(scope="module")
def ladders() -> Splits:
    arrays = generate({"population": "ladders", "circuits": 200})
    return Splits(*(Circuits(arrays, split) for split in range(3)), statistics_of(arrays), "0" * 64)


# ---- draws


def drawn(names: list[str]) -> list:
    return [DRAWS[name] and from_netlist(DRAWS[name]) for name in names]


def test_each_draw_is_sent_back_for_its_own_reason():
    assert appraise(drawn(list(DRAWS)), {}) == list(DRAWS)


def test_the_curve_of_a_family_is_asked_of_its_graph_only():
    [circuit] = drawn(["clean"])
    assert appraise([circuit], {topology_hash(circuit): "low_pass"}) == ["clean"]
    assert appraise([circuit], {topology_hash(circuit): "band_stop"}) == ["curve is not of its family"]
    assert appraise([circuit], {topology_hash(circuit): "ladder"}) == ["clean"]


def test_clean_draws_are_counted_beside_valid_ones():
    names = ["clean", "clean", "clean", "dangling node", "value out of range", "order 0", "empty", "rings too long"]
    circuits = drawn(names)
    told = prior_figures(circuits, {})
    expected = {"prior_valid": 6 / 8, "prior_clean": 3 / 8, "prior_unique": 3 / 6, "prior_novel": 1.0}
    assert told == expected | {"prior_clean_novel": 1.0}
    known = {topology_hash(circuits[0]): "ladder"}  # also that of two other draws
    assert prior_figures(circuits, known)["prior_clean_novel"] == 0 < prior_figures(circuits, known)["prior_novel"] < 1


@pytest.mark.parametrize("population", ["families", "ladders"])
def test_every_circuit_of_the_data_is_clean(population):
    arrays = generate({"population": population, "circuits": 120}, seed=3)
    assert Counter(appraise([circuit_at(arrays, k) for k in range(120)], families_of(arrays))) == {"clean": 120}


def test_a_part_without_effect_is_one_that_the_response_does_not_see(ladders):
    """Against the nodal equations: H with the part a thousand times larger, in graphs with one more part."""
    arrays, rng, hz = ladders.train.arrays, np.random.default_rng(0), np.geomspace(1e2, 1e7, 7)
    seen = Counter()
    for row in ladders.train.members[:25]:
        parts = circuit_at(arrays, row).parts
        n = 1 + max(j for _, _, j, _ in parts)
        i, j = sorted(rng.choice(n + 1, 2, replace=False).tolist())
        circuit = merge([*parts, ("R", i, j, 1e3)])
        idle = idle_edges(circuit.n_nodes, circuit.typed)
        H = response(circuit, hz)
        for edge, (a, b) in enumerate(circuit.edges.tolist()):
            larger = [(k, i, j, v * (1e3 if (i, j) == (a, b) else 1)) for k, i, j, v in circuit.parts]
            change = np.abs(response(merge(larger, circuit.n_nodes), hz) / H - 1).max()
            assert (change < 1e-8) == (edge in idle), (circuit, edge, change)
            seen[edge in idle] += 1
    assert seen[True] >= 5 and seen[False] > 50


@pytest.mark.parametrize("cards", [
    "L1 in a 1m\nC1 a out 100n\nR1 out 0 2e21", "R1 in a 1\nR2 a out 1e-30\nR3 a 0 1e10\nC1 a out 1n\nR4 out 0 50",
])
def test_values_beyond_double_precision_are_refused_by_name(cards):
    circuit = from_netlist(f"far apart\nV1 in 0\n{cards}")
    with pytest.raises(DataError, match="double precision"):
        analyse(circuit)
    assert verdict(circuit) == "valid" and sound(circuit) == "beyond double precision" and analysed(circuit) is None
    assert appraise([circuit], {}) == ["value out of range"]


def test_no_decoded_value_is_too_large_to_be_judged(ladders):
    """Latent numbers may be anything: what they decode to is a circuit that is rejected, not a crash."""
    rng, train = np.random.default_rng(0), ladders.train
    rows = train.members[:40]
    batch = train.batch(np.arange(40), {}, None)
    wild = Batch(**(batch.__dict__ | {"value": batch.value + torch.tensor(rng.normal(0, 400, len(batch.value)))}))
    found = to_circuits(wild, train.flat.statistics)
    told = Counter(appraise(found, {}))
    assert told["clean"] == 0 and told["value out of range"] > 30 and {sound(c) is not None for c in found} == {True}
    errors = judge(train.arrays, rows, found)
    assert errors.exact.all() and np.isfinite(errors.pole).all() and np.median(errors.pole) == 1


# ---- what a latent space gives back


def test_figures_of_means_and_samples_stand_in_the_evaluation(run):
    table = evaluation_table(run, "val")
    assert list(table)[:2] == ["model", "untrained"] and list(table)[-1].startswith("slot VAE")
    model = table["model"]
    exact = table.loc["graph_exact"]
    assert exact["untrained"] == exact["model"] == exact["identity code"] == 1 > 3 * exact["mean circuit"]
    assert model["pole_error_median_sampled"] > 100 * model["pole_error_median"]
    assert model["graph_exact_sampled"] > 0.97 and 0.01 < model["value_error_median_sampled"] < 0.02
    assert model["value_error_p90_sampled"] < 2.6 * model["value_error_median_sampled"]
    assert model["prior_clean"] <= model["prior_valid"] and abs(model["rate_nats"] - model["kl"]) < 1e-3 * model["kl"]
    ratio = table.loc["rate_over_bound"]
    assert 1 < ratio["model"] < 1.3 < ratio["untrained"] and np.isnan(ratio["identity code"])
    assert ratio["model"] == pytest.approx(model["rate_nats"] / model["shannon_nats"])
    sampled = [name for name in table.index if name.endswith("_sampled")]
    for column in ("model", "untrained", "untrained, true graph", list(table)[-1]):
        assert table.loc[[*sampled, "rate_nats"], column].notna().all() and len(sampled) == 7
    assert table.loc[sampled, "identity code"].isna().all() and np.isnan(table.loc["rate_nats", "identity code"])


def test_what_was_not_trained_matches_the_mean(run):
    """The identity code and the untrained model give every circuit back; training earns the rate and the prior."""
    table = evaluation_table(run, "val")
    assert table.loc["graph_exact", "identity code"] == 1 and table.loc["pole_error_median", "identity code"] < 1e-6
    for column in ("untrained", "untrained, true graph", "model"):
        assert table.loc["graph_exact", column] == 1 and table.loc["pole_error_median", column] < 1e-4
    assert table.loc["prior_clean", "untrained"] < 0.5 * table.loc["prior_clean", "model"]
    assert table.loc["rate_nats", "model"] < table.loc["rate_nats", "untrained"] - 2
    reached = run.evaluation["val"]["untrained"]["reached"]
    assert {"silhouette_topology", "purity_topology"} <= set(reached)
    assert not {"rate_over_bound", "prior_clean"} & set(reached)


def test_the_untrained_model_is_measured_in_the_same_way(run):
    task, cfg = get_task("circuits"), run.config
    splits = task.data(cfg, run.root)
    examined = task.examine(untrained_model(task, cfg, splits), splits, "val", cfg, None)
    assert examined.items() <= run.evaluation["val"]["baselines"]["untrained"].items()


def test_samples_depend_on_the_seed_and_follow_the_posterior(run):
    model, cfg, _ = run.load()
    val = get_task("circuits").data(cfg, run.root).val
    ways = ((512, 1), (5, 1), (512, 2))
    z, again, other = (reconstruct(model, val.flat, val.members, block, seed)[0] for block, seed in ways)
    mean, log_variance = posteriors(model, val.flat, val.members)
    assert torch.allclose(z, again, atol=1e-4) and not torch.allclose(z, other, atol=1e-2)
    unit = (z - mean) / (0.5 * log_variance).exp()
    assert abs(unit.mean()) < 0.1 and abs(unit.std() - 1) < 0.1
    assert rate(model, val.flat, val.members) > 1


def test_circuits_kept_aside_have_every_figure_too(ladders):
    cfg = resolve(get_task("circuits"), "ladders", {"model.hidden": 16, "model.read": 24})
    given = at_the_true_graph(untrained_model(get_task("circuits"), cfg, ladders), ladders, "test", cfg.seed)
    beside = guesses(ladders, "test") | {"untrained": given}
    for name in ("pole_error_median", "pole_error_median_unseen", "pole_error_median_beyond"):
        assert beside["identity code"][name] < 1e-5 > beside["untrained"][name]
        assert beside["untrained"][name] < beside["nearest training circuit"][name] <= 1
        assert 0.005 < beside["untrained"][name.replace("median", "median_sampled")] < 0.3
    assert {f"rate_nats{group}" for group in ("", "_unseen", "_beyond")} < set(beside["untrained"])
    assert not {"rate_over_bound_unseen", "rate_over_bound_beyond"} & set(beside["untrained"])  # no frequency, no bound
    counts = by_group(ladders, "test", lambda source, rows: {"circuits": len(rows)})
    assert sum(counts.values()) == (ladders.test.arrays["split"] >= 2).sum() and counts["circuits_beyond"] > 0


def written_otherwise(arrays: dict, rng: np.random.Generator) -> dict:
    """The arrays with internal nodes under other numbers, and the edges of each circuit in another order."""
    index, order = arrays["edge_index"].copy(), np.arange(len(arrays["edge_index"]))
    for row, n in enumerate(arrays["n_nodes"]):
        span = slice(*arrays["edge_offset"][row : row + 2])
        number = np.concatenate([np.arange(3), 3 + rng.permutation(n - 3)])
        index[span] = np.sort(number[index[span]], 1)
        order[span] = rng.permutation(order[span])
    assert (index != arrays["edge_index"]).any(1).sum() > 100
    return arrays | {"edge_index": index[order]} | {k: arrays[k][order] for k in ("edge_present", "edge_log_value")}


@pytest.mark.parametrize("kind", ["graph", "slot"])
def test_numbers_of_nodes_change_no_figure(ladders, kind):
    """The figures of circuits that are written down in another way are the same to the last bit."""
    torch.manual_seed(0)
    cfg = resolve(get_task("circuits"), "ladders", {"model.kind": kind, "model.hidden": 16, "model.read": 24})
    model, arrays = get_task("circuits").model(cfg, ladders.meta), ladders.test.arrays
    told = [
        came_back(model, Circuits(a, 2), np.arange(200), 0)
        for a in (arrays, written_otherwise(arrays, np.random.default_rng(0)))
    ]
    same = {k for k in told[0] if told[0][k] == told[1][k]}
    assert same >= {"graph_exact", "graph_exact_sampled", "rate_nats", "pole_error_median"}
    assert told[1] == pytest.approx(told[0], rel=1e-6)


@pytest.mark.parametrize("precision", [0.005, 0.02])
def test_values_cost_what_shannon_says(ladders, precision):
    """An untrained model: the rate of the two value branches against the bound at the error of the samples."""
    arrays, rows = ladders.test.arrays, np.arange(200)
    model = GraphVAE(11, (20, 12, 14), 8, read=8, statistics=arrays["statistics"], precision=precision)
    errors = judge(arrays, rows, reconstruct(model, ladders.test.flat, rows, seed=0, given=True)[1])
    error = np.median(errors.value)
    assert error == pytest.approx(GAUSSIAN_MEDIAN * precision, rel=0.1)
    assert np.quantile(errors.value, 0.9) < 2.6 * error
    nats = divergence(*posteriors(model, ladders.test.flat, rows))[:, model.carried].sum(1).mean()
    train = {"topology": np.zeros(200), "split": np.zeros(200)}  # one graph: no entropy
    assert nats == pytest.approx(shannon_bound(arrays | train, rows, error), rel=0.03)


def test_the_box_of_a_graph_is_where_its_samples_lie(ladders):
    """Samples leave it as often as the margin says, at most; and a wider margin costs more."""
    arrays, rows, rates = ladders.test.arrays, np.repeat(np.arange(200), 5), []
    for margin, least in ((1.5, 0.3), (2.5, 0.9), (4.0, 0.999)):
        torch.manual_seed(0)
        model = GraphVAE(11, (20, 12, 14), 8, read=8, poles=9, zeros=9, statistics=arrays["statistics"], margin=margin)
        exact = judge(arrays, rows, reconstruct(model, ladders.test.flat, rows, seed=1)[1]).exact.mean()
        rates.append(rate(model, ladders.test.flat, rows))
        assert least <= exact and (exact < 0.9 or margin > 2)
    assert rates == sorted(rates)


def test_samples_are_the_same_in_any_chunk_and_come_back_from_their_file(run, tmp_path):
    task = get_task("circuits")
    whole, parts, coarse = (
        read_samples(sample(task, run, n, seed=3, output=tmp_path / "s.h5", **how))  # its sheet takes a second
        for n, how in ((9, {}), (9, {"chunk": 4}), (1, {"precision": "bf16"}))
    )
    assert whole["n_nodes"].tolist() == parts["n_nodes"].tolist() and whole["valid"].tolist() == parts["valid"].tolist()
    for a, b in zip(whole["edge_value"], parts["edge_value"], strict=True):
        assert np.allclose(a, b, rtol=1e-3, equal_nan=True)
    again = as_circuits(whole)
    assert [c is not None and verdict(c) == "valid" for c in again] == whole["valid"].tolist() and any(whole["valid"])
    assert len({len(edges) for edges in whole["edge_index"]}) > 1 and len(coarse["n_nodes"]) == 1
