"""Looking inside: hooks that leave nothing behind, patches with a known effect, probes that find what is there and
nothing else."""
import numpy as np
import pytest
import torch

from nexuslab.core import ConfigError, DataError
from nexuslab.systems.collatz.data import code_for, long_step, make_batch
from nexuslab.systems.collatz.inside import (
    FEATURES,
    attention_maps,
    cached,
    fit_probe,
    fitted_shifts,
    hooked,
    log_probability,
    loop_label,
    moved,
    partners,
    probe_layers,
    restored,
    restored_heads,
    right,
    spread,
    stream,
    transplant,
    watchable,
)
from nexuslab.systems.collatz.model import KINDS, CollatzTransformer

STOP = 2**20


def built(kind: str, base: int = 24):
    """A small untrained model of a kind, and 48 numbers as it wants them."""
    torch.manual_seed(0)
    code = code_for(base, STOP)
    model = CollatzTransformer(
        base, d_model=32, nhead=4, num_layers=3, kind=kind, dropout=0.0, length_out=code.lengths[1]
    ).eval()
    return model, make_batch(code, odd(48), np.arange(48)), code


def odd(many: int, seed: int = 0) -> np.ndarray:
    return 2 * np.random.default_rng(seed).integers(0, STOP // 2, many) + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_holds_every_block_and_changes_nothing(kind):
    model, batch, _ = built(kind)
    with torch.no_grad():
        before = model(batch.inputs, batch.targets)
        with cached(model) as kept:
            during = model(batch.inputs, batch.targets)
        after = model(batch.inputs, batch.targets)
    assert torch.equal(before, during) and torch.equal(before, after)
    assert set(kept) == set(watchable(model)) and {"blocks.0", "blocks.2.attention", "blocks.2.mlp"} <= set(kept)
    assert ("writers.0.cross" in kept) == (kind == "encoder_decoder")
    assert all(x.shape[0] == 48 and x.shape[2] == 32 for x in kept.values())
    assert not any(m._forward_hooks for m in model.modules())


def test_hooks_are_gone_after_an_error():
    model, batch, _ = built("aligned")
    with pytest.raises(ZeroDivisionError), hooked(model, {"blocks.0": lambda out: 1 / 0}):
        model(batch.inputs)
    assert not any(m._forward_hooks for m in model.modules())


def test_an_unknown_module_is_refused_with_the_nearest():
    model, batch, _ = built("aligned")
    with pytest.raises(ConfigError, match="blocks.1.attention"), cached(model, ["blocks.1.atention"]):
        model(batch.inputs)
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_stream_restores_the_whole_answer(kind):
    model, clean, code = built(kind)
    corrupt = make_batch(code, odd(48, 1), np.arange(48))
    last = "writers.0" if kind == "encoder_decoder" else "blocks.2"
    with torch.no_grad(), cached(model, [last]) as donors:
        wanted = log_probability(model, clean.inputs, clean.targets)
    with hooked(model, {last: transplant(donors[last], slice(None))}):
        assert torch.allclose(log_probability(model, corrupt.inputs, clean.targets), wanted, atol=1e-4)


def test_a_patch_touches_one_position():
    model, clean, code = built("aligned")
    corrupt = make_batch(code, odd(48, 1), np.arange(48))
    with torch.no_grad(), cached(model) as donors:
        model(clean.inputs)
        top = model(clean.inputs)
    with torch.no_grad(), hooked(model, {"blocks.2": transplant(donors["blocks.2"], 1)}):
        patched = model(corrupt.inputs)
    plain = model(corrupt.inputs)
    assert torch.allclose(patched[:, 1], top[:, 1], atol=1e-6)
    assert torch.equal(patched[:, [0, 2, 3, 4, 5]], plain[:, [0, 2, 3, 4, 5]])


def test_restored_finds_the_planted_place():
    """A model that hears nothing but position 2: the answer is carried there and nowhere else."""
    model, clean, code = built("aligned")
    corrupt = make_batch(code, odd(48, 1), np.arange(48))
    heard = lambda out: torch.zeros_like(out).index_copy(1, torch.tensor([2]), out[:, 2:3])
    with hooked(model, {"blocks.0": heard}):
        effect = restored(model, clean, corrupt, ["blocks.1"])["blocks.1"]
        first = restored(model, clean, corrupt, ["blocks.0"])["blocks.0"]
    assert np.isclose(first[2], 1, atol=1e-4) and np.allclose(np.delete(first, 2), 0, atol=1e-4)
    assert effect.shape == (code.lengths[1],)


def test_pairs_that_make_no_difference_are_refused():
    model, clean, _ = built("aligned")
    with pytest.raises(DataError, match="pairs to patch"):
        restored(model, clean, clean, ["blocks.1"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_from_the_corrupt_input_does_nothing(kind):
    """Embedding, blocks and heads alike: what is put there was there."""
    model, clean, _ = built(kind)
    corrupt = make_batch(code_for(24, STOP), odd(48, 1), np.arange(48))
    by_module, by_head = restored(model, clean, corrupt, source=corrupt), restored_heads(model, clean, corrupt, corrupt)
    assert next(iter(by_module)) == "embed" and set(by_module) == {"embed", *watchable(model)}
    assert all(np.allclose(x, 0, atol=1e-3) for x in (*by_module.values(), *by_head.values()))
    assert set(by_head) == {name for name in watchable(model) if name.endswith((".attention", ".cross"))}
    assert all(x.shape[0] == 4 for x in by_head.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_head_that_is_not_heard_restores_nothing():
    """A model whose first attention does not hear one of its heads: that head carries nothing, the others something."""
    model, clean, code = built("aligned")
    corrupt = make_batch(code, odd(48, 1), np.arange(48))
    block = model.blocks[0]
    with torch.no_grad():
        block.attention.out.weight[:, :8] = 0  # head 0 is not heard
    effect = restored_heads(model, clean, corrupt)["blocks.0.attention"]
    assert np.allclose(effect[0], 0, atol=1e-4) and (abs(effect[1:, -1]) > 1e-4).all()


def test_a_fitted_shift_asks_for_what_the_network_can_give():
    """An untrained network gives any constant, and the weights are left as they were."""
    model, batch, code = built("aligned")
    before = {name: p.clone() for name, p in model.named_parameters()}
    wish = code.encode_output(torch.full((48,), 12345))
    [shift] = fitted_shifts(model, [batch.inputs], [wish], {"blocks.0": 0.0}, steps=160)
    assert torch.equal(moved(model, batch.inputs, shift), wish)
    assert torch.equal(moved(model, batch.inputs, {}), model.generate(batch.inputs))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert not shift["blocks.0"].requires_grad


@pytest.mark.parametrize("base", [2, 3, 6, 10, 11, 24, 57])
def test_partners_differ_in_one_digit_and_in_class(base):
    n = odd(600)
    for place in range(3):
        a, b = partners(n, base, place, STOP, seed=base)
        if base == 2 and place == 0:
            assert len(a) == 0
            continue
        assert len(a) > 5 or base in (24, 57, 6, 10)
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            digits = [[v // base**i % base for i in range(21)] for v in (x, y)]
            assert [i for i in range(21) if digits[0][i] != digits[1][i]] == [place] and y % 2 == 1 and 0 < y < STOP
        one, two = long_step(a), long_step(b)
        assert ((one.k != two.k) | (one.k_prime != two.k_prime)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_attention_sums_to_one_and_sees_no_future(kind):
    model, batch, _ = built(kind)
    with torch.no_grad():
        before = model(batch.inputs, batch.targets)
    maps = attention_maps(model, batch.inputs, batch.targets)
    assert len(maps) == (5 if kind == "encoder_decoder" else 3)
    assert all(np.allclose(m.sum(-1), 1, atol=1e-5) and m.shape[0] == 4 for m in maps.values())
    if kind in ("causal", "encoder_decoder"):
        name = "blocks.0.attention" if kind == "causal" else "writers.0.attention"
        assert (np.triu(maps[name], 1) == 0).all()
    assert not any(m.explicit for m in model.modules() if type(m).__name__ == "Attention")
    with torch.no_grad():
        assert torch.equal(model(batch.inputs, batch.targets), before)


def test_attention_of_one_head_by_hand():
    model, batch, _ = built("aligned")
    kept = {}
    with torch.no_grad(), hooked(model, {"blocks.0.before_attention": lambda out: kept.update(x=out)}):
        model(batch.inputs)
    own = model.blocks[0].attention
    with torch.no_grad():
        q, k, _ = own.qkv(kept["x"]).chunk(3, -1)
    weights = torch.softmax(q[..., :8] @ k[..., :8].transpose(1, 2) / 8**0.5, -1).mean(0)
    assert np.allclose(attention_maps(model, batch.inputs, batch.targets)["blocks.0.attention"][0], weights, atol=1e-5)


def test_a_probe_finds_a_planted_class_and_its_control_does_not():
    rng = np.random.default_rng(0)
    y = rng.choice(6, 1500, p=np.array([0.4, 0.3, 0.1, 0.1, 0.05, 0.05])) * 64 + 1
    x = torch.tensor(
        np.eye(6)[y // 64] @ rng.normal(size=(6, 30)) * 3 + rng.normal(size=(1500, 30)), dtype=torch.float32
    )
    score = lambda labels: (fit_probe(x[:1000], labels[:1000]).predict(x[1000:]) == y[1000:]).mean()
    assert score(y) > 0.95 and score(rng.permutation(y)) < 0.5
    assert torch.equal(fit_probe(x, y).weight, fit_probe(x, y).weight)


def test_a_probe_cannot_bend():
    """Exclusive or is no straight cut."""
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(3000, 2)), dtype=torch.float32)
    y = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long().numpy()
    score = lambda x: (fit_probe(x[:2000], y[:2000]).predict(x[2000:]) == y[2000:]).mean()
    assert score(x) < 0.7 and score(torch.cat([x, x.prod(1, keepdim=True)], 1)) > 0.95


def test_many_features_are_projected():
    x = torch.randn(200, FEATURES + 300, generator=torch.Generator().manual_seed(0))
    found = fit_probe(x, (x[:, 0] > 0).long().numpy())
    assert found.directions.shape == (FEATURES + 300, FEATURES) and found.weight.shape == (FEATURES, 2)
    assert (found.predict(x) == (x[:, 0] > 0).long().numpy()).mean() > 0.95


def test_constant_features_do_no_harm():
    x = torch.cat([torch.ones(300, 3), torch.linspace(-1, 1, 300)[:, None]], 1)
    assert (fit_probe(x, np.arange(300) >= 150).predict(x) == (np.arange(300) >= 150)).mean() > 0.98


@pytest.mark.parametrize("kind", KINDS)
def test_probes_of_every_kind(kind):
    model, _, code = built(kind, 10)
    fitted, held = (make_batch(code, odd(m, s), np.arange(m)) for m, s in ((300, 2), (100, 3)))
    table = probe_layers(model, fitted, held, ["digits", "blocks.2"])
    assert table.index.tolist() == ["digits", "blocks.2"]
    assert table["accuracy"].between(table["low"], table["high"]).all() and (table["control"] < 0.4).all()
    states = stream(model, held)
    assert states["digits"].shape == states["blocks.0"].shape == (
        100, 32 * (code.width_in if kind in ("causal", "encoder_decoder") else code.width_out)
    )
    assert right(model, held).shape == (100,)


def test_labels_name_classes():
    _, batch, _ = built("aligned")
    known = {
        label: (k, k_prime)
        for label, k, k_prime in zip(loop_label(batch), batch.k.tolist(), batch.k_prime.tolist(), strict=True)
    }
    assert all(label == 64 * k + k_prime for label, (k, k_prime) in known.items())


def test_spread_keeps_the_ends():
    for many in (1, 2, 3, 10, 57):
        steps = list(range(0, 10 * many, 10))
        for most in (2, 3, 4, 8):
            chosen = spread(steps, most)
            assert chosen[0] == steps[0] and chosen[-1] == steps[-1] and len(chosen) == min(most, many)
            assert chosen == sorted(set(chosen))
