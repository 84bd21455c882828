"""Text to batches: no token is lost or counted twice, no byte is, a run goes on exactly, and bad input is refused."""
import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Halt, same_weights, train
from torch import nn

from nexuslab.config import Budget, Config, Loader, Optim, Schedule, Track, resolve
from nexuslab.core import NexusError
from nexuslab.data import Plan as Order
from nexuslab.data import load
from nexuslab.evaluate import evaluate
from nexuslab.fit import fit
from nexuslab.own import OwnTask
from nexuslab.reproduce import reproduce
from nexuslab.run import Run
from nexuslab.store import Store
from nexuslab.systems.language import data as language
from nexuslab.systems.language.data import (
    IGNORED,
    Corpus,
    CurriculumScheduler,
    NEXUSCollator,
    NEXUSDataset,
    Passes,
    Plan,
    Windows,
    bits_per_byte,
    corpus_of,
    create_dataloader,
    open_dataset,
    prepare,
    read_bin,
    running_python,
    write_bin,
)
from nexuslab.systems.language.tokens import (
    BytePairs,
    Bytes,
    Characters,
    load_tokenizer,
    refuse_other_tokenizer,
    save_tokenizer,
    tokenizer_of,
)
from nexuslab.task import get_task

TEXT = "It's the naïve 'tokens' that\tcount:\n    x_1 = 10**23  # 中文 🙂\n\n" * 20
ODD = "a \x1c\x1c b\x1f -\x1c- \x0b\x1c \r\n\x1f  c" * 20  # white space to some, marks to others
PAIRS = BytePairs.of([TEXT, "def f(a, b):\n        return a + b\n" * 9, ODD], 400)


def corpus_from(sizes: list[int]) -> Corpus:
    """Documents of these sizes; token i of the stream is the number i, so that every token is another one."""
    begins = np.cumsum([0, *sizes])
    return Corpus(np.arange(begins[-1], dtype=np.uint32), begins[:-1])


def labels_of(batch) -> list[int]:
    return batch["labels"][batch["labels"] != IGNORED].tolist()


# ---- every token is a target once


CORPORA = st.lists(st.integers(1, 30), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 1).map(corpus_from)
CURRICULA = st.builds(lambda low, more, steps, multiple: CurriculumScheduler(low, low + more, steps, multiple),
                      st.integers(1, 20), st.integers(0, 40), st.integers(0, 9), st.integers(1, 8))


