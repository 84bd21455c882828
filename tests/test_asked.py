"""What was asked is done, or refused by name: no option, key, preset, choice or file is ignored in silence."""

import ast
import io
import json
import shutil
import sys
import typing
import warnings

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny import Halt, Scripted, events
from tiny import train as trained

from nexuslab.config import SHORT, Config, fields_of, overlay, put, resolve
from nexuslab.core import ConfigError, DataError, NexusError
from nexuslab.store import Store
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.jobs import COMMANDS, main, said_by
from nexuslab.parameters import given_parameters, is_text, job_notebooks, parameters_of, parse_changes
from nexuslab.plans import check_parameters, configured, dry_run, plan_of_comparison, plan_of_run, planned
from nexuslab.launch import train
from nexuslab.run import Run
from nexuslab.sample import keep_answers, predict, read_samples, sample
from nexuslab.task import get_task
from nexuslab.views import cost_of_run, report


SYSTEM = "toy_graphs"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    """A short run of each kind of system, all under one project root."""
    root, made = tmp_path_factory.mktemp("asked"), {}
    for system, changes in (
        ("toy_graphs", {"epochs": 2, "save_every": 1}),
        ("toy_tokens", {"steps": 2, "eval_every": 2}),
        ("collatz", {"steps": 2, "eval_every": 2, "model.kind": "causal"}),
    ):
        task = get_task(system)
        cfg = resolve(task, "smoke", changes)
        task.prepare(cfg, root)
        made[system] = fit(task, cfg, Run.create(cfg, root)).run
    return made


# ---- samples and answers


def test_another_call_writes_another_file(runs):
    """Samples of another number, seed, checkpoint or choice are a file of their own; the same call writes the same."""
    task, run = get_task("toy_graphs"), runs["toy_graphs"]
    calls = [{"n": 3}, {"n": 4}, {"n": 3, "seed": 5}, {"n": 3, "scale": 2.0}, {"n": 3, "scale": 2.0, "seed": 5}]
    calls = [c | {"checkpoint": f"step_{step}"} for c in calls for step in (5, 10)]
    files = [sample(task, run, **call) for call in calls]
    assert len(set(files)) == len(calls) and [sample(task, run, **call) for call in calls] == files
    told = [Store(f).manifest for f in files]
    assert [t["step"] for t in told] == [5, 10] * 5
    assert [t["how"] for t in told] == [{}] * 6 + [{"scale": 2.0}] * 4
    assert all(f.with_suffix(".png").exists() for f in files)


def test_other_weights_of_the_same_step_write_another_file(runs, tmp_path):
    """The name follows the weights: the run trained again with another seed has a file of its own for the same step."""
    task, run = get_task("toy_graphs"), runs["toy_graphs"]
    cfg = resolve(task, "smoke", {"epochs": 2, "seed": 1})
    task.prepare(cfg, tmp_path)
    other = fit(task, cfg, Run.create(cfg, tmp_path)).run
    assert other.checkpoint("last").name == run.checkpoint("last").name
    names = {sample(task, r, 3, "last", seed=5).name for r in (run, other)}
    assert len(names) == 2


def test_answers_are_kept_apart(runs):
    """Answers to other inputs, or with another choice, are another file; the same answers are the same file."""
    task, run = get_task("collatz"), runs["collatz"]
    numbers = list(range(1, 81, 2))
    plain, wide, few = predict(task, run, numbers), predict(task, run, numbers, beam=16), predict(task, run, [27, 31])
    assert (plain.predicted != wide.predicted).any(), "the beam did not reach the answers"
    assert plain.truth.equals(wide.truth) and wide.attrs["how"] == {"beam": 16}
    files = [keep_answers(run, t) for t in (plain, wide, few)]
    assert len(set(files)) == 3 and keep_answers(run, predict(task, run, numbers)) == files[0]
    assert pd.read_csv(files[2]).n.tolist() == [27, 31]


