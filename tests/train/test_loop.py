import math
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from clv.data.histories import Histories
from clv.evaluate.leakage import scramble_future
from clv.models.inputs.batch import Batch, Samples
from clv.train import loop
from clv.train.config import OptimizerConfig, TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.engines.torch_engine import Engine
from clv.train.examples.in_memory import RandomOrigins, first_days
from clv.train.examples.loader import Whole, ahead, global_batches, steps_of
from clv.train.fitting import Dataset, Setup, prepare
from clv.train.loop import Average, CheckpointSchedule, EpochDone, Position, StepDone, finish, learning_rate


@pytest.fixture(scope="module")
def setup(shop: Dataset, cutoff: int, tiny: TrainConfig) -> Setup:
    return prepare(shop, cutoff, tiny, 30)


@pytest.fixture(scope="module")
def source(setup: Setup, shop: Dataset, tiny: TrainConfig) -> RandomOrigins:
    return setup.source(shop, tiny)


def engine_of(setup: Setup, config: TrainConfig) -> Engine:
    return make_engine(setup.model(config), loop.sum_loss(config, True), config, torch.device("cpu"))


def assert_equal_samples(first: Samples, second: Samples) -> None:
    for name in (
        "wide",
        "base_hazard",
        "base_repeats",
        "base_value",
        "population_average",
        "value",
        "orders",
        "observed",
    ):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name
    for name in ("offsets", "scalars", "codes", "item_offsets", "item"):
        assert np.array_equal(getattr(first.tokens, name), getattr(second.tokens, name)), name


def test_an_epoch_depends_on_its_number_and_the_seed_alone(source: RandomOrigins) -> None:
    first = source.epoch(3)
    assert_equal_samples(first, source.epoch(3))
    for other in (source.epoch(4), replace(source, seed=source.seed + 1).epoch(3)):
        assert len(other) != len(first) or not np.array_equal(other.wide, first.wide)


def test_every_sample_has_a_fully_observed_label(source: RandomOrigins) -> None:
    samples = source.epoch(0)
    assert len(samples) > 250
    assert samples.observed is not None
    assert samples.observed.any(axis=1).all()
    assert not samples.observed.all()  # the newest origins know the short horizon only


def test_origins_are_those_whose_shortest_horizon_ends_before_the_cut(setup: Setup, shop: Dataset, cutoff: int) -> None:
    ends = shop.clock.start_of(setup.days + min(shop.horizons))
    assert len(setup.days) >= 4
    assert (ends <= cutoff).all()


def test_a_pair_of_customer_and_origin_comes_once_an_epoch(source: RandomOrigins) -> None:
    crowded = replace(source, num_samples=20_000).epoch(0)
    # No more than there are: every customer known at every origin.
    assert len(crowded) <= len(source.days) * len(source.histories)
    rows = np.concatenate([crowded.wide, crowded.base_value], axis=1)
    known = [
        len(source.assembler.assemble(source.histories, int(o)).table)
        for o in source.assembler.clock.start_of(source.days)
    ]
    assert len(rows) <= sum(known)


def test_the_season_of_the_cut_is_drawn_more_often(shop: Dataset, tiny: TrainConfig) -> None:
    late = prepare(shop, shop.clock.parse("2024-05-01"), replace(tiny, num_origins=12), 30)
    even, bonus = (replace(late.source(shop, tiny), season_bonus=b, num_samples=4_000).epoch(0) for b in (0.0, 50.0))
    # The origins a year before the cut are young: their samples have few tokens.
    assert bonus.lengths.mean() < even.lengths.mean()


def test_samples_do_not_see_what_came_after_the_cut(
    source: RandomOrigins, shop_histories: pa.Table, cutoff: int
) -> None:
    scrambled = Histories.from_table(scramble_future(shop_histories, cutoff, seed=2))
    assert_equal_samples(source.epoch(0), replace(source, histories=scrambled).epoch(0))


def test_first_days_are_of_events_known_before_the_cut(source: RandomOrigins, cutoff: int) -> None:
    h = source.histories
    known = h.known_at.copy()
    first = h.offsets[:-1]
    known[first[0]] = cutoff  # arrives too late
    late = replace(h, known_at=known)
    found = first_days(late, cutoff)
    assert found[0] == h.day[first[0] + 1]
    assert np.array_equal(found[1:], h.day[first][1:])
    nothing = first_days(h, int(h.time.min()))
    assert (nothing > 10**9).all()


