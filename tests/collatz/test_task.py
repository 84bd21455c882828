"""The Collatz task: configuration, fixed and endless sets, every kind trained a little, evaluation, answers, the faults that must not come back."""

import numpy as np
import pytest
import torch

from nexuslab.config import resolve
from nexuslab.core import ConfigError, DataError
from nexuslab.data import Store
from nexuslab.evaluate import evaluate, predict
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.systems.collatz.data import long_step, make_batch
from nexuslab.systems.collatz.metrics import compute_collatz_metrics, compute_exact_match, learning_times
from nexuslab.systems.collatz.model import KINDS
from nexuslab.systems.collatz.task import TASK, digit_loss
from nexuslab.task import At

SMALL = {"model.d_model": 32, "model.nhead": 2, "model.num_layers": 1, "threads": 1, "data.val_size": 40, "data.test_size": 64, "batch_size": 8, "loader.eval_batch_size": 64}


def train(home, preset, **changes):
    cfg = resolve(TASK, preset, changes)
    TASK.prepare(cfg, home)
    return fit(TASK, cfg, Run.create(cfg, home)).run


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"data.base": 1}, "data.base"), ({"data.base": 58}, "data.base"), ({"data.start_range": (1, 2**40)}, "range"), ({"data.start_range": (1, 10**13)}, "exact"),
        ({"data.max_length": 4}, "width"), ({"data.max_length": 4, "data.ending": "end"}, "width"), ({"data.ending": "end"}, "apex"), ({"model.nhead": 3}, "heads"), ({"model.kind": "lstm"}, "model.kind"),
        ({"data.basis": 24}, "unknown"), ({"model.d_model": 0}, "d_model"),
    ],
)
def test_impossible_configurations(given, what):
    with pytest.raises(ConfigError, match=what) as caught:
        resolve(TASK, "smoke", given)
    assert caught.value.found or caught.value.remedy


def test_every_kind_trains_evaluates_and_answers(home):
    for kind in KINDS:
        run = train(home, "smoke", **{"model.kind": kind, "steps": 12, "eval_every": 6})
        figures = evaluate(TASK, Run.open(run.path))
        assert run.status["state"] == "finished" and 0 <= figures["exact_match"] <= 1 and {"k_error", "k_prime_error", "exact_match_depth_2", "exact_match_class_1_1"} <= set(figures)
        rows = predict(TASK, run, [27, 127])
        assert rows.truth.tolist() == [31, 1093] and rows.k.tolist() == [2, 7] and rows.k_prime.tolist() == [1, 1]
        assert (rows.right == (rows.predicted == rows.truth)).all()


def test_record_holds_the_learning_curve_of_classes(home):
    run = train(home, "smoke", steps=12, eval_every=4)
    history = run.history()
    times = learning_times(history)
    assert {"val/exact_match", "val/accuracy", "val/exact_match_depth_2", "train/digits"} <= set(history) and len(times) > 10
    weighted = sum(history["val/exact_match_depth_2"].dropna())
    assert 0 <= weighted <= 3


def test_answers_refuse_what_cannot_be_asked(home):
    run = train(home, "smoke", steps=2)
    for wrong, what in (([28], "even"), ([2**20 + 1], "range"), ([-1], "below 1"), ([2.5], "numbers")):
        with pytest.raises(DataError, match=what):
            predict(TASK, run, wrong)
    assert predict(TASK, run, None).n.tolist() == [27, 127, 255, 511, 1023]


def test_fixed_set(home):
    with pytest.warns(UserWarning, match="repeat"):
        run = train(home, "guide", **SMALL | {"epochs": 1, "data.num_samples": 6000, "data.max_length": 6})
    arrays = Store(next((home / "data" / "collatz").glob("*.h5"))).arrays()
    assert len(arrays["train"]) == 6000 and not set(arrays["train"]) & (set(arrays["val"]) | set(arrays["test"]))
    assert run.history()["train/loss"].dropna().iloc[-1] < run.history()["train/loss"].dropna().iloc[0]


