"""A configuration comes back from its own file, over any preset; null is a value; old names are answered."""

import os
import shutil
from functools import partial

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field
from tiny import Scripted, train
from torch import nn

from nexuslab.config import (
    Budget,
    Config,
    Optim,
    Schedule,
    Section,
    Stop,
    Track,
    difference,
    fields_of,
    overlay,
    resolve,
    validated,
)
from nexuslab.core import ConfigError, RunError
from nexuslab.fit import fit
from nexuslab.setup import plan_steps
from nexuslab.jobs import said_by
from nexuslab.optim import learning_rate, make_optimizer
from nexuslab.run import Run, new_folder
from nexuslab.task import get_task


class Source(Section):
    path: str = Field("a", description="of a file")
    rate: float | None = Field(0.5, description="a number or nothing")
    sizes: tuple[int, ...] = Field((), description="a few")


class Stream(Section):
    address: str = Field("b", description="of a server")
    inner: Source | None = Field(None, description="a section in a section")


class RichData(Section):
    source: Source | None = Field(None, description="optional")
    always: Source = Field(Source(), description="required")
    either: Source | Stream | None = Field(None, description="one of two")
    deep: Stream | None = Field(None, description="optional, with an optional one inside")
    weights: dict[str, float] = Field({"a": 1.0}, description="a dictionary of numbers")
    parts: dict[str, Source] | None = Field(None, description="a dictionary of sections")


class RichConfig(Config):
    data: RichData = Field(default_factory=RichData, description="every kind of field")


text = st.text(st.characters(codec="utf-8"), max_size=6) | st.sampled_from(
    ["null", "1e-3", "yes", "~", "2020-01-01", "a.b"]
)
number = st.floats(allow_nan=False)
positive = st.floats(min_value=1e-300, max_value=1e300)
share = st.floats(min_value=0, max_value=1, exclude_max=True)
source = st.builds(Source, path=text, rate=st.none() | number, sizes=st.lists(st.integers(), max_size=3).map(tuple))
stream = st.builds(Stream, address=text, inner=st.none() | source)
data = st.builds(
    RichData,
    source=st.none() | source,
    always=source,
    either=st.none() | source | stream,
    deep=st.none() | stream,
    weights=st.dictionaries(text, number, max_size=3),
    parts=st.none() | st.dictionaries(text, source, max_size=2),
)
budget = st.builds(Budget, epochs=st.integers(1, 9)) | st.builds(
    Budget, steps=st.integers(1, 9), max_minutes=st.none() | positive
)
configurations = st.builds(
    RichConfig,
    system=st.just("rich"),
    seed=st.integers(0, 2**63 - 1),
    debug=st.booleans(),
    init_from=st.none() | text.filter(bool),
    data=data,
    budget=budget,
    optim=st.builds(Optim, lr=positive, clip=st.none() | positive, betas=st.tuples(share, share)),
    stop=st.builds(Stop, baseline=st.none() | number, monitor=text.map("val/x{}".format)),
    track=st.builds(Track, tags=st.lists(text, max_size=3).map(tuple), entity=st.none() | text),
)


def task_of(cfg: Config):
    """A system whose only preset is a configuration."""

    class Rich:
        name, presets = cfg.system, {cfg.preset: lambda: cfg}

    return Rich


EXAMPLES = int(os.environ.get("NEXUSLAB_EXAMPLES", "2000"))  # of a property
FULL = Source(path="full", rate=None, sizes=(1, 2))
PRESETS = [  # what a file may be read over: defaults, nothing in any optional place, something in every one
    RichConfig(system="rich", budget=Budget(epochs=1)),
    RichConfig(
        system="rich",
        data=RichData(always=Source(rate=None), weights={}),
        budget=Budget(steps=1),
        optim=Optim(clip=None),
        stop=Stop(baseline=None),
    ),
    RichConfig(
        system="rich",
        init_from="last",
        data=RichData(
            source=FULL, either=Stream(inner=FULL), deep=Stream(inner=FULL), weights={"b": 2.0}, parts={"a": FULL}
        ),
        budget=Budget(steps=2, max_minutes=1.0),
        stop=Stop(baseline=0.5),
        track=Track(tags=("a", "b"), entity="us"),
    ),
]


