"""Preset `shakespeare` of the language system against transformers of nanoGPT's CPU configuration, by processor time.

    python tests/benchmarks/bench_shakespeare.py tinyshakespeare.txt [--seeds 0 1 2] [--iterations 2000]

Everything runs on one thread. The rival is a transformer (4 layers, 4 heads, width 128, blocks of 64, batches of 12,
804,224 parameters with the separator among its 66 characters): trained as published (AdamW, learning rate 1e-3, 100
steps of warm-up, a cosine to 1e-4, 2,000 iterations), with AdamW at 1e-2, with the engine's Muon at 1e-2, and with Muon
in bf16, the precision of the preset on processors that have it; on others the preset is in single precision, and this
rival is left out. The processor time of the published training is everybody's budget. What a step
costs is measured for all by turns, so that other work on the machine hits all alike; it gives everybody's number of
steps.

Every model is scored on the whole validation text in windows of 64 characters that do not overlap, its state reset at
each, every position counted."""
import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nexuslab.config import resolve
from nexuslab.contract import probe
from nexuslab.data import load
from nexuslab.fit import fit
from nexuslab.optim import Muon
from nexuslab.run import Run
from nexuslab.setup import pick_precision
from nexuslab.step import clip, gradient, optimise, set_rate
from nexuslab.systems.language.data import Passes, Windows, open_dataset
from nexuslab.systems.language.task import TASK

LENGTH, BATCH = 64, 12
PUBLISHED = "AdamW 1e-3, as published"
RIVALS = {  # name: optimiser, learning rate, its share at the end, bf16
    PUBLISHED: ("adamw", 1e-3, 0.1, False), "AdamW 1e-2": ("adamw", 1e-2, 0.1, False),
    "Muon 1e-2": ("muon", 1e-2, 0.1, False), "Muon 1e-2, bf16": ("muon", 1e-2, 0.0, True),
}