@settings(max_examples=60)
@given(CORPORA, st.one_of(st.integers(1, 90), CURRICULA), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_targets_of_a_pass_are_the_corpus(corpus, length, per_step, seed, shuffle):
    source = Passes(corpus, length, seed, per_step, shuffle)
    for number in (0, 1, 5):
        rows = np.arange(source.rows.first(number), source.rows.first(number + 1))
        batches = [source.batch(rows[low : low + 7], {}, None) for low in range(0, len(rows), 7)]
        assert sorted(sum(map(labels_of, batches), [])) == list(range(len(corpus)))
        # a label is the token behind its input, and only one row of a pass may be short
        for batch in batches:
            known = batch["labels"] != IGNORED
            assert torch.equal((batch["input_ids"] + 1)[known] % len(corpus), batch["labels"][known])
            start = np.isin(batch["input_ids"], corpus.begins) & known.numpy()
            start[:, 0] = True
            assert np.array_equal(batch["start"], start)
        widths = [source.rows.length(int(row)) for row in rows]
        targets = [len(labels_of(source.batch(rows[i : i + 1], {}, None))) for i in range(len(rows))]
        assert targets[:-1] == widths[:-1] and targets[-1] <= widths[-1]


@settings(max_examples=60)
@given(CORPORA, st.integers(1, 90), st.booleans(), st.booleans(), st.booleans())
def test_windows_cover_a_corpus_and_say_where_documents_begin(corpus, length, carried, circular, aligned):
    windows = Windows(corpus, length, carried, circular, aligned)
    ids = np.arange(windows.size)
    batch = windows.batch(ids, {}, None)
    assert sorted(labels_of(batch)) == list(range(0 if circular else 1, len(corpus)))
    begins = {*corpus.begins.tolist()}
    inputs, known = batch["input_ids"].tolist(), (batch["labels"] != IGNORED).tolist()
    for row, new in enumerate(windows.begins(ids)):
        expected = [known[row][t] and token in begins for t, token in enumerate(inputs[row])]
        expected[0] = expected[0] or not carried
        assert batch["start"][row].tolist() == expected
        assert batch["segment"][row].tolist() == (np.cumsum(expected) - expected[0]).tolist()
        assert new == (not carried or row == 0 or aligned and inputs[row][0] in begins)
        if not new:  # it goes on where the window before ended
            assert inputs[row][0] == labels_of({"labels": batch["labels"][row - 1]})[-1]


def test_lanes_carry_on_where_they_stopped():
    """In the engine's order for carried states each row goes on in the next step; together they cover the corpus once.
    """
    source = Windows(corpus_from([7, 30, 11, 55, 3]), 4, carried=True, circular=True)
    order = Order(source.size, Loader(batch_size=3, shuffle="none"), seed=0, lanes=True)
    batches = [batch for [(key, batch)] in load(source, order, 0, order.steps_per_epoch)]
    assert sorted(sum(map(labels_of, batches), [])) == list(range(106))
    for batch, after in zip(batches, batches[1:]):
        rows = len(after["labels"])
        assert torch.equal(after["input_ids"][:, 0], batch["labels"][:rows, -1])


def test_shares_of_a_single_document():
    """A text of as many characters as tinyshakespeare is cut at 90 % of them; each is scored, in windows of 64."""
    text = "abcdefghij" * 111_539 + "klmn"
    parts = language.split_texts(Plan(fractions=(0.9, 0.1)), [text])
    assert {name: len(held) for name, [held] in parts.items()} == {"train": 1_003_854, "val": 111_540}
    windows = Windows(corpus_of(parts["val"], Characters.of([text])), 64)
    assert windows.size == 1743
    counts = [len(labels_of(windows.batch(np.array([i]), {}, None))) for i in (0, 1, 1741, 1742)]
    assert counts == [64, 64, 64, 111_540 - 1742 * 64]


# ---- bytes


@settings(max_examples=80)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=4).filter(lambda texts: any(texts)))
def test_bytes_of_labels_sum_to_those_of_the_text(texts):
    size = sum(len(text.encode("utf-8")) for text in texts)
    for tokenizer in (Bytes(), Characters.of(texts), PAIRS):
        corpus = corpus_of(texts, tokenizer)
        windows = Windows(corpus, 9)
        batch = windows.batch(np.arange(windows.size), {}, None)
        assert batch["bytes"].sum() == size == corpus.text_bytes
        ends = np.append(corpus.begins[1:], len(corpus))
        assert [tokenizer.decode(corpus.ids[b + 1 : e]) for b, e in zip(corpus.begins, ends)] == texts
        assert (batch["bytes"][batch["labels"] < 0] == 0).all()
        # a model that gives each of V tokens the same chance pays log2 V bits a token, in whichever tokens
        bits = bits_per_byte(len(labels_of(batch)) * np.log(tokenizer.vocabulary), size)
        assert bits == pytest.approx((len(corpus) - 1) * np.log2(tokenizer.vocabulary) / size)


USUAL = st.sampled_from(" \n\t'sdlvemrt_1\x0b\x1c\x1f")
ASCII = st.text(st.one_of(st.characters(max_codepoint=127), USUAL), max_size=80)


@settings(max_examples=150)
@given(ASCII)
def test_words_of_their_own_are_those_of_the_library(text):
    [tokens, again] = PAIRS.encode_all([text, text + text])
    assert tokens.tolist() == PAIRS.model.encode(text).ids
    assert again.tolist() == PAIRS.model.encode(text + text).ids


def test_large_vocabularies_take_four_bytes(tmp_path):
    """Ids above 65,535 go through the store, a .bin and a batch unharmed."""
    points = [*range(0x20, 0x7F), *range(0xA1, 0xD800), *range(0xE000, 0xFFFE), *range(0x10000, 0x10000 + 5000)]
    (tmp_path / "wide.txt").write_text("\n".join("".join(map(chr, points[k::40])) for k in range(40)), "utf-8")
    corpora = open_dataset(Plan("wide.txt", "char", documents="file", fractions=(0.5, 0.5)), tmp_path)
    assert corpora.tokenizer.vocabulary > 1 << 16 and corpora.train.ids.dtype == np.uint32
    assert int(corpora.train.ids.max()) > 65_535
    again = read_bin(write_bin(tmp_path / "wide.bin", corpora.train), corpora.tokenizer)
    assert again.ids.dtype == np.uint32 and np.array_equal(again.ids, corpora.train.ids)
    assert corpora.tokenizer.decode(again.ids) == corpora.tokenizer.decode(corpora.train.ids)
    windows = Windows(again, 500)
    labels = sum((labels_of(windows.batch(np.array([i]), {}, None)) for i in range(windows.size)), [])
    assert labels == corpora.train.ids[1:].tolist()