def test_no_past_origin_at_all_says_that_the_log_is_too_short(source: RandomOrigins) -> None:
    with pytest.raises(
        ValueError, match="no past origin has a fully observed label: the log is too short for the horizons"
    ):
        replace(source, days=np.zeros(0, np.int32)).epoch(0)


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


def test_the_learning_rate_rises_linearly_and_falls_along_a_cosine_to_a_twentieth() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(101)]
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10)
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(2.0 * (0.05 + 0.95 / 2))
    assert rates[100] == pytest.approx(0.1)
    assert learning_rate(1_000, 100, config) == pytest.approx(0.1)
    for step in (20, 70):
        angle = math.pi * (step - 10) / 90
        assert rates[step] == pytest.approx(2.0 * (0.05 + 0.95 * (1 + math.cos(angle)) / 2))
    assert learning_rate(0, 1, OptimizerConfig(learning_rate=3.0, warmup=0.0)) == 3.0


def test_the_average_starts_as_a_plain_mean_and_goes_on_exponentially() -> None:
    values = np.random.default_rng(0).normal(size=30)
    average = Average(0.9)
    for value in values:
        average.update({"w": torch.tensor([value], dtype=torch.float32), "n": torch.tensor(3)})
    expected = 0.0
    for count, value in enumerate(values, 1):
        keep = min(0.9, 1 - 1 / count)
        expected = keep * expected + (1 - keep) * value
    assert average.weights["w"].item() == pytest.approx(expected, rel=1e-5)
    assert average.weights["n"].item() == 3
    # Closed form: mean of the first ten, then decay 0.9.
    closed = 0.9**20 * values[:10].mean() + sum(0.1 * 0.9 ** (29 - i) * values[i] for i in range(10, 30))
    assert expected == pytest.approx(closed)


def test_the_average_is_kept_in_full_precision_and_apart_from_the_model() -> None:
    weight = torch.full((4,), 1.0, dtype=torch.bfloat16)
    average = Average(0.99)
    average.update({"w": weight})
    assert average.weights["w"].dtype == torch.float32
    for _ in range(200):
        average.update({"w": torch.full((4,), 1.0078125, dtype=torch.bfloat16)})
    assert 1.0 < average.weights["w"][0].item() < 1.0078125
    weight.fill_(100.0)
    assert average.weights["w"].max() < 2


class Exploding(Whole):
    """A source whose labels are not finite."""

    def __init__(self, source: RandomOrigins) -> None:
        self.source = source

    def epoch(self, epoch: int) -> Samples:
        samples = self.source.epoch(epoch)
        assert samples.value is not None
        return replace(samples, value=np.full_like(samples.value, np.nan))


def test_a_loss_that_is_not_finite_stops_the_run(setup: Setup, source: RandomOrigins, tiny: TrainConfig) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf) at step 1: lower optimizer\.learning_rate"):
        finish(loop.run(engine_of(setup, tiny), Exploding(source), tiny))


