"""The language system as a whole: the model, its objective, training by the engine, and the faults that must not come
back."""
import dataclasses
import math

import numpy as np
import pytest
import torch

from nexuslab.config import overlay, resolve
from nexuslab.contract import Case, probe, resume_is_exact, two_processes_agree
from nexuslab.core import NexusError
from nexuslab.data import load
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.optim import learning_rate
from nexuslab.reproduce import reproduce
from nexuslab.run import Run
from nexuslab.sample import predict, sample
from nexuslab.step import gradient
from nexuslab.systems.language.data import corpus_of
from nexuslab.systems.language.loss import MODULES, NEXUSLoss, next_token_loss
from nexuslab.systems.language.model import NEXUSConfig, NEXUSCore, chosen, generate, stepwise
from nexuslab.systems.language.scan import scan, scan_in_order
from nexuslab.systems.language.suites import kinship
from nexuslab.systems.language.task import OFF, PRESETS, TASK, LanguageTask, objective
from nexuslab.systems.language.tokens import Bytes, Characters
from nexuslab.task import At

LETTERS = [bytes([i]) for i in range(256)] + [b""]


def model_with_everything(**changes) -> NEXUSCore:
    """Recurrences, attention, tables and all modules, none of which begins at zero."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=257, d_model=16, ssm_n_layers=3, d_state=4, attention_layers=(1,), attention_window=20,
                 ngram_rows=(64, 64), d_ngram=4, chunk=16)
    model = NEXUSCore(NEXUSConfig(**(sizes | changes)), LETTERS)
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.15)
    return model.eval()


@pytest.fixture(scope="module")
def text() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of questions as bytes, and where their documents start."""
    corpus = corpus_of([q.text for q in kinship(12, (1, 2), seed=5)], Bytes())
    ids = torch.from_numpy(corpus.ids[:400].astype(np.int64)).view(2, 200)
    return ids, ids == Bytes().separator


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """Preset smoke, evaluated."""
    root = tmp_path_factory.mktemp("language")
    cfg = resolve(TASK, "smoke", {"steps": 12, "eval_every": 6})
    TASK.prepare(cfg, root)
    run = fit(TASK, cfg, Run.create(cfg, root)).run
    evaluate(TASK, run)
    return run


# ---- the model


def test_no_logit_depends_on_a_later_token(text):
    ids, start = text
    model = model_with_everything()
    logits, info = model(ids, True, start=start, labels=ids)
    assert set(info["module_outputs"]) == set(MODULES) and (ids[0, 130:] == ord("?")).any()
    for place in (1, 63, 130, 199):
        changed = ids.clone()
        changed[:, place:] = 120
        assert torch.equal(model(changed, start=start)[:, :place], logits[:, :place]), place


def test_no_logit_depends_on_another_document(text):
    ids, start = text
    model = model_with_everything().double()
    second = int(start[0].nonzero()[2])  # after two whole documents
    changed = ids.clone()
    changed[0, 1 : second - 1] = 120
    apart = (model(changed, start=start) - model(ids, start=start))[0].abs().amax(-1)
    assert apart[second:].max() < 1e-12 and apart[second - 1] > 1e-3


def test_token_by_token_equals_all_at_once(text, trained):
    """A trained model in single precision, and one with larger weights, in single and in double."""
    ids, start = text[0][:, :90], text[1][:, :90]
    assert (ids == ord("?")).any() and start[:, 1:45].any()
    large, double = model_with_everything(), model_with_everything().double()
    for model, most in ((trained.load("last")[0], 1e-4), (large, 1e-4), (double, 1e-10)):
        with torch.no_grad():
            whole = model(ids, start=start)
            assert (stepwise(model, ids, start) - whole).abs().max() <= most
            head, info = model(ids[:, :45], True, start=start[:, :45], hand_on=True)
            tail = model(ids[:, 45:], start=start[:, 45:], state=info["state"])
        assert (torch.cat([head, tail], 1) - whole).abs().max() <= most
    sizes = lambda state: [value.shape for layer in state["layers"] for value in layer.values()]
    assert sizes(info["state"]) == sizes(model.begin(2))  # whatever was read


