"""The Collatz task: configuration, fixed and endless sets, every kind trained a little, evaluation, answers, the faults
that must not come back."""

import numpy as np
import pandas as pd
import pytest
import torch

from nexuslab.config import resolve
from nexuslab.core import ConfigError, DataError
from nexuslab.data import Plan
from nexuslab.store import Store
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.reproduce import reproduce
from nexuslab.run import Run
from nexuslab.sample import predict
from nexuslab.systems.collatz.data import CollatzDataset, code_for, long_step, make_batch
from nexuslab.systems.collatz.metrics import (
    all_or_nothing,
    compute_accuracy,
    compute_collatz_metrics,
    compute_exact_match,
    depth_order,
    digit_places,
    judged_classes,
    learning_times,
    padding_of,
    rival,
)
from nexuslab.systems.collatz.model import KINDS
from nexuslab.systems.collatz.rivals import looked_up, nearest_known
from nexuslab.systems.collatz.task import TASK, digit_loss, examples_drawn, numbers_seen, told_whole
from nexuslab.systems.collatz.trajectory import exact_long_step, visited
from nexuslab.task import At

SMALL = {
    "model.d_model": 32, "model.nhead": 2, "model.num_layers": 1, "threads": 1, "data.val_size": 40,
    "data.test_size": 64, "batch_size": 8, "loader.eval_batch_size": 64,
}


def train(home, preset, **changes):
    cfg = resolve(TASK, preset, changes)
    TASK.prepare(cfg, home)
    return fit(TASK, cfg, Run.create(cfg, home)).run


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"data.base": 1}, "data.base"), ({"data.base": 58}, "data.base"), ({"data.start_range": (1, 2**40)}, "range"),
        ({"data.start_range": (1, 10**13)}, "exact"),
        ({"data.max_length": 4}, "width"), ({"data.max_length": 4, "data.ending": "end"}, "width"),
        ({"data.ending": "end"}, "apex"), ({"model.nhead": 3}, "heads"), ({"model.kind": "lstm"}, "model.kind"),
        ({"model.kind": "looped", "data.order": "most"}, "digit code"),
        ({"model.kind": "step", "data.ending": "end", "loss.apex": 0.0}, "digit code"),
        ({"model.kind": "looped", "loss.lengths": 0.1}, "lengths"),
        ({"model.kind": "looped", "model.carry": 33}, "carry"), ({"model.loops": ()}, "loops"),
        ({"model.kind": "looped", "model.loops": (1,)}, "model.loops"),
        ({"model.kind": "looped", "model.cell": "gru", "model.dropout": 0.1}, "dropout"),
        ({"model.kind": "looped", "model.cell": "gru", "model.hidden": 64}, "hidden"),
        ({"model.kind": "step", "model.dropout": 0.1}, "dropout"),
        ({"model.kind": "step", "model.hidden": 8}, "hidden"),
        ({"model.kind": "step", "loss.supervised": 0.5}, "supervised"), ({"loss.supervised": 0.0}, "supervised"),
        ({"model.carry": 8}, "carry"), ({"model.cell": "gru"}, "cell"), ({"model.loops": (4,)}, "loops"),
        ({"data.basis": 24}, "unknown"), ({"model.d_model": 0}, "d_model"),
    ],
)
def test_impossible_configurations(given, what):
    with pytest.raises(ConfigError, match=what) as caught:
        resolve(TASK, "smoke", given)
    assert caught.value.found or caught.value.remedy


def test_every_kind_trains_evaluates_and_answers(home):
    for kind in (*KINDS, "looped", "step"):
        run = train(home, "smoke", **{"model.kind": kind, "steps": 12, "eval_every": 6})
        figures = evaluate(TASK, Run.open(run.path))
        assert run.status["state"] == "finished" and 0 <= figures["exact_match"] <= 1
        assert {"k_error", "k_prime_error", "exact_match_depth_2", "exact_match_class_1_1"} <= set(figures)
        rows = predict(TASK, run, [27, 127])
        assert rows.truth.tolist() == [31, 1093] and rows.k.tolist() == [2, 7] and rows.k_prime.tolist() == [1, 1]
        assert (rows.right == (rows.predicted == rows.truth)).all()


