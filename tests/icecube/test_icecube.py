"""The IceCube system beyond what its notebooks show: places, arithmetic, calls, files, and the guide's loop."""
import shutil
import sys
import textwrap

import h5py
import numpy as np
import pandas as pd
import pytest
import torch

from nexuslab.config import resolve
from nexuslab.core import ConfigError, DataError
from nexuslab.fit import fit
from nexuslab.jobs import main
from nexuslab.run import Run
from nexuslab.sample import sample
from nexuslab.systems.icecube.data import EventFile, check_events, make_dataloader, write_events
from nexuslab.systems.icecube.detector import SENSORS, icecube86
from nexuslab.systems.icecube.diffusion import GaussianDiffusion, StagedDiffusion, sample_events
from nexuslab.systems.icecube.event import dense_event, draw_event
from nexuslab.systems.icecube.factory import TYPICAL, ModelFactory
from nexuslab.systems.icecube.metrics import compare
from nexuslab.systems.icecube.signal import Codec, seen_from
from nexuslab.systems.icecube.task import TASK, load_config_from_file

PUBLISHED = {  # (string, sensor): x, y, z [m], of the public geometry table
    (1, 1): (-256.14, -521.08, 496.03),
    (1, 60): (-256.14, -521.08, -504.4),
    (8, 58): (-211.35, -404.48, -471.56),
    (21, 48): (443.59, -194.18, -281.3),
    (36, 60): (46.29, -34.88, -503.25),
    (50, 60): (576.37, 170.92, -510.18),
    (63, 60): (-66.7, 276.92, -506.4),
    (78, 60): (22.11, 509.5, -499.56),
    (79, 1): (31.25, -72.93, 188.29),
    (79, 10): (31.25, -72.93, 98.18),
    (79, 11): (31.25, -72.93, -159.13),
    (79, 60): (31.25, -72.93, -503.42),
    (86, 60): (-10.97, 6.72, -500.73),
}


def test_sensors_are_where_the_public_table_has_them():
    detector = icecube86()
    for (string, sensor), place in PUBLISHED.items():
        row = 60 * (string - 1) + sensor - 1
        assert (detector.string[row], detector.sensor[row]) == (string, sensor)
        assert np.abs(detector.position[row] - place).max() <= 1.0, (string, sensor)


@pytest.fixture(scope="module")
def events():
    """Twelve simulated events and their labels."""
    rng = np.random.default_rng(5)
    drawn = [draw_event(rng) for _ in range(12)]
    return np.stack([dense_event(event) for _, event in drawn]), np.stack([label for label, _ in drawn])


@pytest.fixture(scope="module")
def home(tmp_path_factory, events):
    """A project with a file of those events ten times over, each a little different."""
    home = tmp_path_factory.mktemp("icecube")
    signal, label = (np.concatenate([rows * (1 + 1e-3 * k) for k in range(10)]) for rows in events)
    label[:, 1] = label[:, 1].clip(0, np.pi)
    write_events(home / "events.h5", signal, label, info=np.zeros((120, 9)))
    return home


def test_first_light_is_exact_in_half_precision(events):
    """A product of matrices would be rounded by autocast, and times with it by 10 ns and more."""
    label = torch.from_numpy(events[1]).float()
    exact = seen_from(label)["first"]
    with torch.autocast("cpu", torch.bfloat16):
        assert (seen_from(label)["first"] - exact).abs().max() < 0.01


class Counting(torch.nn.Module):
    """Claims nothing, and counts how often it is asked."""

    calls = 0

    def forward(self, x, time, label, known, geom):
        self.calls += 1
        return torch.zeros_like(x)


