"""The guide's snippets in their form here: model, losses, weights, a loop of one's own, the configuration."""
import inspect

import numpy as np
import pytest
import torch

from nexuslab.config import resolve
from nexuslab.core import ConfigError
from nexuslab.systems.language.data import CurriculumScheduler, NEXUSDataset, create_dataloader
from nexuslab.systems.language.guide import TrainingConfig, configuration
from nexuslab.systems.language.loss import (
    Balance,
    CausalLoss,
    DynamicLossWeights,
    EnergyLoss,
    NEXUSLoss,
    ReasoningLoss,
    WorldModelLoss,
)
from nexuslab.systems.language.model import NEXUSConfig, NEXUSCore
from nexuslab.systems.language.tokens import Bytes
from nexuslab.task import get_task

WEIGHTS = {"lm": 1.0, "world": 0.1, "reason": 0.05, "energy": 0.05, "causal": 0.05}


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    """Texts of a small grammar, one a line, by bytes."""
    folder, random = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    words = ["def", "return", "lambda", "print", "yield"]
    for name, count in (("train", 300), ("valid", 60)):
        lines = [" ".join(random.choice(words, 6)) for _ in range(count)]
        (folder / f"{name}.txt").write_text("\n".join(lines), "utf-8")
    train, val = (NEXUSDataset(str(folder), Bytes(), max_length=64, mode=mode) for mode in ("train", "valid"))
    return create_dataloader(train, batch_size=8), create_dataloader(val, batch_size=7, shuffle=False)


def model_of(seed=0) -> NEXUSCore:
    torch.manual_seed(seed)
    pieces = Bytes().pieces(range(257))
    return NEXUSCore(NEXUSConfig(vocab_size=257, d_model=32, ssm_n_layers=1, d_state=8), pieces)


def test_defaults_of_the_guide():
    said = {name: p.default for name, p in inspect.signature(NEXUSLoss).parameters.items()}
    assert {name: said[f"{name}_weight"] for name in WEIGHTS} == WEIGHTS and said["label_smoothing"] == 0.1
    assert EnergyLoss().target_iterations == 5 and ReasoningLoss().weights
    assert WorldModelLoss().weights["variance"] == 0.1
    assert (CausalLoss().weights["sparse"], CausalLoss().weights["acyclic"]) == (0.01, 1.0)
    assert CausalLoss(sparsity_weight=0.5, dag_weight=2.0).weights["acyclic"] == 2.0
    said = {name: p.default for name, p in inspect.signature(CurriculumScheduler).parameters.items()}
    assert (said["start_length"], said["end_length"], said["warmup_steps"]) == (256, 2048, 10_000)


def test_a_step_of_the_guide(loaders):
    """`model(ids, return_all_outputs=True)` gives what `NEXUSLoss` takes; the total is the weighted sum of parts."""
    batch, model, loss_fn = next(iter(loaders[0])), model_of(), NEXUSLoss()
    output, info = model(batch["input_ids"], return_all_outputs=True)
    assert output.shape == (*batch["labels"].shape, 257)
    loss, loss_dict = loss_fn(output, batch["labels"], module_outputs=info.get("module_outputs"))
    assert {*loss_dict} == {*WEIGHTS} == {"lm", *info["module_outputs"]}
    told = {name: part.detach() for name, part in loss_dict.items()}
    total = sum(WEIGHTS[name] * float(part) for name, part in told.items())
    assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    plain = torch.nn.functional.cross_entropy(output.flatten(0, 1), batch["labels"].flatten())
    smooth = torch.nn.functional.cross_entropy(output.flatten(0, 1), batch["labels"].flatten(), label_smoothing=0.1)
    assert float(told["lm"]) == pytest.approx(smooth.item(), rel=1e-5)
    judged, parts = loss_fn.eval()(output, batch["labels"], info["module_outputs"])
    assert judged.item() == pytest.approx(plain.item(), rel=1e-5) and {*parts} == {"lm"}


