"""Ladders of the textbooks and ways between filters, against curves and nodal equations that are not the package's."""
import numpy as np
import pytest
from scipy import signal

from nexuslab.systems.circuits.analysis import from_netlist, merge
from nexuslab.systems.circuits.paths import STEPS, bridge, cross_fade, largest_step
from nexuslab.systems.circuits.population import RANGES
from nexuslab.systems.circuits.published import butterworth, chebyshev, elliptic, ladder_of

W = np.array([0.05, 0.3, 0.7, 0.95, 1.1, 1.7, 4.0])  # rad/s


def by_kirchhoff(parts, w):
    """|H| at frequencies [rad/s], a node at a time, the source as an equation of its own."""
    nodes = 1 + max(n for _, i, j, _ in parts for n in (i, j))
    told = []
    for s in 1j * w:
        A, b = np.zeros((nodes + 1, nodes + 1), complex), np.zeros(nodes + 1)
        for kind, i, j, v in parts:
            y = {"R": 1 / v, "C": s * v, "L": 1 / (s * v)}[kind]
            A[[i, j, i, j], [i, j, j, i]] += [y, y, -y, -y]
        A[0], A[0, 0] = 0, 1  # ground
        A[1, nodes], A[nodes, 1], b[nodes] = 1, 1, 1  # the source's current, and its voltage
        told.append(abs(np.linalg.solve(A, b)[2]))
    return np.array(told)


@pytest.mark.parametrize("kind", ["low_pass", "high_pass"])
@pytest.mark.parametrize("in_line", [False, True])
@pytest.mark.parametrize("g, book", [
    (butterworth(4), lambda n, k: signal.butter(4, 1, k, analog=True)),
    (chebyshev(5, 0.5), lambda n, k: signal.cheby1(5, 0.5, 1, k, analog=True)),
], ids=["butterworth", "chebyshev"])
def test_a_published_ladder_is_the_filter_of_the_book(kind, in_line, g, book):
    """Both first arms, low-pass and high-pass: the book's curve, on the level of the divider."""
    known = np.abs(signal.freqs(*book(None, kind.replace("_", "")), W)[1])
    ratio = by_kirchhoff(ladder_of(g, kind, in_line), W) / known
    assert np.ptp(ratio) < 1e-6 * ratio[0] and ratio[0] == pytest.approx(0.5, rel=0.2)


def test_an_elliptic_ladder_has_its_traps():
    """The curve of the book, and nothing passes at a trap."""
    g, traps = elliptic(5, 0.5, 60)
    parts = ladder_of(g, traps=traps)
    known = np.abs(signal.freqs(*signal.ellip(5, 0.5, 60, 1, analog=True), W)[1])
    assert by_kirchhoff(parts, W) == pytest.approx(known / 2, abs=1e-5)
    assert by_kirchhoff(parts, np.array(traps)).max() < 1e-5


LOW = from_netlist("low\nV1 in 0\nR1 in a 50\nL1 a out 1m\nC1 out 0 47n\nR2 out 0 1k\n")
BAND = from_netlist("band\nV1 in 0\nC1 in a 10n\nL1 a out 2m\nR1 out 0 100\n")


def test_a_bridge_holds_both_filters():
    """At either end of the way the bridge does what the circuit of that end does."""
    w = 2 * np.pi * np.geomspace(3e2, 3e6, 9)
    for end, share in ((LOW, 0.0), (BAND, 1.0)):
        ours, theirs = (by_kirchhoff(c.parts, w) for c in (bridge(LOW, BAND, share), end))
        far = np.abs(20 * np.log10(np.maximum(ours, 1e-3) / np.maximum(theirs, 1e-3)))
        assert far.max() < 1.5, far


def test_a_way_has_small_steps_and_circuits_that_can_be_built():
    """Ends as given, every value in range, levels that another solver finds, the largest step told rightly."""
    path = cross_fade(LOW, BAND)
    assert len(path.circuits) == STEPS + 1 and path.circuits[0].typed == LOW.typed
    assert path.circuits[-1].typed == BAND.typed and set(path.clean()) == {"clean"}
    values = [(k, v) for c in path.circuits for k, _, _, v in c.parts]
    assert all(0.999 * RANGES[k][0] <= v <= 1.001 * RANGES[k][1] for k, v in values)
    for place in (0, STEPS // 2, STEPS):
        some = slice(None, None, 40)
        told = 20 * np.log10(by_kirchhoff(path.circuits[place].parts, 2 * np.pi * path.hz[some]))
        assert path.levels[place][some] == pytest.approx(np.maximum(told, -60), abs=1e-4)
    step = np.sqrt(np.square(np.diff(path.levels, axis=0)).mean(1)).max()
    whole = np.sqrt(np.square(path.levels[-1] - path.levels[0]).mean())
    assert path.largest == pytest.approx(step / whole) and path.largest < 0.3
    assert largest_step(path.levels[[0] * 3 + [-1] * 3]) == pytest.approx(1.0)


def test_a_short_circuit_does_not_pass_for_a_ladder():
    """The oracle itself: two equal resistors halve, a capacitor to ground takes the rest."""
    divider = merge([("R", 1, 2, 1e3), ("R", 2, 0, 1e3), ("C", 2, 0, 1e-6)])
    assert by_kirchhoff(divider.parts, np.array([1e-3, 1e9])) == pytest.approx([0.5, 0.0], abs=1e-5)
