"""An argument of a wrong Python type is answered by what it was given as, what was found and what to write."""
import pytest
import torch
from tiny import Scripted
from torch import nn

from nexuslab.config import Config, Optim, resolve
from nexuslab.core import NexusError
from nexuslab.data import Tensors
from nexuslab.fit import fit
from nexuslab.own import OwnTask
from nexuslab.run import Run

ROWS = (torch.zeros(4, 1),)


def own(name="mistyped", **more):
    return OwnTask(name, lambda: nn.Linear(1, 1), lambda model, batch: model(batch[0]).mean(), ROWS, ROWS, **more)


def trained(home, **more):
    task = Scripted(steps=1)
    return fit(task, task.config, Run.create(task.config, home), **more)


WRONG = {  # the call -> what its error is about
    "a file": (lambda home: resolve(Scripted(steps=1), file=3), "configuration file"),
    "no file": (lambda home: resolve(Scripted(steps=1), file=0), "configuration file"),
    "overrides": (lambda home: resolve(Scripted(steps=1), None, [3]), "overrides"),
    "the root of a new run": (lambda home: Run.create(Scripted(steps=1).config, 3), "project root"),
    "the root of a known run": (lambda home: Run.open("last", 3), "project root"),
    "a run's path": (lambda home: Run(3), "a run's directory"),
    "one listener": (lambda home: trained(home, listeners=3), "listeners"),
    "a function that listens": (lambda home: trained(home, listeners=[print]), "a listener"),
    "splits": (lambda home: trained(home, splits=3), "splits"),
    "a number for a tensor": (lambda home: Tensors(3), "what Tensors holds"),
    "no tensor": (lambda home: Tensors(), "what Tensors holds"),
    "a number for a name": (lambda home: own(3), "system"),
    "a dictionary for a configuration": (lambda home: own(config={"lr": 1}), "config of OwnTask"),
    "an unnamed value": (lambda home: Config(3), r"Config\(...\)"),
    "a section's value": (lambda home: Optim(lr="fast"), "lr"),
    "nothing": (lambda home: Config(), "system"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_type_is_named(kind, home):
    call, about = WRONG[kind]
    with pytest.raises(NexusError, match=f"^{about}|^the {about}") as caught:
        call(home)
    assert caught.value.expected and caught.value.remedy
    assert caught.value.found is not None or kind == "nothing"
