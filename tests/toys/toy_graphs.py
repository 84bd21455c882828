"""A toy system of the other kind: ragged graphs in epochs, with a batch statistic, a set-level metric and sampling."""
import dataclasses
from typing import Annotated

import matplotlib.pyplot as plt
import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch_geometric.nn import GCNConv, global_mean_pool
from torchmetrics.classification import BinaryAUROC

from nexuslab.config import Budget, Config, Loader, Optim, Section, Track
from nexuslab.core import mix
from nexuslab.data import Source, Splits, Standardiser, split_by_hash
from nexuslab.store import Ragged, Store, ensure_store, store_path
from nexuslab.metrics import Part
from nexuslab.task import CanSample, HasLatent, Ramp, StepOut, Task
from nexuslab.views import latent_map


class GraphData(Section):
    graphs: int = Field(160, ge=20, description="graphs of all splits")


class GraphModel(Section):
    hidden: int = Field(12, ge=1, description="width of the convolutions")
    latent: int = Field(3, ge=1, description="dimensions of the latent space")


class GraphLoss(Section):
    spread: float = Field(0.1, ge=0, description="weight of the variance hinge over the batch")
    kl: float = Field(0.01, ge=0, description="final weight of the KL divergence")


class GraphConfig(Config):
    system: str = Field("toy_graphs", description="name of the system")
    data: GraphData = Field(default_factory=GraphData, description="the graphs")
    model: GraphModel = Field(default_factory=GraphModel, description="the model")
    loss: GraphLoss = Field(default_factory=GraphLoss, description="the objective")


@dataclasses.dataclass(frozen=True)
class Graphs:
    """B graphs end to end: x (nodes, 2), edge (2, edges), graph (nodes,), label (B,)."""

    x: torch.Tensor
    edge: torch.Tensor
    graph: torch.Tensor
    label: torch.Tensor


def generate(count: int, seed: int) -> dict[str, np.ndarray]:
    """Rings (label 1) and paths (label 0) of 3 to 7 nodes, with noisy coordinates."""
    rng = np.random.default_rng(mix(seed, "graphs"))
    sizes, labels = rng.integers(3, 8, count), rng.integers(0, 2, count)
    nodes = [
        np.stack([np.cos(a), np.sin(a)], 1) * (1 + label) + rng.normal(0, 0.3, (n, 2))
        for n, label in zip(sizes, labels) for a in [2 * np.pi * np.arange(n) / n]
    ]
    edges = [np.array([(i, (i + 1) % n) for i in range(n - 1 + label)]) for n, label in zip(sizes, labels)]
    split = split_by_hash(np.arange(count), (0.6, 0.2, 0.2), seed)
    offsets = lambda parts: np.concatenate([[0], np.cumsum([len(p) for p in parts])])
    return {
        "x": np.concatenate(nodes).astype(np.float32), "x_offset": offsets(nodes), "edge": np.concatenate(edges),
        "edge_offset": offsets(edges), "label": labels, "split": split,
    }


class GraphSource(Source):
    def __init__(self, arrays: dict[str, np.ndarray], split: int):
        self.nodes, self.edges = Ragged(arrays["x"], arrays["x_offset"]), Ragged(arrays["edge"], arrays["edge_offset"])
        self.labels, self.members = arrays["label"], np.flatnonzero(arrays["split"] == split)
        self.size = len(self.members)

    def batch(self, ids, setting, generator):
        rows = self.members[np.asarray(ids)]
        x, sizes = self.nodes.take(rows)
        edge, counts = self.edges.take(rows)
        first = np.cumsum(sizes) - sizes
        edge = edge + np.repeat(first, counts)[:, None]
        both = np.concatenate([edge, edge[:, ::-1]]).T
        return Graphs(
            torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(both)),
            torch.from_numpy(np.repeat(np.arange(len(rows)), sizes)), torch.from_numpy(self.labels[rows]).float(),
        )


class TinyVAE(nn.Module):
    def __init__(self, hidden: int, latent: int, meta: dict):
        super().__init__()
        self.scale = Standardiser(**meta["x"])
        self.first, self.second = GCNConv(2, hidden), GCNConv(hidden, hidden)
        self.posterior, self.head, self.decoder = nn.Linear(
            hidden, 2 * latent
        ), nn.Linear(latent, 1), nn.Linear(latent, 2)

    def encode(self, batch):
        h = self.first(self.scale.forward(batch.x), batch.edge).tanh()
        h = self.second(h, batch.edge).tanh()
        return self.posterior(global_mean_pool(h, batch.graph, len(batch.label))).chunk(2, -1)