def test_a_choice_that_is_not_understood_is_refused(runs):
    """By name, with what there is, before a checkpoint is read; for every system, without a line of its own."""
    asked = [
        ("collatz", predict, {"inputs": [27]}, {"nosuch": 1}, "beam"),
        ("collatz", predict, {"inputs": [27]}, {"bean": 3}, "did you mean beam?"),
        ("collatz", predict, {"inputs": [27]}, {"beam": 0}, "greater than or equal to 1"),
        ("collatz", predict, {"inputs": [27]}, {"beam": "three"}, "valid integer"),
        ("collatz", predict, {"inputs": [27]}, {"beam": True}, "not a boolean"),
        ("toy_graphs", sample, {"n": 1}, {"nosuch": 1}, "scale"),
        ("toy_graphs", sample, {"n": 1}, {"scale": -1}, "greater than 0"),
        ("toy_tokens", predict, {"inputs": [[1, 2]]}, {"nosuch": 1}, "no choice"),
    ]
    for system, call, what, how, words in asked:
        with pytest.raises(ConfigError, match=words):
            call(get_task(system), runs[system], **what, checkpoint="step_999", **how)


def test_circuits_refuses_a_choice(tmp_path):
    """What a system does not offer, and what it does not allow, before a checkpoint is looked for."""
    task = get_task("circuits")
    run = Run.create(resolve(task, "smoke"), tmp_path)
    for how, words in (({"nosuch": 1}, "nosuch"), ({"temperature": 0}, "greater than 0"), ({"graphs": "old"}, "new")):
        with pytest.raises(ConfigError, match=words):
            sample(task, run, 3, **how)
    shutil.rmtree(tmp_path / "runs")


def test_a_beam_where_nothing_is_written_in_turn_is_refused(runs, tmp_path, monkeypatch):
    """By the answers, before a checkpoint is read, and by the dry run; a beam of one is what is done."""
    monkeypatch.setenv("NEXUSLAB_HOME", str(tmp_path))
    task = get_task("collatz")
    given = {n: p.default for n, p in parameters_of(job_notebooks()["sample"]).items()} | {"inputs": [27]}
    for kind in ("aligned", "encoder"):
        run = Run.create(resolve(task, "smoke", {"model.kind": kind}), tmp_path)
        for beam in (5, 10**6):
            with pytest.raises(ConfigError, match=f"(?s)^beam.*{beam}.*{kind}"):
                predict(task, run, [27], beam=beam)
        with pytest.raises(NexusError, match="checkpoint"):
            predict(task, run, [27], beam=1)
        with pytest.raises(ConfigError, match="^beam"):
            task.refuse(run.config, {"beam": 5})
    monkeypatch.setenv("NEXUSLAB_HOME", str(runs["collatz"].root))
    monkeypatch.setattr(Run, "config", resolve(task, "smoke"))
    with pytest.raises(ConfigError, match="^beam"):
        plan_of_run("sample", given | {"run": "collatz", "how": {"beam": 5}}, {"how"})


def test_numbers_that_are_none_are_refused(runs):
    for wrong in ([], [[27]], [[27, 31], [33, 35]], ["a"], [27.5], "27"):
        with pytest.raises(DataError, match="numbers"):
            predict(get_task("collatz"), runs["collatz"], wrong)


def test_chunks_and_precision_of_samples_and_answers(runs, monkeypatch):
    """A chunk decides about memory only; another arithmetic is used; a bar is shown on a terminal, and nowhere else."""
    task, run, sizes = get_task("toy_graphs"), runs["toy_graphs"], []
    real = type(task).sample
    monkeypatch.setattr(type(task), "sample", lambda self, model, n, *rest, **how: (
        sizes.append(n), real(self, model, n, *rest, **how))[1])
    whole, parts, coarse = (
        read_samples(sample(task, run, 7, **how)) for how in ({"chunk": 7}, {"chunk": 3}, {"precision": "bf16"}))
    assert sizes == [7, 3, 3, 1, 7]
    for name, values in whole.items():
        assert np.allclose(values, parts[name], atol=1e-6) and 1e-6 < np.abs(values - coarse[name]).max() < 0.1
    task, run, numbers = get_task("collatz"), runs["collatz"], list(range(1, 21, 2))
    answers = predict(task, run, numbers)
    assert predict(task, run, numbers, chunk=3).equals(answers)
    assert len(predict(task, run, np.array(numbers), precision="bf16")) == len(numbers)
    shown = {}
    for terminal in (True, False):
        shown[terminal] = io.StringIO()
        shown[terminal].isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", shown[terminal])
        predict(task, run, numbers, chunk=3)
    assert "answering" in shown[True].getvalue() and shown[False].getvalue() == ""


# ---- files that a user names


