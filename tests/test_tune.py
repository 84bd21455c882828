"""Studies: bad trials are cut short, every storage goes on where it stood, and the best configuration trains."""
import errno
import json
import math
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import time
import warnings
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from tiny import Scripted, train

from nexuslab.config import overlay, resolve
from nexuslab.core import ConfigError, FileError, Interrupted, NexusError
from nexuslab.fit import fit
from nexuslab.watch import CHECK_SECONDS
from nexuslab.jobs import said_by
from nexuslab.parameters import job_notebooks, parameters_of
from nexuslab.plans import configured
from nexuslab.run import Run, find_runs
from nexuslab.task import get_task, list_tasks
from nexuslab.tune import Journal, Pruner, StudyError, importances, open_storage, open_study, searched, tune


@pytest.fixture(autouse=True)
def silent():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def configuration(**changes):
    return resolve(get_task("toy_tokens"), "smoke", {"steps": 12, "eval_every": 3, **changes})


def states(study) -> list[TrialState]:
    return [t.state for t in study.get_trials(deepcopy=False)]


class Graded(Scripted):
    """A trial's loss is its number, so that the median is known: trials from the sixth on are worse than it."""

    def space(self, trial):
        self.number = trial.number
        return {"optim.lr": 0.01}

    def step(self, model, batch, cfg, at):
        self.script = lambda step: float(self.number)
        return super().step(model, batch, cfg, at)


def test_pruning_prunes(tmp_path):
    """A trial that is worse than the median is stopped at its first evaluation, and its run says why."""
    task = Graded(steps=12, eval_every=3)
    told = []
    done = tune(task, task.config, trials=7, root=tmp_path, write=told.append)
    assert states(done.study) == [TrialState.COMPLETE] * 4 + [TrialState.PRUNED] * 3
    assert done.study.best_trial.number == 0 and done.study.best_value == 0
    for trial in done.study.get_trials():
        status = Run(tmp_path / "runs" / "tiny" / trial.user_attrs["run"]).status
        assert status["step"] == (12 if trial.number < 4 else 3)
        assert (status["state"] == "stopped" and status["reason"].startswith("pruned")) == (trial.number >= 4)
    assert [t for t in told if t.startswith("best trial: 0\nvalue: 0\nparameters:")]


class Disturbed(Scripted):
    """The second trial is asked to end in its sixth step: by SIGTERM, or by a request in its run directory."""

    def __init__(self, root, act):
        super().__init__(steps=12, eval_every=3)
        self.root, self.act = root, act

    def space(self, trial):
        self.number = trial.number
        return {"optim.lr": trial.suggest_float("lr", 0.01, 0.1)}

    def step(self, model, batch, cfg, at):
        if self.number == 1 and at.training and at.step == 5:
            self.act(self)
        return super().step(model, batch, cfg, at)

    def request(self):
        find_runs(self.root)[-1].request_stop()
        time.sleep(2 * CHECK_SECONDS)


