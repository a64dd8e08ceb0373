"""The data loader: global batches that any number of workers shares, token budgets, prefetching."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from clv.models.inputs.batch import Batch, Samples
from clv.train.config import TrainConfig
from clv.train.examples.in_memory import RandomOrigins
from clv.train.examples.loader import ahead, global_batches, steps_of


def rows_of(samples: Samples, config: TrainConfig, rank: int, world_size: int, epoch: int = 0) -> list[list[Batch]]:
    return [step.batches for step in steps_of(samples, config, rank, world_size, epoch)]


def test_workers_and_micro_batches_share_the_same_global_batch(source: RandomOrigins, tiny: TrainConfig) -> None:
    samples = source.epoch(0)
    whole = rows_of(samples, tiny, 0, 1)
    split = [rows_of(samples, tiny.with_engine(accumulation=2), rank, 2) for rank in range(2)]
    assert len(whole) == len(split[0]) == len(samples) // tiny.batch_size

    def key(batches: list[Batch]) -> list[list[float]]:
        return sorted(row.tolist() for batch in batches for row in batch.wide)

    for i, (batch,) in enumerate(whole):
        parts = [*split[0][i], *split[1][i]]
        assert [len(part) for part in parts] == [16] * 4
        assert key([batch]) == key(parts)


def test_rows_of_a_batch_are_of_similar_length(source: RandomOrigins, tiny: TrainConfig) -> None:
    samples = source.epoch(0)
    spread = [float(batch.mask.sum(1).std()) for (batch,) in rows_of(samples, tiny, 0, 1)]
    assert np.mean(spread) < 0.5 * samples.lengths.clip(max=16).std()


def test_every_epoch_is_shuffled_anew(source: RandomOrigins, tiny: TrainConfig) -> None:
    samples = source.epoch(0)
    first, again, other = (rows_of(samples, tiny, 0, 1, epoch)[0][0].wide for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_event_dropout_is_drawn_from_seed_epoch_and_step(source: RandomOrigins, tiny: TrainConfig) -> None:
    samples = source.epoch(0)
    dropping = replace(tiny, token_dropout=0.5)

    def masks(config: TrainConfig, epoch: int = 0) -> list[torch.Tensor]:
        return [batch.scalars for (batch,) in rows_of(samples, config, 0, 1, epoch)]

    full, first, again = masks(tiny), masks(dropping), masks(dropping)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert sum(b.shape[1] for b in first) < sum(b.shape[1] for b in full)
    # The same rows in another epoch, or with another seed, lose other tokens.
    seeds = {hash((seed, epoch, 0, 0)) % 2**32 for seed in (0, 1) for epoch in (0, 1)}
    assert len(seeds) == 4
    rows = np.arange(40)
    drawn = [samples.batch(rows, drop=0.5, seed=seed).mask.sum() for seed in sorted(seeds)]
    assert len({float(total) for total in drawn}) > 1


def test_fewer_samples_than_a_batch_make_one_step(source: RandomOrigins, tiny: TrainConfig) -> None:
    few = replace(source, num_samples=10).epoch(0)
    assert [len(batch) for (batch,) in rows_of(few, tiny, 0, 1)] == [len(few)]


@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_each_row_loses_the_same_tokens_however_a_batch_is_shared(
    drop: float, source: RandomOrigins, tiny: TrainConfig
) -> None:
    samples, config = source.epoch(0), replace(tiny, token_dropout=drop)

    def tokens(batches: list[Batch]) -> list[list[float]]:
        scalars = [
            row[mask > 0].flatten().tolist() for b in batches for row, mask in zip(b.scalars, b.mask, strict=True)
        ]
        return sorted(scalars)

    whole = [tokens(step) for step in rows_of(samples, config, 0, 1)]
    for world_size in (2, 3, 4):
        shared = [rows_of(samples, config, rank, world_size) for rank in range(world_size)]
        assert [tokens([b for part in step for b in part]) for step in zip(*shared, strict=True)] == whole


def test_a_token_budget_bounds_every_padded_batch_and_leaves_no_row_out(
    source: RandomOrigins, tiny: TrainConfig
) -> None:
    samples, config = source.epoch(0), replace(tiny, batch_tokens=96)
    batches = global_batches(samples, config, 0)
    lengths = np.maximum(samples.lengths, 1)
    padded = [len(rows) * lengths[rows].max() for rows in batches]
    assert max(padded) <= 96
    assert np.mean(padded) > 0.75 * 96
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(samples)))
    assert len({len(rows) for rows in batches}) > 3
    again, other = global_batches(samples, config, 0), global_batches(samples, config, 1)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, other, strict=False))


def test_a_budget_below_the_longest_customer_is_refused(tiny: TrainConfig) -> None:
    with pytest.raises(ValueError, match="batch_tokens 15 is less than one customer's max_tokens 16"):
        replace(tiny, batch_tokens=15)


def test_batches_are_made_ahead_and_in_order() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    stream = ahead(items(), 3)
    assert next(stream) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 4  # nobody has asked for them yet
    assert list(stream) == list(range(1, 50))
    assert list(ahead(items(), 0)) == list(range(50))


def test_making_ahead_is_bounded_and_ends_with_its_reader() -> None:
    made: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            made.append(len(made))
            yield made[-1]

    stream = ahead(endless(), 2)
    next(stream)
    time.sleep(0.3)
    assert len(made) <= 5
    before = threading.active_count()
    stream.close()
    assert threading.active_count() == before - 1


def test_an_error_of_the_maker_is_raised_where_batches_are_read() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no such shard")

    stream = ahead(broken(), 2)
    assert next(stream) == 1
    with pytest.raises(ValueError, match="no such shard"):
        next(stream)
