"""Feeding from shards: the same global batches whoever holds them, an exact position, bounded memory."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from clv.data.histories import Histories
from clv.models.inputs.batch import Batch
from clv.train import loop, trainer
from clv.train.config import TrainConfig
from clv.train.examples import in_memory
from clv.train.examples.in_memory import ShardOrigins
from clv.train.examples.loader import WINDOW, ExampleSource, Step
from clv.train.examples.on_storage import read_shard
from clv.train.fitting import Dataset, Setup, plan
from tests.train.shard_files import write_shards


@pytest.fixture
def source(setup: Setup, shop: Dataset, shop_histories: pa.Table, tiny: TrainConfig, tmp_path: Path) -> ShardOrigins:
    read_shard.cache_clear()
    paths = write_shards(shop_histories, tmp_path, 5)
    found = setup.source(replace(shop, shards=paths), replace(tiny, samples_per_epoch=1_400))
    assert isinstance(found, ShardOrigins)
    return found


def accumulating(config: TrainConfig, micro: int) -> TrainConfig:
    return replace(config, token_dropout=0.2).with_engine(accumulation=micro)


def equal(a: Batch, b: Batch) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in ("scalars", "codes", "mask", "item", "wide", "base_value", "population_average")
    )


def test_the_parts_of_a_step_are_the_same_whoever_holds_them(source: ShardOrigins, tiny: TrainConfig) -> None:
    alone = list(source.steps(accumulating(tiny, 4), 0, 1, 0))
    two = [list(source.steps(accumulating(tiny, 2), rank, 2, 0)) for rank in range(2)]
    assert len(alone) == 1_400 // tiny.batch_size > WINDOW
    for whole, *shared in zip(alone, *two, strict=True):
        assert [len(batch) for batch in whole.batches] == [tiny.batch_size // 4] * 4
        for part, batch in enumerate(whole.batches):
            assert equal(batch, shared[part % 2].batches[part // 2])


def test_an_epoch_depends_on_its_number_and_the_seed_alone(source: ShardOrigins, tiny: TrainConfig) -> None:
    def first(of: ShardOrigins, epoch: int) -> Batch:
        return next(of.steps(tiny, 0, 1, epoch)).batches[0]

    assert equal(first(source, 0), first(source, 0))
    assert not equal(first(source, 0), first(source, 1))
    assert not equal(first(source, 0), first(replace(source, seed=2), 0))


@pytest.mark.parametrize("at", [1, WINDOW - 1, WINDOW, WINDOW + 3])
def test_a_resumed_epoch_goes_on_at_the_very_step(at: int, source: ShardOrigins, tiny: TrainConfig) -> None:
    config = accumulating(tiny, 2)
    whole, rest = list(source.steps(config, 0, 1, 3)), list(source.steps(config, 0, 1, 3, at))
    assert [step.number for step in rest] == list(range(at, len(whole)))
    for a, b in zip(whole[at:], rest, strict=True):
        assert all(equal(x, y) for x, y in zip(a.batches, b.batches, strict=True))


def test_a_worker_reads_its_own_shards_only_and_each_once(
    source: ShardOrigins, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def reading(path: str) -> Histories:
        read.append(path)
        return Histories.from_table(pq.read_table(path))

    seen: list[set[str]] = []
    for rank in range(2):
        read.clear()
        monkeypatch.setattr(in_memory, "read_shard", reading)
        many = replace(source, num_samples=8 * WINDOW * tiny.batch_size)
        list(many.steps(tiny, rank, 2, 0))
        seen.append(set(read))
        turns = [path for i, path in enumerate(read) if i == 0 or path != read[i - 1]]
        assert len(turns) == len(seen[-1]) < len(source.shards)
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(source.shards)


def test_labels_are_fully_observed_and_rows_of_a_batch_are_of_similar_length(
    source: ShardOrigins, tiny: TrainConfig
) -> None:
    steps: list[Step] = list(source.steps(tiny, 0, 1, 0))
    spread, between = [], []
    for step in steps:
        (batch,) = step.batches
        assert batch.targets is not None
        assert batch.targets.observed.sum(1).min() >= 1
        lengths = batch.mask.sum(1)
        spread.append(float(lengths.std()))
        between.append(float(lengths.mean()))
    assert np.mean(spread) < 0.5 * np.std(between)


def test_memory_does_not_grow_with_the_number_of_shards(
    source: ShardOrigins, shop_histories: pa.Table, tiny: TrainConfig, tmp_path: Path
) -> None:
    def peak(num: int) -> int:
        """Bytes at most while one epoch over so many shards of one size is read."""
        folder = tmp_path / str(num)
        folder.mkdir()
        paths = [folder / f"{i}.parquet" for i in range(num)]
        for path in paths:
            pq.write_table(shop_histories, path)
        many = replace(source, shards=tuple(map(str, paths)), num_samples=num * WINDOW * tiny.batch_size)
        read_shard.cache_clear()
        most, before = 0, pa.total_allocated_bytes()
        tracemalloc.start()
        for _ in many.steps(tiny, 0, 1, 0):
            most = max(most, tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before)
            tracemalloc.reset_peak()
        tracemalloc.stop()
        return most

    assert peak(12) < 1.2 * peak(3)


def test_what_cannot_be_dealt_out_is_refused_by_name(source: ShardOrigins, tiny: TrainConfig) -> None:
    with pytest.raises(
        ValueError, match="5 shards are too few for workers x accumulation = 8: prepare with --partitions 8"
    ):
        next(source.steps(tiny, 0, 8, 0))
    with pytest.raises(ValueError, match="batch_size 64 cannot be divided evenly among workers x accumulation = 3"):
        next(source.steps(tiny, 0, 3, 0))
    with pytest.raises(ValueError, match="batch_tokens needs the histories in memory"):
        next(source.steps(replace(tiny, batch_tokens=1_000), 0, 1, 0))


def test_shards_yield_the_same_kind_of_samples_as_memory(
    shop: Dataset, setup: Setup, source: ShardOrigins, tiny: TrainConfig
) -> None:
    def means(of: ExampleSource) -> list[float]:
        steps = [step for epoch in range(12) for step in of.steps(tiny, 0, 1, epoch)]
        batches = [batch for step in steps for batch in step.batches]
        targets = [batch.targets for batch in batches if batch.targets is not None]
        bought = torch.cat([t.orders[:, 0] > 0 for t in targets]).float().mean()
        observed = torch.cat([t.observed for t in targets]).mean()
        return [float(bought), float(observed), float(torch.cat([b.mask.sum(1) for b in batches]).mean())]

    # From memory a pair comes once an epoch: few are drawn of the many, so that the two can be compared.
    memory, shards = setup.source(shop, replace(tiny, samples_per_epoch=192)), replace(source, num_samples=1_024)
    np.testing.assert_allclose(means(shards), means(memory), rtol=0.06)


def test_a_run_fed_from_shards_learns(shop: Dataset, cutoff: int, source: ShardOrigins, tiny: TrainConfig) -> None:
    config = replace(tiny, samples_per_epoch=1_024)
    history = loop.finish(trainer.fit_holdout(replace(shop, shards=source.shards), plan(shop, cutoff, config), config))
    assert float(history[-1]["loss"]) < float(history[0]["loss"]) - 0.5
    assert [row["step"] for row in history] == [16, 32]
