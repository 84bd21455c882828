"""A state that is carried from example to example: whoever cuts, loads or resumes a training, each example gets the
state that the one before it left."""
import numpy as np
import pytest
from stateful import LENGTH, Summing
from tiny import Halt, events, same_weights, train

from nexuslab.core import ModelError, TrainingError
from nexuslab.setup import StepModule
from nexuslab.task import At, StepOut

SIZE = 22  # windows: two epochs are six steps of four rows each, the last one of two


def summing(**changes):
    return Summing(train=SIZE, **{"batch_size": 4, "steps": 13, **changes})


def expected(step, i):
    """The sum of the windows before i in its document, as far as its row of the batch has read them in this epoch."""
    return float(sum(range(max(i - i % LENGTH, i - step % 6), i)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    task = summing()
    return task, train(task, tmp_path_factory.mktemp("whole"))


def test_each_example_gets_what_its_predecessor_left(whole):
    task, _ = whole
    assert len(task.given["train"]) == 2 * SIZE + 4
    for (step, i), state in task.given["train"].items():
        assert state == expected(step, i), (step, i)
    assert {i: state for (_, i), state in task.given["val"].items()} == {
        i: float(sum(range(i - i % LENGTH, i))) for i in range(8)
    }


@pytest.mark.parametrize("changes", [{"batch_size": 2, "optim.accumulate": 2}, {"loader.num_workers": 2},
                                     {"loader.eval_batch_size": 1}])
def test_it_does_not_matter_how_batches_are_cut_and_loaded(whole, changes, tmp_path):
    task = summing(**changes)
    done = train(task, tmp_path)
    assert task.given["train"] == whole[0].given["train"]
    assert {i: s for (_, i), s in task.given["val"].items()} == {i: s for (_, i), s in whole[0].given["val"].items()}
    assert np.isclose(done.metrics["val/loss"], whole[1].metrics["val/loss"], rtol=1e-5)
    if "optim.accumulate" not in changes:
        assert same_weights(done.model, whole[1].model)


@pytest.mark.parametrize("step", [3, 6, 8])
def test_a_resumed_training_goes_on_with_the_state(whole, step, tmp_path):
    task = summing()
    run = train(task, tmp_path, [Halt(step)]).run
    task.given.clear()
    again = train(task, tmp_path, run=run, resume="last", num_workers=2 * (step == 8))
    assert task.given["train"] == {key: s for key, s in whole[0].given["train"].items() if key[0] >= step}
    assert same_weights(again.model, whole[1].model)


def test_a_window_without_items_hands_its_state_on(whole, tmp_path):
    """Windows whose targets are all masked are read all the same: in some rows, and in steps of nothing else."""
    task = summing(keep=lambda i: i % 3 == 1, **{"guard.max_skips": 9})
    done = train(task, tmp_path)
    assert task.given["train"] == whole[0].given["train"] and done.step == 13 and events(done.run, "empty")


def test_a_state_that_is_not_finite_is_forgotten(tmp_path):
    """Example 1 gives neither a loss nor a state: the step is left out, and the next window of its row begins anew."""
    task = summing(steps=6, **{"guard.nonfinite": "skip"})
    task.sources[0].tensors[0][1] = task.sources[0].tensors[2][1] = float("nan")
    done = train(task, tmp_path)
    states = {i: state for (_, i), state in task.given["train"].items() if i in (2, 3, 7, 8)}
    assert done.step == 6 and states == {2: 0, 3: 2, 7: 6, 8: 13}
    with pytest.raises(TrainingError, match="non-finite"):
        train(task, tmp_path, **{"guard.nonfinite": "stop"})


def test_a_step_that_hands_nothing_on_is_refused(tmp_path):
    class Mute(Summing):
        def step(self, model, batch, cfg, at):
            return StepOut(super().step(model, batch, cfg, at).loss, self.count_items(batch))

    with pytest.raises(ModelError, match="hands on"):
        train(Mute(steps=2), tmp_path)


def test_a_batch_by_itself_begins_anew():
    task = summing()
    batch = task.sources[0].batch(np.arange(3), {}, None)
    out = StepModule(task, task.make(), task.config)(batch, At(ids=np.arange(3)))
    assert out.state["sum"][0].flatten().tolist() == [0, 1, 2]
