"""Circuits: labels against ngspice, hashes against NetworkX, splits, determinism, refusals."""

import math

import networkx as nx
import ngspice
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexuslab.core import ConfigError, DataError
from nexuslab.store import Store
from nexuslab.systems.circuits import analysis, data, population

needs_ngspice = pytest.mark.skipif(ngspice.MISSING is not None, reason=str(ngspice.MISSING))
LADDERS = population.complete({"population": "ladders"})


@pytest.fixture(scope="module")
def ladders():
    return population.examples_at(range(400), 11, LADDERS)[0]


@pytest.fixture(scope="module")
def families():
    return population.examples_at(range(300), 7, population.complete({"population": "families"}))[0]


def worst_error(examples, folder, form):
    "Largest relative error of a response against ngspice, where |H| is at least 1e-4 of its maximum on the grid."
    errors = []
    for start in range(0, len(examples), 50):
        part = examples[start : start + 50]
        frequency, truth = ngspice.ac([e.circuit for e in part], folder)
        for example, H in zip(part, truth, strict=True):
            seen = np.abs(H) >= 1e-4 * np.abs(H).max()
            errors.append(np.abs(form(example, frequency) / H - 1)[seen].max())
    assert len(errors) == len(examples) > 0
    return max(errors)


def zero_pole(example, frequency):
    return example.analysis.response(frequency)


@needs_ngspice
def test_zero_pole_form_agrees_with_ngspice_on_all_families(families, tmp_path):
    assert {e.family for e in families} == set(population.NETWORKS)
    assert worst_error(families, tmp_path, zero_pole) <= 1e-6


@needs_ngspice
def test_zero_pole_form_agrees_with_ngspice_on_the_second_networks(tmp_path):
    examples = population.examples_at(range(120), 3, population.complete({"population": "families", "variants": 2}))[0]
    assert len({analysis.topology_hash(e.circuit) for e in examples}) == 12
    assert worst_error(examples, tmp_path, zero_pole) <= 1e-6


@needs_ngspice
def test_zero_pole_form_agrees_with_ngspice_on_ladders(ladders, tmp_path):
    assert {e.family for e in ladders} == set(population.FORMS)
    assert worst_error(ladders, tmp_path, zero_pole) <= 1e-6


@needs_ngspice
def test_direct_solution_agrees_with_ngspice(ladders, tmp_path):
    assert worst_error(ladders[:100], tmp_path, lambda e, f: analysis.response(e.circuit, f)) <= 1e-6


@needs_ngspice
def test_poles_agree_with_pz_where_it_can_be_trusted(tmp_path):
    circuit = analysis.merge([("L", 1, 3, 1e-3), ("C", 3, 2, 1e-7), ("R", 2, 0, 50.0)])
    found, ours = ngspice.pole_zero(circuit, tmp_path), analysis.analyse(circuit)
    assert np.allclose(np.sort_complex(found["pole"]), np.sort_complex(ours.poles), rtol=1e-8)
    assert np.allclose(found["zero"], ours.zeros, atol=1e-3)


def test_a_wrong_value_would_be_noticed(families, tmp_path):
    "The yardstick itself: one part in a thousand in one component exceeds the tolerance by far."
    circuit = families[2].circuit
    other = analysis.merge([(k, i, j, v * (1.001 if n == 0 else 1)) for n, (k, i, j, v) in enumerate(circuit.parts)])
    f = np.geomspace(100, 1e7, 101)
    assert np.abs(analysis.response(other, f) / families[2].analysis.response(f) - 1).max() > 1e-5


def test_zero_pole_form_agrees_with_direct_solution_over_all_its_frequencies(ladders):
    for example in ladders:
        size = np.abs(example.analysis.modes)
        f = np.geomspace(size.min() / 100, size.max() * 100, 100) / (2 * np.pi)
        H = analysis.response(example.circuit, f)
        seen = np.abs(H) >= 1e-4 * np.abs(H).max()
        assert np.abs(example.analysis.response(f) / H - 1)[seen].max() < 1e-6


def test_batched_responses_are_the_single_ones(ladders):
    circuits, f = [e.circuit for e in ladders[:60]], np.geomspace(10, 1e8, 33)
    together = analysis.responses(circuits, f)
    assert np.allclose(together, [analysis.response(c, f) for c in circuits], rtol=1e-10)


def test_poles_decay_and_come_in_pairs(ladders):
    for example in ladders:
        a = example.analysis
        assert (a.modes.real < 0).all() and a.gain > 0 and len(a.zeros) <= len(a.poles) <= len(a.modes)
        for roots in (a.poles, a.zeros, a.modes):
            assert np.allclose(np.sort_complex(roots), np.sort_complex(roots.conj()), rtol=1e-12)