def test_what_a_looped_model_is_told():
    """With no trajectory told the loss is that of the last pass alone; with half of them it lies between, number by
    number the same ones; passes grow over the steps."""
    options = {"model.kind": "looped", "model.loops": (2, 5)}
    cfg = resolve(TASK, "smoke", options)
    torch.manual_seed(0)
    model = TASK.model(cfg, {"lengths": cfg.code().lengths})
    batch = make_batch(cfg.code(), torch.arange(1001, 1401, 2), torch.arange(200))
    at = At(values={"loops": 5})

    def loss(share):
        return TASK.step(model, batch, resolve(TASK, "smoke", options | {"loss.supervised": share}), at).loss

    end = digit_loss(model.passes(batch.inputs, 5)[-1], batch.targets)
    assert torch.allclose(loss(0.0), end) and not torch.allclose(loss(1.0), end)
    told = told_whole(batch.n, 0.5, cfg.seed)
    assert 60 < told.sum() < 140 and torch.equal(told[:50], told_whole(batch.n[:50], 0.5, cfg.seed))
    assert min(loss(0.0), loss(1.0)) < loss(0.5) < max(loss(0.0), loss(1.0))


def test_a_looped_model_is_told_the_way_and_then_its_end():
    """A model that spells the trajectory, and its end from there on, has no loss; one that is a step ahead has."""
    cfg = resolve(TASK, "smoke", {"model.kind": "looped"})
    code = cfg.code()
    batch = make_batch(code, torch.tensor([27, 703, 2047]), torch.arange(3))

    class Way(torch.nn.Module):
        def passes(self, inputs, loops):
            n = (inputs * code.base ** torch.arange(inputs.shape[1])).sum(1)
            spelt = [code.encode_output(visited(n, torch.full_like(n, t + 1))) for t in range(loops)]
            return torch.nn.functional.one_hot(torch.stack(spelt), code.vocabulary).float() * 100

    class Ahead(Way):
        def passes(self, inputs, loops):
            return super().passes(inputs, loops + 1)[1:]

    losses = [TASK.step(way(), batch, cfg, At(training=True, values={"loops": 30})).loss for way in (Way, Ahead)]
    assert losses[0] < 1e-6 and losses[1] > 1


def test_the_step_network_is_asked_for_numbers_of_any_size(home):
    run = train(home, "smoke", **{"model.kind": "step", "steps": 2})
    rows = predict(TASK, run, [27, 2**70 - 1])
    assert rows.k.tolist() == [2, 70] and rows.truth.tolist()[1] == exact_long_step(2**70 - 1)[0]
    assert {"implied_k", "implied_k_prime"} <= set(rows)
    for wrong in ([28], [-1], [2.5], []):
        with pytest.raises(DataError, match="numbers|long step"):
            predict(TASK, run, wrong)


def test_a_stream_trained_by_epochs_is_judged_beside_its_tables(home):
    """A budget of epochs says as well as one of steps which numbers the training draws."""
    epochs = {"epochs": 2, "budget.steps": None, "data.epoch_size": 64, "checkpoint.eval_every": 1}
    run = train(home, "smoke", **epochs | {"model.kind": "looped"})
    evaluate(TASK, run)
    assert Run.open(run.path).evaluation["test"]["baselines"]["line by the longest ending"]["numbers_drawn"] == 128


def test_record_holds_the_learning_curve_of_classes(home):
    run = train(home, "smoke", steps=12, eval_every=4)
    history = run.history()
    times = learning_times(history)
    assert {"val/exact_match", "val/accuracy", "val/exact_match_depth_2", "train/digits"} <= set(history)
    assert len(times) > 10
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
    kept = [
        Store(TASK.prepare(resolve(TASK, "smoke", {"data.sampling": s}), home)).arrays()
        for s in ("natural", "balanced", "log_uniform")
    ]
    assert all((a["test"] == kept[0]["test"]).all() for a in kept)
    one, two = (
        TASK.data(resolve(TASK, "smoke", {"data.sampling": s}), home).fingerprint for s in ("natural", "balanced")
    )
    assert one != two  # the training numbers differ


