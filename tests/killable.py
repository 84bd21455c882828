"""Trainings that wait at a chosen moment, to be killed there.

One process imports everything and is told on stdin, a JSON line each: {"run", "moment", "count", "mark", "resume"}.
Each line is trained in a fork of its own, whose process id is answered on stdout.
"""
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent / "toys"))

import nexuslab.checkpoint  # noqa: E402
import nexuslab.fit  # noqa: E402
import nexuslab.step  # noqa: E402
import nexuslab.watch  # noqa: E402
from nexuslab.run import Run  # noqa: E402
from nexuslab.task import get_task  # noqa: E402


class Watch:
    """Counts the passages of one moment, and waits at the chosen one."""

    def __init__(self, moment: str, count: int, mark: str):
        self.moment, self.count, self.mark, self.seen, self.loop = moment, count, Path(mark), 0, None

    def reached(self, place: str) -> None:
        """Say so and wait, if this is the moment."""
        self.seen += place == self.moment
        if place == self.moment and self.seen == self.count:
            self.mark.with_suffix(".tmp").write_text(json.dumps({"step": self.loop.progress.step}))
            self.mark.with_suffix(".tmp").rename(self.mark)
            end = time.time() + 120
            while not self.mark.with_suffix(".go").exists() and time.time() < end:
                time.sleep(0.01)

    def spy(self, module, name: str, place: str, when=lambda *_, **__: True, after: bool = False) -> None:
        """Let a function of the engine say when it is entered, or left."""
        real = vars(module)[name]

        def told(*args, **options):
            if not after and when(*args, **options):
                self.reached(place)
            found = real(*args, **options)
            if after and when(*args, **options):
                self.reached(place)
            return found

        setattr(module, name, told)

    def remember(self, module, name: str) -> None:
        """Keep the loop at hand, to tell its step."""
        real = vars(module)[name]

        def told(*args, **options):
            self.loop = real(*args, **options)
            return self.loop

        setattr(module, name, told)


def train(run: str, moment: str, count: int, mark: str, resume: str | None) -> None:
    """Train under watch."""
    watch, fit, checkpoint = Watch(moment, count, mark), nexuslab.fit, nexuslab.checkpoint
    step, evaluation = nexuslab.step, nexuslab.watch
    watch.remember(fit, "set_up")
    watch.spy(fit, "seed_step", "step")
    watch.spy(step, "to_device", "forward")
    watch.spy(step, "count", "micro", after=True)
    watch.spy(fit, "optimise", "optimise")
    watch.spy(evaluation, "count", "evaluate")
    watch.spy(fit, "save", "row")
    watch.spy(checkpoint, "write_synced", "file", after=True)
    watch.spy(checkpoint, "write_synced", "manifest", when=lambda path, *_, **__: path.name == "manifest.json")
    watch.spy(checkpoint, "point", "point")
    watch.spy(checkpoint.shutil, "rmtree", "prune", when=lambda path, *_, **__: Path(path).is_dir())
    opened = Run(run)
    fit.fit(get_task(opened.config.system), opened.config, opened, resume=resume)


if __name__ == "__main__":
    torch.set_num_threads(1)
    get_task(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the killed ones
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                train(**json.loads(line))
            except BaseException as error:
                Path(json.loads(line)["mark"] + ".error").write_text(repr(error))
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