@pytest.mark.parametrize("kind", [GaussianDiffusion, StagedDiffusion])
@pytest.mark.parametrize("guidance, calls", [(1.0, 20), (0.0, 20), (2.0, 40)])
def test_an_event_takes_few_calls(kind, guidance, calls, events):
    preset = TASK.presets["base"]().diffusion
    diffusion, label = kind(Counting(), Codec(**TYPICAL)), torch.from_numpy(events[1][:1]).float()
    made = sample_events(diffusion, label, torch.randn(1, 3, SENSORS), sampler=preset.sampler,
                         steps=preset.sampler_steps, guidance=guidance)
    assert diffusion.network.calls == calls <= 40 and made.isfinite().all()
    quiet = made[:, :1] == 0
    assert (made[:, 1:][quiet] == 0).all(), "no time where there is no charge"


def test_the_guides_own_loop(home):
    """The snippet of the guide, with the imports of this package."""
    (home / "mine.yaml").write_text("preset: smoke\ndata: {path: events.h5}\nmodel: {hidden: 8, depth: 1, heads: 2}\n")
    config = load_config_from_file(home / "mine.yaml")
    model, diffusion = ModelFactory.create_model_and_diffusion(config.model, config.diffusion, device="cpu")
    loader = make_dataloader(home / config.data.path, batch_size=config.loader.batch_size)
    x_sig, geom, label, idx = next(iter(loader))
    assert x_sig.shape == (8, 2, SENSORS) and geom.shape == (8, 3, SENSORS) and label.shape == (8, 6) and len(idx) == 8
    loss = diffusion.loss(x_sig, geom, label)
    loss.mean().backward()
    assert loss.shape == (8,) and any(p.grad.abs().sum() > 0 for p in model.parameters())
    with pytest.raises(DataError, match="geometry of a batch"):
        diffusion.loss(x_sig, geom[:, :, :100], label)


def test_workers_read_what_one_process_reads(home):
    asked = dict(batch_size=50, shuffle=False)
    one, two = (list(make_dataloader(home / "events.h5", num_workers=n, **asked)) for n in (0, 2))
    assert len(one) == len(two) == 3
    assert all(torch.equal(a, b) for x, y in zip(one, two) for a, b in zip(x, y))


def test_a_file_and_a_loss_of_ones_own_train_and_draw(home, monkeypatch):
    """A subclass is chosen by name; what is drawn is a file of the contract for the labels that were asked for."""
    (home / "mine.py").write_text(textwrap.dedent("""
        from nexuslab.systems.icecube.diffusion import GaussianDiffusion
        class Mine(GaussianDiffusion):
            def loss(self, x0_sig, geom, label):
                return 2 * super().loss(x0_sig, geom, label)
    """))
    monkeypatch.syspath_prepend(str(home))
    changes = {"data.path": "events.h5", "steps": 2, "diffusion.kind": "mine.Mine", "data.examined": 40}
    cfg = resolve(TASK, "smoke", changes)
    TASK.prepare(cfg, home)
    run = fit(TASK, cfg, Run.create(cfg, home)).run
    assert type(run.load("best")[0]).__name__ == "Mine"
    path = sample(TASK, run, 3, labels=str(home / "events.h5"), steps=3, guidance=2.0)
    made, asked = EventFile(path), EventFile(home / "events.h5")
    check_events(made)
    assert made.size == 3 and np.allclose(made.read("label", np.arange(3)), asked.read("label", np.arange(3)))
    with pytest.raises(ConfigError, match="steps"):
        sample(TASK, run, 1, steps=0)
    sys.modules.pop("mine")


@pytest.mark.parametrize("name, row, value, told", [
    ("input", (3, 0, 7), np.nan, "charge"), ("input", (3, 0, 7), -1.0, "charge"), ("label", (3, 0), 0.0, "energy"),
    ("label", (3, 1), 4.0, "zenith"), ("label", (3, 4), np.inf, "label"),
])
def test_numbers_that_cannot_be_stop_a_training_before_it_starts(name, row, value, told, home, events, tmp_path):
    bad = write_events(tmp_path / "bad.h5", *events)
    with h5py.File(bad, "r+") as file:
        file[name][row] = value
    cfg = resolve(TASK, "smoke", {"data.path": str(bad)})
    with pytest.raises(DataError, match=f"event 3 of .*bad.h5(.|\n)*{told}"):
        TASK.prepare(cfg, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="nosuch.h5 is no file of events"):
        EventFile(tmp_path / "nosuch.h5")


