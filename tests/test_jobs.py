"""The jobs as people start them: papermill on a terminal, redirected, piped; the command; every job on every system."""
import functools
import hashlib
import importlib
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from kills import execute, in_child

from nexuslab.config import SHORT, Config
from nexuslab.core import CheckpointError, NexusError, project_root
from nexuslab.jobs import main
from nexuslab.kernels import new_report, result_of, run_job
from nexuslab.parameters import (
    INJECTED,
    job_notebooks,
    parameters_cell,
    parameters_of,
    read_parameters,
    released_notebook,
)
from nexuslab.plans import begin
from nexuslab.run import Run, find_runs
from nexuslab.task import CanPredict, get_task, list_tasks

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
SMOKE = ["-p", "preset", "smoke", "-p", "system", "toy_graphs", "-p", "epochs", "1"]


def fingerprint() -> str:
    return hashlib.sha256((ROOT / "nbs" / "03_train.ipynb").read_bytes()).hexdigest()


def whole(home: Path) -> Run:
    """The one run under `home`, with every part of its record."""
    [run] = find_runs(home)
    assert run.status["state"] == "finished"
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "report.ipynb", "log.txt"):
        assert (run.path / name).stat().st_size > 0, name
    report = json.loads((run.path / "report.ipynb").read_text())
    assert str(run.path) in json.dumps(report["cells"][-1]["outputs"])
    assert {"loss", "auroc"} <= run.evaluation["test"]["figures"].keys()
    assert not list((home / "runs" / ".jobs").rglob("*.ipynb")), "the report is kept once"
    return run


