"""ngspice as an independent oracle: many circuits in one AC analysis, complex voltages back."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nexuslab.systems.circuits.analysis import Circuit, netlist

MISSING = (
    None if shutil.which("ngspice")
    else "ngspice is not installed (Debian: apt-get install ngspice; macOS: brew install ngspice)"
)


def deck(
    circuits: Sequence[Circuit],  # side by side, sharing the ground only
    per_decade: int,
    low: float,  # Hz
    high: float,  # Hz
    file: Path,  # where ngspice writes the table
) -> str:
    "One netlist of all circuits, each with its own source, and a control block that runs `.ac`."
    lines = ["* circuits side by side"]
    for k, circuit in enumerate(circuits):
        for line in netlist(circuit).splitlines()[1:-1]:
            name, a, b, *rest = line.split()
            ends = [n if n == "0" else f"{n}_{k}" for n in (a, b)]
            lines.append(" ".join([f"{name}_{k}", *ends, *rest]))
    outputs = " ".join(f"v(out_{k})" for k in range(len(circuits)))
    control = [
        "set numdgt=15", "set wr_singlescale", f"ac dec {per_decade} {low:g} {high:g}", f"wrdata {file} {outputs}",
        "quit",
    ]
    return "\n".join([*lines, ".control", *control, ".endc", ".end", ""])


def ac(
    circuits: Sequence[Circuit],
    folder: Path,  # for the deck and the table
    per_decade: int = 20,
    low: float = 100.0,  # Hz
    high: float = 1e7,  # Hz
) -> tuple[np.ndarray, np.ndarray]:
    "Frequencies [Hz] (F,) and complex V(out) (N, F) of circuits driven by 1 V."
    table = folder / "table.txt"
    table.unlink(missing_ok=True)
    (folder / "deck.cir").write_text(deck(circuits, per_decade, low, high, table))
    done = subprocess.run(
        ["ngspice", "-b", "deck.cir"], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    if not table.exists():
        raise RuntimeError(f"ngspice wrote no table:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    rows = np.loadtxt(table)
    return rows[:, 0], (rows[:, 1::2] + 1j * rows[:, 2::2]).T


def pole_zero(circuit: Circuit, folder: Path) -> dict[str, np.ndarray]:
    "Poles and zeros [rad/s] as `.pz` prints them; it invents poles near 1e21, which are dropped."
    text = netlist(circuit).replace(".end", ".control\nset numdgt=15\npz in 0 out 0 vol pz\nprint all\n.endc\n.end")
    (folder / "pz.cir").write_text(text)
    done = subprocess.run(
        ["ngspice", "-b", "pz.cir"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    found = re.findall(r"(pole|zero)\(\d+\) = (\S+),(\S+)", done.stdout)
    values = {
        kind: np.array([complex(float(re_), float(im)) for k, re_, im in found if k == kind])
        for kind in ("pole", "zero")
    }
    return {kind: v[np.abs(v) < 1e15] for kind, v in values.items()}