class Attention(nn.Module):
    """A pre-norm layer of attention and network, as nanoGPT has it."""

    def __init__(self, d: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.LayerNorm(d, bias=False), nn.Linear(d, 3 * d, bias=False)
        self.out, self.after = nn.Linear(d, d, bias=False), nn.LayerNorm(d, bias=False)
        self.enter, self.leave = nn.Linear(d, 4 * d, bias=False), nn.Linear(4 * d, d, bias=False)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.leave(F.gelu(self.enter(self.after(x))))


class Transformer(nn.Module):
    """nanoGPT's CPU configuration: embeddings shared with the head."""

    def __init__(self, vocabulary: int, d: int = 128, layers: int = 4, heads: int = 4):
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, d), nn.Embedding(LENGTH, d)
        self.layers, self.norm = nn.ModuleList(Attention(d, heads) for _ in range(layers)), nn.LayerNorm(d, bias=False)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                last = name.endswith(("out.weight", "leave.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, ids):
        x = self.embed(ids) + self.place.weight[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.norm(x), self.embed.weight)


def optimiser(model: Transformer, kind: str, lr: float):
    matrices = [p for p in model.layers.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
    if kind == "adamw":
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr, betas=(0.9, 0.99), fused=True)
    groups = [{"params": matrices, "matrices": True, "weight_decay": 0.1},
              {"params": rest, "matrices": False, "weight_decay": 0.0}]
    return Muon(groups, lr, (0.9, 0.95), 1e-8, 0.95, 0.2)


class Rival:
    """A transformer in training, a step at a time."""

    def __init__(self, name: str, corpus, vocabulary: int, iterations: int):
        torch.manual_seed(0)
        self.kind, self.lr, self.end, self.half = RIVALS[name]
        self.model, self.source = Transformer(vocabulary), Passes(corpus, LENGTH, 0)
        self.optimizer, self.step, self.iterations = optimiser(self.model, self.kind, self.lr), 0, iterations

    def train(self, steps: int) -> None:
        for step in range(self.step, self.step + steps):
            cosine = 0.5 * (1 + math.cos(math.pi * step / self.iterations))
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * min(1, (step + 1) / 100) * (self.end + (1 - self.end) * cosine)
            batch = self.source.batch(np.arange(step * BATCH, (step + 1) * BATCH), {}, None)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
                logits = self.model(batch["input_ids"]).flatten(0, 1).float()
                loss = F.cross_entropy(logits, batch["labels"].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.step += steps


class Preset:
    """The preset in the engine's own steps."""

    def __init__(self, cfg, root: Path):
        self.loop = probe(TASK, cfg, TASK.data(cfg, root), root)
        self.batches = load(self.loop.splits.train, self.loop.plan, 0, cfg.budget.steps)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            out = gradient(self.loop, next(self.batches))
            clip(self.loop)
            set_rate(self.loop)
            optimise(self.loop, out)
            self.loop.progress.step += 1


def step_seconds(racers: dict, rounds: int, steps: int = 5) -> dict[str, float]:
    """The median processor time of a step of each, measured by turns, so that what else the machine does hits all."""
    times = {name: [] for name in racers}
    for _ in range(rounds):
        for name, racer in racers.items():
            begun = time.process_time()
            racer.train(steps)
            times[name].append((time.process_time() - begun) / steps)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


@torch.no_grad()
def scored(forward, source: Windows) -> float:
    """The mean loss of every character of a text, in windows."""
    nats = n = 0.0
    for low in range(0, source.size, 128):
        batch = source.batch(np.arange(low, min(low + 128, source.size)), {}, None)
        logits, labels = forward(batch).float().flatten(0, 1), batch["labels"].flatten()
        nats += float(F.cross_entropy(logits, labels, reduction="sum"))
        n += int((labels >= 0).sum())
    assert n == len(source.corpus) - 1
    return nats / n


def preset(path: str, seed: int, steps: int, root: Path):
    """Train the preset; the model and the processor seconds."""
    cfg = resolve(TASK, "shakespeare", {"data.path": path, "seed": seed, "steps": steps, "eval_every": steps})
    TASK.prepare(cfg, root)
    begun = time.process_time()
    model = fit(TASK, cfg, Run.create(cfg, root)).model
    return model, time.process_time() - begun


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=2000)
    has = pick_precision("auto", torch.device("cpu"))[0] == "bf16"
    parser.add_argument("--rivals", nargs="*", default=[name for name, (*_, half) in RIVALS.items() if has or not half])
    parser.add_argument("--rounds", type=int, default=25, help="of measuring speed")
    told = parser.parse_args()
    torch.set_num_threads(1)
    path, root = str(Path(told.text).absolute()), Path(tempfile.mkdtemp())
    cfg = resolve(TASK, "shakespeare", {"data.path": path})
    found = open_dataset(cfg.data.plan(cfg.seed, root), root)
    val, vocabulary = Windows(found.val, LENGTH), found.tokenizer.vocabulary
    print(f"{len(found.train) - 1:,} and {len(found.val) - 1:,} characters, torch {torch.__version__}", flush=True)
    racers = {name: Rival(name, found.train, vocabulary, told.iterations)
              for name in dict.fromkeys([PUBLISHED, *told.rivals])}
    each = step_seconds(racers | {"preset": Preset(cfg, root)}, told.rounds)
    budget = told.iterations * each[PUBLISHED]
    shown = {name: round(1e3 * value, 1) for name, value in each.items()}
    print(f"ms a step: {shown}, budget {budget:.1f} s", flush=True)
    for name in told.rivals:
        steps = int(budget / each[name])
        rival, begun = Rival(name, found.train, vocabulary, steps), time.process_time()
        rival.train(steps)
        loss, took = scored(lambda batch: rival.model(batch["input_ids"]), val), time.process_time() - begun
        print(f"transformer, {name}: {loss:.4f}, {sum(p.numel() for p in rival.model.parameters()):,} parameters, "
              f"{steps} steps, {took:.1f} s", flush=True)
    for seed in told.seeds:
        steps = int(0.95 * budget / each["preset"])  # the rest is for checkpoints and the evaluation
        model, took = preset(path, seed, steps, root)
        with torch.autocast("cpu", torch.bfloat16, enabled=has):
            loss = scored(lambda batch: model(batch["input_ids"], start=batch["start"]), val)
        size = sum(p.numel() for p in model.parameters())
        said = f"{loss:.4f}, {size:,} parameters, {steps} steps, {took:.1f} s"
        print(f"preset shakespeare, seed {seed}: {said}", flush=True)


if __name__ == "__main__":
    main()
