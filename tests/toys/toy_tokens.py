"""A toy system of one kind: an endless stream of token sequences of unequal length."""
import zlib

import matplotlib.pyplot as plt
import numpy as np
import torch
from pydantic import Field
from torch import nn
from torchmetrics import MeanMetric

from nexuslab.config import Budget, Checkpoint, Config, Loader, Optim, Section, Track
from nexuslab.core import digest, mix
from nexuslab.data import Source, Splits
from nexuslab.store import ensure_store, store_path
from nexuslab.metrics import Part
from nexuslab.task import EMA, CanPredict, Curriculum, StepOut, Task

MODULUS = 11  # tokens 0 .. 10: t[i + 1] = t[i] + stride (mod 11)
SIDES = ["train"] * 6 + ["val", "test"]  # of a content hash
PAD = MODULUS  # a token of its own, never a target


class TokenData(Section):
    length: int = Field(16, ge=4, description="longest sequence [tokens]")
    strides: int = Field(3, ge=1, le=10, description="strides 1 .. this")
    held_out: int = Field(40, ge=1, description="sequences of the validation and of the test split")


class TokenModel(Section):
    hidden: int = Field(24, ge=1, description="width of the recurrent layer")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout before the output")


class TokenConfig(Config):
    system: str = Field("toy_tokens", description="name of the system")
    data: TokenData = Field(default_factory=TokenData, description="the stream")
    model: TokenModel = Field(default_factory=TokenModel, description="the model")


class Stream(Source):
    """Sequences that are a function of their id; endless when size is None."""

    epoch_size = 40  # ten steps of the smoke preset

    def __init__(self, data: TokenData, seed: int, name: str, size: int | None):
        self.data, self.seed, self.name, self.size = data, seed, name, size

    def sequence(self, i: int, longest: int) -> np.ndarray:
        """The first draw of the id whose content belongs to this split: splits cannot share a sequence."""
        for attempt in range(1000):
            found = self.draw(np.random.default_rng(mix(self.seed, self.name, int(i), attempt)), longest)
            if SIDES[zlib.crc32(found.tobytes()) % len(SIDES)] == self.name:
                return found
        raise RuntimeError(f"no sequence of split {self.name} for id {i}")

    def draw(self, rng, longest: int) -> np.ndarray:
        start, stride, length = rng.integers(MODULUS), rng.integers(1, self.data.strides + 1), rng.integers(
            longest // 2, longest + 1
        )
        noise = np.where(rng.random(longest) < 0.05, rng.integers(0, MODULUS, longest), -1)
        clean = (start + stride * np.arange(longest)) % MODULUS
        return np.where(noise >= 0, noise, clean)[:length]

    def batch(self, ids, setting, generator):
        longest = setting.get("length", self.data.length)
        found = [self.sequence(i, longest) for i in ids]
        out = torch.full((len(found), max(map(len, found))), PAD)
        for row, sequence in zip(out, found):
            row[: len(sequence)] = torch.from_numpy(sequence)
        return {"tokens": out}


class Recurrent(nn.Module):
    def __init__(self, hidden: int, dropout: float):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(MODULUS + 1, hidden), nn.GRU(hidden, hidden, batch_first=True)
        self.drop, self.head = nn.Dropout(dropout), nn.Linear(hidden, MODULUS)

    def forward(self, tokens):
        return self.head(self.drop(self.rnn(self.embed(tokens))[0]))


class TokenTask(Task, CanPredict):
    name, title = "toy_tokens", "an endless stream of counting sequences"
    presets = {
        "base": lambda: TokenConfig(
            budget=Budget(steps=120), loader=Loader(batch_size=8), optim=Optim(lr=5e-3), track=Track(log_every=5),
            checkpoint=Checkpoint(eval_every=30),
        ),
        "smoke": lambda: TokenConfig(
            preset="smoke", budget=Budget(steps=20), loader=Loader(batch_size=4), optim=Optim(lr=5e-3),
            track=Track(log_every=2), checkpoint=Checkpoint(eval_every=10),
        ),
    }

    def prepare(self, cfg, root):
        manifest = {"generator": "toy_tokens", "version": 1, "seed": cfg.seed, "parameters": cfg.data.model_dump()}
        return ensure_store(
            store_path(root, self.name, manifest), manifest,
            lambda: {"probe": Stream(cfg.data, cfg.seed, "train", None).sequence(0, 8)},
        )

    def data(self, cfg, root):
        held = {name: Stream(cfg.data, cfg.seed, name, cfg.data.held_out) for name in ("val", "test")}
        train = Stream(cfg.data, cfg.seed, "train", None)
        return Splits(
            train, held["val"], held["test"], self.meta(train, cfg), digest([cfg.seed, cfg.data.model_dump()])
        )

    def meta(self, train, cfg):
        return {"vocabulary": MODULUS + 1}

    def count_items(self, batch):
        return float((batch["tokens"][:, 1:] != PAD).sum())

    def model(self, cfg, meta):
        return Recurrent(cfg.model.hidden, cfg.model.dropout)

    def step(self, model, batch, cfg, at):
        tokens, targets = batch["tokens"][:, :-1], batch["tokens"][:, 1:]
        logits, real = model(tokens), targets != PAD
        loss = nn.functional.cross_entropy(logits[real], targets[real])
        n = float(real.sum())
        right = (logits.argmax(-1) == targets)[real].float().mean()
        return StepOut(loss, n, {"nll": Part(loss, n)}, {"token_accuracy": (right, n)})

    def metrics(self, cfg):
        return {"token_accuracy": MeanMetric()}

    def perfect_prediction(self, batch, cfg):
        return {"token_accuracy": (torch.tensor(1.0), self.count_items(batch))}, {"token_accuracy": 1.0}

    def examine(self, model, splits, split, cfg, at):
        return {}

    def baselines(self, splits, split, cfg):
        return {"uniform": {"loss": float(np.log(MODULUS)), "token_accuracy": 1 / MODULUS}}

    def updaters(self, cfg, model):
        return [EMA(model, 0.9), Curriculum("length", start=6, end=cfg.data.length, steps=10, multiple=2)]

    def show(self, batch, cfg, meta):
        fig, ax = plt.subplots()
        ax.imshow(batch["tokens"])
        ax.set(xlabel="place", ylabel="sequence")
        return fig

    def space(self, trial):
        return {
            "optim.lr": trial.suggest_float("optim.lr", 1e-4, 1e-2, log=True),
            "model.hidden": trial.suggest_categorical("model.hidden", [8, 24]),
        }

    def views(self):
        return {"curve": lambda run: run.history()[["step", "train/loss"]]}

    def predict(self, model, inputs, cfg, meta):
        rows = []
        for sequence in inputs:
            answer = int(model(torch.tensor([sequence]))[0, -1].argmax())
            truth = (sequence[-1] + (sequence[-1] - sequence[-2])) % MODULUS
            rows.append({"input": sequence, "answer": answer, "truth": truth, "right": answer == truth})
        return rows


TASK = TokenTask()