def test_passive_networks_obey_the_bound_on_the_real_axis(ladders):
    """Between positive impedances the output divides the input: 0 < H(s) <= 1 for real s > 0 (ground, input and output
    share no transformer)."""
    for example in ladders:
        a = example.analysis
        s = np.geomspace(np.abs(a.modes).min() / 10, np.abs(a.modes).max() * 10, 20)
        H = a.gain * np.exp((np.log(s[:, None] - a.zeros)).sum(1) - np.log(s[:, None] - a.poles).sum(1))
        assert np.abs(H.imag).max() < 1e-9 and (H.real > 0).all() and (H.real < 1 + 1e-9).all()


def test_kind_and_family_agree_on_a_simulated_curve(families):
    "An independent reading of the raw curve, without refinement."
    for example in families[:120]:
        size = np.abs(example.analysis.poles)
        f = np.geomspace(size.min() / 1e4, size.max() * 1e4, 12001) / (2 * np.pi)
        inside = np.abs(analysis.response(example.circuit, f))
        inside = inside >= inside.max() / np.sqrt(2)
        flips = int((inside[1:] != inside[:-1]).sum())
        name = {
            (True, False, 1): "low_pass", (False, True, 1): "high_pass", (False, False, 2): "band_pass",
            (True, True, 2): "band_stop",
        }[inside[0], inside[-1], flips]
        assert name == example.kind.name and name in population.FAMILY_KINDS[example.family]


def test_cutoff_and_quality_match_the_formulas(families):
    for example in families:
        value = {(k, i, j): v for k, i, j, v in example.circuit.parts}
        r, l, c = ([v for (k, _, _), v in value.items() if k == kind] for kind in "RLC")
        if example.family == "band_pass":
            assert math.isclose(example.kind.quality, math.sqrt(l[0] / c[0]) / r[0], rel_tol=1e-4)
            assert math.isclose(example.kind.cutoff_hz, 1 / (2 * math.pi * math.sqrt(l[0] * c[0])), rel_tol=1e-4)
        if example.family == "band_stop":
            assert math.isclose(example.kind.cutoff_hz, 1 / (2 * math.pi * math.sqrt(l[0] * c[0])), rel_tol=1e-4)
            assert math.isclose(example.kind.quality, r[0] * math.sqrt(c[0] / l[0]), rel_tol=1e-4)
        if example.family == "high_pass":
            assert math.isclose(example.kind.cutoff_hz, 1 / (2 * math.pi * r[0] * c[0]), rel_tol=1e-5)
        if example.family == "low_pass":
            assert math.isclose(example.kind.cutoff_hz, (1 / r[0] + 1 / r[1]) / (2 * math.pi * c[0]), rel_tol=1e-5)


def same_by_networkx(a, b):
    return nx.is_isomorphic(
        data.to_networkx(a), data.to_networkx(b),
        node_match=lambda x, y: x["terminal"] == y["terminal"], edge_match=lambda x, y: x["kind"] == y["kind"],
    )


def test_topology_hash_is_isomorphism(ladders):
    "Equal hash if and only if NetworkX finds an isomorphism, among circuits of the same size."
    circuits = [e.circuit for e in ladders]
    pairs = [
        (a, b) for n, a in enumerate(circuits) for b in circuits[:n]
        if a.n_nodes == b.n_nodes and sorted(t for *_, t in a.typed) == sorted(t for *_, t in b.typed)
    ]
    assert len(pairs) > 300
    equal = 0
    for a, b in pairs:
        same = same_by_networkx(a, b)
        assert same == (analysis.topology_hash(a) == analysis.topology_hash(b)) == analysis.same_graph(a, b)
        equal += same
    assert 0 < equal < len(pairs)


@settings(max_examples=60)
@given(index=st.integers(0, 399), seed=st.integers(0, 2**32 - 1))
def test_renumbering_changes_nothing(ladders, index, seed):
    circuit, rng = ladders[index].circuit, np.random.default_rng(seed)
    order = np.r_[:3, 3 + rng.permutation(circuit.n_nodes - 3)]
    parts = [(k, int(order[i]), int(order[j]), v) for k, i, j, v in circuit.parts]
    other = analysis.merge([parts[k] for k in rng.permutation(len(parts))])
    again = analysis.canonical(other)
    assert np.array_equal(again.edges, circuit.edges) and np.array_equal(again.value, circuit.value, equal_nan=True)
    assert analysis.content_hash(other) == analysis.content_hash(circuit)
    assert np.allclose(analysis.analyse(other).poles, ladders[index].analysis.poles, rtol=1e-5)