def test_figures_see_what_they_are_for(events):
    """A set against itself is equal; one with noise in place of zeros, or no event at all, is told."""
    signal, label = (np.concatenate([rows] * 4) for rows in events)
    same = compare(signal, signal, label)
    assert same["w1"] == same["ks"] == 0 and same["hit_rate_r2"] == same["occupancy"] == 1
    empty = compare(signal, 0 * signal, label)
    assert empty["occupancy"] == 0 and empty["ks"] > 0.9 and empty["auc_features"] > 0.9


def test_architectures_are_compared_by_the_command(no_kernel, tmp_path, monkeypatch, capfd):
    """The guide's form, without a run; what cannot be compared is refused before anything is measured."""
    monkeypatch.setenv("NEXUSLAB_HOME", str(tmp_path))
    monkeypatch.delenv("NEXUSLAB_REPORT", raising=False)
    for wrong, told in ((["ditt", "cnn"], "did you mean dit?"), (["dit", "--by", "seed"], "by beside them")):
        assert main(["compare", "--system", "icecube", "--architectures", *wrong]) == 2
        assert told in capfd.readouterr().err
    assert main(["compare", "--system", "icecube", "--architectures", "mlp", "cnn"]) == 0
    table = pd.read_csv(tmp_path / "runs" / ".compare" / "comparison.csv", index_col=0)
    assert list(table) == ["mlp", "cnn"] and table.notna().all(axis=None)
    assert [row.partition(" [")[0] for row in table.index] == [
        "parameters", "memory", "forward", "training step", "sampling, 20 calls"]
    assert {"costs.png", "comparison.html"} <= {path.name for path in (tmp_path / "runs" / ".compare").iterdir()}


def test_two_files_are_compared_by_the_command(events, no_kernel, tmp_path, monkeypatch, capfd):
    """The guide's form, without a run: figures, control and picture; a bad file is refused before any work."""
    monkeypatch.setenv("NEXUSLAB_HOME", str(tmp_path))
    monkeypatch.delenv("NEXUSLAB_REPORT", raising=False)
    monkeypatch.chdir(tmp_path)
    signal, label = (np.concatenate([rows] * (-(-80 // len(events[0])))) for rows in events)
    write_events("real.h5", signal, label)
    write_events("made.h5", np.where(signal > 0, 1.1 * signal, 0)[::-1], label[::-1])
    write_events("few.h5", signal[:39], label[:39])
    write_events("wrong.h5", np.where(signal > 0, -signal, 0), label)
    for name, what in (("headless.h5", "label"), ("narrow.h5", "input")):
        shutil.copy("real.h5", name)
        with h5py.File(name, "a") as file:
            held = file[what][:]
            del file[what]
            if name == "narrow.h5":
                file[what] = held[:, :, :-1]
    asked = ["evaluate", "--system", "icecube", "--real-data", "real.h5", "--output", "figure.png", "--generated-data"]
    for wrong, told in (("none.h5", "nothing at"), ("headless.h5", "label"), ("narrow.h5", "5159"),
                        ("few.h5", "at least 40"), ("real.h5 --run last", "run"), ("real.h5 --output a.pdf", ".png")):
        options = [word for word in asked if word not in ("--output", "figure.png")] if "--output" in wrong else asked
        assert main([*options, *wrong.split()]) == 2
        assert told in capfd.readouterr().err and not list(tmp_path.rglob("*.ipynb")), wrong
    assert main([*asked, "wrong.h5"]) != 0 and "charge" in capfd.readouterr().err
    assert main([*asked, "made.h5"]) == 0
    table = pd.read_csv("figure.csv", index_col=0)
    assert [name.partition(",")[0] for name in table] == ["generated", "real against real"]
    assert table.loc["ks"].iloc[0] > 0 and table.loc["exact_zeros"].iloc[0] == 1
    assert (tmp_path / "figure.png").stat().st_size > 10_000 and (tmp_path / "figure.report.ipynb").exists()
