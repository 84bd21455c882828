"""Files of labelled circuits: labels, splits, edge cases, workers, and the seed's JSON."""
import json

import numpy as np
import pytest
from nexuslab.core import DataError, read_json
from nexuslab.store import Ragged, Store, write_store
from nexuslab.systems.lattice.data import (
    ANSWER, LEVELS, Plan, assign_splits, build, make_blocks, statistics_of, validate,
)
from nexuslab.systems.lattice.profile import get_profile


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("lattice") / "a.h5", Plan(720, 60, (10, 60), 120, seed=3), 1)


def test_labels_are_the_solvers_and_hold(built):
    arrays, profile = Store(built).arrays(), get_profile("rlwe")
    ids = np.arange(len(arrays["level"]))
    best = profile.solve(statistics_of(arrays, ids), arrays["level"], arrays["weights"])
    assert np.array_equal(best.feasible, arrays["feasible"]) and 0.5 < best.feasible.mean() < 1
    for name in ("n", "q", "sigma", "size", "bits"):
        assert np.allclose(arrays[name][best.feasible], getattr(best, name)[best.feasible])
    assert (arrays["bits"] >= arrays["level"])[best.feasible].all()
    assert validate(built)["examples"] == 780


def test_levels_are_thirds_in_every_split_and_edge_cases_one_in_twenty(built):
    arrays = Store(built).arrays()
    assert np.bincount(arrays["split"]).tolist() == [576, 72, 72, 60]
    for split in range(4):
        counts = [(arrays["level"][arrays["split"] == split] == level).sum() for level in LEVELS]
        assert max(counts) - min(counts) <= 1
    own = ~arrays["beyond"]
    assert arrays["edge_case"][own].mean() == 0.05
    edge = arrays["edge_case"] & own
    assert set(arrays["circuit_nodes"][edge]) == {10, 60} and (arrays["weights"][edge].max(1) == 1).all()
    assert arrays["circuit_nodes"][own].max() <= 60 < arrays["circuit_nodes"][~own].max()
    assert (assign_splits(Plan(720, seed=3)) != assign_splits(Plan(720, seed=4))).any()


def test_no_graph_stands_in_two_splits(built):
    """Circuits of a family and size differ in their weights alone: near-duplicates stay together."""
    arrays = Store(built).arrays()
    graphs = [set(), set(), set(), set()]
    for i, split in enumerate(arrays["split"]):
        edges = slice(*arrays["source_offset"][i : i + 2])
        gates = arrays["gate"][slice(*arrays["gate_offset"][i : i + 2])]
        wires = tuple(arrays[end][edges].tobytes() for end in ("source", "target"))
        graphs[split].add((gates.tobytes(), *wires))
    assert arrays["real"][arrays["split"] > 0].sum() > 10 and len(graphs[0]) > 500
    assert all(not graphs[a] & graphs[b] for a in range(4) for b in range(a))
    assert arrays["circuit_nodes"][arrays["beyond"]].min() > 60 == arrays["circuit_nodes"][~arrays["beyond"]].max()


def test_workers_do_not_matter(tmp_path, built):
    again = build(tmp_path / "b.h5", Plan(720, 60, (10, 60), 120, seed=3), 2)
    assert Store(again).manifest["digest"] == Store(built).manifest["digest"]
    assert (again.with_suffix(".json").read_bytes()) == built.with_suffix(".json").read_bytes()


def test_json_is_the_seeds(built):
    content = read_json(built.with_suffix(".json"))
    about, rows = content["metadata"], content["data"]
    assert about["num_samples"] == len(rows) == 720 and about["edge_cases"] == 36
    assert about["security_levels"] == {"128": 240, "192": 240, "256": 240}
    assert about["parameter_ranges"]["n"] == {"min": 64, "max": 2048} and about["units"]["prove_time"] == "operations"
    first = next(row for row in rows if row["params"])
    assert set(first["params"]) == {"n", "q", "sigma"}
    assert set(first["metrics"]) == {"proof_size", "prove_time", "verify_time", "security_bits"}
    assert all((row["params"] is None) == (row["metrics"] is None) for row in rows)


@pytest.mark.parametrize("change", [
    lambda row: row["params"].update(q=131071), lambda row: row.update(params=None, metrics=None),
    lambda row: row["metrics"].update(security_bits=999.0), lambda row: row["circuit"].update(growth=40.0),
])
def test_a_wrong_file_is_refused(built, tmp_path, change):
    content = read_json(built.with_suffix(".json"))
    change(next(row for row in content["data"] if row["params"] and row["params"]["q"] < 10_000))
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="1 wrong examples"):
        validate(path)


def test_statistics_and_depths_are_those_of_the_graphs(built, tmp_path):
    """A file whose seal is right, with answers that fit its statistics, and graphs that have others."""
    arrays, manifest = Store(built).arrays(), Store(built).manifest
    answer = [name for name in arrays if name in ANSWER or name == "feasible" or name.startswith("circuit_")]

    def rewritten(name, **changed):
        rows = {**arrays, **changed}
        ragged = {key.removesuffix("_offset") for key in rows if key.endswith("_offset")}
        table = {key: Ragged(rows[key], rows[f"{key}_offset"]) if key in ragged else rows[key]
                 for key in rows if not key.endswith("_offset")}
        write_store(tmp_path / name, {key: manifest[key] for key in ("generator", "seed", "parameters")}, table)
        return tmp_path / name

    assert validate(rewritten("same.h5"))["examples"] == 780
    order = np.argsort(arrays["level"], kind="stable")  # answers and statistics change places within a level
    order[order] = np.roll(order, 1)
    order = np.where(arrays["level"][order] == arrays["level"], order, np.arange(780))
    swapped = {name: arrays[name][order] for name in (*answer, "weights")}
    deeper, gate = arrays["depth"].copy(), arrays["gate"].copy()
    deeper[3], gate[5] = deeper[3] + 1, 9
    for name, changed in {"swapped.h5": swapped, "deeper.h5": {"depth": deeper}, "gate.h5": {"gate": gate}}.items():
        with pytest.raises(DataError, match="other graphs than statistics"):
            validate(rewritten(name, **changed))


def test_the_other_problem_has_labels_too():
    rows = next(iter(make_blocks(Plan(60, nodes=(10, 40), largest=40, profile="lnp"), 1)))
    some = rows["feasible"]
    assert some.mean() > 0.5 and set(np.unique(rows["n"][some])) <= {64, 128} and rows["q"].dtype == np.int64
    assert (rows["bits"] >= rows["level"])[some].all()
