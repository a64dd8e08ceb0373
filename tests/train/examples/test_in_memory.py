"""Examples drawn in memory: past origins with observed labels, nothing after the cut, the season drawn more often."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from clv.data.histories import Histories
from clv.models.inputs.batch import Samples
from clv.train.config import TrainConfig
from clv.train.examples.in_memory import RandomOrigins, first_days
from clv.train.fitting import Dataset, Setup, prepare
from tests.scramble import scramble_future


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
    ends = shop.clock.day_start(setup.days + min(shop.horizons))
    assert len(setup.days) >= 4
    assert (ends <= cutoff).all()


def test_a_pair_of_customer_and_origin_comes_once_an_epoch(source: RandomOrigins) -> None:
    crowded = replace(source, num_samples=20_000).epoch(0)
    # No more than there are: every customer known at every origin.
    assert len(crowded) <= len(source.days) * len(source.histories)
    rows = np.concatenate([crowded.wide, crowded.base_value], axis=1)
    known = [
        len(source.assembler.assemble(source.histories, int(o)).table)
        for o in source.assembler.clock.day_start(source.days)
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


def test_origins_are_whole_weeks_before_the_cut(source: RandomOrigins, cutoff: int) -> None:
    before = source.assembler.clock.local_day(cutoff) - source.days
    assert (before > 0).all()
    assert (before % 7 == 0).all()