def test_a_file_that_holds_something_else_is_never_written_over(runs, tmp_path):
    task, run = get_task("toy_graphs"), runs["toy_graphs"]
    config = (run.path / "config.yaml").read_bytes()
    (tmp_path / "folder.h5").mkdir()
    for name in ("note.txt", "note.png", "foreign.h5", "old.csv"):
        (tmp_path / name).write_text("mine")
    shutil.copy(next(run.root.glob("data/**/*.h5")), tmp_path / "data.h5")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    for wrong in ("note.txt", "s.png", "foreign.h5", "data.h5", "folder.h5", run.path / "config.yaml"):
        with pytest.raises(ConfigError, match="output"):
            sample(task, run, 2, output=tmp_path / wrong)
    answers = predict(get_task("collatz"), runs["collatz"], [27])
    for wrong in ("old.csv", "new.txt"):
        with pytest.raises(ConfigError, match="output"):
            keep_answers(run, answers, tmp_path / wrong)
    with pytest.warns(UserWarning, match="note.png"):
        assert Store(sample(task, run, 2, output=tmp_path / "note.h5")).manifest["run"] == run.path.name
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert (run.path / "config.yaml").read_bytes() == config


def test_what_was_written_so_is_written_over(runs, tmp_path):
    task, run = get_task("toy_graphs"), runs["toy_graphs"]
    for n in (2, 3):
        file = sample(task, run, n, output=tmp_path / "s.h5")
        assert {len(array) for array in Store(file).arrays().values()} == {n}
        assert file.with_suffix(".png").exists()
    for numbers in ([27], [31, 33]):
        file = keep_answers(run, predict(get_task("collatz"), runs["collatz"], numbers), tmp_path / "a.csv")
        assert pd.read_csv(file).n.tolist() == numbers


def test_a_report_that_is_no_page_is_refused(runs, tmp_path):
    run = runs["toy_graphs"]
    before = (run.path / "config.yaml").read_bytes()
    for wrong in (tmp_path, run.path / "config.yaml"):
        with pytest.raises(ConfigError, match="output of a report"):
            report(run, wrong)
    assert (run.path / "config.yaml").read_bytes() == before


# ---- options and keys


NAMED = {  # parameters that are names or files: texts
    "system", "preset", "config", "name", "data_path", "resume", "init_from", "scheduler", "device", "precision",
    "study_name", "storage", "output", "run", "split", "checkpoint",
}


def test_a_name_is_read_as_it_is_written():
    """0127 is a name, and no octal number; null is no name; a number is refused by name."""
    examined = 0
    for verb, path in job_notebooks().items():
        declared = parameters_of(path)
        for name in NAMED & set(declared):
            examined += 1
            for text in ("0565356", "0127", "123", "yes", "1e3", "2026-01-01", "None"):
                assert said_by(verb, [f"--{name.replace('_', '-')}", text])[0] == {name: text}, f"{verb} --{name}"
            with pytest.raises(ConfigError, match="null"):
                said_by(verb, [f"--{name.replace('_', '-')}=null"])
            namespace = {n: p.default for n, p in declared.items()} | {name: 127}
            with pytest.raises(ConfigError, match=name):
                given_parameters(namespace, verb)
    assert examined > 25
    assert said_by("compare", ["--runs", "[0612, 'base']"])[0] == {"runs": ["0612", "base"]}
    assert said_by("compare", ["0612", "123"])[0] == {"runs": ["0612", "123"]}
    assert said_by("analyse", ["--views", "0612"])[0] == {"views": "0612"}
    for text in ("0612", "0127", "yes", "1e3", "1_0"):
        for key in ("name", "stop.monitor", "init_from"):
            assert parse_changes([f"{key}={text}"]) == {key: text}
    assert parse_changes(["name='0612'", "seed=0612", "epochs=7"]) == {"name": "0612", "seed": 0o612, "epochs": 7}