def test_a_signal_ends_the_study(tmp_path, capfd):
    """The trial that it cut short is no result: it fails without a traceback, and is what the next call begins with."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task = Disturbed(tmp_path, lambda task: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="SIGTERM in trial 1"):
        tune(task, task.config, trials=4, root=tmp_path, write=lambda text: None)
    assert signal.getsignal(signal.SIGTERM) == before and "Traceback" not in capfd.readouterr().err
    study = open_study("tiny-base", open_storage(None, tmp_path / "runs" / ".studies" / "tiny-base"), task.config)
    assert states(study) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING]
    assert find_runs(tmp_path)[-1].status["state"] == "interrupted"
    done = tune(task, task.config, trials=4, root=tmp_path, write=lambda text: None)
    assert states(done.study)[:3] == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]
    assert sum(s in (TrialState.COMPLETE, TrialState.PRUNED) for s in states(done.study)) == 4
    assert done.study.trials[2].params == done.study.trials[1].params


def test_a_trial_that_a_person_stops_is_no_result(tmp_path):
    task = Disturbed(tmp_path, Disturbed.request)
    done = tune(task, task.config, trials=3, root=tmp_path, write=lambda text: None)
    assert states(done.study) == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE]


def test_a_study_refuses_what_it_would_ignore(tmp_path):
    task = Scripted(steps=12, eval_every=3)
    with pytest.raises(ConfigError, match="compute.processes"):
        tune(task, overlay(task.config, {"processes": 2}), trials=1, root=tmp_path)
    for name, text in (("notes.txt", "a: [mine"), ("other.yaml", "system: other\n"), ("run/status.json", "{}"),
                       ("run/config.yaml", task.config.yaml()), ("best.yaml", task.config.yaml())):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    kept = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for wrong, words in (
        ({"output": tmp_path / "notes.txt"}, "something else"), ({"output": tmp_path / "other.yaml"}, "something else"),
        ({"output": tmp_path / "run" / "config.yaml"}, "directory of a run"),
        ({"output": tmp_path / "run" / "new.yaml"}, "directory of a run"),
        ({"trials": -3}, "trials"), ({"trials": 0}, "trials"), ({"trials": 2.5}, "trials"),
        ({"output": tmp_path}, "a folder"),
        ({"study_name": "a" * 95}, "90 letters"), ({"study_name": "é"}, "90 letters"),
        ({"cfg": overlay(task.config, {"name": "mine"}), "study_name": "yours"}, "one name"),
    ):
        with pytest.raises((ConfigError, StudyError), match=words):
            tune(**{"task": task, "cfg": task.config, "trials": 1, "root": tmp_path} | wrong)
    assert not (tmp_path / "runs").exists() and all(p.read_bytes() == data for p, data in kept.items())
    named = tune(task, overlay(task.config, {"name": "mine"}), trials=1, root=tmp_path, output=tmp_path / "best.yaml",
                 write=lambda text: None)
    assert named.study.study_name == "mine" and named.file.read_text() == named.config.yaml()


def test_what_no_trial_could_train_is_refused_at_the_start(tmp_path):
    """Once, before there is a study or a run: each trial would refuse it."""
    task = Scripted(steps=4)
    for wrong in ({"stop.monitor": "val/los"}, {"device": "cuda:99"}):
        with pytest.raises(NexusError, match="val/los|cuda"):
            tune(task, overlay(task.config, wrong), trials=2, root=tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_a_storage_that_fails_at_the_end_of_a_trial_is_told_and_gone_on_with(tmp_path, monkeypatch):
    """The trial is that of a call that has ended: the next call, of the same process, does it again."""
    task, failing = Scripted(steps=4), []
    write = Journal.write_at
    monkeypatch.setattr(Journal, "write_at", lambda self, offset, data: (
        write(self, offset, data) if b'"op_code":6' not in data or failing else failing.append(1) or raise_full()))
    ask = lambda: tune(task, task.config, trials=1, root=tmp_path, write=lambda text: None)
    with pytest.raises(FileError, match="tuning"):
        ask()
    assert failing and states(ask().study) == [TrialState.FAIL, TrialState.COMPLETE]


def raise_full():
    raise OSError(errno.ENOSPC, "No space left on device")


def asked(*words: str):
    """What the job makes of a command line, before any trial."""
    said, _ = said_by("tune", list(words))
    return configured("tune", {n: p.default for n, p in parameters_of(job_notebooks()["tune"]).items()} | said)[1]


@pytest.mark.parametrize("system", list_tasks())
def test_what_the_trials_would_set_is_refused(system, tmp_path, monkeypatch):
    """Each key of each system's search space, with any value, by -o and in a file; other keys are done."""
    monkeypatch.setenv("NEXUSLAB_HOME", str(tmp_path))
    usual = asked("--system", system, "--preset", "smoke")
    keys = searched(get_task(system), usual)
    assert "optim.lr" in keys and keys <= usual.flat().keys()
    for key in keys:
        value = usual.flat()[key]
        with pytest.raises(ConfigError, match=key):
            asked("--system", system, "--preset", "smoke", "-o", f"{key}={value}")
    with pytest.raises(ConfigError, match="optim.lr"):
        asked("--system", system, "--preset", "smoke", "-o", "lr=0.01")
    file = tmp_path / "c.yaml"
    file.write_text(overlay(usual, {"lr": 0.0123}).yaml())
    with pytest.raises(ConfigError, match="optim.lr"):
        asked("--system", system, "--config", str(file))
    file.write_text(overlay(usual, {"seed": 3}).yaml())  # a whole configuration, in which the preset set the rate
    assert asked("--system", system, "--config", str(file), "-o", "optim.eps=0.5").optim.eps == 0.5
    for words in (["--trials", "-3"], ["-o", "processes=2"], ["--study-name", "a/b"], ["--output", str(tmp_path)]):
        with pytest.raises((ConfigError, StudyError)):
            asked("--system", system, "--preset", "smoke", *words)


