"""What all tests share: the toys on the path, a project root of their own, one thread."""
import os
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parent
TOYS = HERE / "toys"

sys.path.insert(0, str(TOYS))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TOYS), *filter(None, [os.environ.get("PYTHONPATH")])])
os.environ["MPLBACKEND"] = "agg"
os.environ["WANDB_SILENT"] = "true"
torch.set_num_threads(1)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A project root of the test's own: data/ and runs/ go there."""
    monkeypatch.setenv("NEXUSLAB_HOME", str(tmp_path))
    monkeypatch.delenv("NEXUSLAB_REPORT", raising=False)
    return tmp_path