def test_paper_preset_runs(home):
    """Encoder of 4 blocks, decoder of 1, d 512, 8 heads: 16.8 million parameters; a few steps with small batches."""
    run = train(
        home, "paper",
        **{
            "steps": 3, "batch_size": 4, "data.val_size": 8, "data.test_size": 16, "loader.eval_batch_size": 16,
            "track.log_every": 1, "device": "cpu",
        },
    )
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
    assert abs(told["k_prime_error"] - 2) < 0.05 and told["k_error"] < 0.05 and told["lengths_found"] > 0.95
    assert told["lengths_right"] == 0


def test_baselines_look_up(home):
    """Tables over the numbers of the training: what low digits fix is right, and the best of them is named."""
    changes = {"data.start_range": (1, 2**18), "data.test_size": 4000, "data.tilt": (1.0, 0.0)}
    cfg = resolve(TASK, "smoke", changes | {"steps": 300, "batch_size": 64})
    splits = TASK.data(cfg, home)
    told = TASK.baselines(splits, "test", cfg)
    exact = {name: figures["exact_match"] for name, figures in told.items()}
    assert abs(exact["always k = k' = 1"] - 0.25) < 0.03 and exact["nearest known number"] < 0.02
    assert 0.25 < exact["table of the last digit"] < 0.6 < 0.7 < exact["table of the last 2 digits"]
    assert rival(told) == max(exact, key=exact.get) == "line by the longest ending"
    drawn = [splits.train.batch(key.ids, key.setting, None).n for key in keys_of(cfg)]
    table = told["table of n mod 2048"]
    assert table["numbers_known"] == len(np.unique(np.concatenate(drawn))) < table["numbers_drawn"] == 300 * 64


def test_a_checkpoint_is_judged_beside_what_was_shown_until_then(home):
    """A table knows no number that a run which stopped early, or its best checkpoint, has not been shown."""
    run = train(home, "smoke", steps=20, eval_every=10, **{"checkpoint.save_every": 10})
    for checkpoint, step in (("step_10", 10), ("last", 20)):
        evaluate(TASK, run, checkpoint=checkpoint)
        told = run.evaluation["test"]["baselines"]["table of the last 2 digits"]
        assert told["numbers_drawn"] == told["numbers_listed"] == 16 * step and told["numbers_known"] <= 16 * step
    cfg = run.config.model_copy(update={"budget": run.config.budget.model_copy(update={"steps": 10**6})})
    splits = TASK.data(cfg, home)
    assert examples_drawn(splits, cfg) == 16 * 10**6 and len(numbers_seen(splits, cfg, 500)) == 500
    assert np.array_equal(numbers_seen(splits, cfg, until=3), numbers_seen(splits, cfg, 48))


def keys_of(cfg):
    """What the loader asks for, step by step."""
    updaters = TASK.updaters(cfg, None)
    setting = lambda step: {k: v for u in updaters for k, v in u.setting(step, cfg.budget.steps).items()}
    plan = Plan(None, cfg.loader, cfg.seed, setting=setting)
    return [key for step in range(cfg.budget.steps) for key in plan.micro(step)]


