"""What a system may give as samples: numbers, ragged rows, texts; as a file, a picture, a figure of an evaluation."""
import numpy as np
import pytest
import torch
from torch import nn
from tiny import points

from nexuslab.config import Config, overlay
from nexuslab.core import ModelError
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.own import OwnTask
from nexuslab.run import Run
from nexuslab.sample import make_samples, read_samples, sample, samples_table
from nexuslab.store import write_store
from nexuslab.task import CanSample
from nexuslab.views import embedded, summary_cells

LETTERS = "ab\n$éß"


class Writer(OwnTask, CanSample):
    """Writes texts of unequal length, and judges them."""

    chunk, bad = None, None

    def sample(self, model, n, cfg, meta, at):
        drawn, length = at.uniform((n, 9), "letters"), 9 * at.uniform((n, 1), "length")[:, 0]
        texts = ["".join(LETTERS[int(6 * k)] for k in row[: int(size)]) for row, size in zip(drawn, length)]
        return self.bad(n) if self.bad else {"text": texts, "score": [float(k) for k in length], "first": drawn[:, :1]}

    def examine(self, model, splits, split, cfg, at):
        return {"mean_score": make_samples(self, model, 20, cfg, splits.meta, at, self.chunk)["score"].mean()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A task and its run."""
    squared = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    base = overlay(Config(system="writer"), {"epochs": 1, "batch_size": 8})
    task = Writer("writer", lambda: nn.Linear(3, 1), squared, points(16, 1), points(8, 2), base)
    return task, fit(task, base, Run.create(base, tmp_path_factory.mktemp("writer"))).run


def test_texts_and_scalars_are_stored_shown_and_reported(written):
    task, run = written
    path = sample(task, run, 20, seed=3)
    made = read_samples(path)
    assert all(type(text) is str and set(text) <= set(LETTERS) for text in made["text"]) and len(made["text"]) == 20
    assert made["score"].shape == (20,) and [int(k) for k in made["score"]] == [len(text) for text in made["text"]]
    assert read_samples(sample(task, run, 20, seed=3, chunk=7, output=run.path / "parts.h5"))["text"] == made["text"]
    drawn = task.contact_sheet(made, run.config, {}).texts[0].get_text()
    assert all(line in drawn for text in made["text"][:12] for line in text.splitlines())
    assert {"text", "float32"} <= set(samples_table(made)["type"])
    assert any(embedded(path.with_suffix(".png")) in cell.source for cell in summary_cells(run))


def test_what_is_examined_does_not_depend_on_chunks(written):
    """The same draws by name in every chunk, and those of `nexuslab sample` with the run's seed."""
    task, run = written
    figures = []
    for task.chunk in (None, 3, 20):
        figures.append(evaluate(task, run, "val", untrained=False)["mean_score"])
    assert figures == [figures[0]] * 3
    assert figures[0] == pytest.approx(read_samples(sample(task, run, 20))["score"].mean(), rel=1e-6)


WRONG = {
    "a text in place of rows": lambda n: {"text": "x" * n}, "one number": lambda n: {"x": 3.0},
    "texts and numbers": lambda n: {"x": ["a"] * (n - 1) + [1]}, "nothing at all": lambda n: None,
    "objects": lambda n: {"x": [object()] * n}, "nested": lambda n: {"x": [[[1], [1, 2]]] * n},
    "widths": lambda n: {"x": [torch.zeros(1, 1 + k) for k in range(n)]}, "a path": lambda n: {"a/b": [1] * n},
    "too few": lambda n: {"x": ["a"] * (n - 1)}, "a padding for each chunk": lambda n: {"x": torch.zeros(n, n)},
    "another name for each chunk": lambda n: {f"x{n}": torch.zeros(n)},
    "dates": lambda n: {"x": [np.datetime64(0, "s")] * n},
}


@pytest.mark.parametrize("kind", WRONG)
def test_samples_that_are_none_are_refused_by_name(written, monkeypatch, kind):
    task, run = written
    monkeypatch.setattr(Writer, "bad", staticmethod(WRONG[kind]))
    before = sorted((run.path / "samples").iterdir())
    with pytest.raises(ModelError, match="samples"):
        sample(task, run, 5, chunk=3)
    assert sorted((run.path / "samples").iterdir()) == before


def test_samples_of_an_older_version_are_read(tmp_path):
    rows = {"track": np.zeros((3, 2)), "track_offset": np.array([0, 1, 3]), "energy": np.ones(2)}
    write_store(tmp_path / "old.h5", {"ragged": ["track"]}, rows)
    made = read_samples(tmp_path / "old.h5")
    assert [len(track) for track in made["track"]] == [1, 2] and made["energy"].tolist() == [1, 1]
