"""Tokens a second: the standard library from source to store, and batches from the store."""

import time

import numpy as np
import pytest

from nexuslab.systems.language.data import CurriculumScheduler, Passes, Plan, open_dataset, prepare

PREPARED = 10.0  # processor seconds within which the standard library is tokenised and packed
TRAINED = 25_000  # tokens a second that the fastest training on a processor takes, of characters
AHEAD = 50  # times faster than that batches must be


@pytest.mark.parametrize("tokenizer", ["bpe", "byte"])
def test_the_standard_library(benchmark, tokenizer, tmp_path):
    folders = iter(range(100))
    begun = time.process_time()
    benchmark.pedantic(lambda: prepare(Plan(tokenizer=tokenizer), tmp_path / str(next(folders))), rounds=1)
    assert time.process_time() - begun < PREPARED


@pytest.mark.parametrize(("rows", "length"), [(12, 64), (8, 256), (32, 2048)])
def test_batches(benchmark, rows, length, tmp_path_factory):
    corpora = open_dataset(Plan(tokenizer="byte"), tmp_path_factory.getbasetemp())
    schedule = CurriculumScheduler(length // 4, length, 100, 16)
    for name, source in (("fixed", Passes(corpora.train, length)),
                         ("growing", Passes(corpora.train, schedule, per_step=rows))):
        steps = iter(range(10**6))
        source.batch(np.arange(rows), {}, None)  # lays the first pass out
        make = lambda source=source, steps=steps: source.batch(np.arange(rows) + rows * next(steps), {}, None)
        if name == "fixed":
            benchmark(make)
            rate = rows * length / benchmark.stats.stats.median
            benchmark.extra_info["tokens_per_second"] = round(rate)
            assert rate > AHEAD * TRAINED
        else:
            begun = time.process_time()
            for _ in range(200):
                make()
            benchmark.extra_info["growing, ms a batch"] = round((time.process_time() - begun) / 200 * 1e3, 3)