def on_a_terminal(command: list[str], cwd: Path) -> tuple[int, str]:
    """Run a command with a pseudo-terminal as its standard input, output and error."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execv(command[0], command)
    text, deadline = b"", time.monotonic() + 180
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 1)[0]:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            if not data:
                break
            text += data
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text.decode(errors="replace")


def test_papermill_on_a_terminal(home):
    before = fingerprint()
    code, text = on_a_terminal([str(BIN / "papermill"), "03_train.ipynb", *SMOKE], ROOT / "nbs")
    assert code == 0, text[-3000:]
    assert whole(home).tree["budget"]["epochs"] == 1 and fingerprint() == before


def test_papermill_off_a_terminal(home, tmp_path):
    """Its standard input is empty, its output a file."""
    before = fingerprint()
    with open(tmp_path / "out.txt", "w") as out:
        done = subprocess.run(
            [BIN / "papermill", "nbs/03_train.ipynb", *SMOKE], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out,
            stderr=subprocess.STDOUT, timeout=180,
        )
    assert done.returncode == 0, (tmp_path / "out.txt").read_text()[-3000:]
    whole(home)
    told = (tmp_path / "out.txt").read_text()
    assert fingerprint() == before and "cells" not in told and "eavesdropping" not in told
    assert re.search(r"Output Notebook: .+\.ipynb, until the job has a folder", told)


def test_explicit_output_is_respected(home, tmp_path):
    """Its standard input is a pipe."""
    out = tmp_path / "mine.ipynb"
    done = subprocess.run(
        [BIN / "papermill", "nbs/03_train.ipynb", str(out), *SMOKE], cwd=ROOT, stdin=subprocess.PIPE,
        capture_output=True, text=True, timeout=180,
    )
    assert done.returncode == 0 and out.exists(), done.stderr[-3000:]
    assert len(find_runs(home)) == 1


def test_unknown_parameter_stops_before_any_work(home):
    done = subprocess.run(
        [BIN / "papermill", "nbs/03_train.ipynb", "-p", "epohcs", "200"], cwd=ROOT, capture_output=True, text=True,
        timeout=180,
    )
    assert done.returncode != 0 and "did you mean epochs?" in done.stderr
    assert not find_runs(home) and not (home / "data").exists()


def test_papermill_refuses_the_notebook_of_another_checkout(home, tmp_path):
    """With PYTHONPATH naming one checkout, and the notebook in another, papermill would take it for its output."""
    other = tmp_path / "other" / "nbs" / "03_train.ipynb"
    other.parent.mkdir(parents=True)
    shutil.copy(ROOT / "nbs" / "03_train.ipynb", other)
    shutil.copy(ROOT / "settings.ini", other.parents[1])
    before = other.read_bytes()
    done = subprocess.run([BIN / "papermill", other, *SMOKE], cwd=tmp_path, stdin=subprocess.PIPE, capture_output=True,
                          text=True, timeout=180)
    assert done.returncode == 2 and "belongs to another checkout" in done.stderr and str(ROOT) in done.stderr
    assert "Traceback" not in done.stderr and other.read_bytes() == before and not find_runs(home)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--epohcs", "3"], "did you mean epochs"),
        (["trian"], "did you mean train?"),
        (["train", "-o", "model.hidden"], "key=value"),
        (["train", "--system", "circuit"], "did you mean circuits?"),  # found inside the job
    ],
)
def test_the_command_refuses_bad_input(home, arguments, words, capfd):
    try:
        code = main(arguments)
    except SystemExit as refused:
        code = refused.code
    captured = capfd.readouterr()
    assert code != 0 and words in captured.err + captured.out
    assert not find_runs(home)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"system": "circuit"}, "did you mean circuits?"),
        ({"preset": "bsae"}, "did you mean base?"),
        ({"epochs": -3}, "budget.epochs"),
        ({"epochs": "many"}, "budget.epochs"),
        ({"epochs": 3, "steps": 10}, "one of them"),
        ({"overrides": {"model.hiden": 3}}, "did you mean model.hidden?"),
        ({"overrides": {"grad_clip_norm": 3}}, "it is called optim.clip here"),
        ({"overrides": "seed"}, "key=value"),
        ({"resume": "nothing"}, "run 'nothing'"),
        ({"config": "nothing.yaml"}, "configuration file"),
        ({"device": "cuda:99"}, "compute.device"),
        ({"init_from": "nothing"}, "init_from 'nothing'"),
        ({"epochs": 3, "overrides": {"epochs": 4}}, "epochs is given twice"),
    ],
)
def test_a_job_refuses_bad_input_before_any_work(home, given, words):
    defaults = {name: p.default for name, p in parameters_of(job_notebooks()["train"]).items()}
    with pytest.raises(NexusError, match=re.escape(words)):
        begin(defaults | given)
    assert not find_runs(home) and not (home / "data").exists()


def test_every_job_declares_its_parameters():
    jobs = job_notebooks()
    assert list(jobs) == ["prepare", "inspect", "train", "evaluate", "tune", "sample", "analyse", "compare", "seeds"]
    for verb, path in jobs.items():
        assert len(parameters_of(path)) >= 2, verb
    train = set(parameters_of(jobs["train"]))
    known = (
        "system preset config name epochs steps batch_size lr scheduler seed device precision data_path resume "
        "init_from early_stopping patience restore_best debug wandb tensorboard processes overrides"
    )
    assert set(known.split()) <= train
    assert not INJECTED & train
    assert all(name in SHORT or name in Config.model_fields for name in train - {"config", "resume", "overrides"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """For each system a smoke run made by the command, once."""
    made = {}

    def make(system: str) -> Path:
        if system not in made:
            home = tmp_path_factory.mktemp(system)
            environment = os.environ | {"NEXUSLAB_HOME": str(home)}
            done = subprocess.run(
                [BIN / "nexuslab", "train", "--system", system, "--preset", "smoke"], env=environment,
                capture_output=True, text=True, timeout=300, cwd=home,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            # the last line is the run directory
            assert Path(done.stdout.strip().splitlines()[-1]) == find_runs(home)[0].path
            assert "val " in done.stdout and "new best" in done.stdout
            made[system] = home
        return made[system]

    return make


def in_a_fork(verb: str, parameters: dict) -> None:
    """A job's cells with its report, without the seconds that a kernel takes to start."""
    code, said = in_child(functools.partial(execute, verb, parameters))
    assert code == 0, said