def test_pruner_reports_evaluations_only(tmp_path):
    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    trial = study.ask()
    train(Scripted(script=lambda step: 1 / step, eval_every=4), tmp_path, [Pruner(trial, "val/loss")])
    assert study.trials[0].intermediate_values == pytest.approx({4: 0.25, 8: 0.125, 12: 1 / 12})


@pytest.mark.parametrize("kind", ["journal", "sqlite", "default"])
def test_storage(kind, tmp_path):
    """A study goes on in a second call, from the storage alone."""
    address = {
        "journal": str(tmp_path / "study.log"), "sqlite": f"sqlite:///{tmp_path / 'study.db'}", "default": None
    }[kind]
    task, cfg = get_task("toy_tokens"), configuration(steps=4)
    tune(task, cfg, trials=2, storage=address, root=tmp_path, write=lambda text: None)
    again = tune(task, cfg, trials=5, storage=address, root=tmp_path, write=lambda text: None)
    assert len(again.trials) == 5 and len(list((tmp_path / "runs" / "toy_tokens").iterdir())) == 5
    place = {
        "journal": "study.log", "sqlite": "study.db", "default": "runs/.studies/toy_tokens-smoke/journal.log"
    }[kind]
    assert (tmp_path / place).stat().st_size > 0
    if kind == "default":
        found = importances(again.study)
        assert set(found.index) == {"optim.lr", "model.hidden"} and found.sum() == pytest.approx(1)


def test_best_configuration_trains(tmp_path):
    task = get_task("toy_tokens")
    done = tune(
        task, configuration(steps=6), trials=2, study_name="mine", root=tmp_path,
        output=tmp_path / "out" / "best_config.yaml", write=lambda text: None,
    )
    cfg = resolve(task, file=tmp_path / "out" / "best_config.yaml")
    assert done.file == tmp_path / "out" / "best_config.yaml" and cfg == done.config
    chosen = done.study.best_trial.user_attrs["overrides"]
    assert cfg.optim.lr == chosen["optim.lr"] and cfg.model.hidden == chosen["model.hidden"]
    result = fit(task, cfg, Run.create(cfg, tmp_path))
    assert result.best == done.study.best_value  # the same seed and configuration: the same figure


def test_another_question_is_refused(tmp_path):
    """A stored study is gone on with for the same system, scalar and configuration only."""
    task, cfg = get_task("toy_tokens"), configuration(steps=3)
    address = str(tmp_path / "study.log")
    tune(task, cfg, trials=1, study_name="mine", storage=address, root=tmp_path, write=lambda text: None)
    for changes in ({"monitor": "val/token_accuracy", "stop.mode": "max"}, {"batch_size": 2}, {"seed": 3}):
        with pytest.raises(StudyError, match="another study's question"):
            tune(
                task, overlay(cfg, changes), trials=1, study_name="mine", storage=address, root=tmp_path,
                write=lambda text: None,
            )
    graphs = get_task("toy_graphs")
    with pytest.raises(StudyError, match="toy_tokens -> toy_graphs"):
        tune(
            graphs, resolve(graphs, "smoke"), trials=1, study_name="mine", storage=address, root=tmp_path,
            write=lambda text: None,
        )