# ---- a run goes on exactly


class Bigrams(nn.Module):
    """The smallest language model."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(257, 257)


def bigram_loss(model, batch):
    return nn.functional.cross_entropy(model.table(batch["input_ids"]).flatten(0, 1), batch["labels"].flatten())


def bigram_task():
    """Rows that grow from 8 to 32 tokens, through the engine's loop."""
    corpus = corpus_of([TEXT, TEXT[::-1]], Bytes())
    config = Config(system="bigrams", seed=5, budget=Budget(steps=12), loader=Loader(batch_size=4),
                    optim=Optim(lr=0.1, clip=None), schedule=Schedule(name="constant"), track=Track(log_every=1))
    source = Passes(corpus, CurriculumScheduler(8, 32, 10, 4), 5, per_step=4)
    made = OwnTask("bigrams", Bigrams, bigram_loss, source, Windows(corpus, 32), config,
                   count_items=lambda batch: float((batch["labels"] != IGNORED).sum()), fingerprint="bigrams")
    made.config = config
    return made


def test_a_run_with_a_curriculum_goes_on_exactly(tmp_path):
    task = bigram_task()
    whole = train(task, tmp_path)
    assert whole.run.history()["train/loss"].iloc[-1] < whole.run.history()["train/loss"].iloc[0]
    halted = train(task, tmp_path, [Halt(7)])
    assert halted.step == 7
    again = train(bigram_task(), tmp_path, run=halted.run, resume="last")
    assert again.step == 12 and same_weights(again.run.load("last")[0], whole.run.load("last")[0])
    rows = [run.history()["train/loss"].dropna().tolist() for run in (whole.run, again.run)]
    assert rows[0] == rows[1]


def test_rows_are_functions_of_seed_and_number():
    """Whatever was asked for before, in whatever batches, by however many processes: row g is the same."""
    corpus = corpus_from([50, 3, 80])
    make = lambda seed: Passes(corpus, CurriculumScheduler(4, 12, 6, 4), seed, per_step=6)
    one, other = make(1), make(1)
    later = other.batch(np.arange(600, 606), {}, None)
    for low in range(0, 600, 6):
        one.batch(np.arange(low, low + 6), {}, None)
    assert all(torch.equal(part, later[name]) for name, part in one.batch(np.arange(600, 606), {}, None).items())
    shares = [other.batch(ids, {}, None) for ids in np.split(np.arange(600, 606), 3)]
    assert all(torch.equal(torch.cat([share[name] for share in shares]), part) for name, part in later.items())
    assert not torch.equal(make(2).batch(np.arange(600, 606), {}, None)["input_ids"], later["input_ids"])


# ---- the dataset on the disk


def test_the_standard_library_of_another_python_is_refused(tmp_path, monkeypatch):
    plan = Plan(tokenizer="byte")
    corpora = open_dataset(plan, tmp_path)
    [store] = (tmp_path / "data" / "language").glob("*.h5")
    assert Store(store).manifest["parameters"]["text"] == f"standard library of {running_python()}"
    sizes = [corpus.text_bytes for corpus in (corpora.train, corpora.val, corpora.test)]
    assert sum(sizes) > 3e6 and 0.8 < sizes[0] / sum(sizes) < 0.96
    monkeypatch.setattr(language.platform, "python_version", lambda: "3.99.0")
    assert open_dataset(plan, tmp_path).fingerprint == corpora.fingerprint  # what was built can be read
    with pytest.raises(NexusError, match=f"the standard library of {plan.python}\n  found: CPython 3.99.0"):
        prepare(plan, tmp_path / "elsewhere")
    assert not [*(tmp_path / "elsewhere").rglob("*.h5")]