@pytest.mark.parametrize("system", [name for name in list_tasks() if not name.startswith("toy_")])
@pytest.mark.xdist_group("jobs")
def test_every_job_on_every_system(system, trained, monkeypatch):
    """The toys' jobs are run one by one in the other tests."""
    for name in ("diffusers", "nbconvert", "sklearn.ensemble"):  # forks then need not import them again and again
        importlib.import_module(name)
    home = trained(system)

    def ask(verb: str, parameters: dict) -> None:
        by_a_kernel = system == "circuits" and verb in ("prepare", "inspect", "analyse")  # other verbs: other tests
        run_job(verb, parameters, quiet=True) if by_a_kernel else in_a_fork(verb, parameters)

    monkeypatch.setenv("NEXUSLAB_HOME", str(home))
    monkeypatch.delenv("NEXUSLAB_REPORT", raising=False)
    [run] = find_runs(home)
    best = run.history()["val/loss"].min()
    assert run.status["best"] == best
    ask("prepare", {"system": system, "preset": "smoke"})
    assert list((home / "data" / system).glob("*.report.ipynb"))
    ask("inspect", {"system": system, "preset": "smoke", "steps": 20, "largest": 8})
    figures = run.evaluation["test"]["figures"]
    ask("evaluate", {"run": "last", "split": "val", "untrained": False})
    assert abs(run.evaluation["val"]["figures"]["loss"] - best) < 1e-5 * abs(best)
    assert run.evaluation["test"]["figures"] == figures
    assert "untrained" in run.evaluation["test"]["baselines"]
    answers = isinstance(get_task(system), CanPredict)
    inputs = {"collatz": [27, 127], "language": ["def f(", "import "]}.get(system)
    asked = {"inputs": inputs} if inputs else {} if answers else {"n": 5}
    ask("sample", {"run": run.path.name, **asked})
    made = list((run.path / "samples").glob("answers-*.csv" if answers else "5-*.h5"))
    assert len(made) == 1 and (not answers or len(pd.read_csv(made[0])) == 2)
    views = list(get_task(system).views())[:2]  # the contract draws all of them
    ask("analyse", {"run": "last", "views": views})
    assert {path.stem for path in (run.path / "figures").iterdir()} >= set(views)
    ask("compare", {"runs": [run.path.name]})
    assert (home / "runs" / ".compare" / "comparison.csv").exists()


@pytest.mark.xdist_group("jobs")
def test_tuning_job_and_its_best_configuration(home, monkeypatch):
    """In a home of its own: it makes runs, and the other tests ask for the one run of theirs."""
    monkeypatch.delenv("NEXUSLAB_REPORT", raising=False)
    asked, address = {"system": "toy_graphs", "preset": "smoke", "trials": 3, "study_name": "three"}, new_report("tune")
    run_job("tune", asked, quiet=True, address=address)
    told = result_of(address)  # of three trials no importance is told, and the job comes to its end
    assert told["importances"] == {} and told["best"]["parameters"].keys() == {"optim.lr"}
    best = home / "runs" / ".studies" / "three" / "best_config.yaml"
    found = yaml.safe_load(best.read_text())
    assert 1e-3 <= found["optim"]["lr"] <= 3e-2
    at_once = {"budget.max_minutes": 1e-9, "checkpoint.eval_every": 99}  # it is paused before it is ever evaluated
    run_job("train", {"config": str(best), "name": "chosen", "overrides": at_once}, quiet=True)
    chosen = Run.open("chosen", home)
    assert (chosen.tree["system"], chosen.tree["optim"]["lr"]) == ("toy_graphs", found["optim"]["lr"])
    assert chosen.status["state"] == "paused" and chosen.evaluation["test"]["step"] == chosen.status["step"]
    # the command takes what the training took
    with pytest.warns(UserWarning, match="no best checkpoint yet: its last one, step_"):
        assert main(["evaluate", "chosen", "--dry-run"]) == 0
    with pytest.warns(UserWarning, match="no best checkpoint yet"):
        assert chosen.checkpoint() == chosen.checkpoint("last")
    shutil.rmtree(chosen.checkpoint("last"))
    (chosen.path / "checkpoints" / "best.json").write_text("{")
    with pytest.raises(CheckpointError):  # a best one that was lost is not replaced
        chosen.checkpoint()