def test_unusable_storage(tmp_path):
    foreign = tmp_path / "notes.log"
    foreign.write_text("not a journal\n", encoding="utf-8")
    with pytest.raises(StudyError, match="no journal"):
        open_storage(str(foreign), tmp_path)
    (tmp_path / "other.db").write_bytes(b"not a database" * 100)
    for address in (f"sqlite:///{tmp_path / 'other.db'}", "postgresql://nobody@127.0.0.1:9/none"):
        with pytest.raises(StudyError, match="study storage"):
            open_storage(address, tmp_path)
    with pytest.raises(StudyError, match="study name"):
        tune(get_task("toy_tokens"), configuration(), trials=1, study_name="a/b", root=tmp_path)


def test_failing_trials_are_recorded(tmp_path):
    """A trial that cannot train fails alone; a study in which none completes says so."""
    task = Scripted(factor=lambda step: float("nan"), script=lambda step: 1.0, steps=3)
    with pytest.raises(StudyError, match="2 trials, none complete"):
        tune(task, task.config, trials=2, root=tmp_path, write=lambda text: None)
    blind = Scripted(script=lambda step: float("nan"), steps=3)
    with pytest.raises(StudyError, match="none complete"):
        tune(blind, blind.config, trials=1, root=tmp_path, write=lambda text: None)
    with pytest.raises(ConfigError, match="unknown preset"):
        resolve(get_task("toy_tokens"), "nothing")


def test_a_study_whose_models_do_not_fit_the_weights_to_begin_with_ends(tmp_path):
    """It ends at the first trial that cannot begin, with one error that says what to do."""
    task, told = get_task("toy_tokens"), []
    parent = fit(task, configuration(steps=2, **{"model.hidden": 24}), Run.create(configuration(), tmp_path)).run
    with pytest.raises(StudyError, match="(?s)model takes the weights of.*drop init_from"):
        tune(task, configuration(steps=2, init_from=parent.path.name), 6, root=tmp_path, write=told.append)
    assert len(list((tmp_path / "runs" / "toy_tokens").iterdir())) == 2 + len(told)  # the parent, the one that failed


# ---- what a storage says


STARTED = "2026-01-01T00:00:00.000000+00:00"
QUEUED = {"op_code": 4, "worker_id": "other", "study_id": 0, "datetime_start": None, "state": 4}
HERE = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": 1.0}  # a process that does not exist


def running(*attributes: dict) -> list[dict]:
    """A trial that began long ago and has not ended, as lines of a journal."""
    begun = {"op_code": 4, "worker_id": "other", "study_id": 0, "datetime_start": STARTED}
    return [begun, *({"op_code": 8, "worker_id": "other", "trial_id": 1, "user_attr": a} for a in attributes)]


def replaced(key: str, value: object):
    """The lines with another value of a key, wherever it stands: in a line, or in the attributes of a trial."""
    def change(line: dict) -> dict:
        if key in line.get("user_attr", ()):
            return line | {"user_attr": {key: value}}
        return line | {key: value} if line.get(key) is not None else line

    return lambda lines: [change(line) for line in lines]


def added(*lines: dict):
    return lambda before: [*before, *lines]