def test_sampling_does_not_change_what_is_held_out(home):
    kept = [Store(TASK.prepare(resolve(TASK, "smoke", {"data.sampling": s}), home)).arrays() for s in ("natural", "balanced", "log_uniform")]
    assert all((a["test"] == kept[0]["test"]).all() for a in kept)
    one, two = (TASK.data(resolve(TASK, "smoke", {"data.sampling": s}), home).fingerprint for s in ("natural", "balanced"))
    assert one != two  # the training numbers differ


def test_paper_preset_runs(home):
    """Encoder of 4 blocks, decoder of 1, d 512, 8 heads: 16.8 million parameters; a few steps with small batches."""
    run = train(home, "paper", **{"steps": 3, "batch_size": 4, "data.val_size": 8, "data.test_size": 16, "loader.eval_batch_size": 16, "track.log_every": 1, "device": "cpu"})
    model, cfg, _ = run.load("last")
    assert abs(sum(p.numel() for p in model.parameters()) / 16.8e6 - 1) < 0.02 and cfg.code().lengths == (9, 14)
    assert len(model.blocks) == 4 and len(model.writers) == 1 and run.history()["train/loss"].notna().sum() == 3


# ---- faults of the code this system grew from


def test_a_perfect_answer_is_an_exact_match_with_zeros_in_it():
    cfg = resolve(TASK, "smoke")
    n = np.arange(1, 2001, 2)
    batch = make_batch(cfg.code(), n, n)
    assert (batch.targets == 0).any() and compute_exact_match(batch.targets, batch.targets) == 1.0
    told = compute_collatz_metrics(batch.targets, batch.targets, n, 24, cfg.code())
    assert told["k_error"] == told["k_prime_error"] == 0 and told["lengths_right"] == 1


def test_zeros_are_not_left_out_of_the_loss():
    cfg = resolve(TASK, "smoke")
    batch = make_batch(cfg.code(), np.array([1]), np.array([0]))  # kappa(1) = 1: all leading digits are 0
    right = torch.nn.functional.one_hot(batch.targets, cfg.code().vocabulary).float() * 20
    wrong = right.clone()
    wrong[0, -1] = 0
    assert digit_loss(wrong, batch.targets) > 10 * digit_loss(right, batch.targets)


def test_accuracy_is_not_success():
    """One wrong digit in every answer: high accuracy, no exact match."""
    cfg = resolve(TASK, "smoke")
    n = np.arange(1, 2001, 2)
    batch = make_batch(cfg.code(), n, n)
    off = batch.targets.clone()
    off[:, 0] = (off[:, 0] + 1) % 24
    told = compute_collatz_metrics(off, batch.targets, n, 24, cfg.code())
    assert told["accuracy"] > 0.7 and told["exact_match"] == 0


def test_lengths_are_computed_from_the_answers():
    cfg = resolve(TASK, "base")
    n = np.arange(10_001, 30_001, 2)
    n = n[long_step(n).k_prime > 2]
    step = long_step(n)
    batch = make_batch(cfg.code(), n, n)
    too_far = cfg.code().encode_output(step.kappa * 4)  # halved twice too few
    told = compute_collatz_metrics(too_far, batch.targets, n, 24, cfg.code())
    assert abs(told["k_prime_error"] - 2) < 0.05 and told["k_error"] < 0.05 and told["lengths_found"] > 0.95 and told["lengths_right"] == 0


def test_baselines_know_one_class(home):
    cfg = resolve(TASK, "smoke", {"data.start_range": (1, 2**18), "data.test_size": 4000})
    told = TASK.baselines(TASK.data(cfg, home), "test", cfg)
    assert abs(told["always k = k' = 1"]["exact_match"] - 0.25) < 0.03
    assert all(f["exact_match"] < 0.3 for f in told.values()) and len(told) == 3


def test_evaluation_is_told_no_truth():
    """An autoregressive model is judged by what it writes: its answers do not change with the targets."""
    cfg = resolve(TASK, "smoke", {"model.kind": "causal"})
    torch.manual_seed(0)
    model = TASK.model(cfg, TASK.meta(None, cfg)).eval()
    batch = make_batch(cfg.code(), np.arange(101, 301, 2), np.arange(100))
    written = model.generate(batch.inputs)
    out = TASK.step(model, batch, cfg, At())
    assert abs(float(out.out["exact_match"][0]) - compute_exact_match(written, batch.targets)) < 1e-6
