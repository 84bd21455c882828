"""The figures of the circuits: drawn for a run that learnt nothing, right where the answer is known; the tour from end
to end."""
import time
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest

from nexuslab.config import resolve
from nexuslab.fit import fit
from nexuslab.run import Run, find_runs
from nexuslab.systems.circuits.analysis import merge
from nexuslab.systems.circuits.views import (
    VIEWS,
    analysed,
    confusion_table,
    correlation,
    distances,
    edit_distance,
    kinds_of,
    latent_table,
    look,
    rank_correlation,
)
from nexuslab.task import get_task
from nexuslab.views import render_views

ROOT = Path(__file__).parents[2]
TABLES = {"latent_statistics", "edit_correlation", "prior_verdicts"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Two runs of two steps: the graph model and the dense one."""
    task, root, found = get_task("circuits"), tmp_path_factory.mktemp("views"), {}
    for kind in ("graph", "slot"):
        cfg = resolve(task, "smoke", {"steps": 2, "model.kind": kind, "eval_every": 2})
        found[kind] = Run.create(cfg, root)
        fit(task, cfg, found[kind])
    return found


def drawn(run: Run, names: list[str] | None = None) -> set[str]:
    """The views that were drawn, each of them into a file with something in it."""
    files = render_views(get_task("circuits"), run, names, write=lambda text: None)
    for name, path in files.items():
        assert path.suffix == (".csv" if name in TABLES else ".png")
        assert path.stat().st_size > (20 if name in TABLES else 5000), name
    return set(files)


def test_the_dense_model_is_drawn_too(runs):
    """The graph model's views are drawn by the contract, all of them."""
    assert set(get_task("circuits").views()) == set(VIEWS) and len(VIEWS) >= 12
    assert len(drawn(runs["slot"], ["confusion", "active_units", "edit_distances", *TABLES])) == 6


def test_tables_have_their_rows(runs):
    table = VIEWS["latent_statistics"](runs["graph"])
    assert len(table) == 24 and table["branch"].value_counts().to_dict() == {"topology": 8, "values": 8, "roots": 8}
    scene = look(runs["graph"])
    assert np.array_equal(table["active"], scene.mean.astype(float).var(0) > 0.01)
    assert VIEWS["prior_verdicts"](runs["graph"])["count"].sum() == 1000
    known = VIEWS["edit_correlation"](runs["graph"])
    assert list(known.index) == ["topology", "values", "roots", "all"]
    assert (known["pairs"] == len(scene.rows) // 2).all()


def test_active_units_of_a_known_posterior():
    rng = np.random.default_rng(0)
    spread = np.array([1.0, 0.5, 0.11, 0.09, 0.0])  # squares: 1, 0.25, 0.0121, 0.0081, 0
    mean = np.tile([1.0, -1.0], 50)[:, None] * spread
    table = latent_table(
        mean, np.ones((100, 5)), {"first": slice(0, 2), "second": slice(2, 5)},
        {"name": rng.choice(["a", "b"], 100), "x": mean[:, 0]},
    )
    assert table["active"].tolist() == [True, True, True, False, False]
    assert np.allclose(table["variance of mean"], spread**2) and np.allclose(table["divergence [nats]"], spread**2 / 2)
    assert np.allclose(table["rank correlation with x"], [1, 1, 1, 1, 0])


def test_a_perfect_decoder_confuses_nothing(runs):
    scene = look(runs["graph"])
    table = confusion_table(scene.labels["kind"], kinds_of(scene.true))
    assert table.to_numpy().sum() == len(scene.rows)
    assert all(table.loc[kind, kind] == (scene.labels["kind"] == kind).sum() for kind in table.index)
    assert np.trace(table.reindex(columns=table.index).to_numpy()) == len(scene.rows) and table["invalid"].sum() == 0


def test_a_decoder_of_nothing_is_all_invalid(runs):
    names = look(runs["graph"]).labels["kind"]
    table = confusion_table(names, kinds_of([None] * len(names)))
    assert table["invalid"].sum() == len(names) == table.to_numpy().sum()


@pytest.mark.parametrize("circuit", [None, merge([("C", 1, 2, 1e-9)]), merge([("R", 1, 0, 10.0), ("R", 2, 0, 10.0)])])
def test_what_has_no_response_is_not_drawn(circuit):
    assert analysed(circuit) is None and kinds_of([circuit]).tolist() == ["invalid"]


def test_edit_distance_by_hand():
    divider = merge([("R", 1, 2, 1.0), ("R", 2, 0, 1.0)])
    loaded = merge([("R", 1, 2, 9.0), ("R", 2, 0, 1.0), ("C", 2, 0, 1.0)])
    split = merge([("L", 1, 3, 1.0), ("C", 3, 2, 1.0), ("R", 2, 0, 1.0)])
    renamed = merge([("L", 1, 4, 1.0), ("C", 4, 3, 1.0), ("R", 3, 2, 1.0), ("R", 2, 0, 1.0)])
    other = merge([("L", 1, 3, 1.0), ("C", 3, 4, 1.0), ("R", 4, 2, 1.0), ("R", 2, 0, 1.0)])
    assert edit_distance(divider, divider) == 0 and edit_distance(divider, loaded) == 1
    assert edit_distance(divider, split) == 4  # a node, L and C added, R removed
    assert edit_distance(renamed, other) == 0  # the same graph under other numbers
    assert edit_distance(split, divider) == edit_distance(divider, split)


def test_distance_that_follows_the_edits_correlates_fully():
    edits = np.repeat(np.arange(5), 6)
    table = pd.DataFrame({"edits": edits, "good": edits**2.0, "constant": 1.0})
    assert correlation(table, "good", 0) == {
        "spearman": pytest.approx(1), "low": pytest.approx(1), "high": pytest.approx(1), "pairs": 30
    }
    assert rank_correlation(table[["edits", "constant"]].to_numpy(float)) == 0


def test_pairs_are_disjoint_and_repeatable(runs):
    scene = look(runs["graph"])
    assert distances(scene).equals(distances(scene)) and len(distances(scene)) == len(scene.rows) // 2


def test_the_tour_runs(home, tmp_path):
    started = time.perf_counter()
    papermill.execute_notebook(
        str(ROOT / "nbs" / "00_tour.ipynb"), str(tmp_path / "tour.ipynb"), cwd=str(tmp_path), progress_bar=False
    )
    print(f"tour: {time.perf_counter() - started:.0f} s")
    [run] = find_runs(home)
    figures = run.evaluation["test"]["figures"]
    assert run.status["state"] == "finished" and figures["graph_exact"] > 0.9 and figures["pole_error_median"] < 0.05
    assert {"mean circuit", "nearest training circuit"} <= set(run.evaluation["test"]["baselines"])
    assert list((run.path / "samples").glob("*.h5")) and list((run.path / "samples").glob("*.png"))