def test_a_finished_run_is_extended_by_the_command(trained, monkeypatch):
    home = trained("toy_graphs")
    environment = os.environ | {"NEXUSLAB_HOME": str(home)}
    run = find_runs(home)[0]
    done = subprocess.run(
        [BIN / "nexuslab", "train", "--resume", run.path.name, "--epochs", "4"], env=environment, capture_output=True,
        text=True, timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert run.status["epoch"] == 4 and run.status["attempt"] == 1


def test_dry_run_builds_no_run(home, capfd):
    assert main(["train", "--system", "toy_graphs", "--preset", "smoke", "--dry-run"]) == 0
    text = capfd.readouterr().out
    assert "parameters:" in text and "time: about" in text
    assert yaml.safe_load(text.split("parameters: ")[0])["system"] == "toy_graphs"
    assert not find_runs(home)


def test_called_from_anywhere_jobs_work_in_the_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv("NEXUSLAB_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert project_root() == ROOT
    monkeypatch.setenv("NEXUSLAB_HOME", str(tmp_path))
    assert project_root() == tmp_path


def test_an_edited_cell_changes_no_command(home, monkeypatch, capfd, tmp_path):
    """JupyterLab saves by itself: the command keeps its defaults and help, and says what was edited."""
    path = tmp_path / "03_train.ipynb"
    text = job_notebooks()["train"].read_text().replace("epochs = None", "epochs = 7")
    text = text.replace('system: str = \\"circuits', 'system: str = \\"nosuch')
    path.write_text(text)
    cell = parameters_cell(json.loads(path.read_text()))
    assert read_parameters("".join(cell["source"]))["system"].default == "nosuch"
    for chapter in ("parameters", "plans", "jobs"):
        monkeypatch.setattr(f"nexuslab.{chapter}.job_notebooks", lambda: {"train": path})
    assert main(["train", "--system", "toy_graphs", "--epochs", "1", "--dry-run"]) == 0
    printed = capfd.readouterr()
    assert "preset: base" in printed.out and "parameters: " in printed.out
    assert "03_train.ipynb has been edited: system = 'nosuch' (default 'circuits')" in printed.err
    assert "epochs = 7 (default None)" in printed.err
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "nosuch" not in capfd.readouterr().out
    assert "nosuch" not in released_notebook("train") and len(json.loads(released_notebook("train"))["cells"]) > 10


def test_released_defaults_are_those_of_the_notebooks():
    for verb, path in job_notebooks().items():
        cell = "".join(parameters_cell(json.loads(path.read_text()))["source"])
        assert read_parameters(cell) == parameters_of(path), f"{verb}: export it (nbdev_export)"


@pytest.mark.xdist_group("jobs")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--resume", "last", "--system", "circuits"], "system: 'toy_graphs' -> 'circuits'"),
        (["train", "--resume", "last", "--preset", "base"], "preset: 'smoke' -> 'base'"),
        (["train", "--resume", "last", "--name", "mine"], "name: None -> 'mine'"),
        (["train", "--resume", "last", "--config", "base.yaml"], "preset: 'smoke' -> 'base'"),
        (["train", "--resume", "last", "--init-from", "last"], "init_from: None -> '"),
        (["evaluate", "--split", "tset"], "did you mean test?"),
        (["evaluate", "--checkpoint", "step_7"], "checkpoint 'step_7'"),
        (["evaluate", "--checkpoint", "n" * 300], "give a shorter name"),
        (["evaluate", "--device", "cuda:99"], "compute.device"),
        (["evaluate", "--data-path", "mine.txt"], "toy_graphs reads no other data"),
        (["sample", "--inputs", "[1]"], "answers no inputs"),
        (["sample", "--output", "n" * 300 + ".h5"], "give a shorter name"),
        (["sample", "--how", "{nosuch: 1}"], "unknown choice 'nosuch'"),
        (["analyse", "--views", "latnt"], "did you mean latent?"),
        (["compare", "--system", "circuits", "--runs", "last"], "of another system"),
        (["compare", "--split", "tset"], "did you mean test?"),
    ],
)
def test_what_a_job_would_ignore_is_refused(trained, arguments, words, monkeypatch, capfd):
    """Without a kernel, by the dry run, which asks what the job asks."""
    home = trained("toy_graphs")
    monkeypatch.setenv("NEXUSLAB_HOME", str(home))
    (home / "base.yaml").write_text("preset: base\nepochs: 5")
    name = find_runs(home)[0].path.name
    assert main([*(name if word == "last" else word for word in arguments), "--dry-run"]) == 2
    assert words in capfd.readouterr().err