def test_netlists_round_trip(ladders):
    for example in ladders:
        read = analysis.from_netlist(analysis.netlist(example.circuit))
        assert analysis.content_hash(read) == analysis.content_hash(example.circuit)


SUFFIXES = {1e-12: "p", 1e-9: "n", 1e-6: "u", 1e-3: "m", 1.0: "", 1e3: "k", 1e6: "MEG"}


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_netlist_means_the_same_however_it_is_written(ladders, data):
    "Names, letter case, suffixes, units, comments, continuations and the order of lines change nothing."
    circuit = ladders[data.draw(st.integers(0, len(ladders) - 1))].circuit
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    names = {0: rng.choice(["0", "GND"]), 1: "In", 2: "OUT"} | {k: f"net{k}" for k in range(3, circuit.n_nodes)}
    lines = []
    for k, (kind, i, j, value) in enumerate(circuit.parts):
        scale = rng.choice(list(SUFFIXES))
        written = f"{value / scale:.17g}{SUFFIXES[scale]}" + rng.choice(["", {"R": "ohm", "C": "F", "L": "H"}[kind]])
        if scale == 1.0 and kind == "C":  # a bare F is femto
            written = written.rstrip("F")
        ends = rng.permutation([i, j])
        breaks = rng.choice([" ", "\n+ ", "\n* a note\n+", " \t"], 3)
        lines.append(f"{kind}{k}{breaks[0]}{names[ends[0]]}{breaks[1]}{names[ends[1]]}{breaks[2]}{written}"
                     + rng.choice(["", " ; note", " $ note", "\n"]))
    source = rng.choice(["Vs in 0 ac 1", "V1 IN gnd dc 0 AC 1", "* none"])
    text = "\n".join(["title", *rng.permutation([source, *lines]), ".ac dec 10 1 1k", ".END", "Q1 a b c"])
    read = analysis.from_netlist(text)
    assert analysis.same_graph(read, circuit)
    both = (analysis.canonical(c).value for c in (read, circuit))
    assert np.allclose(*both, rtol=1e-12, atol=0, equal_nan=True)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="RCLVMQinout0gnd. 1kµ+*;$\n-=", max_size=80))
def test_any_text_is_a_netlist_or_refused_by_name(text):
    try:
        assert analysis.from_netlist(text).parts
    except DataError as error:
        assert error.expected


@settings(max_examples=200)
@given(
    parts=st.lists(
        st.tuples(st.sampled_from("RCL"), st.integers(0, 5), st.integers(0, 5), st.floats(0.1, 10)), min_size=1,
        max_size=14,
    )
)
def test_any_network_is_analysed_or_refused_by_name(parts):
    "Whatever is drawn: a DataError, or a zero-pole form that is the direct solution."
    try:
        circuit = analysis.merge(parts, 6)
        a = analysis.analyse(circuit)
    except DataError:
        return
    assert not analysis.count_roots(6, circuit.typed).still or not analysis.decays(6, circuit.typed)
    f = np.array([0.031, 0.17, 0.92])
    H = analysis.response(circuit, f)
    seen = np.abs(H) > 1e-4
    assert np.allclose(a.response(f)[seen], H[seen], rtol=1e-5)


def test_decay_by_graph_and_by_arithmetic_agree():
    checked = 0
    for index in range(300):
        rng = np.random.default_rng(index)
        _, parts = population.draw_ladder(rng, index, LADDERS)
        circuit = population.with_values(parts, rng)
        counts = analysis.count_roots(circuit.n_nodes, circuit.typed)
        assert analysis.decays(circuit.n_nodes, circuit.typed) == (counts.still == 0)
        checked += counts.still > 0
    assert checked > 20


@pytest.mark.parametrize("bad, word", [
    (lambda: analysis.merge([("X", 1, 2, 1.0)]), "R, C or L"),
    (lambda: analysis.merge([("R", 1, 2, -1.0)]), "positive"),
    (lambda: analysis.merge([("R", 1, 2, math.nan)]), "edge without"),
    (lambda: analysis.merge([]), "at least"),
    (lambda: analysis.Circuit(3, [[2, 1]], [[True, False, False]], [[1.0, math.nan, math.nan]]), "i < j"),
    (lambda: analysis.Circuit(3, [[1, 2]], [[True, False, False]], [[1.0, 2.0, math.nan]]), "NaN where absent"),
    (lambda: analysis.analyse(analysis.merge([("R", 1, 2, 1.0), ("R", 3, 4, 1.0)], 5)), "floating"),
    (lambda: analysis.from_netlist("* t\nQ1 a b c model\n"), "RLC"),
    (lambda: analysis.from_netlist("* t\nR1 in out abc\n"), "scale factor"),
])
def test_bad_circuits_are_refused_by_name(bad, word):
    with pytest.raises(DataError, match=word):
        bad()