def test_a_store_is_named_by_the_text_and_not_by_its_place(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"line {k}" for k in range(99)), "utf-8")
    (tmp_path / "b.txt").write_bytes((tmp_path / "a.txt").read_bytes())
    plan = Plan("a.txt", "byte")
    first = prepare(plan, tmp_path)
    assert prepare(dataclasses.replace(plan, path=str(tmp_path / "b.txt")), tmp_path) == first
    (tmp_path / "a.txt").write_text("\n".join(f"line {k}" for k in range(98)), "utf-8")
    changes = [plan, Plan("b.txt", "char"), Plan("b.txt", "byte", seed=1), Plan("b.txt", "byte", documents="file")]
    assert len({first, *(prepare(other, tmp_path) for other in changes)}) == 5
    state = open_dataset(plan, tmp_path).meta()
    assert json.loads(json.dumps(state)) == state and tokenizer_of(state["tokenizer"]).vocabulary == state["vocabulary"]


def test_a_tokenizer_that_does_not_fit_a_model(tmp_path):
    known = PAIRS.state()
    assert refuse_other_tokenizer(load_tokenizer(save_tokenizer(PAIRS, tmp_path / "pairs.json")), known) is None
    for other in (Bytes(), Characters.of([TEXT]), BytePairs.of([TEXT], 399)):
        with pytest.raises(NexusError, match=f"found: {other.kind} of {other.vocabulary} tokens"):
            refuse_other_tokenizer(other, known, "run x")
    text = (tmp_path / "pairs.json").read_text("utf-8")
    (tmp_path / "pairs.json").write_text(text.replace("false", "true", 1), "utf-8")
    with pytest.raises(NexusError, match="has changed"):
        load_tokenizer(tmp_path / "pairs.json")
    for wrong in ({"kind": "words"}, {"kind": "char"}, {"kind": "char", "characters": "ba"}, {"kind": "bpe"},
                  {"kind": "bpe", "tokenizer": {"model": 3}}):
        with pytest.raises(NexusError):
            tokenizer_of(wrong)


def ids(*numbers) -> bytes:
    return np.array(numbers, "<u2").tobytes()


def offsets(*numbers) -> bytes:
    return np.array(numbers, "<i8").tobytes()


