"""Collatz models: four kinds, masks, caches, beams, visible attention, refusals."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nexuslab.core import ConfigError, ModelError
from nexuslab.systems.collatz.data import code_for, make_batch
from nexuslab.systems.collatz.model import KINDS, CollatzTransformer
from nexuslab.systems.collatz.task import TASK

CODE = code_for(24, 2**20)
BATCH = make_batch(CODE, np.arange(100_001, 100_033, 2), np.arange(16))


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    return CollatzTransformer(24, 32, 4, 2, request.param, 0.0, length_out=7, decoder_layers=2, ending="fixed")


def test_shapes_and_gradients(model):
    logits = model(BATCH.inputs, BATCH.targets)
    assert logits.shape == (16, 7, CODE.vocabulary) and model.generate(BATCH.inputs).shape == (16, 7)
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), BATCH.targets.flatten()) + sum(
        x.square().mean() for x in model.lengths(model.states(BATCH.inputs, BATCH.targets))
    )
    if not model.writes_in_turn:  # only an encoder has states half-way at the places of the output
        loss = loss + model.halfway(BATCH.inputs)[1].square().mean()
    loss.backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(name.startswith("apex") for name in silent) and (not silent or model.writes_in_turn)


def test_what_is_written_does_not_depend_on_its_neighbours(model):
    model.eval()
    together = model.generate(BATCH.inputs)
    assert torch.equal(together[3:4], model.generate(BATCH.inputs[3:4]))
    assert torch.equal(together, model.generate(BATCH.inputs, beam=1))


def test_beams(model):
    model.eval()
    score = lambda out: model(BATCH.inputs, out).log_softmax(-1).gather(2, out[:, :, None]).sum((1, 2))
    one, four = model.generate(BATCH.inputs), model.generate(BATCH.inputs, beam=4)
    assert four.shape == one.shape and (score(four) >= score(one) - 1e-4).all()
    if not model.writes_in_turn:
        assert torch.equal(one, four)  # places are independent: the best of each is the best of all
    else:
        with pytest.raises(ConfigError, match="beam"):
            model.generate(BATCH.inputs, beam=0)


def test_a_beam_is_never_less_probable_than_greedy(trained):
    """To the end token a beam writes nothing less probable than greedy decoding does, and behind it padding."""
    model, cfg, _ = trained.load("best")
    batch = TASK.data(cfg, trained.root).test.batch(np.arange(250), {}, None)
    pad, end = cfg.code().pad, cfg.code().eos

    def score(tokens):
        with torch.no_grad():
            each = model(batch.inputs, tokens).log_softmax(-1).gather(2, tokens[:, :, None])[:, :, 0]
        closes = (tokens == end).int()
        return (each * (closes.cumsum(1) <= closes)).sum(1)

    one, better = model.generate(batch.inputs), 0
    ended = (one == end).sum(1) == 1
    assert ended.float().mean() > 0.5 and len({tuple(row) for row in one.tolist()}) > 20  # it writes numbers of its own
    for beam in (2, 4, 8):
        found = model.generate(batch.inputs, beam=beam)
        assert (score(found) >= score(one) - 1e-4).all()
        assert ((found == pad) == ((found == end).cumsum(1) > (found == end).int())).all()
        better += (score(found) > score(one) + 1e-4).sum()
    assert better > 10


def test_explicit_attention_is_the_same(model):
    model.eval()
    before, seen = model(BATCH.inputs, BATCH.targets), {}
    shown = copy.deepcopy(model).explain()
    for name, module in shown.named_modules():
        if name.endswith("pattern"):
            module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out))
    assert torch.allclose(before, shown(BATCH.inputs, BATCH.targets), atol=1e-5)
    assert "blocks.0.attention.pattern" in seen
    assert all(torch.allclose(w.sum(-1), torch.ones(())) and w.shape[1] == 4 for w in seen.values())
    if model.kind == "causal":
        assert seen["blocks.0.attention.pattern"].triu(1).abs().max() == 0


def test_recomputed_activations_give_the_same_gradient(model):
    model.train()
    again = copy.deepcopy(model)
    again.recompute_activations()
    for m in (model, again):
        m(BATCH.inputs, BATCH.targets).square().mean().backward()
    assert again.recompute
    assert all(
        torch.allclose(a.grad, b.grad, atol=1e-7) for a, b in zip(model.blocks.parameters(), again.blocks.parameters())
    )


def test_the_digit_zero_is_learnt():
    """An output of zeros has a loss and a gradient like any other."""
    model = CollatzTransformer(24, 16, 2, 1, "aligned", 0.0, length_out=7)
    zeros = torch.zeros(4, 7, dtype=torch.int64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(BATCH.inputs[:4]).flatten(0, 1), zeros.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1 and torch.equal(model.generate(BATCH.inputs[:4]), zeros)


def test_names_of_the_guide():
    model = CollatzTransformer(vocab_size=24, d_model=64, nhead=4, num_layers=2)
    tokens = torch.randint(0, 27, (3, 50))
    assert model.kind == "encoder" and model(tokens).shape == (3, 50, 27) and len(model.blocks) == 2
    assert any(isinstance(m, nn.Dropout) and m.p == 0.1 for m in model.modules())


def test_refusals():
    with pytest.raises(ConfigError, match="heads"):
        CollatzTransformer(24, 100, 8, 1)
    with pytest.raises(ConfigError, match="kind"):
        CollatzTransformer(24, 32, 4, 1, "recurrent")
    with pytest.raises(ConfigError, match="ending"):
        CollatzTransformer(24, 32, 4, 1, ending="never")
    with pytest.raises(ModelError, match="sequence"):
        CollatzTransformer(24, 32, 4, 1, max_length=4)(torch.zeros(1, 5, dtype=torch.int64))
    with pytest.raises(ModelError, match="causal"):
        CollatzTransformer(24, 32, 4, 1, "causal")(torch.zeros(1, 5, dtype=torch.int64))
