"""Circuits against slow independent computations, and what is refused."""
import math

import networkx as nx
import numpy as np
import pytest
from nexuslab.core import NexusError
from nexuslab.systems.lattice.circuit import (
    FAMILIES, GATES, LINEAR, depths, draw_circuits, edge_features, from_features, levels, log_growth, node_features,
    read_circuit, stack, statistics, take, to_json, widths,
)


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(4)
    real = [build(sizes[3]) for build, sizes in FAMILIES.values()]
    return stack([draw_circuits(rng, rng.integers(3, 120, 30)), *real])


def by_hand(circuits, index):
    """Depth, growth and width of one circuit, node after node in the order of networkx."""
    c = take(circuits, [index])
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(range(len(c.gate)))
    graph.add_weighted_edges_from(zip(c.source.tolist(), c.target.tolist(), c.weight.tolist()))
    depth, growth, width = {}, {}, {}
    for v in nx.topological_sort(graph):
        inputs = [(u, data["weight"]) for u, _, data in graph.in_edges(v, data=True)]
        gate, linear = GATES[c.gate[v]], LINEAR[c.gate[v]]
        depth[v] = max((depth[u] + 1 for u, _ in inputs), default=0)
        growth[v] = sum(w * w * growth[u] for u, w in inputs) if inputs and linear else 1.0
        if not inputs:
            width[v] = 1
        elif gate == "MUL":
            width[v] = min(32, sum(width[u] for u, _ in inputs))
        else:
            width[v] = min(32, max(width[u] for u, _ in inputs) + (gate == "ADD"))
    refreshed = sum(bool(graph.in_degree(v)) and not LINEAR[c.gate[v]] for v in graph)
    return depth, growth, width, refreshed


def test_statistics_are_those_of_a_walk_over_the_nodes(drawn):
    told = statistics(drawn)
    for index in range(len(drawn)):
        depth, growth, width, refreshed = by_hand(drawn, index)
        assert told.depth[index] == max(depth.values()) and told.nonlinear[index] == refreshed
        assert told.witness_bits[index] == sum(width.values()) and told.max_bits[index] == max(width.values())
        assert math.isclose(told.growth[index], math.log(max(growth.values())), rel_tol=1e-9, abs_tol=1e-9)
        assert (told.nodes[index], told.wires[index]) == (drawn.nodes[index], drawn.edges[index])


def test_a_batch_is_its_circuits(drawn):
    depth, first = depths(drawn), drawn.node_offset
    whole = log_growth(drawn, levels(drawn, depth)), widths(drawn, levels(drawn, depth))
    for index in (0, 7, len(drawn) - 1):
        one = take(drawn, [index])
        order = levels(one, depths(one))
        for all_of_it, own in zip(whole, (log_growth(one, order), widths(one, order))):
            assert np.allclose(all_of_it[first[index] : first[index + 1]], own)


def test_an_edge_without_weight_carries_nothing():
    from nexuslab.systems.lattice.circuit import Circuits

    c = Circuits(np.full(2, 5, np.int8), np.array([0]), np.array([1]), np.zeros(1, np.int8), np.zeros(1, np.float32),
                 np.array([0, 2]), np.array([0, 1]))
    assert statistics(c).growth.tolist() == [0.0]  # the input's own noise is left


def test_columns_of_counts_are_computed(drawn):
    one = take(drawn, [3])
    x = node_features(one)
    wrong = x.copy()
    wrong[:, 7:] = 99
    again = from_features(wrong, np.stack([one.source, one.target]), edge_features(one))
    assert np.array_equal(node_features(again), x)
    assert x[:, 7].sum() == x[:, 8].sum() == len(one.source)


@pytest.mark.parametrize("change, told", [
    (lambda x, e, a: (x[:0], e[:, :0], a[:0]), "at least one node"),
    (lambda x, e, a: (x, e[::-1], a), None),  # turned round it is a circuit as well
    (lambda x, e, a: (x, np.concatenate([e, e[::-1]], 1), np.concatenate([a, a])), "cycle"),
    (lambda x, e, a: (x, np.stack([e[0], e[0]]), a), "cycle"),
    (lambda x, e, a: (x[:, :-1], e, a), "shape"), (lambda x, e, a: (x, e, a[:, 1:]), "shape"),
    (lambda x, e, a: (np.where(x > 0, np.nan, x), e, a), "nan"), (lambda x, e, a: (x, e, a + np.inf), "inf"),
    (lambda x, e, a: (x, e + 0.5, a), "whole numbers"), (lambda x, e, a: (x, e - 1, a), "nodes -1"),
    (lambda x, e, a: (np.zeros_like(x), e, a), "row 0"),
    (lambda x, e, a: (np.random.default_rng(0).normal(size=x.shape), e, a), "row 0"),  # the guide's random features
])
def test_what_is_no_circuit_is_refused_by_name(drawn, change, told):
    one = take(drawn, [5])
    given = change(node_features(one), np.stack([one.source, one.target]), edge_features(one))
    if told is None:
        assert len(from_features(*given)) == 1
    else:
        with pytest.raises(NexusError, match=told):
            from_features(*given)