@pytest.mark.parametrize("stop", [2**20, 10**12])
def test_a_table_is_right_where_its_digits_fix_the_class(stop):
    """Beside a plain search for the nearest number of the residue, and the share of the classes that are fixed."""
    rng = np.random.default_rng(0)
    known, n = (2 * rng.integers(stop // 16, stop // 2, size) + 1 for size in (60_000, 2_000))
    for modulus in (1, 24, 24**2, 2**11):
        nearest = nearest_known(known, n[:50], modulus)
        for asked, found in zip(n[:50].tolist(), nearest.tolist()):
            same = known[known % modulus == asked % modulus]
            assert abs(found - asked) == np.abs(same - asked).min() and found in same
    right = looked_up(known, n, 2**9) == long_step(n).kappa
    fixed = long_step(n).depth <= 8  # a class of depth s is one residue modulo 2^(s + 1)
    assert right[fixed].mean() > 0.99 and right[~fixed].mean() < 0.7
    assert looked_up(np.array([3]), np.array([5]), 8).tolist() == [0]  # nothing known of the residue: no answer


def test_an_evaluation_says_how_much_a_table_knew(trained):
    baselines = trained.evaluation["test"]["baselines"]
    named = {f"table of the last {d} digits" for d in (2, 3, 4)} | {"table of n mod 2048", "untrained"}
    assert named <= set(baselines)
    assert {told["numbers_drawn"] for told in baselines.values() if "numbers_known" in told} == {3200}
    assert rival(baselines) in baselines and baselines["untrained"]["exact_match"] == 0
    assert "loss" not in trained.evaluation["test"]["untrained"]["reached"]


def test_figures_that_are_not_defined_come_out_again(home):
    """Where no answer implies loop lengths their error is not 0, and `reproduce` compares what is not defined, too."""
    run = train(home, "smoke", steps=2)
    found = evaluate(TASK, run)
    assert np.isnan(found["k_error_found"]) and run.evaluation["test"]["figures"]["k_error_found"] is None
    assert found["k_error"] > 0.5 and found["lengths_found"] == 0  # the error of all answers counts them all
    assert reproduce(run, write=lambda text: None) == []


# ---- padding


def test_padding_neither_helps_nor_harms():
    """The guide's tensors: 50 tokens of which a few are digits."""
    data = CollatzDataset(num_samples=400)
    behind = (data.targets == data.code.eos).cumsum(1) > (data.targets == data.code.eos).int()
    noise = torch.randint(0, 27, data.targets.shape, generator=torch.Generator().manual_seed(0))
    junk = torch.where(behind, noise, data.targets)
    nothing = torch.full_like(data.targets, data.code.pad)
    for pad in (None, data.code.pad):
        assert compute_exact_match(junk, data.targets, pad) == compute_accuracy(junk, data.targets, pad) == 1.0
        assert compute_exact_match(nothing, data.targets, pad) == compute_accuracy(nothing, data.targets, pad) == 0.0
    told = compute_collatz_metrics(junk, data.targets, data.n, 24)
    assert told["exact_match"] == told["accuracy"] == told["lengths_right"] == 1 and told["k_error"] == 0
    no_end = torch.where(data.targets == data.code.eos, data.code.pad, data.targets)
    assert compute_exact_match(no_end, data.targets) == 0 and 0.5 < compute_accuracy(no_end, data.targets) < 1


def test_one_situation_has_one_figure():
    """The same answers in five writings: figures of answers are the same in all, the accuracy of digits in all that
    write the same digits; and every answer has a part in the errors of the lengths."""
    n = np.arange(10_001, 14_001, 2)
    step, value = long_step(n), long_step(n).kappa.copy()
    value[::4] *= 2  # halved once too few
    value[1::4] = np.random.default_rng(0).integers(1, 2 * 10**4, 500)
    codes = [code_for(24, 2**20, order, ending) for order in ("least", "most") for ending in ("fixed", "end")]
    codes.append(code_for(24, 2**20, "most", "end", 20, 20))
    written = ([code.encode_output(x) for x in (value, step.kappa)] for code in codes)
    told = [compute_collatz_metrics(*tokens, n, 24, code) for tokens, code in zip(written, codes)]
    assert all({**row, "accuracy": 0} == {**told[0], "accuracy": 0} for row in told)
    assert len({row["accuracy"] for row in told[:3:2]}) == len({told[i]["accuracy"] for i in (3, 4)}) == 1
    assert 0.49 < told[0]["exact_match"] < 0.51 < told[0]["lengths_found"] < 0.77
    assert told[0]["k_prime_error"] > told[0]["k_prime_error_found"]
    assert told[0]["k_error"] > 10 * told[0]["k_error_found"]
    # no number: nothing was done
    words = torch.full((1, codes[0].width_out), 25), codes[0].encode_output(np.array([31]))
    assert compute_collatz_metrics(words[0], words[1], [27], 24, codes[0])["k_error"] == 2


@pytest.mark.parametrize("base", [2, 24, 57])
def test_digits_of_fixed_width_are_never_taken_for_padding(base):
    """The rule that finds padding in the targets finds none where every place is a digit."""
    code, n = code_for(base, 2**14), np.arange(101, 901, 2)
    targets = code.encode_output(long_step(n).kappa)
    assert padding_of(targets) is None and digit_places(targets).all()
    ended = code_for(base, 2**14, "least", "end")
    assert padding_of(ended.encode_output(long_step(n).kappa)) == ended.pad


def test_numbers_that_do_not_belong_to_the_targets_are_refused():
    data = CollatzDataset(num_samples=50)
    for unrelated in (data.n + 2, data.n[::-1].copy(), np.full(50, 27)):
        with pytest.raises(DataError, match="input values") as caught:
            compute_collatz_metrics(data.targets, data.targets, unrelated, 24)
        assert "row" in caught.value.found
    fixed = code_for(24, 10_000)
    with pytest.raises(DataError, match="input values"):  # the right numbers in another code
        compute_collatz_metrics(fixed.encode_output(data.step.kappa), fixed.encode_output(data.step.kappa), data.n, 24)


# ---- the law


def test_the_law_leaves_nothing_out():
    """Two depths half learnt, and a shallow class never learnt: both count, and the kinder figures stand beside."""
    n = np.arange(1, 2**15, 2)
    step = long_step(n)
    coin = np.random.default_rng(0).random(len(n)) < 0.5
    right = np.where((step.depth == 5) | (step.depth == 6), coin, step.depth < 5)
    judged = judged_classes(right, step.k, step.k_prime)
    share, count = all_or_nothing(right, step.k, step.k_prime)
    assert all_or_nothing(right, step.k, step.k_prime, left_out=2) == (1.0, count - 9)  # 4 classes of depth 5, 5 of 6
    assert count == len(judged) and np.isclose(share, 1 - 9 / count)
    names = [(k, s - k) for s in range(2, 7) for k in range(1, s)]
    learnt = lambda depth: [float(i >= depth - 2) for i in range(5)]
    curves = {f"val/exact_match_class_{k}_{q}": learnt(k + q) for k, q in names}
    history = pd.DataFrame({"step": range(1, 6)} | curves | {"val/exact_match_class_1_2": 0.5})
    times = learning_times(history, numbers=n)
    assert times.step.isna().sum() == 1 and times.set_index(["k", "k_prime"]).n[1, 2] == 2**14 // 8
    assert depth_order(times) < 0.8 < 0.999 < depth_order(times, never="left_out")
    with pytest.raises(ConfigError, match="never learnt"):
        depth_order(times, never="first")


def test_evaluation_is_told_no_truth():
    """An autoregressive model is judged by what it writes: its answers do not change with the targets."""
    cfg = resolve(TASK, "smoke", {"model.kind": "causal"})
    torch.manual_seed(0)
    model = TASK.model(cfg, TASK.meta(None, cfg)).eval()
    batch = make_batch(cfg.code(), np.arange(101, 301, 2), np.arange(100))
    written = model.generate(batch.inputs)
    out = TASK.step(model, batch, cfg, At())
    assert abs(float(out.out["exact_match"][0]) - compute_exact_match(written, batch.targets)) < 1e-6


def test_padding_inside_the_digits_and_tokens_of_another_kind_are_refused():
    """A wrong padding token would leave digits out of the count; lists and arrays are told what to be."""
    data = CollatzDataset(num_samples=40)
    digit = int(data.targets[0, 0])
    for wrong in (lambda: compute_exact_match(data.targets, data.targets, digit),
                  lambda: compute_accuracy(data.targets, data.targets, digit),
                  lambda: compute_exact_match(data.targets.numpy(), data.targets)):
        with pytest.raises(DataError):
            wrong()
    assert compute_exact_match(data.targets, data.targets, 24) == 1.0