@pytest.mark.xdist_group("jobs")
def test_dry_runs_of_finished_runs(trained, monkeypatch, capfd):
    home = trained("toy_graphs")
    monkeypatch.setenv("NEXUSLAB_HOME", str(home))
    run, kept, told = find_runs(home)[0], sorted(home.rglob("*")), {}
    name = run.path.name
    longer = ["train", "--resume", name, "--epochs", "9", "--restore-best", "false"]
    evaluate = ["evaluate", "--run", name, "--split", "val", "--checkpoint", "last"]
    others = ["sample", "--run", name, "--n", "5"], ["analyse", "--run", name], ["compare", "--runs", name]
    for arguments in (evaluate, *others, longer):
        assert main([*arguments, "--dry-run"]) == 0, arguments
        told[arguments[0]] = capfd.readouterr().out
    step = json.loads((run.path / "checkpoints" / "last.json").read_text())["step"]
    assert all(words in told["evaluate"] for words in (f"run: {run.path}", f"step_{step:08d}", "split: val"))
    assert "n: 5" in told["sample"] and str(run.path / "samples") in told["sample"]
    assert "views: latent" in told["analyse"] and f"runs: {name}" in told["compare"]
    asked = yaml.safe_load(told["train"].split("resume: ")[0])
    assert asked["budget"]["epochs"] == 9 and asked["stop"]["restore_best"] is False and asked["preset"] == "smoke"
    assert f"resume: {run.path}" in told["train"] and "checkpoint: last" in told["train"]
    assert sorted(home.rglob("*")) == kept


def command(home: Path, *words: str) -> tuple[int, dict, str]:
    """The exit status of a command with --json, the one document on its standard output, and its standard error."""
    done = subprocess.run([BIN / "nexuslab", *words, "--json"], env=os.environ | {"NEXUSLAB_HOME": str(home)},
                          capture_output=True, text=True, timeout=180, cwd=home)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_json_for_programs(home):
    """One document on standard output, all else on standard error: a training, its run's verbs, and a refusal."""
    options = ["--system", "toy_graphs", "--preset", "smoke", "--epochs", "1"]
    code, told, printed = command(home, "train", *options)
    [run] = find_runs(home)
    assert code == told["exit_code"] == 0 and told["path"] == str(run.path) and "epoch 1" in printed
    assert told["figures"] == run.evaluation["test"]["figures"] and told["reason"] == "budget reached"
    assert all(Path(file).exists() for file in told["files"])
    code, told, printed = command(home, "train", *options, "--preset", "smoke", "-o", "model.hiden=3")
    assert code == told["exit_code"] == 2 and told["error"] == "ConfigError"
    assert told["do"] == "did you mean model.hidden?" and told["do"] in printed
    assert not list((home / "runs" / ".jobs").rglob("*.ipynb")) and len(find_runs(home)) == 1