def test_files_are_read(tmp_path, drawn):
    import json

    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(to_json(drawn, 2)))
    again, one = read_circuit(path), take(drawn, [2])
    assert np.array_equal(again.gate, one.gate) and np.array_equal(again.weight, one.weight)
    system = {"variables": 4, "constraints": [{"a": {"1": 1}, "b": {"2": 3}, "c": {"3": 2, "1": 1}}]}
    told = statistics(read_circuit(system))  # (3 b a - a) / 2: the sum has the squares of 1/2 and 1/2
    assert told.nonlinear.tolist() == [1] and math.isclose(math.exp(told.growth[0]), 9)
    for wrong in ({"gates": ["ADD"], "wires": [[0]]}, {"gates": ["ADD"], "wires": [[0, 0]]}, [1]):
        with pytest.raises(NexusError):
            read_circuit(wrong) if isinstance(wrong, dict) else read_circuit({"nodes": wrong})


def test_constraints_that_define_nothing_are_claims():
    """A bit is 0 or 1, an inverse, a sum without a product: none of them is refused, and none defines the constant."""
    bit = {"a": {"1": 1}, "b": {"1": 1, "0": -1}, "c": {}}
    inverse = {"a": {"1": 1}, "b": {"2": 1}, "c": {"0": 1}}
    total = {"a": {}, "b": {}, "c": {"1": 2, "2": 1, "3": -1}}
    found = read_circuit({"variables": 4, "constraints": [bit, inverse, total]})
    told, names = statistics(found), [GATES[g] for g in found.gate]
    assert told.nonlinear.tolist() == [2] and names.count("MUL") == 2 and len(names) == 3 + 3 + 4 + 1
    assert math.isclose(math.exp(told.growth[0]), 5)  # of 2 a + b
    again = read_circuit({"nVars": 4, "prime": "97", "constraints": [
        [{"1": "1"}, {"1": "1", "0": "96"}, {}], [{"1": "1"}, {"2": "1"}, {"0": "1"}],
        [{}, {}, {"1": "2", "2": "1", "3": "96"}]]})
    assert np.array_equal(again.weight, found.weight) and np.array_equal(again.target, found.target)


@pytest.mark.parametrize("wrong", [
    {"gates": "AND"}, {"gates": None}, {"gates": ["OR", "OR"], "wires": None}, {"gates": ["OR", "OR"], "wires": [5]},
    {"gates": ["OR", "OR"], "wires": [[0.5, 1]]}, {"gates": ["OR", "OR"], "wires": [[0, 1, "DATA", "x"]]},
    {"gates": ["OR", "OR"], "wires": [[0, 1, "DATA", None]]}, {"gates": ["OR", "OR"], "wires": [[0, 1, "DATA", 1e300]]},
    {"constraints": []}, {"variables": "q", "constraints": []}, {"variables": -3, "constraints": []},
    {"variables": 3, "constraints": {"a": 1}}, {"variables": 3, "constraints": [[{}, {}]]},
    {"variables": 3, "prime": "x", "constraints": []},
    *({"variables": 3, "constraints": [{"a": {"1": 1}, "b": side, "c": {"2": 1}}]}
      for side in ({"x": 1}, {"1": "y"}, {"1": float("nan")}, {"9": 1}, [1], {"1": 10**400}, {"1": True},
                   {"1": 1, "01": 5})),
    *({"variables": 3, "prime": prime, "constraints": [[{"1": 1.5 if prime == 97 else 1}, {"1": 1}, {"2": 1}]]}
      for prime in ("0", "²", 1, -7, True, "9" * 5000, 97)),  # a field has whole coefficients
    {"variables": 10**9, "constraints": []}, {"variables": True, "constraints": []},
    {"variables": 3, "constraints": [{"a": {"1": 1}, "b": {"1": 1}, "C": {"2": 1}}]},
    {"gates": ["OR", "OR"], "wires": [[0, 1, "DATA", 10**400]]}, {"gates": ["OR", "OR"], "wires": [[0, 10**30]]},
    {"gates": ["OR", "OR"], "wires": [[False, True]]},
])
def test_files_that_are_no_circuits_are_refused_by_name(wrong):
    with pytest.raises(NexusError):
        read_circuit(wrong)


def test_coefficients_of_a_large_field_are_weights():
    """A field of 254 bits holds coefficients that single precision does not: they count as the largest weight."""
    prime = 21888242871839275222246405745257275088548364400416034343698204186575808495617
    told = statistics(read_circuit({"variables": 4, "prime": str(prime), "constraints": [
        [{"1": str(prime // 3)}, {"2": 1}, {"3": str(prime // 5)}]]}))
    assert np.isfinite(told.growth).all() and told.growth[0] > 150 and told.max_bits[0] > 1


def test_graphs_in_json_are_not_rounded(drawn):
    from nexuslab.systems.lattice.task import circuits_from

    one = take(drawn, [5])
    graph = {"x": node_features(one).tolist(), "edge_index": [one.source.tolist(), one.target.tolist()],
             "edge_attr": edge_features(one).tolist()}
    assert len(circuits_from([graph, {**graph, "edge_index": [[], []], "edge_attr": []}])) == 2
    for wrong in (np.array(graph["edge_index"]) + 0.7, [[0], [1, 2]], [[10**30] * len(one.source)] * 2, None, "abc"):
        with pytest.raises(NexusError, match="edge_index"):
            circuits_from({**graph, "edge_index": wrong})
    with pytest.raises(NexusError, match="x of a circuit"):
        from_features(node_features(one) + 1j, np.stack([one.source, one.target]), edge_features(one))
