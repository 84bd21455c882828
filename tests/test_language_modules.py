"""The four modules of the language model: each does its job, beside the untrained module and a simple rival, and keeps
the contract under which the model adds it."""
import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nexuslab.core import ModelError, NexusError
from nexuslab.systems.language import causal, energy, reason, suites, world
from nexuslab.systems.language.loss import EnergyLoss
from nexuslab.task import At

torch.set_num_threads(1)
ROWS, LENGTH, WIDTH = 3, 48, 12
LETTERS = [bytes([i]) for i in range(256)]
STORY = "ben is child of anna. ben is sibling of eva. anna is what of eva? parent.  "


def modules(seed=0):
    """One of each, whose output is no longer zero."""
    torch.manual_seed(seed)
    made = {
        "world": world.World(WIDTH, width=8, hidden=16), "energy": energy.Energy(WIDTH, 256, width=8, units=16),
        "causal": causal.Causal(WIDTH, factors=4), "reason": reason.Reason(WIDTH, LETTERS),
    }
    for module in made.values():
        torch.nn.init.normal_(module.out.weight)
    return made


def batch(seed=0):
    """Latents, documents, tokens and targets; the second half of each row is another document."""
    made = torch.Generator().manual_seed(seed)
    tokens = torch.tensor([list((STORY + STORY).encode())] * ROWS)
    length = tokens.shape[1]
    segment = (torch.arange(length) >= len(STORY)).int().expand(ROWS, -1)
    h = torch.randn(ROWS, length, WIDTH, generator=made)
    return h, segment, tokens, torch.cat([tokens[:, 1:], torch.full((ROWS, 1), -100)], 1)


def run(module, h, segment, tokens, targets, at=None):
    draw = at.uniform if at else None
    return module(h, segment, input_ids=tokens, targets=targets, train=at is not None, draw=draw)


# ---- the contract


@pytest.mark.parametrize("name", ["world", "energy", "causal", "reason"])
def test_no_position_sees_a_later_one_or_another_document(name):
    module, (h, segment, tokens, targets) = modules()[name], batch()
    half, question = len(STORY), STORY.index("?") + 1
    with torch.no_grad():
        whole, _ = run(module, h, segment, tokens, targets)
        assert (whole[:, question - 1] != 0).any()
        for cut in (8, 30, question - 1, question, question + 4):
            other = tokens.clone()
            other[:, cut:half] = ord("x")
            shaken = torch.cat([h[:, :cut], torch.randn_like(h[:, cut:half]), h[:, half:]], 1)
            changed, _ = run(module, shaken, segment, other, targets)
            assert torch.equal(changed[:, :cut], whole[:, :cut]), f"position {cut} is seen before it"
            assert torch.equal(changed[:, half:], whole[:, half:]), "another document is seen"


