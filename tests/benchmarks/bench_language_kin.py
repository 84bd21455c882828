"""Preset `kin` of the language system with its reasoning module, and without it in equal time.

    python tests/benchmarks/bench_language_kin.py [--seeds 0 1 2] [--steps 600] [--rows with without]

One thread. Of each training: bits per byte of the test text; of new questions of depth 1 to 4 (training has 1 and 2)
the share that the rules answer, the share of their proofs that replay, and the share of answers that are right as the
model writes them behind the question, greedily.

What a step costs is measured for both by turns, in processor time; the row without the module has as many steps as fit
into the time of the row with it."""
import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench_shakespeare import Preset, step_seconds

from nexuslab.config import resolve
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.run import Run
from nexuslab.systems.language.model import generate
from nexuslab.systems.language.reason import judge, read
from nexuslab.systems.language.suites import kinship
from nexuslab.systems.language.task import TASK
from nexuslab.systems.language.tokens import Bytes

DEPTHS, RULES, WRITTEN = (1, 2, 3, 4), 100, 40  # depths; questions of each for the rules, and for the written answers


def configuration(reason: bool, steps: int, seed: int):
    changes = {"seed": seed, "steps": steps, "eval_every": steps, "model.reason": reason}
    return resolve(TASK, "kin", changes)


def answered(model, prompt: str) -> str:
    """What the model writes behind a question, up to the full stop."""
    ids = torch.from_numpy(np.append(Bytes.separator, Bytes().encode(prompt)).astype(np.int64))[None]
    written = Bytes().decode(generate(model, ids, torch.full((1, 14), 0.5), temperature=0)[0].tolist())
    return written.split(".")[0].strip()


def figures(model) -> dict:
    """By depth: the share of right answers of the rules, of proofs that replay, and of right answers as text."""
    found = {}
    for depth in DEPTHS:
        asked = kinship(RULES, depth, 1000 + depth)
        said = {}
        if "reason" in model.parts:
            told = judge(model.parts["reason"].rules, [read(question.text)[0] for question in asked])
            said = {"rules": told["right"], "replayed": told["replayed"]}
        right = [answered(model, question.prompt) == question.answer for question in asked[:WRITTEN]]
        said["written"] = sum(right) / WRITTEN
        found[depth] = {name: round(100 * value) for name, value in said.items()}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rows", nargs="*", default=["with", "without"], choices=["with", "without"])
    parser.add_argument("--rounds", type=int, default=15, help="of measuring speed")
    told = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(tempfile.mkdtemp())
    for seed in told.seeds:
        TASK.prepare(configuration(True, told.steps, seed), root)
    kinds = {"with": True, "without": False}
    each = step_seconds({name: Preset(configuration(on, told.steps, told.seeds[0]), root)
                         for name, on in kinds.items()}, told.rounds)
    print({name: f"{1e3 * value:.1f} ms a step" for name, value in each.items()}, flush=True)
    for name in told.rows:
        steps = int(told.steps * each["with"] / each[name])
        for seed in told.seeds:
            cfg, begun = configuration(kinds[name], steps, seed), time.process_time()
            done = fit(TASK, cfg, Run.create(cfg, root))
            took = time.process_time() - begun
            test = evaluate(TASK, done.run, untrained=False)
            print(f"{name} the module, seed {seed}: {steps} steps, {took:.0f} s, {test['bits_per_byte']:.3f} bits per "
                  f"byte, of 100: {figures(done.run.load('best')[0].eval())}", flush=True)


if __name__ == "__main__":
    main()
