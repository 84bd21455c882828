"""The system in the engine: one run, trained once, and what can be asked of it."""
import json

import numpy as np
import pytest
from nexuslab.config import overlay, resolve
from nexuslab.core import NexusError, read_json
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.systems.lattice.circuit import adder, draw_circuits, edge_features, node_features, to_json
from nexuslab.systems.lattice.model import AdvancedGNNOptimizer
from nexuslab.task import get_task

TASK = get_task("lattice")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("lattice")
    cfg = resolve(TASK, "smoke", {"steps": 6, "eval_every": 3})
    found = fit(TASK, cfg, Run.create(cfg, root)).run
    evaluate(TASK, found)
    return found


def test_figures_are_in_groups_and_nothing_unverified_is_left(run):
    text = (run.path / "evaluation.json").read_text(encoding="utf-8")
    for name in ("violations_raw", "violations_repaired", "regret_mean", "regret_p95", "n_exact", "repaired_share",
                 "infeasible_f1", "parameter_accuracy", "metrics_accuracy", "r2", "r2_expected"):
        assert f'"{name}"' in text and f'"{name}_beyond"' in text, name
    assert all(rival in text for rival in ("mean", "table", "untrained", "shuffled", "counts_and_paths"))


def test_what_the_seed_logs_is_logged_for_training_and_validation(run):
    columns = run.history().columns
    for name in ("loss", "param_loss", "metrics_loss", "proof_size_norm", "security_score", "bit_security", "hardness"):
        assert {f"train/{name}", f"val/{name}"} <= set(columns), name


def test_a_run_answers_for_files_graphs_and_nothing(run, tmp_path):
    model, cfg, meta = run.load()
    (tmp_path / "a.json").write_text(json.dumps(to_json(adder(4))))
    one = draw_circuits(np.random.default_rng(0), [20])
    graph = {"x": node_features(one), "edge_index": [one.source, one.target], "edge_attr": edge_features(one)}
    rows = TASK.predict(model, [str(tmp_path / "a.json"), graph, to_json(adder(5))], cfg, meta, lambda_bits=192)
    assert len(rows) == 3 and all(row["feasible"] and row["margin"] >= 0 and row["lambda_bits"] == 192 for row in rows)
    assert len(TASK.predict(model, None, cfg, meta, weights=(1, 0, 0))) == 2
    same = AdvancedGNNOptimizer.load(run.path).predict_parameters(graph["x"], np.stack(graph["edge_index"]),
                                                                  graph["edge_attr"], lambda_bits=192)
    assert same == rows[1]
    with pytest.raises(NexusError):
        TASK.predict(model, [], cfg, meta)


def test_prepare_writes_the_json_that_is_asked_for_and_refuses_other_files(tmp_path):
    cfg = resolve(TASK, "smoke", {"num_samples": 60, "min_nodes": 12, "max_nodes": 20, "output_file": "out/a.json",
                                  "data.beyond": 0})
    path = TASK.prepare(cfg, tmp_path)
    content = read_json(tmp_path / "out" / "a.json")
    nodes = [row["circuit"]["nodes"] for row in content["data"]]
    assert (len(nodes), min(nodes), max(nodes)) == (60, 12, 20)
    given = overlay(cfg, {"data.path": str(path)})
    assert TASK.data(given, tmp_path).train.size == 36
    with pytest.raises(NexusError, match="data.profile"):
        TASK.data(overlay(given, {"data.profile": "lnp"}), tmp_path)
    with pytest.raises(NexusError, match="min_nodes <= max_nodes"):
        resolve(TASK, "smoke", {"min_nodes": 50, "max_nodes": 20})


def test_dealt_labels_change_training_alone(tmp_path):
    cfg = resolve(TASK, "debug", {})
    plain, dealt = TASK.data(cfg, tmp_path), TASK.data(overlay(cfg, {"data.shuffled": True}), tmp_path)
    assert plain.fingerprint != dealt.fingerprint
    rows = lambda split: split.arrays["q"][split.members]
    assert (rows(plain.train) != rows(dealt.train)).any()
    assert np.array_equal(np.sort(rows(plain.train)), np.sort(rows(dealt.train)))
    assert np.array_equal(rows(plain.val), rows(dealt.val)) and np.array_equal(rows(plain.test), rows(dealt.test))


def test_the_search_space_is_the_seeds():
    import optuna

    asked = TASK.space(optuna.trial.FixedTrial({
        "optim.lr": 1e-4, "model.hidden_dim": 128, "model.num_layers": 3, "model.num_heads": 8, "model.dropout": 0.1}))
    cfg = resolve(TASK, "smoke", asked)
    assert (cfg.model.hidden_dim, cfg.model.num_layers, cfg.optim.lr) == (128, 3, 1e-4)