def test_generation_is_the_model_s_own_text(text):
    model, prompt = model_with_everything(), text[0][:, :50]
    written = generate(model, prompt, torch.full((2, 8), 0.5), temperature=0)
    with torch.no_grad():
        logits = model(torch.cat([prompt, written], 1))
    assert torch.equal(logits[:, 49:-1].argmax(-1), written)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_the_scan_is_the_recurrence(dtype, most):
    """h_t = a_t h_(t-1) + x_t B_t, and not h_(t-2); any length, with resets and a state, strong and mild decays."""
    made = torch.Generator().manual_seed(1)
    for length, chunk in ((1, 64), (7, 3), (130, 64)):
        draw = lambda *shape: torch.randn(*shape, generator=made, dtype=dtype)
        x, b, c, state = draw(2, length, 2, 3), draw(2, length, 4), draw(2, length, 4), draw(2, 2, 3, 4)
        starts = torch.rand(2, length, generator=made) < 0.1
        for least, begins in ((-30.0, starts), (-1.25, starts), (-1.25, None)):
            log_a = (least * torch.rand(2, length, 2, generator=made, dtype=dtype)).clamp(min=least)
            h, by_hand = state.clone(), []
            for t in range(length):
                new = (starts & (begins is not None))[:, t, None, None, None]
                h = torch.where(new, 0.0, h * log_a[:, t, :, None, None].exp())
                h = h + x[:, t, :, :, None] * b[:, t, None, None]
                by_hand.append((h * c[:, t, None, None]).sum(-1))
            for found, last in (scan(x, log_a, b, c, state, begins, chunk, least=least),
                                scan_in_order(x, log_a, b, c, state, begins)):
                assert (found - torch.stack(by_hand, 1)).abs().max() < most and (last - h).abs().max() < most


def test_unknown_tokens_are_refused():
    with pytest.raises(NexusError, match="0 to 256"):
        model_with_everything()(torch.tensor([[300]]))
    with pytest.raises(NexusError, match="vocab_size"):
        NEXUSCore(NEXUSConfig())
    for ids in (torch.zeros(1, 0, dtype=torch.long), torch.zeros(5, dtype=torch.long), torch.zeros(1, 5)):
        with pytest.raises(NexusError, match="one at least"):
            model_with_everything()(ids)