class GraphTask(Task, CanSample, HasLatent):
    name, title = "toy_graphs", "rings and paths"
    presets = {
        "base": lambda: GraphConfig(
            budget=Budget(epochs=12), loader=Loader(batch_size=16), optim=Optim(lr=1e-2), track=Track(log_every=2)
        ),
        "smoke": lambda: GraphConfig(
            preset="smoke", data=GraphData(graphs=60), budget=Budget(epochs=2), loader=Loader(batch_size=8),
            optim=Optim(lr=1e-2), track=Track(log_every=1),
        ),
    }

    def prepare(self, cfg, root):
        manifest = {"generator": "toy_graphs", "version": 2, "seed": cfg.seed, "parameters": cfg.data.model_dump()}
        return ensure_store(
            store_path(root, self.name, manifest), manifest, lambda: generate(cfg.data.graphs, cfg.seed)
        )

    def data(self, cfg, root):
        store = Store(self.prepare(cfg, root))
        arrays = store.arrays()
        train, val, test = (GraphSource(arrays, s) for s in range(3))
        return Splits(train, val, test, self.meta(train, cfg), store.manifest["digest"])

    def meta(self, train, cfg):
        return {"x": Standardiser.fit(train.nodes.take(train.members)[0]).state()}

    def count_items(self, batch):
        return float(len(batch.label))

    def model(self, cfg, meta):
        return TinyVAE(cfg.model.hidden, cfg.model.latent, meta)

    def step(self, model, batch, cfg, at):
        mean, log_var = model.encode(batch)
        z = mean + at.normal(mean, "latent") * (0.5 * log_var).exp()
        logit, n = model.head(z)[:, 0], self.count_items(batch)
        centre = global_mean_pool(batch.x, batch.graph, len(batch.label))
        parts = {
            "bce": Part(nn.functional.binary_cross_entropy_with_logits(logit, batch.label), n),
            "centre": Part((model.decoder(z) - centre).square().mean(), n),
            "kl": Part(0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean(), n, weight=at.values["kl"]),
            "spread": Part(
                torch.relu(1 - (z.var(0, correction=0) + 1e-4).sqrt()).mean(), n, weight=cfg.loss.spread, additive=False
            ),
        }
        # logits would be squashed, or not, batch by batch
        return StepOut(
            sum(p.weight * p.value for p in parts.values()), n, parts, {"auroc": (logit.sigmoid(), batch.label.int())}
        )

    def metrics(self, cfg):
        return {"auroc": BinaryAUROC()}

    def perfect_prediction(self, batch, cfg):
        return {"auroc": (batch.label, batch.label.int())}, {"auroc": 1.0}

    def examine(self, model, splits, split, cfg, at):
        codes = self.encode(model, splits.named(split).batch(np.arange(splits.named(split).size), {}, None), cfg)
        return {"latent_std": codes.detach().std(0).mean().item()}

    def baselines(self, splits, split, cfg):
        return {"mean": {"auroc": 0.5}}

    def updaters(self, cfg, model):
        return [Ramp("kl", cfg.loss.kl, share=0.5)]

    def show(self, batch, cfg, meta):
        fig, ax = plt.subplots()
        ax.scatter(*batch.x.T, c=batch.graph)
        ax.set(xlabel="x", ylabel="y")
        return fig

    def space(self, trial):
        return {"optim.lr": trial.suggest_float("optim.lr", 1e-3, 3e-2, log=True)}

    def views(self):
        def latent(run):
            """Codes of graphs in two dimensions."""
            model, cfg, _ = run.load("last")
            return latent_map(self, model, cfg, self.data(cfg, run.root), "val")

        return {"latent": latent}

    def encode(self, model, batch, cfg):
        return model.encode(batch)[0]

    def labels(self, source, ids):
        return {"kind": source.labels[source.members[ids]]}

    def sample(self, model, n, cfg, meta, at, *, scale: Annotated[float, Field(gt=0)] = 1.0):
        z = scale * at.normal((n, cfg.model.latent), "latent").to(model.head.weight.device)
        return {"centre": model.decoder(z), "ring": model.head(z)[:, 0].sigmoid()}

    def contact_sheet(self, samples, cfg, meta):
        fig, ax = plt.subplots()
        ax.scatter(*samples["centre"].T, c=samples["ring"])
        ax.set(xlabel="x", ylabel="y")
        return fig


TASK = GraphTask()