@pytest.mark.parametrize("name", ["world", "energy", "causal", "reason"])
def test_modules_add_nothing_at_first_and_learn_everywhere(name):
    """Zero at first; a loss over data with a gradient that reaches every parameter, the target encoder's excepted."""
    module, given = modules()[name], batch()
    at = At(training=True, ids=np.arange(ROWS))
    delta, info = run(module, *given, at)
    (info["loss"] + delta.square().mean()).backward()
    silent = [n for n, p in module.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert silent == [n for n, p in module.named_parameters() if not p.requires_grad]
    assert all(n.startswith("target.") for n in silent) and float(info["count"]) > 0
    torch.nn.init.zeros_(module.out.weight)
    assert not run(module, *given, At(training=True, ids=np.arange(ROWS)))[0].any()


def test_draws_are_named_and_evaluation_draws_nothing():
    given = batch()
    for name, module in modules().items():
        losses = [run(module, *given, at)[1]["loss"] for at in (
            At(step=3, training=True, ids=np.arange(ROWS)), At(step=3, training=True, ids=np.arange(ROWS)),
            At(step=4, training=True, ids=np.arange(ROWS)), None, None)]
        assert losses[0] == losses[1] and losses[3] == losses[4], name
        assert name in ("causal", "reason") or losses[0] != losses[2], name


def test_causal_output_and_loss_depend_on_the_data():
    module, (h, segment, _, _) = modules()["causal"], batch()
    with torch.no_grad():
        module.raw.copy_(torch.zeros(4, 4))
        module.raw[0, 1] = 0.8
        follows = h.clone()
        follows[..., 1] = 0.8 * h[..., 0] + 0.1 * h[..., 1]
        module.read.weight.copy_(torch.eye(4, WIDTH))
        one, other = (module(x, segment)[1]["unexplained"] for x in (follows, h))
        assert one < other - 0.1
        assert not torch.equal(module(h, segment)[0], module(follows, segment)[0])
        module.raw *= 1e6  # whatever the parameters, the constraint is defined
        assert torch.isfinite(module(h, segment)[1]["loss"])


def test_rows_without_targets_or_questions_rest():
    h, segment, tokens, targets = batch()
    made = modules()
    delta, info = run(made["reason"], h, segment, torch.full_like(tokens, ord("x")), targets)
    assert delta is None and info["loss"] == 0 and info["count"] == 0 and info["loss"].requires_grad
    _, info = run(made["energy"], h, segment, tokens, torch.full_like(targets, -100))
    assert info["count"] == 0 and info["loss"] == 0
    _, info = run(made["world"], h[:, :1], segment[:, :1], tokens, targets)
    assert info["count"] == 0 and info["loss"] == 0
    with pytest.raises(ModelError, match="input_ids"):
        made["reason"](h, segment)


# ---- world


@pytest.fixture(scope="module")
def worlds():
    """Frames, states, a trained world, the control without a slow target, and the untrained one."""
    seen = torch.from_numpy(suites.frames(suites.dynamics("oscillatory", 128, 32, seed=0)[0]))
    other, states = suites.dynamics("oscillatory", 128, 32, seed=100)
    free = {"follow_target": False, "variance_weight": 0.0, "covariance_weight": 0.0}
    how = {"rows": 16, "rate": 3e-3}
    made = {"world": world.learn_world(seen, 0, 180, **how), "control": world.learn_world(seen, 0, 180, **how, **free),
            "untrained": world.learn_world(seen, 0, 0)}
    return torch.from_numpy(suites.frames(other)), torch.from_numpy(states[:, 3:]), made


def read_off(encode, seen, states):
    """R² of a linear probe with 300 labels, and the latents it was tested on."""
    with torch.no_grad():
        z = encode(seen)
    some = torch.from_numpy(np.random.default_rng(0).permutation(64 * z.shape[1])[:300])
    parts = [part.flatten(0, 1) for part in (z[:64], states[:64], z[64:], states[64:])]
    return world.probe(parts[0][some], parts[1][some], *parts[2:]), parts[2]


def test_world_does_not_collapse_and_knows_the_state(worlds):
    seen, states, made = worlds
    found = {name: read_off(module.encoder, seen, states) for name, module in made.items()}
    health = {name: world.health(z) for name, (_, z) in found.items()}
    assert health["world"]["least_std"] >= 0.5 and health["world"]["rank"] >= 0.6 * 64
    assert health["world"]["collapsed"] == 0 and health["control"]["collapsed"] == 1
    assert found["world"][0] >= found["control"][0] + 0.08 and found["world"][0] > found["untrained"][0] + 0.1


def test_world_predicts_better_than_a_copy_and_is_told_how_far(worlds):
    seen, _, made = worlds
    document = torch.zeros(seen.shape[:2], dtype=torch.long)
    with torch.no_grad():
        told = {name: module(seen, document)[1] for name, module in made.items()}
        assert told["world"]["predict"] < 0.8 * told["world"]["copied"]
        assert told["world"]["predict"] < told["untrained"]["predict"]
        module = made["world"]
        steps, z = world.imagine(module, seen[:, 5], 16), module.encoder(seen[:, 5])
        assert (steps.diff(dim=1).abs().amax(-1) > 1e-3).all()
        true = torch.stack([module.goal(seen[:, 5 + k]) for k in range(1, 9)])
        error = torch.stack([F.smooth_l1_loss(module.predict(z, torch.full((len(z),), k)), true[k - 1])
                             for k in range(1, 9)])
        wrong = torch.stack([F.smooth_l1_loss(module.predict(z, torch.full((len(z),), 9 - k)), true[k - 1])
                             for k in range(1, 9)])
    assert error.mean() < 0.9 * wrong.mean()  # a prediction for another distance is a worse one


def test_a_world_loss_does_not_reward_collapse():
    """A constant latent costs more than a spread one, and no variance of features within one vector hides it."""
    h, segment = torch.randn(4, 40, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 40)
    torch.manual_seed(0)
    module = world.World(8, width=8, variance_weight=1.0)
    constant = copy.deepcopy(module)
    with torch.no_grad():
        constant.encoder[2].weight.zero_()
        constant.encoder[2].bias.normal_()  # features differ, inputs do not
    assert constant(h, segment)[1]["variance"] > 0.9 > module(h, segment)[1]["variance"]
    assert world.health(constant.encoder(h).flatten(0, 1))["collapsed"] == 1
    with pytest.raises(ModelError, match="imagined"):
        world.imagine(module, h, 0)
    assert world.health(torch.full((9, 8), torch.nan))["least_std"].isnan()  # the guard is to see it, not a traceback


# ---- reasoning


@pytest.fixture(scope="module")
def rules():
    """Learnt from short questions; how they answer long ones is in the chapter."""
    return reason.learn_rules([reason.read(q.text)[0] for q in suites.kinship(1200, (1, 2), 0)], 0, 150, 16)


def questions(depth, count=80):
    return [reason.read(q.text)[0] for q in suites.kinship(count, depth, 1000 + depth)]


def test_the_checker_applies_rules_by_itself(rules):
    """A proof replays without the model; without one of its facts, or with an edge turned, it does not."""
    listed = reason.written(rules)
    for case in questions(3, 30):
        proof = reason.prove(rules, case)
        leaves = [node for node in nodes(proof) if not node.premises]
        assert reason.replays(proof, case.facts, listed) and {(x.x, x.relation, x.y) for x in leaves} <= set(case.facts)
        lost = tuple(f for f in case.facts if f != (leaves[0].x, leaves[0].relation, leaves[0].y))
        assert not reason.replays(proof, lost, listed)
        assert not reason.replays(reason.Proof(proof.relation, proof.y, proof.x, proof.premises), case.facts, listed)


def nodes(proof):
    return [proof, *(node for premise in proof.premises for node in nodes(premise))]


def test_being_sure_and_wrong_costs(rules):
    """The loss is about answers: sure and right is cheap, sure and wrong is dear, and not to know is between."""
    asked = questions(2, 40)
    values, pair = reason.known(asked)
    logs = rules.answers(values, pair)
    true = F.nll_loss(logs, reason.goals(asked))
    wrong = F.nll_loss(logs, (reason.goals(asked) + 1) % len(suites.RELATIONS))
    unsure = F.nll_loss(reason.Rules().answers(values, pair), reason.goals(asked))
    assert true < 0.2 < unsure < wrong and torch.isfinite(wrong)


def test_a_crowd_is_left_alone():
    """Chaining takes the third power of the number of people: a text of hundreds must not take all memory."""
    module, names = modules()["reason"], [a + b for a in "bdfgklmnprst" for b in ("an", "ib", "ol", "ur")]
    tell = lambda many: " ".join(f"{x} is parent of {y}." for x, y in zip(names[:many], names[1:many]))
    for many, asked in ((reason.PEOPLE, 1), (reason.PEOPLE + 1, 0), (len(names), 0)):
        tokens = torch.tensor([list(f"{tell(many)} {names[0]} is what of {names[2]}? grandparent.".encode())])
        assert len(reason.questions(module.pieces, tokens, torch.zeros_like(tokens), None)) == asked


def test_generation_reads_what_was_told_before():
    module, (h, segment, tokens, _) = modules()["reason"], batch()
    with torch.no_grad():
        whole, before, found = run(module, h, segment, tokens, None)[0], [b""] * ROWS, []
        for t in range(tokens.shape[1]):
            before = [b""] * ROWS if t == len(STORY) else before
            delta, info = module(h[:, t : t + 1], segment[:, t : t + 1], tokens[:, t : t + 1], before=before)
            before = info["before"]
            found.append(torch.zeros(ROWS, 1, WIDTH) if delta is None else delta)
    assert torch.allclose(torch.cat(found, 1), whole, atol=1e-6) and before[0] == STORY.encode()


# ---- energy


@pytest.fixture(scope="module")
def trained():
    """A little; what it refines after more steps is in the chapter."""
    return energy.learn_energy(0, 40)


def test_descent_takes_as_many_steps_as_a_position_needs(trained):
    base, module = trained
    with torch.no_grad():
        said = module.landscape.of(base(energy.sums(300, 5)[0]))
        start = torch.cat([torch.randn(150, 32) * 10, torch.zeros(150, 32)])
        end, levels, steps = energy.descend(module.landscape, said, start, 12)
        again = energy.descend(module.landscape, said, end, 12)[2]
    assert steps.min() < steps.max() and steps.mean() > 1 and (levels.diff(dim=0) <= 0).all()
    assert again.mean() < 0.5 * steps.mean()  # nothing is left to do where it arrived
    with pytest.raises(ModelError, match="iterations"):
        energy.descend(module.landscape, said, start, 0)


def test_a_target_of_iterations_is_approached(trained):
    """What the energy falls beyond the target costs, so that the descent ends sooner; its full length costs nothing."""
    taken = {}
    for target in (1, 5):
        base, module = copy.deepcopy(trained)
        objective = EnergyLoss(target)
        ask = lambda codes, digits: objective(module(base(codes)[None], None, targets=digits[None], train=True)[1])
        energy.fit_steps([*base.parameters(), *module.parameters()], ask, 0, 40)
        taken[target] = energy.judge(base, module, 500)
    assert taken[1]["iterations"] < taken[5]["iterations"] - 0.3, taken
    assert taken[1]["refined"] < taken[1]["unrefined"]


def test_energy_is_bounded_below_and_its_gradient_is_that_of_autograd():
    torch.manual_seed(0)
    landscape = energy.Landscape(4, 3, 8).double()
    with torch.no_grad():
        landscape.value.fill_(-50.0)  # training may try
    said, y = landscape.of(torch.randn(50, 4).double()), torch.randn(50, 3).double().requires_grad_()
    slope = torch.autograd.grad(landscape.energy(said, y).sum(), y)[0]
    assert torch.allclose(slope, landscape.gradient(said, y), atol=1e-9)
    lowest = energy.descend(landscape, said, y.detach(), 200)[1][-1]
    assert (landscape.energy(said, 1e5 * F.normalize(torch.randn(50, 3).double(), dim=-1)) > lowest + 1e6).all()


# ---- causal


@pytest.mark.parametrize("edges, allowed", [(1, 0), (2, 2)])
def test_graphs_of_twenty_variables_are_found(edges, allowed):
    """One seed beside that of the chapter; all are in the benchmark."""
    true = suites.causal_model("random", 20, edges, seed=1)
    learnt = causal.learn_dag(suites.observe(true, 1000, seed=1))
    assert causal.is_dag(torch.from_numpy(learnt)) and causal.structural_distance(learnt, true) <= allowed
    assert causal.structural_distance(0 * true, true) >= 15


def test_a_threshold_gives_a_dag_always():
    made = torch.Generator().manual_seed(0)
    for size in (2, 5, 20):
        for _ in range(20):
            effects = torch.randn(size, size, generator=made)
            kept = causal.threshold(effects, 0.0)
            assert causal.is_dag(kept) and abs(float(causal.dag_constraint(kept.double()))) < 1e-6
            assert (kept != 0).sum() == size * (size - 1) / 2  # no edge is lost that closes no cycle


def test_standardised_data_tell_nothing_and_interventions_do():
    true = suites.causal_model("random", 8, 1, seed=4)
    data = suites.observe(true, 1000, seed=4)
    blind = causal.learn_dag(data / data.std(0), 0.1)
    held = [suites.observe(true, 125, seed=j, do={j: value}) for j in range(8) for value in (2.0, -2.0)]
    which = np.repeat(np.arange(8), 250)
    seen = causal.learn_dag(np.concatenate(held) / data.std(0), 0.1, targets=which, kind="likelihood")
    assert causal.structural_distance(seen, true) <= 1 < 4 <= causal.structural_distance(blind, true)


def test_interventions_and_counterfactuals_follow_the_graph():
    chain = suites.causal_model("chain", seed=2)
    data = suites.observe(chain, 4000, seed=2)
    model = causal.StructuralModel.fitted(causal.learn_dag(data), data)
    cut = model.sample(4000, seed=1, do={1: 3.0})
    assert (cut[:, 1] == 3).all() and abs(np.corrcoef(cut[:, 0], cut[:, 2])[0, 1]) < 0.05
    assert abs(cut[:, 2].mean() - 3 * chain[1, 2]) < 0.15
    would = model.counterfactual(data, {0: 0.0})
    exact = data - np.outer(data[:, 0], [1, chain[0, 1], chain[0, 1] * chain[1, 2]])
    assert np.abs(would - exact).max() < 0.5 and np.allclose(model.counterfactual(data, {}), data)


def test_bad_input_is_refused_by_name():
    for act, told in (
        (lambda: causal.learn_effects(np.full((9, 2), np.nan)), "causal model"),
        (lambda: causal.learn_effects(np.zeros((9, 2)), kind="best"), "score"),
        (lambda: suites.suite("coppy", 1), "copy"), (lambda: suites.dynamics("lineer", 2), "linear"),
        (lambda: suites.causal_model("tree"), "collider"), (lambda: suites.kinship(1, 40), "people"),
        (lambda: suites.causal_model("random", 0), "1 variable"),
        (lambda: suites.observe(np.zeros((3, 3)), 9, do={-1: 0.0}), "an intervention"),
        (lambda: causal.learn_effects(np.eye(3), targets=np.zeros(4)), "set in each"),
        (lambda: causal.structural_distance(np.zeros((3, 3)), np.zeros((4, 4))), "compare"),
        (lambda: causal.StructuralModel.fitted(np.zeros((3, 3)), np.zeros((9, 4))), "samples"),
        (lambda: causal.is_dag(torch.zeros(3, 2)), "matrix"),
        (lambda: causal.threshold(torch.full((3, 3), torch.nan)), "finite"),
        (lambda: reason.judge(reason.Rules(), []), "answers"), (lambda: reason.learn_rules([], 0, 1), "answers"),
    ):
        with pytest.raises(NexusError, match=told):
            act()