BYTES = {"path": "a.bin", "tokenizer": "byte"}
BAD = {  # what stands in the folder, what is asked for, what the error says
    "unknown format": ({"a.csv": b"a,b"}, {"path": "a.csv"}, "'.csv'"),
    "no format": ({"README": b"a"}, {"path": "README"}, "without a suffix"),
    "no such file": ({}, {"path": "a.txt"}, "no such file"),
    "an empty file": ({"a.txt": b""}, {"path": "a.txt"}, "an empty file"),
    "an empty folder": ({"d/x": b""}, {"path": "d"}, "train and valid"),
    "two training files": ({"d/train.txt": b"a", "d/train.jsonl": b"{}", "d/valid.txt": b"a"}, {"path": "d"},
                           "each once"),
    "an empty part": ({"d/train.txt": b"ab", "d/valid.txt": b""}, {"path": "d"}, "valid.txt.*\n.*an empty file"),
    "white space": ({"a.txt": b" \n\n\t\n"}, {"path": "a.txt"}, "white space"),
    "invalid UTF-8": ({"a.txt": b"fine\nnot \xe9 fine"}, {"path": "a.txt"}, r"byte 9 \(line 2\)"),
    "an invalid line": ({"a.jsonl": b'{"text": "a"}\n\n{"text": '}, {"path": "a.jsonl"}, "a.jsonl, line 3"),
    "a line without text": ({"a.jsonl": b'{"text": "a"}\n{"txt": "b"}'}, {"path": "a.jsonl"}, "a.jsonl, line 2"),
    "one document for three": ({"a.jsonl": b'{"text": "a"}\n{"text": "a"}'}, {"path": "a.jsonl"}, "none for"),
    "shares": ({"a.txt": b"abc"}, {"path": "a.txt", "fractions": (0.5, 0.6)}, "data.fractions"),
    "a share that is none": ({"a.txt": b"a\nb"}, {"path": "a.txt", "fractions": (float("nan"), 0.5)}, "data.fractions"),
    "shares of tokens": ({"a.bin": ids(*range(99))}, BYTES | {"fractions": (2.0, -1.0)}, "data.fractions"),
    "a single share": ({"a.bin": ids(*range(99))}, BYTES | {"fractions": (1.0,)}, "data.fractions"),
    "documents": ({"a.txt": b"abc"}, {"path": "a.txt", "documents": "page"}, "line or file"),
    "no tokenizer": ({"a.bin": ids(1, 2, 3)}, {"path": "a.bin", "tokenizer": "bpe"}, "no tokenizer.json"),
    "no tokenizer file": ({"a.txt": b"abc"}, {"path": "a.txt", "tokenizer": "chars"},
                          "data.tokenizer\n(.*\n)*.*char\\?"),
    "a tokenizer that is none": ({"a.txt": b"abc", "t.json": b"{"}, {"path": "a.txt", "tokenizer": "t.json"}, "JSON"),
    "a small vocabulary": ({"a.txt": b"ab" * 99}, {"path": "a.txt", "vocabulary": 257, "documents": "file"},
                           "at least 258"),
    "ids beyond the vocabulary": ({"a.bin": ids(1, 2, 257)}, BYTES, "id 2\n.*257"),
    "an empty .bin": ({"a.bin": b""}, BYTES, "an empty file"),
    "half an id": ({"a.bin": b"abc"}, BYTES, "3 bytes"),
    "an .idx too long": ({"a.bin": ids(1, 2), "a.idx": offsets(0, 3)}, BYTES, "fit a.bin"),
    "an .idx that falls": ({"a.bin": ids(1, 2, 3), "a.idx": offsets(0, 2, 1, 3)}, BYTES,
                           "not rising"),
    "an .idx of another kind": ({"a.bin": ids(1, 2), "a.idx": b"MMIDIDX\x00\x00"}, BYTES,
                                "fit a.bin"),
    "an empty .idx": ({"a.bin": ids(1, 2), "a.idx": b""}, BYTES, "0 offsets"),
    "text and tokens": ({"d/train.bin": ids(1, 2), "d/valid.txt": b"a"}, BYTES | {"path": "d"}, "all as text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_written(name, tmp_path):
    files, asked, said = BAD[name]
    for place, content in files.items():
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(content)
    for act in (prepare, open_dataset):
        with pytest.raises(NexusError, match=said) as caught:
            act(Plan(**{"tokenizer": "bpe", **asked}), tmp_path)
        assert caught.value.remedy and caught.value.found is not None
    assert not [*tmp_path.rglob("*.h5")]


def test_bad_input_is_refused_by_a_training_as_well(tmp_path):
    """Through the configuration and the engine: nothing is trained."""
    task = get_task("language")
    for number, (files, asked, said) in enumerate(BAD.values()):
        home = tmp_path / str(number)
        for place, content in files.items():
            (home / place).parent.mkdir(parents=True, exist_ok=True)
            (home / place).write_bytes(content)
        changes = {"data.suite": None, "data.tokenizer": "bpe"} | {f"data.{k}": v for k, v in asked.items()}
        with pytest.raises(NexusError, match=None if "documents" in asked else said):
            cfg = resolve(task, "smoke", changes)
            fit(task, cfg, Run.create(cfg, home))
        assert not [*home.rglob("*.h5"), *home.rglob("*.safetensors")]
    assert number > 20


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo", "utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}', "utf-8-sig")
    assert [language.read_documents(tmp_path / name) for name in ("a.txt", "a.jsonl")] == [["one", "two"]] * 2


def test_numbers_that_mean_nothing_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo", "utf-8")
    for length in (0, -3):
        with pytest.raises(NexusError, match="length of a window"):
            NEXUSDataset(tmp_path / "a.txt", max_length=length)
    for tokenizer, wrong in ((Bytes(), 257), (Characters("ab"), -1), (PAIRS, 400)):
        with pytest.raises(NexusError, match=f"0 to {tokenizer.vocabulary - 1}"):
            tokenizer.decode([1, wrong])


def test_a_character_that_a_tokenizer_does_not_have(tmp_path):
    (tmp_path / "a.txt").write_text("abba\nbaba\n" * 9, "utf-8")
    save_tokenizer(Characters("ab"), tmp_path / "ab.json")
    with pytest.raises(NexusError, match=r"at character 5\n  found: '\\n'"):
        prepare(Plan("a.txt", "ab.json", documents="file"), tmp_path)


# ---- a trained model


def trained_in(home, **changes):
    """A model that has seen six batches."""
    task = get_task("language")
    cfg = resolve(task, "smoke", {f"data.{name}": value for name, value in changes.items()})
    return fit(task, cfg, Run.create(cfg, home)).run


def test_a_model_is_scored_on_another_text(tmp_path):
    task, home, trained = get_task("language"), tmp_path, trained_in(tmp_path)
    (home / "other.txt").write_text(TEXT, "utf-8")
    figures = evaluate(task, trained, data_path="other.txt", untrained=False)
    documents = [line for line in TEXT.split("\n") if line.strip()]
    corpus = corpus_of(documents, Bytes())
    assert corpus.text_bytes == sum(len(line.encode("utf-8")) for line in documents)
    bits = bits_per_byte(figures["loss"] * (len(corpus) - 1), corpus.text_bytes)
    assert figures["bits_per_byte"] == pytest.approx(bits, rel=1e-5)
    # the same text in tokens of another kind is refused, and so is one that is no text
    save_tokenizer(PAIRS, home / "tokens" / "tokenizer.json")
    write_bin(home / "tokens" / "other.bin", corpus_of([TEXT], PAIRS))
    (home / "bad.txt").write_bytes(b"\xff")
    for wrong, said in (("tokens/other.bin", "the tokenizer of the model"), ("bad.txt", "byte 0")):
        with pytest.raises(NexusError, match=said):
            evaluate(task, trained, data_path=wrong)
    assert set(trained.evaluation) == {"other.txt"}


def test_a_run_on_the_standard_library_comes_out_again_with_the_same_python_only(tmp_path, monkeypatch):
    trained = trained_in(tmp_path, suite=None, tokenizer="byte", fractions=(0.995, 0.005))
    assert reproduce(trained) == []
    monkeypatch.setattr(language.platform, "python_version", lambda: "3.99.0")
    with pytest.raises(NexusError, match=f"the standard library of {trained.config.data.python}"):
        reproduce(trained)


# ---- what the guide shows


def test_the_guides_data_pipeline(tmp_path):
    """The guide's snippets: three formats, the dataset, its items, the collator, the loader, the curriculum."""
    tokenizer = PAIRS
    documents = [TEXT[k : k + 90] for k in range(0, 900, 90)]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "text.txt").write_text("\n".join(document.replace("\n", " ") for document in documents), "utf-8")
    records = [{"text": document, "metadata": {"source": "wiki"}} for document in documents]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
    write_bin(folder / "train.bin", corpus_of(documents, tokenizer))
    write_bin(folder / "valid.bin", corpus_of(documents[:2], tokenizer))

    from_text = NEXUSDataset(str(folder / "text.txt"), tokenizer, max_length=32, mode="train")
    from_records = NEXUSDataset(str(folder / "train.jsonl"), tokenizer, max_length=32)
    train_dataset = NEXUSDataset(str(folder / "train.bin"), max_length=32)
    val_dataset = NEXUSDataset(data_path=str(folder / "valid.bin"), tokenizer=tokenizer, max_length=32, mode="valid")
    assert np.array_equal(from_records.corpus.ids, train_dataset.corpus.ids) and len(from_text) > 1
    for dataset in (from_text, from_records, train_dataset, val_dataset):
        item = dataset[0]
        assert item["input_ids"].shape == item["labels"].shape == (32,) and item["input_ids"].dtype == torch.int64
        assert torch.equal(item["input_ids"][1:], item["labels"][:-1])  # already shifted

    train_loader = create_dataloader(train_dataset, 8)
    val_loader = create_dataloader(val_dataset, batch_size=4, shuffle=False, num_workers=0, pin_memory=False)
    seen = sum(map(labels_of, train_loader), [])
    assert sorted(seen) == sorted(train_dataset.corpus.ids[1:].tolist())  # nothing is padded, nothing is dropped
    batch = next(iter(val_loader))
    assert {*batch} >= {"input_ids", "labels", "attention_mask", "segment", "start", "bytes"}
    assert torch.equal(batch["attention_mask"] == 1, batch["labels"] != IGNORED)
    again = NEXUSCollator(pad_token_id=0)([val_dataset[k] for k in range(len(batch["labels"]))])
    assert all(torch.equal(again[name], part) for name, part in batch.items())

    curriculum = CurriculumScheduler(start_length=256, end_length=2048, warmup_steps=10000)
    assert [curriculum.get_seq_length(step) for step in (0, 500, 5000, 9999, 10_000, 10**6)] == [
        256, 320, 1152, 1984, 2048, 2048]