@settings(max_examples=EXAMPLES)
@given(preset=st.sampled_from(PRESETS), wanted=configurations)
def test_a_configuration_comes_back_from_its_file(preset, wanted, tmp_path_factory):
    """file -> object -> file is the identity, whatever preset the file is read over."""
    file = tmp_path_factory.getbasetemp() / "written.yaml"  # as config.yaml the folder would be a run
    file.write_text(written := wanted.yaml(), encoding="utf-8", newline="")
    found = resolve(task_of(preset), file=file)
    assert found == wanted and found.yaml() == written and not difference(found, wanted)
    assert (difference(preset, wanted) == {}) == (preset == wanted)


@settings(max_examples=300)
@given(before=configurations, other=configurations, key=st.sampled_from(sorted(fields_of(RichConfig))))
def test_one_key_is_changed_and_no_other(before, other, key):
    """Setting a key to another configuration's value changes that key alone; None around it begins."""
    if key in ("budget.epochs", "budget.steps") or key.startswith("data.either."):  # a pair; a choice, set whole
        return
    node = other.tree()
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    try:
        after = overlay(before, {key: node})
    except ConfigError:
        assert node is None and any(
            key.startswith(f"data.{s}.") for s in ("source", "deep")
        )  # absent there, and not optional
        return
    found = after.tree()
    for part in key.split("."):
        found = found[part]
    assert found == node
    begun = [key] + [s for s in ("data.source", "data.deep", "data.deep.inner") if key.startswith(f"{s}.")]
    assert all(any(k == b or k.startswith(f"{b}.") for b in begun) for k in difference(before, after))


def test_optional_sections_and_dictionaries():
    plain = RichConfig(system="rich")
    begun = overlay(
        plain, {"data.source.path": "x", "data.deep.inner.rate": None, "data.parts.new.path": "y", "data.weights.b": 2}
    )
    assert begun.data.source == Source(path="x") and begun.data.deep == Stream(inner=Source(rate=None))
    assert begun.data.parts == {"new": Source(path="y")} and begun.data.weights == {"a": 1, "b": 2}
    assert (
        overlay(begun, {"data.source": None, "data.deep": None, "data.parts": None, "data.weights": {"a": 1}}) == plain
    )
    assert (
        overlay(plain, {"data": {"source": {}}}).data.source == Source()
        and overlay(begun, {"data.source": {}}) == begun
    )
    assert overlay(begun, {"data": {"source": {"rate": 3}}}).data.source == Source(path="x", rate=3)
    assert overlay(plain, {"data.either": {"address": "c"}}).data.either == Stream(address="c")
    for bad in (
        {"data.source": 3},
        {"data.source": None, "data.source.path": "x"},
        {"data.source.pth": 1},
        {"data.weights.a": {"b": 1}},
        {"data.weights.nosuch": None},
        {"data.always": None},
        {"optim": None},
        {"optim": 3},
        {"wieghts": {}},
    ):
        with pytest.raises(ConfigError):
            overlay(plain, bad)
    with pytest.raises(ConfigError, match="RichData, which this class does not declare"):
        validated(Config, {"system": "rich", "data": RichData()})


def test_null_is_a_value(tmp_path):
    """In Python, in YAML and for one key: `optim.clip` None does not clip."""
    task = get_task("toy_graphs")
    assert (
        resolve(task).optim.clip == 1.0
        and resolve(task, overrides={"optim.clip": None, "guard.spike": None}).optim.clip is None
    )
    file = tmp_path / "c.yaml"
    file.write_text("optim: {clip: null}\ntrack.entity: null\n")
    assert resolve(task, file=file).optim.clip is None
    with pytest.raises(ConfigError, match="seed"):
        resolve(task, overrides={"seed": None})  # a value that this key does not have


def test_the_preset_of_a_file(tmp_path):
    """The file's preset is the one that trains; another beside it is refused."""
    task, file = get_task("toy_graphs"), tmp_path / "c.yaml"
    file.write_text("preset: smoke\nlr: 0.5\n")
    found = resolve(task, file=file)
    assert (
        found == resolve(task, "smoke", {"lr": 0.5}) == resolve(task, "smoke", file=file) and found.budget.epochs == 2
    )
    assert resolve(task, overrides={"preset": "smoke"}) == resolve(task, "smoke")
    for wrong in ({"preset": "base", "file": file}, {"file": file, "overrides": {"preset": "base"}}):
        with pytest.raises(ConfigError, match="preset is given twice"):
            resolve(task, **wrong)
    with pytest.raises(ConfigError, match="grew from"):
        overlay(found, {"preset": "base"})
    with pytest.raises(ConfigError, match="system is given twice"):
        resolve(task, overrides={"system": "toy_tokens"})


