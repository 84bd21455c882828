"""What each module costs and gains in the language model: a row for each, off and on, at equal steps and at equal time.

    python tests/benchmarks/bench_language_ablation.py tinyshakespeare.txt [--steps 400] [--seeds 0 1 2] [--rows ...]
    python tests/benchmarks/bench_language_ablation.py kin [--steps 300]

The first trains preset `shakespeare`, the second preset `kin`, with no module, with each alone and with all. One
thread. What a step costs is measured for all by turns, in processor time; a row at equal time has as many steps as fit
into the time of the row without modules. The loss is that of the whole validation text, in nats a token."""
import argparse
import tempfile
from pathlib import Path

import torch
from bench_shakespeare import Preset, step_seconds

from nexuslab.config import Config, resolve
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.systems.language.loss import MODULES
from nexuslab.systems.language.task import TASK

ROWS = {"none": (), **{name: (name,) for name in MODULES}, "all": MODULES}


def configuration(text: str, on: tuple[str, ...], steps: int, seed: int) -> Config:
    """A preset with some modules; its whole schedule has `steps` steps."""
    changes = {"seed": seed, "steps": steps, "eval_every": steps, "schedule.warmup_steps": min(50, steps // 8)}
    changes |= {f"model.{name}": name in on for name in MODULES}
    if text == "kin":
        return resolve(TASK, "kin", changes)
    return resolve(TASK, "shakespeare", changes | {"data.path": str(Path(text).absolute())})


def trained(cfg: Config, root: Path) -> float:
    """The validation loss of a training [nats]."""
    TASK.prepare(cfg, root)
    done = fit(TASK, cfg, Run.create(cfg, root))
    return done.metrics["val/loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", help="a text file, or kin")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--rounds", type=int, default=15, help="of measuring speed")
    told = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp())
    made = lambda name, steps, seed: configuration(told.text, ROWS[name], steps, seed)
    TASK.prepare(made("none", 400, 0), root)
    racers = {name: Preset(made(name, 10 * told.rounds, 0), root) for name in {"none": 0} | dict.fromkeys(told.rows)}
    seconds = step_seconds(racers, told.rounds)
    for name in told.rows:
        ratio, found = seconds[name] / seconds["none"], {}
        for what, steps in {"equal steps": told.steps, "equal time": int(told.steps / ratio)}.items():
            if name == "none" and what == "equal time":
                continue
            found[what] = [round(trained(made(name, steps, seed), root), 4) for seed in told.seeds]
        print(f"{name}: {1e3 * seconds[name]:.1f} ms a step ({ratio:.2f} x); {found}", flush=True)


if __name__ == "__main__":
    main()