def test_how_a_token_is_chosen():
    """However cold, the likeliest; however hot, any of them; what is no temperature, rank or share is refused."""
    logits, places = torch.tensor([[1.0, 5.0, 2.0, 4.9]]), torch.linspace(0.01, 0.99, 50)
    drawn = lambda **how: {int(chosen(logits, u[None], **how)) for u in places}
    assert all(drawn(temperature=t) == {1} for t in (0, 1e-310, 1e-9, 1e-3))
    assert drawn(temperature=1e300) == {0, 1, 2, 3}
    assert drawn(top_k=2) == {1, 3} == drawn(top_p=0.9) and drawn(top_p=1e-12) == {1} and drawn(top_k=99) == {1, 2, 3}
    for how in ({"temperature": -1.0}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(NexusError, match="tokens are chosen"):
            drawn(**how)


def test_what_does_not_fit_is_refused_by_name():
    """Labels, starts, states and numbers of other shapes or values, before PyTorch meets them."""
    model, ids = model_with_everything(), torch.full((2, 9), 100)
    for act, told in (
        (lambda: model(ids, True, labels=ids[:, :4]), "labels"), (lambda: model(ids, True, labels=ids + 300), "labels"),
        (lambda: model(ids, True, labels=ids - 105), "labels"), (lambda: model(ids, state={"text": []}), "a state"),
        (lambda: model(ids, start=ids[:, :3] > 0), "starts"), (lambda: model(ids, state=model.begin(3)), "a state"),
        (lambda: model([[1]]), "tokens"), (lambda: model(ids > 1), "tokens"),
        (lambda: stepwise(model, ids[:, :0]), "tokens"), (lambda: generate(model, ids, ids[:, :0]), "to choose"),
        (lambda: generate(model, ids, torch.rand(3, 3)), "to choose"),
        (lambda: chosen(torch.full((1, 3), math.nan), torch.tensor([0.5])), "logits"),
        (lambda: NEXUSCore(NEXUSConfig(vocab_size=257), LETTERS[:9]), "spell"),
    ):
        with pytest.raises(NexusError, match=told):
            act()


# ---- the objective


def test_a_batch_without_labels_costs_nothing(text):
    """Neither in a step nor in a mean that weighs by labels; labels that the vocabulary has not are refused."""
    model, objective, none = model_with_everything(), NEXUSLoss(), torch.full_like(text[0], -100)
    for training in (True, False):
        logits, info = model.train(training)(text[0], True, labels=none)
        loss, parts = objective.train(training)(logits, none)
        loss.backward()
        assert loss == parts["lm"] == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert objective.train()(logits, none, info["module_outputs"])[0].isfinite()
    for labels in (none + 357, none + 95, none.float(), none[:, 1:]):  # 257, -5
        with pytest.raises(NexusError, match="labels"):
            objective(logits, labels)


def test_a_text_is_scored_where_none_is_given():
    """Whatever the alphabet: as much of the usual text as it can write."""
    for letters in (Characters(" adefimn"), Characters("xyz"), Bytes()):
        model = NEXUSCore(NEXUSConfig(vocab_size=letters.vocabulary, d_model=8, ssm_n_layers=1, **OFF)).eval()
        meta = {"tokenizer": letters.state()}
        (row,) = TASK.predict(model, None, PRESETS["debug"](), meta, length=2)
        assert row["tokens"] > 1 and math.isfinite(row["loss"]) and "continuation" in row
        with pytest.raises(NexusError, match="Unicode"):
            TASK.predict(model, ["half \ud800"], PRESETS["debug"](), meta)


def test_a_model_that_copies_its_input_does_not_score(trained):
    cfg = trained.config
    batch = TASK.data(cfg, trained.root).val.batch(np.arange(3), {}, None)
    known = batch["labels"] >= 0
    assert torch.equal(batch["input_ids"][:, 1:][known[:, :-1]], batch["labels"][:, :-1][known[:, :-1]])
    copied = torch.nn.functional.one_hot(batch["input_ids"], 257) * 10.0
    assert next_token_loss(copied, batch["labels"]) > math.log(257)


def test_smoothing_is_no_part_of_a_validation(trained):
    model, cfg, _ = trained.load("last")
    batch = TASK.data(cfg, trained.root).val.batch(np.arange(3), {}, None)
    smooth = lambda share: overlay(cfg, {"loss.label_smoothing": share})
    at = lambda training: At(seed=1, ids=np.arange(3), training=training)
    losses = {share: float(objective(model, batch, smooth(share), at(False)).loss) for share in (0.0, 0.1)}
    n = int((batch["labels"] >= 0).sum())
    logits = model(batch["input_ids"], start=batch["start"]).detach()
    alone = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum") / n
    assert losses[0.0] == losses[0.1] and math.isclose(losses[0.0], float(alone), rel_tol=1e-5)
    smoothed = [float(objective(model.train(), batch, smooth(share), at(True)).loss) for share in (0.0, 0.1)]
    assert smoothed[1] > smoothed[0]


def test_logits_of_rules_and_a_graph_are_no_matrices(tmp_path):
    """Muon makes every update of a matrix orthogonal, and weight decay keeps logits from becoming sure."""
    cfg = resolve(TASK, "smoke")
    TASK.prepare(cfg, tmp_path)
    loop = probe(TASK, cfg, TASK.data(cfg, tmp_path), tmp_path)
    tables = [loop.model.parts["causal"].raw, *loop.model.parts["reason"].rules.parameters()]
    groups = [next(g for g in loop.optimizer.param_groups if any(p is q for q in g["params"])) for p in tables]
    assert len(groups) == 3 and all(g["weight_decay"] == 0 and not g["matrices"] for g in groups)


def test_names_of_the_guide(text):
    """The objects of the guide by their names, arguments and results."""
    ids, _ = text
    model = model_with_everything().train()
    logits, info = model(ids, return_all_outputs=True, labels=ids)
    total, parts = NEXUSLoss()(logits, ids, module_outputs=info["module_outputs"])
    weights = {"lm": 1.0, "world": 0.1, "reason": 0.05, "energy": 0.05, "causal": 0.05}
    assert set(parts) == set(weights)
    assert torch.isclose(total, sum(weights[name] * part for name, part in parts.items()))
    assert float(info["module_outputs"]["causal"]["dag_constraint"]) >= 0
    assert "iterations" in info["module_outputs"]["energy"] and "proof_length" in info["module_outputs"]["reason"]


def test_modules_can_be_switched_off():
    for name in MODULES:
        assert set(model_with_everything(**{name: False}).parts) == set(MODULES) - {name}
    assert not model_with_everything(**OFF).parts


# ---- training


def test_accumulation_is_one_gradient(tmp_path):
    """Eight rows at once or one by one, the last of them short, in double precision."""
    (tmp_path / "text.txt").write_text("\n".join(q.text for q in kinship(18, (1, 2), seed=3)))
    found = []
    for size, parts in ((8, 1), (1, 8)):
        changes = {"data.suite": None, "data.path": str(tmp_path / "text.txt"), "data.fractions": (0.5, 0.25, 0.25)}
        changes |= {"batch_size": size, "optim.accumulate": parts} | {f"model.{name}": False for name in MODULES}
        cfg = resolve(TASK, "smoke", changes)
        splits = TASK.data(cfg, tmp_path)
        loop = probe(TASK, cfg, splits, tmp_path)
        loop.model.double()
        steps = -(-splits.train.epoch_size // 8)
        micro = [pair for step in load(splits.train, loop.plan, 0, steps) for pair in step]
        counts = [TASK.count_items(batch) for _, batch in micro]
        gradient(loop, micro[-parts:])
        found.append([p.grad.clone() for p in loop.parameters])
        short = min(counts)
    assert 0 < short < 96  # rows of unequal length
    apart = max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))
    assert apart <= 1e-6, apart