def test_debug_takes_a_small_model():
    """The sizes of the smallest preset, unless they are said; the kind of the model stays."""
    for name in ("circuits", "collatz"):
        task = get_task(name)
        for preset in task.presets:
            plain, small = resolve(task, preset), resolve(task, preset, {"debug": True})
            changed = {k for k in difference(plain, small)}
            assert changed <= {"debug"} | {k for k in changed if k.startswith("model.")}
            assert preset == "smoke" or {k for k in changed if k.startswith("model.")}, (
                f"{name} {preset} is not smaller"
            )
            assert plain.preset == preset and plain.model.kind == small.model.kind
    asked = resolve(get_task("collatz"), overrides={"debug": True, "model.d_model": 66})
    assert asked.model.d_model == 66 and asked.model.num_layers == 2


# every key of the older programs' files and flags, and where what it said is said now
OLD = """
    learning_rate:optim.lr num_epochs:budget.epochs max_epochs:budget.epochs max_steps:budget.steps
    batch_size:loader.batch_size scheduler:schedule.name lr_scheduler:schedule.name lr_decay:schedule.name
    warmup_steps:schedule.warmup_steps warmup_ratio:schedule.warmup_ratio min_learning_rate:schedule.min_lr
    min_lr:schedule.min_lr plateau_patience:schedule.patience plateau_factor:schedule.factor
    plateau_min_lr:schedule.min_lr step_size:schedule.step_size gamma:schedule.gamma early_stopping:stop.enabled
    early_stopping_patience:stop.patience early_stopping_min_delta:stop.min_delta early_stopping_mode:stop.mode
    early_stopping_restore_best:stop.restore_best restore_best_weights:stop.restore_best
    early_stopping_verbose:stop.verbose early_stopping_monitor:stop.monitor
    early_stopping_baseline:stop.baseline grad_clip:optim.clip grad_clip_norm:optim.clip
    max_grad_norm:optim.clip optimizer:optim.name weight_decay:optim.weight_decay betas:optim.betas
    eps:optim.eps gradient_accumulation_steps:optim.accumulate wandb_enabled:track.wandb use_wandb:track.wandb
    wandb_project:track.project wandb_entity:track.entity wandb_run_name:name wandb_tags:track.tags
    tensorboard_enabled:track.tensorboard experiment_name:name log_interval:track.log_every
    log_steps:track.log_every checkpoint_best_only:checkpoint.best_only save_best:checkpoint.best_only
    save_interval:checkpoint.save_every save_steps:checkpoint.save_every save_every:checkpoint.save_every
    eval_interval:checkpoint.eval_every eval_steps:checkpoint.eval_every
    save_total_limit:checkpoint.save_total_limit use_amp:compute.precision mixed_precision:compute.precision
    fp16:compute.precision device:compute.device compile:compute.compile num_workers:loader.num_workers
    pin_memory:loader.pin_memory shuffle:loader.shuffle eval_batch_size:loader.eval_batch_size
    data_dir:NEXUSLAB_HOME checkpoint_dir:NEXUSLAB_HOME log_dir:NEXUSLAB_HOME output_dir:NEXUSLAB_HOME
    resume_from:--resume resume_from_checkpoint:--resume seed:seed random_seed:seed
"""
COLLATZ = """
    vocab_size:data.base nhead:model.nhead num_heads:model.nhead heads:model.nhead d_model:model.d_model
    hidden_dim:model.d_model num_layers:model.num_layers depth:model.num_layers ssm_n_layers:model.num_layers
    dropout:model.dropout max_length:data.max_length max_seq_length:data.max_length architecture:model.kind
    base:data.base start_range:data.start_range num_samples:data.num_samples data_path:data.path
    h5_path:data.path
"""
CIRCUITS = """
    hidden_dim:model.hidden dropout:model.dropout train_ratio:data.fractions val_ratio:data.fractions
    test_ratio:data.fractions num_samples:data.circuits latent_dim:model.latent architecture:model.kind
    nhead:model.kind num_layers:model.rounds vocab_size:model.kind data_path:data.path
"""


