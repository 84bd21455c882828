"""What a step draws: a function of (seed, name, step, item) in training, of (seed, name, item) in evaluation."""
import dataclasses
from collections import defaultdict

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import Scripted, train
from torch.utils.checkpoint import checkpoint

from nexuslab.core import ModelError
from nexuslab.draws import halves
from nexuslab.task import At

ITEMS = np.arange(20_000)


def evaluation(ids=ITEMS, **more):
    return At(seed=3, ids=np.asarray(ids), **more)


def training(step, ids=ITEMS):
    return At(seed=3, ids=np.asarray(ids), training=True, step=step)


def correlation(a, b):
    return np.corrcoef(a.flatten(), b.flatten())[0, 1]


def test_names_steps_seeds_items_and_columns_are_independent_and_normal():
    wide = (len(ITEMS), 4)
    places = evaluation(), training(0), training(1), At(seed=4, ids=ITEMS), evaluation(ITEMS + 20_000)
    draws = [at.normal(wide, "a") for at in places] + [evaluation().normal(wide, "b")]
    draws += [draws[0].roll(1, 0), draws[0].roll(1, 1)]
    for i, one in enumerate(draws):
        assert stats.kstest(one.flatten(), "norm").pvalue > 1e-3
        assert abs(one.mean()) < 0.015 and abs(one.std() - 1) < 0.01 and abs((one**4).mean() - 3) < 0.1
        for other in draws[:i]:  # 80,000 pairs: a deviation is 0.0035
            assert abs(correlation(one, other)) < 0.0177
            assert abs(correlation(one**2, other**2)) < 0.0177


def test_uniform_numbers_are_uniform_and_never_0_or_1():
    draws = [at.uniform((len(ITEMS),), "time") for at in (evaluation(), training(0), training(1))]
    for one in draws:
        assert stats.kstest(one, "uniform").pvalue > 1e-3 and 0 < one.min() and one.max() < 1
    assert abs(correlation(draws[1], draws[2])) < 0.03
    extremes = torch.cat(halves(torch.tensor([0, -1, 2**41 - 1, -(2**41)])))
    assert extremes.min() == 2.0**-24 and extremes.max() == 1 - 2.0**-24


def test_an_evaluation_draws_the_same_for_an_item_in_any_batch_and_at_any_step():
    whole = evaluation().normal((len(ITEMS), 3), "noise")
    for ids in (ITEMS[::-1].copy(), ITEMS[5:9], ITEMS[7:8]):
        at = evaluation(ids, step=50, epoch=2)
        assert torch.equal(at.normal(torch.empty(len(ids), 3), "noise"), whole[torch.as_tensor(ids)])
    padded = evaluation(ITEMS[:6]).normal(torch.empty(6, 8), "noise")  # of a batch with a longer item
    assert torch.equal(padded[:, :3], whole[:6])
    shaped = evaluation(ITEMS[:6]).normal(torch.empty(6, 3, 1, dtype=torch.float64), "noise")
    assert shaped.dtype == torch.float64 and torch.equal(shaped[:, :, 0].float(), whole[:6])


def test_a_second_draw_of_a_name_is_refused_by_name():
    at = evaluation(range(4))
    at.normal((4, 2), "noise")
    for again in (lambda: at.normal((4, 2), "noise"), lambda: at.uniform((4,), "noise"), lambda: at.generator("noise")):
        with pytest.raises(ModelError, match="'noise'"):
            again()
    dataclasses.replace(at).normal((4, 2), "noise")  # as the loop does for each micro-batch


def test_what_is_computed_again_in_the_backward_pass_draws_the_same_again():
    weight, at = torch.ones(4, 2, requires_grad=True), evaluation(range(4))
    loss = checkpoint(lambda w: (w * at.normal(w, "noise")).square().sum(), weight, use_reentrant=False)
    loss.backward()
    assert torch.allclose(weight.grad, 2 * evaluation(range(4)).normal(weight.detach(), "noise").square())


def test_a_generator_belongs_to_name_batch_and_step():
    def first(at, name):
        return torch.rand(1, generator=at.generator(name)).item()

    places = [training(0, range(4)), training(0, range(4, 8)), training(1, range(4))]
    places += [evaluation(range(4)), evaluation(range(4, 8))]
    found = {first(at, name) for at in places for name in ("a", "b")}
    assert len(found) == 10
    assert first(evaluation(range(4), step=3), "a") == first(evaluation(range(4), step=9), "a")


def test_ragged_rows_belong_to_their_example():
    of = torch.tensor([0, 0, 0, 1, 3, 3])  # the third example has no rows
    rows = evaluation([5, 6, 7, 8]).normal(torch.empty(6, 2), "nodes", of)
    assert len(rows.flatten().unique()) == 12
    alone = evaluation([8, 5]).normal(torch.empty(5, 2), "nodes", torch.tensor([0, 0, 1, 1, 1]))
    assert torch.equal(alone, rows[[4, 5, 0, 1, 2]])
    for like, wrong in (((6, 2), None), ((5, 2), of), ((6, 2), of.flip(0))):
        with pytest.raises(ModelError, match="rows for 4 examples"):
            evaluation([5, 6, 7, 8]).normal(like, "nodes", wrong)


class Noisy(Scripted):
    """A regression on noisy inputs that remembers what each example was given, step by step."""

    def step(self, model, batch, cfg, at):
        x, y = batch
        noise = at.normal(x, "noise") * at.uniform(x[:, :1], "level")
        for i, row in zip(at.ids.tolist(), noise.tolist()):
            self.given[at.step if at.training else "evaluation"].setdefault(i, []).append(row)
        return super().step(model, (x + 0.1 * noise, y), cfg, at)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The noise of a training in steps of 8, as one batch and as two micro-batches."""
    found = {}
    for name, changes in {"whole": {"batch_size": 8}, "halves": {"batch_size": 4, "optim.accumulate": 2}}.items():
        task = Noisy(**changes)
        task.given = defaultdict(dict)
        train(task, tmp_path_factory.mktemp(name), **{"checkpoint.eval_every": 4})
        found[name] = task.given
    return found


def test_training_noise_is_the_same_however_a_step_is_cut_and_never_repeats(given):
    assert given["whole"] == given["halves"]
    rows = [tuple(row) for step, items in given["whole"].items() if step != "evaluation" for [row] in items.values()]
    assert len(rows) == len(set(rows)) == 12 * 8


def test_every_evaluation_of_a_training_draws_the_same(given):
    for rows in given["whole"]["evaluation"].values():
        assert len(rows) == 3 and rows[0] == rows[1] == rows[2]
    assert len(given["whole"]["evaluation"]) == 8


def test_draws_of_what_holds_no_floats_are_refused():
    """Whole numbers would be truncated without a word; a number without rows has no example."""
    for like in (torch.zeros(6, 2, dtype=torch.long), torch.tensor(1.0)):
        with pytest.raises(ModelError, match="a draw"):
            At(ids=np.arange(6)).normal(like, "noise")
