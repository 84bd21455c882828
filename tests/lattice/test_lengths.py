"""What profile `lnp` reads: widths along the order, the choice that follows from them, and that they can be learnt."""
import dataclasses

import numpy as np
import pytest
import torch
from nexuslab.systems.lattice.batch import collate, flat
from nexuslab.systems.lattice.circuit import FAMILIES, GATES, WORD, draw_circuits, stack, statistics
from nexuslab.systems.lattice.data import LEVELS, Plan, labelled, make_block, profile_of
from nexuslab.systems.lattice.lengths import AlongWidths
from nexuslab.systems.lattice.model import AdvancedGNNOptimizer
from nexuslab.systems.lattice.rivals import judged_on, proposals_of, rival_figures
from nexuslab.systems.lattice.task import LatticeLoss, objective

LNP = profile_of("lnp")
SMALL = {"hidden_dim": 8, "num_layers": 1, "num_heads": 2, "dropout": 0.0, "channels": 3, "profile": "lnp"}


@pytest.fixture(scope="module")
def arrays():
    return flat(make_block((0, 700, False), Plan(700, nodes=(10, 60), profile="lnp", seed=5)))


def test_the_recurrence_has_the_widths_of_every_family():
    """Sums for products, the largest and one more for sums, never above the word: as the solver's own statistics."""
    rng = np.random.default_rng(0)
    circuits = stack([*(build(sizes[len(sizes) // 2]) for build, sizes in FAMILIES.values()),
                      draw_circuits(rng, rng.integers(5, 200, 30))])
    many, told = len(circuits), statistics(circuits)
    batch = collate(flat(labelled(circuits, np.resize(LEVELS, many), np.ones((many, 3)) / 3, LNP)), np.arange(many),
                    LNP.axes)
    gate, none = batch.x[:, : len(GATES)].argmax(1), torch.zeros(1)
    share = (gate != GATES.index("MUL")).float()[:, None]
    addend = torch.where(gate == GATES.index("ADD"), 0.0, -60.0)[:, None]
    step = torch.zeros(len(batch.source), 1)
    width = AlongWidths.apply(step, share, addend, torch.full((1,), float(np.log(WORD))), none, batch).exp()[:, 0]
    assert np.allclose(torch.zeros(many).index_add(0, batch.graph, width), told.witness_bits, rtol=1e-4)
    assert np.allclose(torch.zeros(many).scatter_reduce(0, batch.graph, width, "amax"), told.max_bits, rtol=1e-4)
    assert told.max_bits.max() == WORD and np.allclose(batch.lengths().exp()[:, 0], told.witness_bits, rtol=1e-4)


def test_only_its_inputs_are_read(arrays):
    """Answers, statistics and costs are not inputs: with others the model says the same."""
    torch.manual_seed(0)
    model, batch = AdvancedGNNOptimizer(**SMALL).eval(), collate(arrays, np.arange(20), LNP.axes)
    other = dataclasses.replace(batch, told=batch.told + 1, places=batch.places * 0, metrics=batch.metrics + 1)
    with torch.no_grad():
        said, again, alone = model(batch), model(other), model(collate(arrays, [3], LNP.axes))
    assert torch.equal(said.scores, again.scores)
    assert torch.allclose(said.numbers[3], alone.numbers[0], atol=1e-4)


def test_lengths_are_learnt(arrays):
    """Some seconds of training leave a fifth of the table's regret on circuits that were not seen."""
    train, asked = np.arange(600), np.arange(600, 700)
    torch.manual_seed(0)
    model, rng = AdvancedGNNOptimizer(**SMALL), np.random.default_rng(0)
    before = judged_on(arrays, asked, LNP, proposals_of(model, arrays, asked, LNP))
    optimiser, steps = torch.optim.AdamW(model.parameters(), 3e-2, betas=(0.9, 0.98)), 160
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        batch = collate(arrays, rng.choice(train, 48, replace=False), LNP.axes)
        loss, _, _ = objective(model.train(), batch, LatticeLoss())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    after = judged_on(arrays, asked, LNP, proposals_of(model, arrays, asked, LNP))
    table = rival_figures("table", arrays, train, asked, LNP)
    assert after["violations_raw"] <= 0.03 and after["violations_repaired"] == 0
    assert after["regret_mean"] < 0.2 * table["regret_mean"] and after["regret_mean"] < 0.5 * before["regret_mean"]
    assert after["parameter_accuracy"] > max(0.75, before["parameter_accuracy"])


def test_a_saved_model_answers_as_it_did(arrays, tmp_path):
    model = AdvancedGNNOptimizer(**SMALL)
    again = AdvancedGNNOptimizer.load(model.save(tmp_path / "a.safetensors"))
    asked = np.arange(12)
    assert (proposals_of(again, arrays, asked, LNP).places == proposals_of(model, arrays, asked, LNP).places).all()