DAMAGE = {
    "process 5": added(*running({"process": 5})), "process {}": added(*running({"process": {}})),
    "pid text": added(*running({"process": HERE | {"pid": "x"}})),
    "run 7": added(*running({"process": HERE}, {"run": 7})),
    "run outside": added(*running({"process": HERE}, {"run": "../../../victim"})),
    "run a parent": added(*running({"process": HERE}, {"run": ".."})),
    "run a link": added(*running({"process": HERE}, {"run": "link"})),
    "run of NUL": added(*running({"process": HERE}, {"run": "a\0b"})),
    "run too long": added(*running({"process": HERE}, {"run": "a" * 5000})),
    "seen": added(*running({"seen": "now"})),
    "no overrides": lambda lines: [line for line in lines if "overrides" not in line.get("user_attr", ())],
    "no run": lambda lines: [line for line in lines if "run" not in line.get("user_attr", ())],
    "overrides a list": replaced("overrides", [1]), "overrides unknown": replaced("overrides", {"nosuch.key": 1}),
    "values text": replaced("values", ["abc"]), "values many": replaced("values", [1.0, 2.0]),
    "param text": replaced("param_value_internal", "abc"), "report text": replaced("intermediate_value", "abc"),
    "queued": added(QUEUED | {"system_attrs": {"fixed_params": 5}}),
    "queued text": added(QUEUED | {"system_attrs": {"fixed_params": {"lr": "abc"}}}),
    "no start": added({"op_code": 4, "worker_id": "other", "study_id": 0, "datetime_start": None}),
    "direction": replaced("directions", [2]),
}