@pytest.mark.parametrize("parameters, word", [
    ({"population": "ladder"}, "did you mean ladders"),
    ({"circuit": 10}, "did you mean circuits"),
    ({"circuits": 0}, "at least"),
    ({"variants": 3}, "1 or 2"),
    ({"fractions": (0.5, 0.2, 0.2)}, "sum"),
    ({"population": "ladders", "sections": (0.5, 0.6)}, "sum"),
])
def test_bad_parameters_are_refused_by_name(parameters, word):
    with pytest.raises(ConfigError, match=word):
        population.complete(parameters)


def test_impossible_parameters_end_with_the_reasons():
    with pytest.raises(DataError, match="too many nodes"):
        population.examples_at(
            [0], 0,
            population.complete({"population": "ladders", "max_nodes": 3, "train_nodes": 3, "forms": (0, 1, 0, 0)}),
        )


def test_any_number_of_workers_gives_the_same_file(tmp_path):
    parameters = {"population": "ladders", "circuits": 450}
    one = data.build(tmp_path / "one.h5", parameters, seed=5, workers=1)
    two = data.build(tmp_path / "two.h5", parameters, seed=5, workers=2)
    other = data.build(tmp_path / "other.h5", parameters, seed=6, workers=1)
    assert Store(one).verify().manifest == Store(two).verify().manifest
    assert one.read_bytes() == two.read_bytes()
    assert Store(other).manifest["digest"] != Store(one).manifest["digest"]


def test_a_smaller_data_set_is_the_head_of_a_larger():
    few, many = (data.generate({"population": "families", "circuits": n}, seed=2) for n in (60, 240))
    for name in ("content", "split"):
        assert np.array_equal(few[name], many[name][:60])


def test_an_example_does_not_depend_on_its_block(ladders):
    alone = [population.examples_at([index], 11, LADDERS)[0][0] for index in range(0, 400, 8)]
    one, other = population.to_arrays(alone), population.to_arrays(ladders[::8])
    assert all(np.array_equal(one[name], other[name]) for name in other)


def test_base_sizes_and_strata():
    arrays = data.generate({"population": "families"}, seed=0)
    assert np.bincount(arrays["split"]).tolist() == [2672, 318, 610]
    for split, each in enumerate((450, 50, 100)):  # in the mean; four deviations of a binomial are allowed
        counts = np.bincount(arrays["family"][arrays["split"] == split], minlength=6)
        assert np.abs(counts - each).max() < 4 * np.sqrt(each * (1 - each / 600))
    assert len(np.unique(arrays["content"])) == 3600 and len(np.unique(arrays["topology"])) == 6
    held = np.repeat(arrays["split"] == 0, np.diff(arrays["edge_offset"]))
    for k in range(3):
        logs = arrays["edge_log_value"][held & arrays["edge_present"][:, k], k]
        assert np.allclose(arrays["statistics"][:, k], [logs.mean(), logs.std()], rtol=1e-6)


def test_unseen_topologies_are_unseen():
    arrays = population.to_arrays(population.examples_at(range(1000), 4, LADDERS)[0])
    arrays |= data.assign_splits(arrays, 4, LADDERS)
    shown = set(arrays["topology"][arrays["split"] == 0].tolist())
    assert not shown & set(arrays["topology"][arrays["split"] == 3].tolist())
    for split in (1, 2):
        assert set(arrays["topology"][arrays["split"] == split].tolist()) <= shown
    assert arrays["beyond"].sum() > 0
    assert arrays["n_nodes"][arrays["split"] == 0].max() < arrays["n_nodes"][arrays["beyond"]].min()


def test_a_file_gives_back_its_circuits(tmp_path, ladders):
    arrays = population.to_arrays(ladders)
    for index, example in enumerate(ladders):
        circuit = data.circuit_at(arrays, index)
        assert analysis.content_hash(circuit) == int(arrays["content"][index]) == analysis.content_hash(example.circuit)
        low, high = arrays["pole_offset"][index : index + 2]
        assert np.array_equal(arrays["pole"][low:high] @ [1, 1j], example.analysis.poles)