@pytest.mark.xdist_group("jobs")
def test_json_of_other_verbs(trained, monkeypatch, capsys):
    home = trained("toy_graphs")
    monkeypatch.setenv("NEXUSLAB_HOME", str(home))
    run = find_runs(home)[0]
    told = {}
    for words in (["runs"], ["runs", "--latest"], ["doctor", "--dry-run"], ["evaluate", "--dry-run"],
                  ["sample", "--n", "2", "--dry-run"], ["compare", "last", "--by", "seed"]):
        assert main([*words, "--json"]) == 0, words
        told[" ".join(words)] = json.loads(capsys.readouterr().out)
    assert [row["run"] for row in told["runs"]["runs"]][0] == run.path.name
    assert told["runs --latest"]["evaluation"]["test"]["figures"]["loss"] > 0
    assert told["sample --n 2 --dry-run"]["n"] == "2"
    assert told["doctor --dry-run"]["exit_code"] == 0 and told["evaluate --dry-run"]["split"] == "test"
    compared = told["compare last --by seed"]
    assert all(Path(file).exists() for file in compared["files"]) and len(compared["comparison"]) == 1
    table = pd.read_csv(home / "runs" / ".compare" / "groups.csv", header=[0, 1], index_col=0)
    assert set(table.columns.levels[1]) == {"mean", "spread", "count"}


def test_a_refusal_starts_no_kernel(home, monkeypatch):
    """Parameters that a job would refuse never come to papermill; a kernel that waited is gone."""
    monkeypatch.setattr("papermill.execute_notebook", lambda *a, **k: pytest.fail("a kernel was started"))
    (home / "systems").mkdir()
    (home / "systems" / "misspelt.py").write_text("import torch\ndef (:\n")
    for verb, wrong, words in (("train", {"preset": "bsae"}, "did you mean base?"),
                               ("train", {"system": "misspelt"}, "misspelt.py, line 2"),
                               ("seeds", {"n": 1}, "n"), ("evaluate", {"run": "nothing"}, "run 'nothing'")):
        with pytest.raises(NexusError, match=re.escape(words)):
            run_job(verb, wrong, quiet=True)
    assert not find_runs(home) and not list((home / "runs").rglob("*.ipynb"))


def test_a_training_starts_without_what_it_does_not_use(home):
    """A job is examined, and trained until its first row, without the imports that take longest beside torch's own."""
    program = """
import sys
from pathlib import Path
from nexuslab.core import system_modules
from nexuslab.kernels import refusal_of
systems = [name for name, place in system_modules().items() if place.startswith("nexuslab.systems.")]
for name in systems:
    assert refusal_of("train", {"system": name, "preset": "none"})[0] == "ConfigError"
import nexuslab.launch
from tiny import Halt, Scripted, train
slow = {"IPython", "matplotlib", "networkx", "optuna", "papermill", "scipy", "sklearn", "torch._dynamo",
        "torch_geometric"}
halt = Halt(look=lambda snapshot: print("imported:", sorted(slow & set(sys.modules))))
train(Scripted(steps=2, **{"optim.name": "adamw"}), Path.cwd(), [halt])
print("systems:", *sorted(systems))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), os.environ["PYTHONPATH"]])}
    done = subprocess.run([sys.executable, "-c", program], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "imported: []" in done.stdout, done.stdout
    assert {"circuits", "collatz"} <= set(done.stdout.splitlines()[-1].split()), done.stdout


def test_seeds_have_a_mean_and_a_spread(home):
    """Each seed is trained by a worker of its own, and the table has the figures of their runs."""
    options = ["--system", "toy_graphs", "--preset", "smoke", "--epochs", "1"]
    code, told, printed = command(home, "seeds", "--n", "2", "--workers", "2", *options)
    assert code == 0 and "seed 1 | epoch 1" in printed, printed[-2000:]
    table = pd.read_csv(told["path"], index_col="figure")
    losses = {f"seed {r.tree['seed']}": r.evaluation["test"]["figures"]["loss"] for r in find_runs(home)}
    assert losses.keys() == {"seed 0", "seed 1"} and table.loc["loss", list(losses)].to_dict() == pytest.approx(losses)
    assert told["figures"]["loss"]["spread"] == pytest.approx(pd.Series(losses).std())