class Searching(Scripted):
    def space(self, trial):
        return {"optim.lr": trial.suggest_float("lr", 0.01, 0.1)}


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A study of one trial, as a folder and its task."""
    task, root = Searching(steps=4), tmp_path_factory.mktemp("studied")
    tune(task, task.config, trials=1, root=root, write=lambda text: None)
    return task, root


def rewritten(studied, root: Path, change) -> Path:
    """A copy of a study with other lines in its journal, without checksums."""
    shutil.copytree(studied[1], root)
    journal = root / "runs" / ".studies" / "tiny-base" / "journal.log"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines = change([{k: v for k, v in line.items() if k != "check"} for line in lines])
    journal.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    (journal.parent / ".journal.log.end").unlink()
    return journal


def kept(folder: Path) -> dict:
    """Every file of a folder with its content."""
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_a_journal_says_of_a_trial_is_checked_before_it_is_used(kind, studied, tmp_path):
    """One error names journal and trial; no trial begins or ends, and neither a run nor anything else is touched."""
    task, root = studied[0], tmp_path / "project"
    journal = rewritten(studied, root, DAMAGE[kind])
    victim = tmp_path / "victim"
    (victim / "checkpoints" / ".step_00000001.tmp").mkdir(parents=True)
    (victim / "status.json").write_text('{"state": "created"}')
    (root / "runs" / "tiny" / "link").symlink_to(victim)
    whole, before = journal.read_bytes(), (kept(victim), kept(root / "runs" / "tiny"))
    with pytest.raises(StudyError, match="direction" if kind == "direction" else "trial [01]") as told:
        tune(task, task.config, trials=2, root=root, write=lambda text: None)
    assert kind == "direction" or str(journal) in str(told.value)
    assert (kept(victim), kept(root / "runs" / "tiny")) == before
    assert journal.read_bytes().startswith(whole)
    assert not re.search(rb'"op_code":[4-9]', journal.read_bytes()[len(whole):])


def test_what_a_database_says_of_a_trial_is_checked_too(tmp_path):
    """As of a journal; a database has errors of its own besides."""
    task, address = Searching(steps=4), f"sqlite:///{tmp_path / 'study.db'}"
    ask = lambda: tune(task, task.config, trials=1, storage=address, root=tmp_path, write=lambda text: None)
    study = ask().study
    study.ask().set_user_attr("run", "../victim")
    with pytest.raises(StudyError, match="trial 1.*study.db"):
        ask()
    with sqlite3.connect(tmp_path / "study.db") as base:
        base.execute("update trials set state = 'GONE'")
    with pytest.raises(StudyError, match="GONE"):
        ask()


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_value_that_is_not_finite_is_never_the_best(value, studied, tmp_path):
    rewritten(studied, tmp_path / "project", replaced("values", [value]))
    done = tune(studied[0], studied[0].config, trials=2, root=tmp_path / "project", write=lambda text: None)
    assert states(done.study) == [TrialState.COMPLETE] * 2
    assert done.config.optim.lr == done.study.trials[1].params["lr"] and done.best.number == 1


@pytest.mark.parametrize("attributes", [(), ({"run": "somewhere"},)])
def test_a_trial_of_a_machine_that_vanished_is_done_again(attributes, studied, tmp_path):
    """It began long ago, nothing was heard of it since, and it has no run that could be seen."""
    process = {"process": {"host": "vanished", "pid": 1, "started": 1.0}}
    rewritten(studied, tmp_path / "project", added(*running(process, *attributes)))
    done = tune(studied[0], studied[0].config, trials=2, root=tmp_path / "project", write=lambda text: None)
    assert states(done.study) == [TrialState.COMPLETE, TrialState.FAIL, TrialState.COMPLETE]


def test_lines_without_checksums_are_told(studied, tmp_path):
    """A journal without any is as old ones were; behind a line that has one, each must have one."""
    journal = rewritten(studied, tmp_path / "project", lambda lines: lines)
    with pytest.warns(UserWarning, match="carry no checksum") as told:
        done = tune(studied[0], studied[0].config, trials=2, root=tmp_path / "project", write=lambda text: None)
    assert len(told.list) == 1 and len(done.trials) == 2
    bare = journal.read_text().count("\n") - journal.read_text().count('"check"')
    with pytest.warns(UserWarning, match=f"first {bare} lines"):  # what was added since has checksums
        open_storage(str(journal), tmp_path)
    lines = journal.read_text().splitlines()
    for stripped in range(bare + 1, len(lines)):
        rest = [re.sub(r',"check":"\w+"', "", line) for line in lines[stripped:]]
        journal.write_text("\n".join([*lines[:stripped], *rest]) + "\n")
        with pytest.raises(StudyError, match=f"line {stripped + 1} "):
            open_storage(str(journal), tmp_path)


PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) + (
    [Path(shutil.which("initdb"))] if shutil.which("initdb") else []
)


@pytest.fixture
def postgres(tmp_path_factory):
    """A private PostgreSQL cluster on a free port, as a user who may run one."""
    if not PROGRAMS:
        pytest.skip("PostgreSQL's initdb is not installed (make tools)")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    import pwd

    programs = PROGRAMS[0].resolve().parent
    options = {}
    folder = Path("/tmp") / f"nexuslab-pg-{os.getpid()}"  # a short path: sockets' names are limited to 107 characters
    folder.mkdir(mode=0o755)
    if os.getuid() == 0:
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            shutil.rmtree(folder)
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        options = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program, *arguments):
        done = subprocess.run(
            [programs / program, "-D", folder / "data", *arguments], cwd="/", capture_output=True, text=True,
            timeout=120, **options,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        call("initdb", "-U", "optuna", "-A", "trust", "--no-sync")
        call(
            "pg_ctl", "-w", "-l", folder / "log", "-o",
            f"-p {port} -k {folder} -c fsync=off -c listen_addresses=127.0.0.1", "start",
        )
        try:
            yield f"postgresql://optuna@127.0.0.1:{port}/postgres"
        finally:
            call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_postgresql(postgres, tmp_path):
    """A study in a database that several machines could share."""
    task, cfg = get_task("toy_tokens"), configuration(steps=4)
    for trials in (1, 3):
        done = tune(task, cfg, trials=trials, storage=postgres, root=tmp_path, write=lambda text: None)
    assert states(done.study) == [TrialState.COMPLETE] * 3
    fresh = open_study("toy_tokens-smoke", open_storage(postgres, tmp_path), cfg)
    assert [t.value for t in fresh.trials] == [t.value for t in done.study.trials]