def test_a_loop_of_ones_own_learns_the_next_byte(loaders):
    """The guide's loop by hand. What is learnt is the next byte, not the one that is seen."""
    model, loss_fn = model_of(), NEXUSLoss(label_smoothing=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.01)

    def evaluate():
        model.eval()
        nats = count = 0.0
        with torch.no_grad():
            for batch in loaders[1]:
                n = float(batch["attention_mask"].sum())
                nats, count = nats + float(loss_fn.eval()(model(batch["input_ids"], start=batch["start"]),
                                                          batch["labels"])[0]) * n, count + n
        model.train(), loss_fn.train()
        return nats / count

    untrained = evaluate()
    for _ in range(2):
        for batch in loaders[0]:
            output, info = model(batch["input_ids"], return_all_outputs=True, start=batch["start"],
                                 labels=batch["labels"])
            loss, _ = loss_fn(output, batch["labels"], info["module_outputs"])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    trained = evaluate()
    assert untrained > 5 and trained < 2.5
    batch = next(iter(loaders[1]))
    logits = model.eval()(batch["input_ids"], start=batch["start"])
    copied = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["input_ids"].flatten())
    assert copied > trained + 1


def test_a_module_that_was_asked_nothing_keeps_its_weight():
    """A reasoning module whose text has no question for a while must not explode at the first one."""
    weights = DynamicLossWeights(num_losses=3)
    for step in range(50):
        weights.update(torch.tensor([4.0, 0.0, 2.0]))
    assert weights.weights.max() / weights.weights.min() <= 4 and weights.means.tolist() == pytest.approx([4, 1, 2])
    weights.update(torch.tensor([4.0, 3.0, 0.0]))
    assert weights.means.tolist() == pytest.approx([4, 3, 2])
    for step in range(3000):
        weights.update(torch.tensor([4.0, 1e-9, 2.0]))
    assert weights.weights.max() / weights.weights.min() < 1001


def test_dynamic_weights_of_the_guide():
    """Inverse to the losses from the first step on, with a sum of 1, and they go on where they were saved."""
    weights, losses = DynamicLossWeights(num_losses=3, momentum=0.99), torch.tensor([4.0, 1.0, 0.5])
    total = weights(losses)
    expected = (1 / losses) / (1 / losses).sum()
    assert torch.allclose(weights.weights.float(), expected) and torch.isclose(total, (losses * expected).sum())
    for _ in range(20):
        weights(losses)
    assert torch.allclose(weights.weights.float(), expected)
    again = DynamicLossWeights(3)
    again.load_state_dict(weights.state_dict())
    weights.update(losses * 2), again.update(losses * 2)
    assert torch.equal(again.weights, weights.weights)


def test_the_momentum_of_dynamic_weights_is_the_one_that_is_told():
    cfg = resolve(get_task("language"), "smoke", {"loss.dynamic": True, "loss.momentum": 0.5})
    model = NEXUSCore(NEXUSConfig(vocab_size=257, d_model=8, ssm_n_layers=1))
    updaters = get_task("language").updaters(cfg, model)
    assert [found.dynamic.momentum for found in updaters if isinstance(found, Balance)] == [0.5]


def test_the_published_preset():
    cfg = resolve(get_task("language"), "paper")
    told = configuration(TrainingConfig())
    for one in (cfg, told):
        assert (one.model.d_model, one.model.ssm_n_layers, one.loader.batch_size) == (256, 6, 32)
        assert (one.data.vocabulary, one.data.length, one.optim.betas) == (32_000, 2048, (0.9, 0.95))
        assert (one.optim.lr, one.schedule.min_lr) == (1e-4, 1e-5)
        assert (one.optim.weight_decay, one.optim.clip, one.schedule.warmup_steps) == (0.01, 1.0, 1000)
        assert (one.budget.steps, one.checkpoint.eval_every, one.checkpoint.save_every) == (100_000, 500, 1000)
        assert one.checkpoint.save_total_limit == 5 and one.loss.model_dump().items() >= WEIGHTS.items()
        assert one.optim.name == "adamw" and one.schedule.name == "cosine"
    assert cfg.data.curriculum == 256 and told.data.curriculum is None


@pytest.mark.parametrize("key", ["max_seq_length", "min_learning_rate", "lm_loss_weight", "max_grad_norm", "fp16"])
def test_keys_of_the_guide_are_answered(key):
    with pytest.raises(ConfigError) as told:
        resolve(get_task("language"), "smoke", {key: 1})
    assert "data.length" in str(told.value) if key == "max_seq_length" else told.value.remedy
