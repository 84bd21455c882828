"""The figures of the Collatz models: drawn for every kind, after two steps, from whatever checkpoints are left; right
where the answer is known."""
import dataclasses
import shutil
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import one_hot

from nexuslab.config import resolve
from nexuslab.core import CheckpointError
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.systems.collatz.data import apex_digits
from nexuslab.systems.collatz.errors import LABELS, plant
from nexuslab.systems.collatz.inside import probe_checkpoints
from nexuslab.systems.collatz.views import (
    PUBLISHED,
    VIEWS,
    class_history,
    classes,
    climb,
    draw_taxonomy,
    evaluations,
    failures,
    ladder,
    law,
    look,
    patching_effects,
    reached,
    residue_name,
    residues,
    rungs,
    study,
)
from nexuslab.task import get_task
from nexuslab.views import render_views

TABLES = {"law", "classes", "taxonomy_table", "certainty", "climb", "apex_put", "patching_table"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """Two steps of every kind of model."""
    task, root, found = get_task("collatz"), tmp_path_factory.mktemp("views"), {}
    for kind in ("aligned", "encoder", "causal", "encoder_decoder", "looped", "step"):
        cfg = resolve(task, "smoke", {"steps": 2, "eval_every": 1, "model.kind": kind})
        found[kind] = Run.create(cfg, root)
        fit(task, cfg, found[kind])
    return found


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def drawn(run: Run, names: list[str] | None = None) -> dict:
    files = render_views(get_task("collatz"), run, names, write=lambda text: None)
    for name, path in files.items():
        assert path.suffix == (".csv" if name in TABLES else ".png")
        assert path.stat().st_size > (100 if name in TABLES else 5000), name
    return files


def test_every_view_is_declared():
    """All of them are drawn by the contract."""
    assert set(VIEWS) == set(get_task("collatz").views()) and len(VIEWS) >= 11


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_a_run_that_is_all_right_or_all_wrong_is_drawn(runs, right):
    scene = look(runs["aligned"])
    scene = dataclasses.replace(scene, right=np.full(len(scene.right), bool(right)))
    assert ladder(scene, evaluations(runs["aligned"])).axes[0].get_title()


@pytest.mark.parametrize("kind", ["encoder", "causal", "encoder_decoder", "looped", "step"])
def test_what_depends_on_the_kind_is_drawn_for_each(runs, kind):
    by_head = ["heads"] if kind in ("encoder_decoder", "looped", "step") else []  # the contract draws it for aligned
    names = ["attention", "patching", "taxonomy_table", *by_head]
    assert len(drawn(runs[kind], names)) == len(names)


def test_a_run_that_kept_only_best_and_last(runs, tmp_path):
    kept = Run(
        shutil.copytree(
            runs["aligned"].root, tmp_path / "home"
        ) / runs["aligned"].path.relative_to(runs["aligned"].root)
    )
    for folder in (kept.path / "checkpoints").glob("step_*"):
        if folder.name != "step_00000002":
            shutil.rmtree(folder)
    for name in ("best", "last"):
        (kept.path / "checkpoints" / f"{name}.json").write_text('{"step": 2}', encoding="utf-8")
    table = probe_checkpoints(kept, fit=90, score=90)
    assert set(table.index.get_level_values("step")) == {2}
    assert len(drawn(kept, ["ladder", "probes"])) == 2
    shutil.rmtree(kept.path / "checkpoints" / "step_00000002")
    with pytest.raises(CheckpointError):
        probe_checkpoints(kept)


def test_a_run_without_a_record_by_class_is_drawn(runs, tmp_path):
    """As one that was trained with the curves left out, or whose record was lost."""
    kept = Run(
        shutil.copytree(
            runs["aligned"].root, tmp_path / "home"
        ) / runs["aligned"].path.relative_to(runs["aligned"].root)
    )
    lines = (kept.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (kept.path / "metrics.jsonl").write_text(
        "\n".join(line for line in lines if "exact_match_class" not in line) + "\n", encoding="utf-8"
    )
    assert class_history(kept).empty
    files = render_views(
        get_task("collatz"), kept, ["learning_curves", "residues", "law", "classes"], write=lambda text: None
    )
    assert np.isnan(pd.read_csv(files["law"], index_col=0).loc["rank correlation of depth and learning time"].iloc[0])


def with_answers(run: Run, value: np.ndarray):
    """The scene of a run whose model had answered so."""
    scene = look(run)
    kappa = scene.batch.kappa.numpy()
    return dataclasses.replace(scene, value=value, valid=value >= 0, right=value == kappa)


def test_a_model_that_knows_the_shallow_classes(runs):
    """A made-up model right to depth 4: on the third step of the ladder, every class settled."""
    scene = look(runs["aligned"])
    kappa, depth = scene.batch.kappa.numpy(), (scene.batch.k + scene.batch.k_prime).numpy()
    scene = with_answers(runs["aligned"], np.where(depth <= 4, kappa, 2 * kappa))
    found = law(scene, runs["aligned"])[scene.name]
    assert found["exact match"] == (depth <= 4).mean() and abs(found["exact match"] - rungs()[4]) < 0.1
    rows = ("  classes judged", "  of them above 95 %", "  of them below 5 %")
    judged, known, unknown = found[list(rows)]
    assert judged == known + unknown >= 1 and found["settled classes (> 95 % or < 5 %)"] == 1
    assert found["  classes judged, two depths left out"] <= judged and found["  test numbers"] == len(depth)
    assert found["  classes watched"] > 10 and found["  classes learnt"] == 0  # after two steps
    table = failures(scene)
    assert table.loc["power of two", "share"] == 1 and table["failures"].sum() == (depth > 4).sum()
    rows = classes(scene, runs["aligned"])
    assert ((rows["exact_match"] == 1) == (rows["depth"] <= 4)).all() and rows["n"].sum() == len(depth)
    left, right = ladder(scene, evaluations(runs["aligned"])).axes
    heights = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in right.patches}
    assert heights[2] == heights[3] == heights[4] == 1 and heights[5] == 0
    assert len([line for line in left.lines if line.get_linestyle() == "--"]) == len(rungs())


def test_planted_failures_in_the_picture(runs):
    scene = look(runs["aligned"])
    n, kappa = scene.batch.n.numpy(), scene.batch.kappa.numpy()
    value, clear = plant("digit slip", n, scene.code.base)
    scene = with_answers(runs["aligned"], np.where(clear, value, kappa))
    assert failures(scene).loc["digit slip", "failures"] == clear.sum()
    left, right = draw_taxonomy(scene).axes
    bars = dict(zip([t.get_text() for t in left.get_yticklabels()], [b.get_width() for b in left.patches], strict=True))
    assert bars["digit slip"] == 1 and sum(bars.values()) == 1 and list(bars) == list(LABELS)


def test_an_apex_that_is_planted_half_way(runs):
    """A network that spells the apex with one digit wrong has slipped in the climb, whatever it answers."""
    scene = look(runs["aligned"])
    tokens = apex_digits(scene.batch, scene.code)
    for off, name in ((0, "right"), (1, "digit slip")):
        spelt = torch.cat([(tokens[:, :1] + off) % scene.code.base, tokens[:, 1:]], 1)
        told = SimpleNamespace(halfway=lambda rows, spelt=spelt: (None, one_hot(spelt, scene.code.vocabulary)))
        table = climb(dataclasses.replace(scene, model=told)).xs("its own", level="apex")
        assert (table.loc[table["answers"] > 0, name] == 1).all() and table["answers"].sum() == len(tokens)


def test_a_model_that_is_always_right(runs):
    scene = with_answers(runs["aligned"], look(runs["aligned"]).batch.kappa.numpy())
    assert failures(scene)["failures"].sum() == 0
    draw_taxonomy(scene)
    found = law(scene, runs["aligned"])[scene.name]
    assert found["exact match"] == 1 and found["plateau below it, depth"] == 12


def test_ladder_of_the_publication():
    assert np.allclose(
        100 * rungs(), [25, 50, 68.75, 81.25, 89.06, 93.75, 96.48, 98.05, 98.93, 99.41, 99.68], atol=0.005
    )
    assert [len(g) for g in PUBLISHED.values()] == [7, 8, 3, 11, 8, 1, 1]


@pytest.mark.parametrize("k, k_prime", [(1, 1), (1, 2), (2, 1), (3, 4), (6, 2), (5, 5)])
def test_a_residue_has_its_loop(k, k_prime):
    n, modulus = (int(x) for x in residue_name(k, k_prime).split("≡ ")[1].split(" mod "))
    for u in (n, n + modulus, n + 7 * modulus):
        climbs = halvings = 0
        while u % 2:
            u, climbs = (3 * u + 1) // 2, climbs + 1
        while u % 2 == 0:
            u, halvings = u // 2, halvings + 1
        assert (climbs, halvings) == (k, k_prime)


def test_the_map_shows_the_record(runs):
    table = class_history(runs["aligned"])
    assert list(table.index) == [1, 2] and [sum(c) for c in table] == sorted(sum(c) for c in table)
    last = runs["aligned"].history().set_index("step").loc[2]
    assert all(table.loc[2, c] == last[f"val/exact_match_class_{c[0]}_{c[1]}"] for c in table)
    mesh = residues(table).axes[0].collections[0]
    assert np.allclose(mesh.get_array().reshape(-1, 2), table[table.columns[:28]].T.to_numpy())


def test_a_patch_of_the_last_block_answers_for_its_digit(runs):
    """In an encoder nothing mixes positions after the last block: what its positions restore adds up to all."""
    effects = patching_effects(look(runs["aligned"]), 0)
    assert list(effects) == ["stream", "attention", "MLP"]
    assert np.isclose(effects["stream"].iloc[-1].sum(), 1, atol=0.05)


def test_runs_of_a_study(runs, tmp_path):
    home = shutil.copytree(runs["aligned"].root, tmp_path / "home")
    run = Run(home / runs["aligned"].path.relative_to(runs["aligned"].root))
    for base, steps, seed in ((16, 2, 0), (3, 2, 0), (10, 1, 0), (12, 2, 1)):
        cfg = resolve(
            get_task("collatz"), "smoke",
            {"steps": 2, "eval_every": 1, "model.kind": "aligned", "data.base": base, "seed": seed},
        )
        other = Run(shutil.copytree(run.path, run.path.with_name(f"base-{base}")))
        other.write_text("config.yaml", cfg.yaml())
        other.set_status(step=steps)
    assert list(study(run)) == [3, 16, 24] and study(run)[24].path == run.path
    assert 0 <= reached(run) <= 1
    bars = [b.get_height() for b in VIEWS["bases"](run).axes[0].patches]
    assert len(bars) == 3