def test_resume_with_everything_that_has_a_state(tmp_path):
    """Moving targets, weights that follow the losses, rows that grow: killed and resumed, the same to the last bit."""
    changes = {"loss.dynamic": True, "data.curriculum": 64, "data.curriculum_steps": 3, "loss.label_smoothing": 0.1,
               "loss.shares_every": 1, "loss.dominant": 0.3}
    cfg = resolve(TASK, "smoke", changes)
    TASK.prepare(cfg, tmp_path)
    case = Case(TASK, cfg, tmp_path, TASK.data(cfg, tmp_path))
    assert "scalars equal" in resume_is_exact(case)


def test_two_processes_are_one(tmp_path):
    """Without the modules, whose losses are statistics of a batch."""
    cfg = resolve(TASK, "smoke", {f"model.{name}": False for name in MODULES})
    TASK.prepare(cfg, tmp_path)
    assert "relative difference" in two_processes_agree(Case(TASK, cfg, tmp_path, TASK.data(cfg, tmp_path)))


def test_the_rate_begins_above_zero_and_ends_where_it_is_told():
    cfg = PRESETS["paper"]()
    rates = [learning_rate(cfg.schedule, cfg.optim.lr, step, 100_000) for step in (0, 999, 50_000, 99_999)]
    assert rates[0] == cfg.optim.lr / 1000 and math.isclose(rates[1], 1e-4) and math.isclose(rates[-1], 1e-5)
    assert rates[1] > rates[2] > rates[3]


def test_a_compiled_run_keeps_the_buffers_of_its_graphs(trained, monkeypatch):
    """Shares of the gradient go back through the graph once more than the step; PyTorch refuses that without them."""
    from torch._functorch import config

    monkeypatch.setattr(config, "donated_buffer", True)
    meta = TASK.data(trained.config, trained.root).meta
    for compiled in (False, True):
        TASK.model(overlay(trained.config, {"compute.compile": compiled}), meta)
        assert config.donated_buffer is not compiled


class Spoilt(LanguageTask):
    """One bad batch: labels at random, and a loss a thousand times as large."""

    def step(self, model, batch, cfg, at):
        if at.training and at.step == 40:
            out = objective(model, batch | {"labels": batch["labels"].roll(7, 1)}, cfg, at)
            parts = {name: dataclasses.replace(part, value=part.value * 1e3) for name, part in out.parts.items()}
            return dataclasses.replace(out, loss=out.loss * 1e3, parts=parts)
        return objective(model, batch, cfg, at)


def test_a_bad_batch_is_found_and_does_no_harm(tmp_path):
    cfg = resolve(TASK, "smoke", {"steps": 60, "eval_every": 60, "guard.outlier": 5.0, "log_every": 60} | {
        f"model.{name}": False for name in MODULES})
    TASK.prepare(cfg, tmp_path)
    losses = {}
    for task in (TASK, Spoilt()):
        done = fit(task, cfg, Run.create(cfg, tmp_path / type(task).__name__), splits=TASK.data(cfg, tmp_path))
        spikes = [e["step"] for e in done.run.events() if e["event"] == "spike" and "why" in e]
        assert spikes == ([40] if isinstance(task, Spoilt) else [])
        losses[type(task).__name__] = done.metrics["val/loss"]
    clean, spoilt = losses.values()
    assert abs(spoilt / clean - 1) < 0.01