@pytest.mark.parametrize(
    ("system", "pairs"), [("collatz", OLD), ("circuits", OLD), ("collatz", COLLATZ), ("circuits", CIRCUITS)]
)
def test_old_names_are_answered(system, pairs):
    """Every old key, bare and inside its old section, is a key here or is refused with the right one."""
    cfg = resolve(get_task(system))
    for old, new in (pair.split(":") for pair in pairs.split()):
        for name in (old, f"training.{old}"):
            try:
                assert overlay(cfg, {name: cfg.flat().get(new)}) == cfg and name == old
            except ConfigError as error:
                words = str(error.remedy).replace(",", " ").replace(";", " ").replace("?", " ").split()
                assert new in words, f"{name}: {error.remedy}"


def test_a_whole_old_file_is_answered_at_once(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("training: {num_epochs: 100, grad_clip: 1.0, wandb_enabled: true}\nlog_dir: logs\nbatch_sise: 3\n")
    with pytest.raises(ConfigError) as caught:
        resolve(get_task("toy_graphs"), file=file)
    for words in ("budget.epochs", "optim.clip", "track.wandb", "NEXUSLAB_HOME", "did you mean batch_size?"):
        assert words in caught.value.remedy


def test_a_run_with_every_kind_of_field_opens(tmp_path, monkeypatch):
    """A run directory's config.yaml is read back, also one of an older shape whose keys have moved."""

    class Newer(RichConfig):
        moved = {"data.old": "data.source.path", "model.gone": None}

    cfg = overlay(Newer(system="rich"), {"data.source.path": "x", "data.weights": {}, "optim.clip": None})
    run = Run.create(cfg, tmp_path)
    newer = task_of(Newer(system="rich", data={"weights": {"z": 3}}))
    monkeypatch.setattr("nexuslab.task.get_task", lambda name: newer)
    assert run.config == cfg
    monkeypatch.setattr(Config, "moved", {"optim.rate": "optim.lr"})  # a key of the engine's, beside the system's own
    tree = run.tree | {"data": {"old": "y", "weights": {}}, "model": {"gone": 3}}
    tree["optim"] = {k: v for k, v in tree["optim"].items() if k != "lr"} | {"rate": 0.5}
    run.write_text("config.yaml", yaml.safe_dump(tree))
    assert run.config == overlay(cfg, {"data.source.path": "y", "lr": 0.5})


def test_a_whole_name_comes_before_longer_ones(tmp_path):
    """An exact name beside its sibling of the same second, an experiment's name beside a longer one."""
    one, look = (Run.create(Config(system="rich", name=name), tmp_path) for name in ("first", "first-look"))
    fill = partial(shutil.copytree, one.path, dirs_exist_ok=True)
    two = Run(new_folder(one.path.parent, one.path.name, fill))  # as if both had been made in one second
    assert two.path.name == f"{one.path.name}-2"
    for run in (one, two, look):
        assert Run.open(run.path.name, tmp_path).path == run.path == Run.open(f"rich/{run.path.name}", tmp_path).path
    assert Run.open("first-look", tmp_path).path == look.path
    with pytest.raises(RunError, match="2 runs of that name"):
        Run.open("first", tmp_path)
    shutil.rmtree(two.path)
    assert Run.open("first", tmp_path).path == one.path and Run.open("look", tmp_path).path == look.path


def test_a_run_has_its_methods_from_the_start(tmp_path):
    """They stand in the class itself, so that no other module has to be imported first."""
    assert {"load", "checkpoint", "log"} <= set(vars(Run))
    assert Run.load.__module__ == Run.checkpoint.__module__ == "nexuslab.run"
    run = train(Scripted(steps=2, eval_every=1), tmp_path).run
    assert run.checkpoint("last").name == "step_00000002" and run.checkpoint() == run.checkpoint("best")
    assert run.log.splitlines() == (run.path / "log.txt").read_text().splitlines() and "step 2/2" in run.log


def test_epochs_of_an_endless_source(tmp_path):
    """A stream says what counts as an epoch; for one that says nothing, epochs are refused with the remedy."""
    task = get_task("toy_tokens")
    cfg = resolve(task, "smoke", {"epochs": 2, "eval_every": 1})
    done = fit(task, cfg, Run.create(cfg, tmp_path))
    history = done.run.history().dropna(subset=["val/loss"])
    assert done.step == 20 and history["step"].tolist() == [10, 20] and history["epoch"].tolist() == [1, 2]
    cfg = resolve(get_task("collatz"), overrides={"epochs": 2})
    splits = get_task("collatz").data(overlay(cfg, {"data.val_size": 1, "data.test_size": 1}), tmp_path)
    plan, total = plan_steps(cfg, splits.train, [])
    assert total == 2 * 2**15 // cfg.loader.batch_size and plan.epoch_of(total - 1) == 1
    splits.train.epoch_size = None
    with pytest.raises(ConfigError, match="give steps instead of epochs"):
        plan_steps(cfg, splits.train, [])


def test_old_options_are_answered(capsys):
    """Options of the older programs' commands, and keys that are no options here, are refused with what to write."""
    for verb, old, new in (
        ("train", "--experiment-name x", "--name "),
        ("train", "--early-stopping-patience 3", "--patience "),
        ("train", "--no-restore-best-weights", "--no-restore-best "),
        ("train", "--resume-from-checkpoint x.pt", "--resume "),
        ("train", "--checkpoint x.pt", "--resume "),
        ("train", "--num-epochs 3", "--epochs "),
        ("train", "--learning-rate 3", "--lr "),
        ("train", "--grad-clip 1", "-o optim.clip="),
        ("train", "--min-lr 1", "-o schedule.min_lr="),
        ("train", "--log-dir x", "NEXUSLAB_HOME"),
        ("sample", "--num-events 9", "--n "),
        ("tune", "--study_name x", "study-name"),
    ):
        with pytest.raises(SystemExit):
            said_by(verb, old.split())
        assert new in capsys.readouterr().err.split(": error: ")[-1], old


anything = share | share | share | st.floats(min_value=-1, max_value=2)
sections = {
    Optim: st.fixed_dictionaries({
        "name": st.sampled_from(["adamw", "adam", "sgd", "muon"]), "betas": st.tuples(anything, anything),
        "lr": anything, "eps": anything, "momentum": anything, "step_rms": anything, "weight_decay": anything,
    }),
    Schedule: st.fixed_dictionaries({
        "name": st.sampled_from(["cosine", "linear", "step", "constant"]), "min_lr": anything,
        "warmup_steps": st.integers(-1, 9), "warmup_ratio": st.none() | anything, "step_size": st.integers(-1, 9),
    }),
}


@given(optim=sections[Optim], schedule=sections[Schedule])
def test_every_accepted_optimiser_is_made(optim, schedule):
    """What the configuration accepts, the optimiser and the schedule take; what they refuse, it refuses."""
    try:
        optim, schedule = Optim(**optim), Schedule(**schedule)
    except ConfigError:
        return
    found = make_optimizer(optim, nn.Linear(2, 3))
    assert sum(len(g["params"]) for g in found.param_groups) == 2
    assert all(learning_rate(schedule, optim.lr, step, 20) >= 0 for step in range(20))


def test_keys_of_dictionaries_may_hold_dots_and_entries_can_go():
    """An entry by its own name, a field of an entry, an entry that is removed; nothing else changes."""
    given = {"weights": {"a.b": 1.0, "c": 2.0}, "parts": {"x.y": Source(), "z": Source()}}
    base = RichConfig(system="rich", data=given)
    found = overlay(base, {"data.weights.a.b": 3.0, "data.weights.c": None, "data.weights.d.e.f": 4.0}).data.weights
    assert found == {"a.b": 3.0, "d.e.f": 4.0}
    parts = overlay(base, {"data.parts.x.y.rate": None, "data.parts.z": None, "data.parts.new.1.path": "p"}).data.parts
    assert parts == {"x.y": Source(rate=None), "new.1": Source(path="p")}
    assert overlay(base, {"data": {"weights": {"only": 1.0}}}).data.weights == {"only": 1.0}
    with pytest.raises(ConfigError, match="data.weights.nosuch"):
        overlay(base, {"data.weights.nosuch": None})


@pytest.mark.parametrize("changes", [
    {"data.weights.a": True}, {"data": {"weights": {"b": False}}}, {"data.source": {"sizes": [True]}},
    {"data.parts": {"x": {"rate": True}}}, {"optim.betas": [True, 0.9]},
])
def test_true_is_no_number_anywhere(changes):
    with pytest.raises(ConfigError, match="boolean"):
        overlay(RichConfig(system="rich"), changes)
