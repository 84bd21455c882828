"""Speed and memory of the language system's backbone, beside a transformer and a loop, and the price of the modules.

    python tests/benchmarks/bench_language.py [speed | mamba | loop | memory | modules]

One thread, processor time; what is compared is measured by turns. `memory` takes a process for each case. `mamba` needs
mambapy (pip install --no-deps --target FOLDER mambapy, and FOLDER in PYTHONPATH), and says so without it."""
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from nexuslab.systems.language import model as chapter
from nexuslab.systems.language.model import NEXUSConfig, NEXUSCore
from nexuslab.systems.language.scan import scan_in_order
from nexuslab.systems.language.task import OFF

sys.path.insert(0, str(Path(__file__).parent))

from bench_shakespeare import Attention  # noqa: E402  the path is set above

VOCABULARY, WIDTH, LAYERS = 256, 256, 6


class Transformer(nn.Module):
    """Attention by `scaled_dot_product_attention`, of the width and depth of the backbone."""

    def __init__(self, length: int):
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(length, WIDTH)
        self.layers = nn.Sequential(*(Attention(WIDTH, 4) for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids):
        return self.head(self.layers(self.embed(ids) + self.place.weight[: ids.shape[1]]))


def backbone(**changes) -> NEXUSCore:
    """The backbone alone, unless a module is switched on."""
    sizes = dict(vocab_size=VOCABULARY, d_model=WIDTH, d_inner=2 * WIDTH, ssm_n_layers=LAYERS, heads=8) | OFF
    return NEXUSCore(NEXUSConfig(**(sizes | changes))).train()


def step(model: nn.Module, ids: torch.Tensor) -> None:
    """Forward and backward."""
    F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
    model.zero_grad()


def by_turns(acts: dict, rounds: int) -> dict[str, float]:
    """Median processor time of each [s]."""
    times = {name: [] for name in acts}
    for _ in range(rounds + 1):
        for name, act in acts.items():
            begun = time.process_time()
            act()
            times[name].append(time.process_time() - begun)
    return {name: float(np.median(values[1:])) for name, values in times.items()}


def told(title: str, seconds: dict[str, float], tokens: int) -> None:
    print(title, {name: f"{tokens / took:.0f} tokens/s" for name, took in seconds.items()}, flush=True)


def speed(length: int = 2048) -> None:
    ids = torch.randint(VOCABULARY, (1, length))
    models = {"state space": backbone(), "transformer": Transformer(length)}
    print({name: f"{sum(p.numel() for p in model.parameters()):,}" for name, model in models.items()})
    told(f"T {length}:", by_turns({name: lambda m=model: step(m, ids) for name, model in models.items()}, 5), length)


def mamba(length: int = 2048) -> None:
    """Against the parallel scan of mambapy, with embedding and head of the same kind."""
    try:
        from mambapy.mamba import Mamba, MambaConfig
    except ImportError as error:
        return print(f"mamba: not measured, {error}", flush=True)

    class Rival(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.body = Mamba(MambaConfig(d_model=WIDTH, n_layers=LAYERS, d_state=16, pscan=True))

        def forward(self, ids):
            return self.head(self.body(self.embed(ids)))

    ids, models = torch.randint(VOCABULARY, (1, length)), {"state space": backbone(), "mambapy": Rival()}
    print({name: f"{sum(p.numel() for p in model.parameters()):,}" for name, model in models.items()})
    told(f"T {length}:", by_turns({name: lambda m=model: step(m, ids) for name, model in models.items()}, 3), length)


def laid_out(x, log_a, b, c, *_):
    """The recurrence as the reference of Mamba has it: decays and inputs of every state laid out for all tokens."""
    a = log_a.exp()[..., None, None].expand(*x.shape, b.shape[-1]).contiguous()
    written = torch.einsum("bthp,btn->bthpn", x, b)
    state, found = torch.zeros_like(written[:, 0]), []
    for a_t, more, c_t in zip(a.unbind(1), written.unbind(1), c.unbind(1)):
        state = a_t * state + more
        found.append(torch.einsum("bhpn,bn->bhp", state, c_t))
    return torch.stack(found, 1), state


def sliced(x, log_a, b, c, *_):
    """The recurrence as one would write it down: its backward pass is quadratic in T."""
    state, found = x.new_zeros(*x[:, 0].shape, b.shape[-1]), []
    for t in range(x.shape[1]):
        state = log_a[:, t].exp()[..., None, None] * state + x[:, t, :, :, None] * b[:, t, None, None]
        found.append((state * c[:, t, None, None]).sum(-1))
    return torch.stack(found, 1), state


def loop(length: int = 512) -> None:
    """The recurrence in chunks against loops over the tokens: with as many channels as preset `paper`, and twice."""
    chunked, in_turn = chapter.scan, lambda x, a, b, c, state, starts, *_: scan_in_order(x, a, b, c, state, starts)
    without = lambda x, a, b, c, *_: (x + 0 * (a.sum() + b.sum() + c.sum()), None)
    scans = {"chunks": chunked, "loop": in_turn, "loop that slices": sliced, "loop, laid out": laid_out,
             "no recurrence": without}
    for inner in (WIDTH, 2 * WIDTH):
        ids, model = torch.randint(VOCABULARY, (1, length)), backbone(d_inner=inner, heads=inner // 64)

        def with_scan(scan, ids=ids, model=model):
            chapter.scan = scan
            step(model, ids)
            chapter.scan = chunked

        seconds = by_turns({name: lambda s=scan, act=with_scan: act(s) for name, scan in scans.items()}, 5)
        told(f"{inner} channels, T {length}:", seconds, length)
        rest = seconds["no recurrence"]
        alone = {name: (took - rest) / (seconds["chunks"] - rest) for name, took in seconds.items() if "loop" in name}
        print("times as slow as chunks:", {name: f"{seconds[name] / seconds['chunks']:.1f}, the recurrence alone "
                                           f"{more:.1f}" for name, more in alone.items()}, flush=True)


def resident(name: str) -> float:
    """What Linux says of this process's memory [MiB]: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def peak(kind: str, length: int = 2048) -> None:
    """Highest memory of a process above that of the model at rest [MiB], and its time."""
    ids, model = torch.randint(VOCABULARY, (1, length)), backbone()
    if kind == "recomputed":
        model.recompute_activations()
    step(model, ids[:, :64])
    before = resident("VmRSS")
    begun = time.process_time()
    for _ in range(3):
        step(model, ids)
    took = (time.process_time() - begun) / 3
    print(f"{kind}: {resident('VmHWM') - before:.0f} MiB, {took:.2f} s", flush=True)


def memory() -> None:
    for kind in ("kept", "recomputed"):
        subprocess.run([sys.executable, __file__, f"peak-{kind}"], check=True)


def modules() -> None:
    """A step of the shape of preset shakespeare, with all modules and without."""
    sizes = dict(vocab_size=66, d_model=128, d_inner=128, ssm_n_layers=5, heads=4, ngram_rows=(67**2, 8192))
    pieces = [bytes([32 + i]) for i in range(66)]
    models = {"none": NEXUSCore(NEXUSConfig(**sizes, **OFF)), "all": NEXUSCore(NEXUSConfig(**sizes), pieces)}
    ids = torch.randint(66, (12, 64))

    def act(model):
        with torch.autocast("cpu", torch.bfloat16):
            logits, info = model(ids, True, labels=ids)
            losses = [said["loss"] for said in info["module_outputs"].values()]
            (F.cross_entropy(logits.flatten(0, 1), ids.flatten()) + sum(losses)).backward()
        model.zero_grad()

    told("modules:", by_turns({name: lambda m=model: act(m) for name, model in models.items()}, 15), ids.numel())


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in sys.argv[1:] or ["speed", "mamba", "loop", "memory", "modules"]:
        if name.startswith("peak-"):
            peak(name.removeprefix("peak-"))
        else:
            {"speed": speed, "mamba": mamba, "loop": loop, "memory": memory, "modules": modules}[name]()