def test_an_option_given_twice_with_two_values_is_refused():
    examined = 0
    for verb, path in job_notebooks().items():
        for name, p in parameters_of(path).items():
            if name == "overrides":
                continue
            examined += 1
            flag = f"--{name.replace('_', '-')}"
            words = [flag, f"--no{flag[1:]}"] if p.kind == "bool" else [f"{flag}=1", f"{flag}=2"]
            with pytest.raises(ConfigError, match=f"{flag}.*given twice"):
                said_by(verb, words)
            assert name in said_by(verb, [words[0], words[0]])[0]
    assert examined > 50
    for words in (["reproduce", "--run", "a", "--run", "b"], ["report", "--output", "a.html", "--output", "b.html"],
                  ["runs", "--system", "a", "--system", "b"], ["doctor", "--system", "a", "--system", "b"]):
        with pytest.raises(ConfigError, match="given twice"):
            COMMANDS[words[0]](words[1:])


def test_a_dry_run_counts_the_steps_of_all_processes(runs, monkeypatch):
    monkeypatch.setenv("NEXUSLAB_HOME", str(runs[SYSTEM].root))
    task = get_task(SYSTEM)
    for processes, accumulate in ((1, 1), (2, 1), (2, 2)):
        changes = {"epochs": 2, "processes": processes, "optim.accumulate": accumulate, "batch_size": 4}
        cfg = resolve(task, "smoke", changes)
        size = task.data(cfg, runs[SYSTEM].root).train.size
        steps = 2 * -(-size // (4 * processes * accumulate))
        assert cost_of_run(task, cfg)["steps"] == f"{steps:,}"


def test_what_a_terminal_would_obey_is_shown_escaped(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NEXUSLAB_HOME", str(tmp_path))
    run = Run.create(resolve(get_task(SYSTEM), "smoke"), tmp_path)
    foreign = run.path.rename(run.path.with_name("20260101-000000-a\x1b[2Jb-123456"))
    (foreign / "metrics.jsonl").write_text("{broken\n" * 3)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for words in (["runs"], ["runs", "--latest"], ["doctor", "--dry-run"], ["report", "no\x1b[2J"]):
            main(words)
        assert main(["runs", "--system", SYSTEM]) == 0 and main(["doctor", "--system", SYSTEM, "--dry-run"]) == 1
        assert main(["runs", "--system", SYSTEM + "s"]) == 2 == main(["doctor", "--system", SYSTEM + "s"])
        assert main(["doctor", "--run", "a", "b"]) == 2
        Run(foreign).history()
    shown = capsys.readouterr()
    printed = shown.out + shown.err + "".join(str(w.message) for w in told)
    assert "\x1b" not in printed and printed.count(r"a\x1b[2Jb") >= 4 and r"no\x1b[2J" in shown.err

KEYS = fields_of(type(resolve(get_task(SYSTEM), "smoke")))
TRAINING = ("prepare", "inspect", "train", "tune", "seeds")  # jobs that take a configuration
VALUES = [None, True, False, 1, 3, -5, 0.25, 2.5, "cpu", "val/loss", "nonsense", "", [0.5, 0.7], ["a"], {"a": 1}, {}]
VALUES += sorted({v for f in KEYS.values() for v in typing.get_args(f.annotation) if isinstance(v, str)})


@st.composite
def requests(draw):
    """A job, a key of its configuration, a value, and one of the ways to say it."""
    verb, key, value = (
        draw(st.sampled_from(TRAINING)),
        draw(st.sampled_from(sorted(KEYS))),
        draw(st.sampled_from(VALUES)),
    )
    flags = [
        n for n in parameters_of(job_notebooks()[verb]) if SHORT.get(n, n) == key and (verb, n) != ("inspect", "steps")
    ]
    way = draw(st.sampled_from(["override", "short override", "file", "parameter", *["flag"] * 3 * len(flags)]))
    short = next((s for s, k in SHORT.items() if k == key), key)
    return verb, key, value, way, flags[0] if way == "flag" else short if way == "short override" else key


def as_given(verb: str, name: str, value, way: str, folder, more: dict) -> tuple[dict, set[str]]:
    """The parameters of a job that was asked for a value in one of the ways, and which of them were said."""
    text = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    said, dry = said_by(
        verb,
        {
            "override": ["-o", f"{name}={text}"],
            "short override": ["-o", f"{name}={text}"],
            "flag": [f"--{name.replace('_', '-')}={text}"],
        }.get(way, []),
    )
    assert not dry
    if way == "file":
        tree: dict = {}
        put(tree, name, value)
        (folder / "asked.yaml").write_text(yaml.safe_dump(tree))
        said["config"] = str(folder / "asked.yaml")
    if way == "parameter":
        said["overrides"] = {name: value}
    said = more | said
    return {n: p.default for n, p in parameters_of(job_notebooks()[verb]).items()} | said, set(said)


def value_at(cfg: Config, key: str):
    node = cfg.tree()
    for part in key.split("."):
        node = node[part]
    return node


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(request=requests(), resume=st.booleans())
def test_an_option_is_done_or_refused(request, resume, runs, tmp_path, monkeypatch, capsys):
    """Any key of the configuration, of any job, said in any way, with and without --resume."""
    verb, key, value, way, name = request
    run, resume = runs[SYSTEM], resume and verb == "train"
    monkeypatch.setenv("NEXUSLAB_HOME", str(run.root))
    more = {"resume": f"{run.path.name}@step_5"} if resume else {"system": SYSTEM}
    if not resume and key != "preset":
        more["preset"] = "smoke"
    try:
        asked, chosen = as_given(verb, name, value, way, tmp_path, more)
        cfg = planned(asked, chosen)[1] if verb == "train" else configured(verb, asked)[1]
    except NexusError as error:
        words = [key.rsplit(".", 1)[-1], name, str(value) or "configuration"]
        said = str(error).replace("-", "_")
        assert any(w in said for w in words), f"{key} = {value!r} is refused without its name: {error}"
        return
    except SystemExit:  # argparse's way
        told = capsys.readouterr().err
        assert f"--{name.replace('_', '-')}" in told, told
        return
    # a name is read as it is written
    written = way in ("override", "short override") and isinstance(value, (int, float)) and is_text(key)
    if written or way == "flag" and parameters_of(job_notebooks()[verb])[name].kind == "str":
        value = yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()
    assert value_at(cfg, key) == value or (value_at(cfg, key) == [] and value in ({}, [])), (
        f"{key} = {value!r} was ignored"
    )


def test_two_values_of_a_key_are_refused():
    """A key that an option and an override name with two values: none of them wins in silence."""
    examined = 0
    for verb in TRAINING:
        usual = {n: p.default for n, p in parameters_of(job_notebooks()[verb]).items()} | {"system": SYSTEM}
        for flag in (n for n in usual if SHORT.get(n, n) in KEYS and n not in ("system", "preset")):
            if (verb, flag) == ("inspect", "steps"):
                continue
            for name in {flag, SHORT.get(flag, flag)}:
                examined += 1
                with pytest.raises(ConfigError, match="given twice"):
                    configured(verb, usual | {flag: 3, "overrides": {name: 4}})
    assert examined > 40


def test_every_parameter_of_a_job_is_used():
    """A parameter is a key of the configuration that the job resolves, or its name is read by the job's own cells."""
    jobs = job_notebooks()
    for verb, path in jobs.items():
        sources = [
            "".join(c["source"])
            for c in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if c["cell_type"] == "code" and "parameters" not in c["metadata"].get("tags", [])
        ]
        read = {n.id for s in sources for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Name)}
        passed = (
            {"system", "preset", "config", "overrides", *SHORT, *Config.model_fields} if verb in TRAINING else set()
        )
        passed |= {"resume"} if verb == "train" else set()
        names = set(parameters_of(path))
        assert len(names) >= 2 and not names - passed - read, f"{verb}: {names - passed - read}"
        assert verb not in TRAINING or {"configured", "begin"} & read


# ---- jobs on runs: for each parameter, what must change the plan and what must be refused

DONE = {
    "evaluate": {
        "run": ["toy_tokens"], "split": ["val", "train"], "checkpoint": ["step_5"], "untrained": [False],
        "precision": ["bf16"],
    },
    "sample": {
        "run": ["toy_tokens"],
        "checkpoint": ["step_5"],
        "n": [3],
        "seed": [5, 7],
        "output": ["x.h5"],
        "how": [{"scale": 2}],
        "precision": ["bf16"],
        "chunk": [3],
    },
    "analyse": {"run": ["toy_tokens"]},
    "compare": {
        "runs": [["toy_tokens"], "toy_graphs"],
        "system": ["toy_graphs"],
        "by": ["model.hidden", ["optim.lr"]],
        "split": ["val"],
        "scalars": [["val/accuracy"], "train/digits"],
        "smoothing": [0.5],
        "output": ["elsewhere"],
    },
}
REFUSED = {
    "evaluate": {
        "run": ["nosuch"],
        "split": ["tset", None],
        "checkpoint": ["step_999", "bset"],
        "device": ["cuda:99", "gpu", "cpu:0", "", None],
        "precision": ["fp8", "", None],
        "data_path": ["mine.txt"],
        "system": ["nosuch", "toy_tokens"],
        # the toys compare no files; test_icecube compares some
        "real_data": ["real.h5"], "generated_data": ["made.h5"], "output": ["figure.png"],
    },
    "sample": {
        "run": ["nosuch"],
        "system": ["nosuch", "toy_tokens"],
        "checkpoint": ["step_999"],
        "inputs": [[27]],
        "n": [0, -3, 2.5, "many", True, None],
        "seed": [-1, 2.5, "some", 2**63],
        "how": [{"nosuch": 1}, {"scale": 0}, 3, "scale"],
        "device": ["cuda:99", "gpu", "cpu:0", "", None],
        "precision": ["fp8", "", None],
        "chunk": [0, -3, 2.5, "many", True],
        "output": ["s.png", "answers.csv", "config.yaml", "s"],
    },
    "analyse": {"run": ["nosuch"], "views": [["nosuch"], "nosuch"]},
    "compare": {
        "runs": [["nosuch"]],
        "system": ["nosuch"],
        "by": ["nosuch", ["optim.lr", "nosuch"]],
        "split": ["tset"],
        "scalars": [["train/los"], []],
        "smoothing": [1.0, -0.1, "much"],
        "architectures": [["dit"], "nosuch", []],  # the toys have no several; test_icecube compares some
    },
}


def test_a_job_on_a_run_does_or_refuses(runs, monkeypatch):
    """Every parameter of a job on runs changes what would be done, or is refused by name."""
    monkeypatch.setenv("NEXUSLAB_HOME", str(runs[SYSTEM].root))
    for verb in DONE:
        declared = parameters_of(job_notebooks()[verb])
        assert set(DONE[verb]) | set(REFUSED[verb]) == set(declared), verb
        plan = plan_of_comparison if verb == "compare" else plan_of_run
        given = {n: p.default for n, p in declared.items()} | ({} if verb == "compare" else {"run": SYSTEM})
        usual = plan(verb, given, set())
        for name, values in DONE[verb].items():
            for value in values:
                assert plan(verb, given | {name: value}, {name}) != usual, f"{verb} ignores {name} = {value!r}"
        for name, values in REFUSED[verb].items():
            for value in values:
                for asked in (plan, check_parameters):  # by the dry run, and before a kernel starts
                    with pytest.raises(NexusError):
                        asked(verb, given | {name: value}, {name})


def test_what_answers_leave_unused_is_refused(runs, monkeypatch):
    monkeypatch.setenv("NEXUSLAB_HOME", str(runs[SYSTEM].root))
    given = {n: p.default for n, p in parameters_of(job_notebooks()["sample"]).items()} | {
        "run": "collatz",
        "inputs": [27],
    }
    assert plan_of_run("sample", given | {"how": {"beam": 3}}, {"how"})["how"] == {"beam": 3}
    for name, value in {"n": 16, "seed": 0}.items():
        with pytest.raises(ConfigError, match=name):
            plan_of_run("sample", given | {name: value}, {name})


def test_counts_are_whole_numbers(runs, monkeypatch):
    """A parameter that counts is declared as such; a number that counts nothing is refused by name before any work."""
    examined = 0
    for verb, path in job_notebooks().items():
        declared = parameters_of(path)
        for name in (name for name, p in declared.items() if type(p.default) is int):
            examined += 1
            assert declared[name].kind == "int", f"{verb}: {name}"
            for wrong in ("-3", "0", "2.5", "true", "many", "null"):
                with pytest.raises(ConfigError, match=name):
                    said_by(verb, [f"--{name}={wrong}"])
                namespace = {n: p.default for n, p in declared.items()} | {name: yaml.safe_load(wrong)}
                with pytest.raises(ConfigError, match=name):
                    given_parameters(namespace, verb)
    assert examined >= 4
    with pytest.raises(ConfigError, match="restarts"):
        train(get_task(SYSTEM), runs[SYSTEM].config, runs[SYSTEM], restarts=-1)


def test_a_device_that_is_none_is_refused_before_data_are_read(runs, monkeypatch):
    task, run = get_task(SYSTEM), runs[SYSTEM]
    monkeypatch.setattr(task, "data", None)
    for wrong in ("gpu", "cuda:99", "cpu:0"):
        with pytest.raises(ConfigError, match="compute.device"):
            evaluate(task, run, device=wrong)


def test_the_run_to_begin_with_is_kept_by_name_or_path(runs, monkeypatch, tmp_path):
    """For every job: `last` is that run, also when there are newer ones; one of another project is kept by its path."""
    run = runs[SYSTEM]
    for home, name in ((run.root, run.path.name), (tmp_path, str(run.path))):
        monkeypatch.setenv("NEXUSLAB_HOME", str(home))
        for verb in TRAINING:
            usual = {n: p.default for n, p in parameters_of(job_notebooks()[verb]).items()} | {"system": SYSTEM}
            found = configured(verb, usual | {"overrides": {"init_from": str(run.path)}})[1].init_from
            assert found == name and Run.open(found, home).path == run.path
            for wrong in ("nosuch", ""):
                with pytest.raises(NexusError, match="nosuch|init_from"):
                    configured(verb, usual | {"overrides": {"init_from": wrong}})


# ---- what cannot be done is refused before work starts, and by a dry run


@pytest.mark.parametrize(("asked", "named"), [
    ({"lr": 0.5}, "optim.lr"), ({"steps": 4}, "a budget of 4 steps"), ({"epochs": 1}, "a budget of 5 steps"),
    ({"overrides": {"budget.max_minutes": 5}}, "budget.max_minutes"),
    ({"overrides": {"stop.monitor": "val/los"}}, "stop.monitor"),
])
def test_a_dry_run_refuses_what_the_run_would_refuse(asked, named, runs, monkeypatch, capsys):
    """Of a run that had ended at step 10 of 2 epochs; nothing is changed."""
    run = runs[SYSTEM]
    monkeypatch.setenv("NEXUSLAB_HOME", str(run.root))
    before = {path: path.read_bytes() for path in run.path.rglob("*.*") if path.is_file()}
    with pytest.raises(NexusError, match=named):
        dry_run("train", {"resume": run.path.name, **asked})
    assert before == {path: path.read_bytes() for path in run.path.rglob("*.*") if path.is_file()}
    assert "changed:" not in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["train", "tune"])
