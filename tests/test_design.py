"""A filter from the command line: what is asked for, what is handed over, what is refused."""
import json
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from nexuslab.core import ConfigError, DataError
from nexuslab.design import design, run_of_system, wants_design
from nexuslab.jobs import main
from nexuslab.run import Run
from nexuslab.systems.circuits.analysis import content_hash, from_netlist, merge, response, response_kind
from nexuslab.systems.circuits.design import SERIES
from nexuslab.systems.circuits.variations import read_netlist
from nexuslab.task import get_task


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project with a small circuits run."""
    from nexuslab.config import resolve
    from nexuslab.fit import fit

    root, task = tmp_path_factory.mktemp("design"), get_task("circuits")
    cfg = resolve(task, "smoke", {"epochs": 1})
    fit(task, cfg, Run.create(cfg, root))
    return root


def ask(home, monkeypatch, capsys, *options):
    """What `nexuslab sample` prints, and its exit code."""
    monkeypatch.setenv("NEXUSLAB_HOME", str(home))
    code = main(["sample", "--system", "circuits", *options])
    return code, capsys.readouterr()


def test_a_filter_by_its_kind(home, monkeypatch, capsys):
    """Table and folder; parts of the series; the netlist is the circuit; ngspice runs it."""
    options = ["--kind", "band_pass", "--f0", "10e3", "--q", "5", "--load", "330", "--parts", "6", "--n", "2"]
    code, said = ask(home, monkeypatch, capsys, *options)
    assert code == 0, said.err
    folder = next((run_of_system("last", "circuits", home).path / "samples").glob("design-*"))
    assert said.out.rstrip().endswith(str(folder)) and "error_db" in said.out
    table, kept = pd.read_csv(folder / "table.csv"), json.loads((folder / "circuits.json").read_text())
    assert len(table) == len(kept) == 2 and (table.parts <= 6).all() and (table.error_db < 1).all()
    for row, told in zip(table.itertuples(), kept):
        circuit = from_netlist((folder / f"{row.design}.cir").read_text())
        kind = response_kind(circuit)
        assert kind.name == "band_pass" and abs(kind.cutoff_hz / 1e4 - 1) < 0.05 and abs(kind.quality / 5 - 1) < 0.1
        loads = [v for k, i, j, v in circuit.parts if k == "R" and (i, j) == (0, 2)]
        assert loads == pytest.approx([330.0])
        for part in told["parts"]:
            mantissa = part["value"] / 10 ** np.floor(np.log10(part["value"]))
            assert np.abs(SERIES["E24"] / mantissa - 1).min() < 1e-9 or np.abs(mantissa - 9.999999) < 1e-5, part
        assert (folder / f"{row.design}.png").stat().st_size > 10_000
    if shutil.which("ngspice"):
        assert (table.ngspice_apart_db < 1e-3).all()
        done = subprocess.run(["ngspice", "-b", folder / "design_1.cir"], capture_output=True, text=True, check=False)
        assert "vdb(out)" in done.stdout.lower()


def test_a_mask_and_a_response(home, no_kernel, monkeypatch, capsys, tmp_path):
    """What the circuit does lies inside the mask; a response of a known circuit is met."""
    mask = tmp_path / "mask.csv"
    mask.write_text("from_hz,to_hz,lower_db,upper_db\n1e3,1e4,-6.5,1\n1e5,1e6,,-25\n")
    options = ["--mask", str(mask), "--series", "none", "--n", "1", "--output", str(tmp_path / "masked")]
    code, said = ask(home, monkeypatch, capsys, *options)
    assert code == 0, said.err
    circuit = from_netlist((tmp_path / "masked" / "design_1.cir").read_text())
    level = 20 * np.log10(np.abs(response(circuit, np.array([1e3, 5e3, 1e4, 1e5, 1e6]))))
    assert (level[:3] > -7.5).all() and (level[3:] < -24).all()

    task, run = get_task("circuits"), run_of_system("last", "circuits", home)
    folders = []
    for stop in (25, 35):
        mask.write_text(f"from_hz,to_hz,lower_db,upper_db\n1e3,1e4,-20,1\n1e5,1e6,,-{stop}\n")
        table, folder = design(task, run, 1, mask=str(mask), series="none")
        told = json.loads((folder / "circuits.json").read_text())
        assert told[0]["error_db"] == pytest.approx(table.error_db[0])
        folders.append(folder)
    assert folders[0] != folders[1]

    known = merge([("R", 1, 3, 220.0), ("L", 3, 2, 1e-3), ("C", 2, 0, 1e-8), ("R", 2, 0, 1e3)])
    hz = np.geomspace(1e3, 1e6, 80)
    curve = tmp_path / "curve.csv"
    pd.DataFrame({"hz": hz, "db": 20 * np.log10(np.abs(response(known, hz)))}).to_csv(curve, index=False)
    table, folder = design(task, run, 1, response=str(curve), series="none", output=tmp_path / "curved")
    assert table.before_series_db[0] < 0.5 and table.error_db[0] < 0.5


def test_what_cannot_be_designed_is_answered(home, no_kernel, monkeypatch, capsys, tmp_path):
    options = ["--kind", "band_pass", "--f0", "100", "--q", "50", "--parts", "5", "--n", "1"]
    code, said = ask(home, monkeypatch, capsys, *options)
    assert code == 0 and "not reached" in said.out and "resonate at 1.59 kHz" in said.out
    told = ["--kind", "low_pass", "--f0", "10e3", "--order", "1", "--parts", "2", "--n", "1", "--series", "none"]
    code, said = ask(home, monkeypatch, capsys, *told, "--output", str(tmp_path / "two"))
    assert code == 0 and "not reached" not in said.out
    assert len(from_netlist((tmp_path / "two" / "design_1.cir").read_text()).parts) == 2
    for options, told in {
        ("--kind", "low_pass", "--f0", "1e3", "--q", "-1"): "q",
        ("--kind", "low_pass", "--f0", "1e3", "--colour", "red"): "colour",
        ("--kind", "low_pass", "--f0", "1e3", "--output", str(home)): "output",
    }.items():
        try:
            code, said = ask(home, monkeypatch, capsys, *options)
        except SystemExit as error:  # argparse's own
            code, said = error.code, capsys.readouterr()
        assert code != 0 and told in said.err, (options, said.err)
    run, low = run_of_system("last", "circuits", home), {"kind": "low_pass", "f0": 1e3}
    for options, told in (
        ({"kind": "band_pass"}, "a kind with f0"), ({"f0": 1e3}, "a kind with f0"), ({"mask": "none.csv"}, "none.csv"),
        (low | {"kind": "comb"}, "kind"), (low | {"series": "E13"}, "series"),
        ({"kind": "band_pass", "f0": 1e3, "parts": 2}, "3 or more"),
    ):
        with pytest.raises((ConfigError, DataError), match=told):
            design(get_task("circuits"), run, 1, **options)
    assert not list(home.glob("runs/circuits/*/samples/.*"))


def test_only_what_a_design_knows_asks_for_one(home):
    task, run = get_task("circuits"), run_of_system("last", "circuits", home)
    assert wants_design(task, {"f0": 1e3}) and not wants_design(task, {})
    assert not wants_design(get_task("collatz"), {"f0": 1})
    with pytest.raises(ConfigError, match="exists"):
        design(task, run, 1, kind="low_pass", f0=1e4, output=home)
    with pytest.raises(DataError, match="from_hz"):
        path = home / "bad.csv"
        path.write_text("a,b\n1,2\n")
        design(task, run, 1, mask=str(path))


FILTER = """Pi section, as it stands on paper
Vs in 0 AC 1
R1 in a 330
L1 a out
+ 2.2mH ; the coil
C1 out gnd 22nF
RL OUT 0 1k
.ac dec 20 100 1meg
.end
"""


def test_a_netlist_of_ones_own(home, no_kernel, monkeypatch, capsys, tmp_path):
    """Read, analysed, encoded, varied: the given circuit stands first, ngspice agrees with all, the draws are clean."""
    path = tmp_path / "own.cir"
    path.write_text(FILTER)
    options = ["--netlist", str(path), "--n", "2", "--spread", "0.05", "--output", str(tmp_path / "varied")]
    code, said = ask(home, monkeypatch, capsys, *options)
    assert code == 0, said.err
    assert "nats" in said.out and "the mean decodes to the same graph" in said.out
    table = pd.read_csv(tmp_path / "varied" / "table.csv")
    assert table.proposed_by.tolist() == ["given", "decoded from the mean", "draw", "draw"]
    assert table.same_graph[0] and table.error_db[0] < 1e-9 and table.values_apart[1] < 1e-3
    back = from_netlist((tmp_path / "varied" / "design_1.cir").read_text())
    assert content_hash(back) == content_hash(from_netlist(FILTER))
    told = json.loads((tmp_path / "varied" / "encoding.json").read_text())
    poles = np.array(told["poles_rad_per_s"]) @ [1, 1j]
    w, q = np.sqrt((1 + 0.33) / (2.2e-3 * 22e-9)), 330 / 2.2e-3 + 1 / (1e3 * 22e-9)  # of the second order by hand
    assert np.allclose([np.abs(poles[0]) ** 2, -2 * poles[0].real], [w**2, q], rtol=1e-9)
    assert not told["zeros_rad_per_s"]
    if shutil.which("ngspice"):
        assert (table.ngspice_apart_db < 1e-3).all()


def test_a_netlist_that_is_refused(home, no_kernel, monkeypatch, capsys, tmp_path):
    """What is wrong is said with its line or its node, before anything is written."""
    path = tmp_path / "own.cir"
    for (old, new), told in {
        ("L1 a out", "M1 a out 0 0 nmos"): "line 4", ("22nF", "22x"): "line 6", ("330", "-330"): "line 3",
        ("330", "0"): "line 3", ("R1 in", "R1 inn"): "input 'in'",
        ("OUT 0 1k", "OUT 0 1k\nR2 x y 1k"): "node x of line 8", (FILTER, ""): "no R, C or L",
        ("Vs in 0", "Vs in out"): "line 2",
    }.items():
        path.write_text(FILTER.replace(old, new))
        with pytest.raises(DataError) as error:
            read_netlist(path)
        assert told in str(error.value) and "own.cir" in str(error.value), (new, error.value)
    chain = [f"R{k} {f'n{k}' if k else 'in'} n{k + 1} 9" for k in range(9)]
    path.write_text("\n".join(["nine in a row", *chain, "R10 n9 out 9", "R11 out 0 9", ""]))
    code, said = ask(home, monkeypatch, capsys, "--netlist", str(path), "--output", str(tmp_path / "none"))
    assert code != 0 and "12 nodes" in said.err and "at most" in said.err and not (tmp_path / "none").exists()


def test_a_netlist_and_other_choices(home, no_kernel, monkeypatch, capsys, tmp_path):
    (tmp_path / "own.cir").write_text(FILTER)
    for options in (["--q", "3", "--netlist", str(tmp_path / "own.cir")], ["--spread", "0.1"]):
        code, said = ask(home, monkeypatch, capsys, *options)
        assert code != 0 and "leave" in said.err
    with pytest.raises(SystemExit):
        main(["sample", "--system", "circuits", "--help"])
    assert "--netlist" in capsys.readouterr().out