def test_an_epoch_yields_its_steps_and_then_its_mean_loss(
    setup: Setup, source: RandomOrigins, tiny: TrainConfig
) -> None:
    *steps, end = until_epoch(1, loop.run(engine_of(setup, tiny), source, tiny))
    assert all(isinstance(event, StepDone) for event in steps)
    assert [event.row["step"] for event in steps] == list(range(1, end.row["step"] + 1))
    assert end.row["loss"] == pytest.approx(np.mean([event.row["loss"] for event in steps]))
    assert 0 <= end.row["waiting"] <= 1
    num_steps = tiny.epochs * (tiny.samples_per_epoch // tiny.batch_size)
    rates = [learning_rate(i, num_steps, tiny.optimizer) for i in range(len(steps))]
    assert [event.row["learning_rate"] for event in steps] == rates


def until_epoch(epoch: int, events: Iterable[Any]) -> list[Any]:
    """The events of a run that is left at the end of an epoch."""
    found = []
    for event in events:
        found.append(event)
        if isinstance(event, EpochDone) and event.row["epoch"] == epoch:
            break
    return found


def losses_of(events: Iterable[Any]) -> list[float]:
    return [event.row["loss"] for event in events if isinstance(event, StepDone)]


def dropping(tiny: TrainConfig) -> TrainConfig:
    """With every kind of randomness on."""
    backbone = replace(tiny.model.backbone, dropout=0.1)
    return replace(tiny, model=replace(tiny.model, backbone=backbone, dropout=0.2), token_dropout=0.2, epochs=3)


@pytest.mark.parametrize("decay", [0.95, 0.0])
def test_a_resumed_run_ends_with_the_weights_of_the_undisturbed_one(
    decay: float, setup: Setup, source: RandomOrigins, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = replace(dropping(tiny), ema_decay=decay)
    whole = list(loop.run(engine_of(setup, config), source, config))
    engine = engine_of(setup, config)
    before = until_epoch(2, loop.run(engine, source, config))
    before[-1].save(tmp_path / "checkpoint")
    torch.manual_seed(12345)  # another process has another state
    fresh = engine_of(setup, replace(config, seed=config.seed + 5))
    start, average = loop.resume(fresh, tmp_path / "checkpoint", config)
    assert start == Position(2)
    assert fresh.step_count == engine.step_count
    after = list(loop.run(fresh, source, config, start=start, average=average))
    assert losses_of(before + after) == losses_of(whole)
    assert_same_result(after, whole)


def assert_same_result(events: list[Any], others: list[Any]) -> None:
    weights, expected = events[-1].result, others[-1].result
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


def test_equal_runs_give_equal_weights(setup: Setup, source: RandomOrigins, tiny: TrainConfig) -> None:
    config = replace(dropping(tiny), epochs=1)

    def runs() -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(2):
            yield finish(loop.run(engine_of(setup, config), source, config))

    first, second = runs()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_origins_are_whole_weeks_before_the_cut(source: RandomOrigins, cutoff: int) -> None:
    before = source.assembler.clock.day_of(cutoff) - source.days
    assert (before > 0).all()
    assert (before % 7 == 0).all()


@pytest.mark.parametrize("stop_at", [3, 8, 11])
def test_a_run_saved_within_an_epoch_goes_on_at_the_very_step(
    stop_at: int, setup: Setup, source: RandomOrigins, tiny: TrainConfig, tmp_path: Path
) -> None:
    config = dropping(tiny)
    whole = list(loop.run(engine_of(setup, config), source, config))
    before = []
    for event in loop.run(engine_of(setup, config), source, config):
        before.append(event)
        if isinstance(event, StepDone) and event.row["step"] == stop_at:
            event.save(tmp_path / "checkpoint")
            break
    torch.manual_seed(12345)
    fresh = engine_of(setup, replace(config, seed=config.seed + 5))
    start, average = loop.resume(fresh, tmp_path / "checkpoint", config)
    assert fresh.step_count == stop_at > 0
    after = list(loop.run(fresh, source, config, start=start, average=average))
    assert losses_of(before + after) == losses_of(whole)
    ends = [
        [event.row["loss"] for event in events if isinstance(event, EpochDone)] for events in (before + after, whole)
    ]
    assert ends[0] == ends[1]
    assert_same_result(after, whole)


def test_a_run_is_saved_by_steps_by_time_and_on_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], []
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    def saved(schedule: CheckpointSchedule) -> list[int]:
        found = []
        for step in range(1, 13):
            now[0] += 1.0
            if schedule.due(step):
                found.append(step)
        return found

    assert saved(CheckpointSchedule()) == []
    assert saved(CheckpointSchedule(steps=5)) == [5, 10]
    assert saved(CheckpointSchedule(seconds=4)) == [4, 8, 12]
    assert saved(CheckpointSchedule(warned=lambda: asked.append(now[0]) or len(asked) == 3)) == [6]
    assert np.diff(asked).tolist() == [2.0] * (len(asked) - 1)


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


def test_a_run_by_tokens_follows_the_whole_schedule(setup: Setup, source: RandomOrigins, tiny: TrainConfig) -> None:
    config = replace(tiny, batch_tokens=96)
    events = loop.run(engine_of(setup, config), source, config)
    rates = [event.row["learning_rate"] for event in events if isinstance(event, StepDone)]
    assert max(rates) == config.optimizer.learning_rate
    assert rates[-1] == pytest.approx(0.05 * config.optimizer.learning_rate, rel=0.1)


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


def test_prefetching_changes_no_loss(setup: Setup, source: RandomOrigins, tiny: TrainConfig) -> None:
    found = []
    for depth in (0, 1, 4):
        config = replace(dropping(tiny), prefetch=depth)
        found.append(losses_of(loop.run(engine_of(setup, config), source, config)))
    assert found[0] == found[1] == found[2]


def test_the_average_stays_on_the_device_of_the_weights() -> None:
    average = Average(0.9)
    for _ in range(3):
        # A tensor of this device has no values: any copy to the CPU fails.
        average.update({"w": torch.zeros(3, device="meta")})
    assert average.weights["w"].device.type == "meta"