def test_a_dry_run_refuses_an_unknown_monitor(verb, runs, monkeypatch):
    monkeypatch.setenv("NEXUSLAB_HOME", str(runs[SYSTEM].root))
    with pytest.raises(ConfigError, match="val/los.*\n.*scalar of the validation") as caught:
        dry_run(verb, {"system": SYSTEM, "preset": "smoke", "overrides": {"stop.monitor": "val/los"}})
    assert "val/loss" in caught.value.remedy


def test_an_unknown_monitor_is_refused_before_the_first_step(tmp_path):
    """Afresh and on resume, whose run stays as it was; a part that only evaluations have is known."""
    seen = []
    task = Scripted(script=lambda step: 1.0, factor=lambda step: seen.append(step) or 1.0, steps=4)
    for monitor in ("val/scor", "val/learning_rate"):
        with pytest.raises(ConfigError, match="stop.monitor") as caught:
            trained(task, tmp_path, monitor=monitor)
        assert not seen and "val/loss, val/score" in caught.value.remedy
    with pytest.raises(ConfigError, match="stop.monitor.*\n.*train/loss.*\n.*val/ and its name"):  # before any data
        overlay(task.config, {"stop.monitor": "train/loss"})
    run = trained(task, tmp_path, [Halt(2)], monitor="val/score").run
    before = [(run.path / name).read_bytes() for name in ("config.yaml", "status.json", "metrics.jsonl")]
    with pytest.raises(ConfigError, match="stop.monitor"):
        trained(task, tmp_path, run=run, resume="last", monitor="val/scor")
    assert before == [(run.path / name).read_bytes() for name in ("config.yaml", "status.json", "metrics.jsonl")]
    assert events(run, "best") and len(seen) == 2


def test_a_validation_of_nothing_is_refused_before_the_first_step(tmp_path):
    seen = []
    with pytest.raises(NexusError, match="validation split.*\n.*no examples"):
        trained(Scripted(factor=lambda step: seen.append(step) or 1.0, val=0), tmp_path)
    assert not seen