class Collapsed(LanguageTask):
    """A world module that gives every input nearly the same latent, and does not learn."""

    def model(self, cfg, meta):
        model = super().model(cfg, meta)
        with torch.no_grad():
            model.parts["world"].encoder[2].weight.mul_(1e-4)
        model.parts["world"].encoder.requires_grad_(False)
        return model


def test_a_module_s_collapse_is_an_event(trained, tmp_path):
    told = [event["why"] for event in trained.events() if event["event"] == "alarm"]
    assert not told and "val/world/collapsed" in trained.history()  # measured, and found well
    changes = {"steps": 4, "eval_every": 4, "loss.shares_every": 1, "loss.dominant": 0.4}
    cfg = resolve(TASK, "smoke", changes | {f"model.{name}": False for name in ("reason", "causal")})
    TASK.prepare(cfg, tmp_path)
    run = fit(Collapsed(), cfg, Run.create(cfg, tmp_path)).run
    (why,) = [event["why"] for event in run.events() if event["event"] == "alarm"][:1]
    assert why.startswith("module collapse: ") and "of the gradient" in why and "world module's latents" in why


def test_what_is_logged(trained):
    history = trained.history()
    logged = {"train/lm", "train/world", "train/reason", "train/energy", "train/causal", "train/grad_norm",
              "train/learning_rate", "val/loss", "val/bits_per_byte", "val/perplexity", "train/energy/avg_iterations",
              "train/causal/dag_constraint", "train/reasoning/proof_length", "system/tokens_per_second",
              "system/memory", "train/gradient_share/lm", "train/world/least_std", "train/world/rank"}
    assert logged <= set(history.columns), logged - set(history.columns)
    row = history.dropna(subset=["val/loss"]).iloc[-1]
    assert math.isclose(row["val/perplexity"], math.exp(row["val/loss"]), rel_tol=1e-4)
    told = history.dropna(subset=["train/lm"]).iloc[-1]
    total = sum(told[f"train/weighted_{name}"] for name in ("lm", *MODULES))
    assert math.isclose(told["train/loss"], total, rel_tol=1e-4)


def test_figures_stand_beside_rivals(trained):
    entry = trained.evaluation["test"]
    assert {"uniform", "single tokens", "counts of 6 tokens", "untrained"} <= set(entry["baselines"])
    assert math.isclose(entry["baselines"]["uniform"]["loss"], math.log(257), rel_tol=1e-6)
    assert entry["figures"]["loss"] < entry["baselines"]["untrained"]["loss"]
    bits = entry["figures"]["bits_per_byte"]
    assert 0 < bits < entry["baselines"]["uniform"]["bits_per_byte"] < 8.2


def test_a_run_is_reproduced(trained, tmp_path):
    assert reproduce(trained, folder=tmp_path, write=lambda line: None) == []


def test_text_in_and_out(trained):
    table = predict(TASK, trained, ["ben is child of anna. anna is what of ben?"], length=4)
    assert table["bytes"][0] == 42 and len(table["continuation"][0]) <= 8
    with pytest.raises(NexusError, match="text"):
        predict(TASK, trained, [3])
    first, second = (sample(TASK, trained, 3, prompt="anna is ", length=12, top_k=3, top_p=0.9) for _ in range(2))
    assert first == second and first.exists()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"data.suite": "chess"}, "data.suite"), ({"data.suite": "copy", "data.path": "a.txt"}, "data.suite"),
        ({"data.curriculum": 500}, "data.curriculum"), ({"model.heads": 3}, "model.heads"),
        ({"model.attention_layers": (9,)}, "attention_layers"), ({"model.vocab": 3}, "model.vocab"),
        ({"data.documents": "page"}, "data.documents"), ({"loss.lm": 0}, "loss.lm"),
        ({"model.ngram_rows": (0,)}, "ngram_rows"), ({"model.ngram_rows": (64, -5)}, "ngram_rows"),
    ],
)
def test_impossible_configurations(given, what):
    with pytest.raises(NexusError, match=what):
        resolve(TASK, "smoke", given)
