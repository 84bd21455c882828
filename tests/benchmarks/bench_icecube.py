"""Speed, memory and quality of the IceCube system.

    python tests/benchmarks/bench_icecube.py forward | step | sampling | generator | display
    python tests/benchmarks/bench_icecube.py quality RUN [EVENTS] | spread RUN

One thread, processor time; what is compared is measured by turns. Each case of `step` has a process of its own, whose
peak memory is told. `quality` prints the figures of a run's best checkpoint and of its rivals, without the untrained
models of `nexuslab evaluate`, which take as long as the trained one. `spread` draws several events of each of some
labels and tells how much their numbers of hits and their charges vary, and how hits lie, beside new simulation."""
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from nexuslab.systems.icecube.architectures import first_stage
from nexuslab.systems.icecube.event import draw_event, draw_labels
from nexuslab.systems.icecube.factory import IceCubeDiffusion, IceCubeModel, ModelFactory
from nexuslab.systems.icecube.task import PRESETS

CASES = {
    "large": PRESETS["large"]().model, "base": PRESETS["base"]().model, "dit 256/4/4": PRESETS["small_model"]().model,
    "dit 512/8/8": PRESETS["dit"]().model, "cnn 256/6": PRESETS["cnn"]().model,
    "strings of 37 million": IceCubeModel(hidden=488, depth=8, heads=8, sensor=48),
}


def inputs(many: int) -> tuple:
    """What a network is asked: x, time, label, known."""
    label = torch.from_numpy(draw_labels(np.random.default_rng(0), many)).float()
    return torch.randn(many, 3, 5160), torch.rand(many), label, torch.ones(many, dtype=torch.bool)


def seconds(act, rounds: int) -> float:
    """Median processor time."""
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        act()
        found.append(time.process_time() - begun)
    return float(np.median(found))


@torch.no_grad()
def forward(rounds: int = 3) -> None:
    """One event, forward, in single precision."""
    asked, found = inputs(1), {}
    for name in ("strings of 37 million", "dit 512/8/8", "base", "large"):
        network = ModelFactory.create_model(CASES[name]).eval()
        network(*asked)
        found[name] = seconds(lambda: network(*asked), 1 if "dit" in name else rounds)
        size = sum(p.numel() for p in network.parameters()) / 1e6
        print(f"{name}: {size:.1f} million parameters, {found[name]:.3f} s", flush=True)
    print(f"full attention over strings: {found['dit 512/8/8'] / found['strings of 37 million']:.0f} times")


def step(name: str) -> None:
    """A training step of one event, in the first stage, whose network is the dearer one; peak memory of the process."""
    rounds = 1 if "dit" in name else 3
    diffusion = ModelFactory.create_model_and_diffusion(CASES[name], IceCubeDiffusion())[1]
    optimizer = torch.optim.AdamW(diffusion.parameters())
    label, event = draw_event(np.random.default_rng(0))
    signal = torch.zeros(1, 2, 5160)
    signal[0][:, event.sensor] = torch.from_numpy(np.stack([event.charge, event.time])).float()
    label = torch.from_numpy(label[None]).float()

    def act():
        diffusion.loss(signal, None, label, first_stage).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    act()
    took = seconds(act, rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name}: a step {took:.2f} s, peak memory of the process {peak:.2f} GiB", flush=True)


@torch.no_grad()
def sampling() -> None:
    """One event with guidance, 40 calls; the network is untrained, but one sensor in fifteen is hit, as in events."""
    from nexuslab.systems.icecube.diffusion import sample_events

    for name in ("base", "large"):
        diffusion = ModelFactory.create_model_and_diffusion(CASES[name], IceCubeDiffusion())[1].eval()
        diffusion.network.hits.head[1].bias[0] = np.log(1 / 14) / 2
        label, noise = inputs(1)[2], torch.randn(1, 3, 5160)
        draw = lambda: sample_events(diffusion, label, noise, guidance=2.0)
        draw()
        print(f"{name}: {seconds(draw, 3):.2f} s an event with guidance", flush=True)


def generator(many: int = 1000) -> None:
    """Simulated events a second."""
    rng = np.random.default_rng(0)
    draw_event(rng)
    took = seconds(lambda: [draw_event(rng) for _ in range(many)], 1)
    print(f"{many / took:.0f} events a second of processor time")


def display(many: int = 1000) -> None:
    """Wall time until an event of so many hits is drawn in Chromium, from Python's call on."""
    from nexuslab.systems.icecube.views import event_display

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from browser import browser_page

    rng, label = np.random.default_rng(0), draw_labels(np.random.default_rng(0), 1)[0]
    event, found = np.zeros((2, 5160), np.float32), []
    hit = rng.permutation(5160)[:many]
    event[:, hit] = rng.gamma(1, 5, many), rng.uniform(0, 3000, many)
    with browser_page() as page:
        for _ in range(5):
            begun = time.perf_counter()
            page.set_content(event_display(event, label).data)
            page.evaluate("() => new Promise(requestAnimationFrame)")
            found.append(time.perf_counter() - begun)
    print(f"{many} hits: drawn in {np.median(found):.3f} s, at most {max(found):.3f} s")


def quality(run: str, events: int = 500) -> None:
    """Figures of a run and of its rivals on its test events."""
    from nexuslab.run import Run
    from nexuslab.systems.icecube.rivals import RIVALS
    from nexuslab.systems.icecube.task import judged
    from nexuslab.task import At

    run = Run.open(run)
    model, cfg, _ = run.load("best")
    cfg = cfg.model_copy(update={"data": cfg.data.model_copy(update={"examined": events})})
    task, splits = run.task, run.task.data(cfg, run.root)
    makes = {name: lambda name=name: judged(splits, "test", cfg, lambda label: RIVALS[name](label, splits.train, 0))
             for name in RIVALS}
    untrained = task.model(cfg, splits.meta)
    makes["untrained"] = lambda: task.examine(untrained, splits, "test", cfg, At(seed=cfg.seed))
    makes["model"] = lambda: task.examine(model, splits, "test", cfg, At(seed=cfg.seed))
    for name in ("simulation", "nearest", "independent", "labels shuffled", "model", "untrained"):
        begun = time.process_time()
        figures = makes[name]()
        told = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        print(f"{name} ({time.process_time() - begun:.0f} s): {told}", flush=True)


def patterns(signal: np.ndarray) -> np.ndarray:
    """Log hits, log charge, dark sensors between two that are hit, and hits beside which both are dark, (N, 4)."""
    hit = (signal[:, 0] > 0).reshape(len(signal), -1, 60)
    holes = (hit[:, :, :-2] & ~hit[:, :, 1:-1] & hit[:, :, 2:]).sum((1, 2))
    alone = (~hit[:, :, :-2] & hit[:, :, 1:-1] & ~hit[:, :, 2:]).sum((1, 2))
    return np.stack([np.log(hit.sum((1, 2)).clip(1)), np.log(signal[:, 0].sum(1).clip(1e-3)), holes, alone], 1)


def spread(run: str, labels: int = 40, draws: int = 8) -> None:
    """How much events of one label vary, as a share of simulation, and how their hits lie."""
    from nexuslab.run import Run
    from nexuslab.systems.icecube.factory import generated
    from nexuslab.systems.icecube.rivals import RIVALS
    from nexuslab.task import At

    run = Run.open(run)
    model, cfg, _ = run.load("best")
    splits = run.task.data(cfg, run.root)
    label = np.repeat(splits.test.labels(np.arange(labels)), draws, 0)
    makes = {name: lambda name=name: RIVALS[name](label, splits.train, 1) for name in ("independent", "nearest")}
    makes["simulation again"] = lambda: RIVALS["simulation"](label, splits.train, 2)
    makes["model"] = lambda: np.concatenate([
        generated(model, torch.from_numpy(label[ids]).float(), cfg.diffusion, At(seed=1, ids=ids))
        for ids in np.arange(len(label)).reshape(-1, draws)])
    told = lambda signal: patterns(signal).reshape(labels, draws, 4)
    real = told(RIVALS["simulation"](label, splits.train, 1))
    for name, make in makes.items():
        found = told(make())
        share = found.std(1, ddof=1).mean(0) / real.std(1, ddof=1).mean(0)
        mean = found.mean((0, 1)) / real.mean((0, 1))
        print(f"{name}: spread of log hits {share[0]:.2f}, of log charge {share[1]:.2f} of the simulation's; "
              f"holes {mean[2]:.2f}, lone hits {mean[3]:.2f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, *rest = sys.argv[1:] or ["forward"]
    if what == "step" and not rest:
        for case in CASES:
            if case != "dit 512/8/8":  # 23 GiB
                subprocess.run([sys.executable, __file__, "step", case], check=True)
    elif what in ("quality", "spread"):
        {"quality": quality, "spread": spread}[what](rest[0], *map(int, rest[1:]))
    else:
        {"forward": forward, "step": step, "sampling": sampling, "generator": generator,
         "display": display}[what](*rest)
