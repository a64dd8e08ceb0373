from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clv.data import cutoff, histories
from clv.data.clock import DAY_US, Clock
from clv.data.cutoff import Cut, Value
from clv.data.events import PURCHASE, RETURN
from clv.data.histories import Histories

LONDON = Clock("Europe/London")
HOUR_US = 3_600_000_000
HORIZONS = (1, 7, 30)

MakeEvents = Callable[[list[dict[str, Any]]], pa.Table]
RandomEvents = Callable[..., pa.Table]


def history(table: pa.Table, clock: Clock = LONDON) -> Histories:
    return Histories.from_table(histories.build(table, clock))


def naive_rows(
    h: Histories, pairs: list[tuple[int, int]], clock: Clock, value: Value, known_before: int
) -> list[dict[str, Any]]:
    """The definition, one customer, origin and token at a time."""
    out = []
    for customer, origin in pairs:
        span = range(int(h.offsets[customer]), int(h.offsets[customer + 1]))
        past = [t for t in span if h.time[t] < origin and h.known_at[t] < origin]
        if not past:
            continue
        row: dict[str, Any] = {"customer": customer, "origin": origin, "past": past}
        day = int(clock.local_day(origin))
        into_day = origin - int(clock.day_start(day))
        for horizon in HORIZONS:
            stop = int(clock.day_start(day + horizon)) + into_day
            if stop > known_before:
                row[f"value_{horizon}"] = row[f"orders_{horizon}"] = row[f"days_{horizon}"] = None
                continue
            inside = [t for t in span if origin <= h.time[t] < stop and h.known_at[t] < known_before]
            buys = [t for t in inside if h.type[t] == PURCHASE]
            kinds = {"gross": {PURCHASE}, "net": {PURCHASE, RETURN}, "none": set()}[value]
            worth = sum(h.amount[t] for t in inside if h.type[t] in kinds and not np.isnan(h.amount[t]))
            row[f"value_{horizon}"] = max(round(float(worth), 6), 0.0)
            row[f"orders_{horizon}"] = len(buys)
            row[f"days_{horizon}"] = len({int(h.day[t]) for t in buys})
        waits = [t for t in span if h.time[t] >= origin and h.known_at[t] < known_before and h.type[t] == PURCHASE]
        row["next_days"] = (h.time[waits[0]] - origin) / DAY_US if waits else np.inf
        out.append(row)
    return out


def assert_same(cut: Cut, expected: list[dict[str, Any]]) -> None:
    assert cut.labels is not None
    assert list(zip(cut.customer.tolist(), cut.origin.tolist(), strict=True)) == [
        (row["customer"], row["origin"]) for row in expected
    ]
    for i, row in enumerate(expected):
        assert cut.index[cut.offsets[i] : cut.offsets[i + 1]].tolist() == row["past"]
        for j, horizon in enumerate(HORIZONS):
            is_observed = row[f"value_{horizon}"] is not None
            assert bool(cut.labels.observed[i, j]) is is_observed
            for name in ("value", "orders", "days"):
                found = getattr(cut.labels, name)[i, j]
                assert (np.isnan(found) and not is_observed) or found == pytest.approx(
                    row[f"{name}_{horizon}"], abs=2e-6
                )
        assert cut.labels.next_days[i] == row["next_days"]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    value=st.sampled_from(["gross", "net", "none"]),
    zone=st.sampled_from(["Europe/London", "UTC", "America/Sao_Paulo"]),
    late=st.booleans(),
    midnight=st.booleans(),
    pairwise=st.booleans(),
)
def test_cut_agrees_with_a_plain_loop(
    seed: int, value: Value, zone: str, late: bool, midnight: bool, pairwise: bool, random_events: RandomEvents
) -> None:
    clock = Clock(zone)
    h = history(random_events(seed, late=late, timezone=zone), clock)
    rng = np.random.default_rng(seed)
    first_day = int(clock.local_day(clock.parse("2011-02-20")))
    # London's clocks change on 2011-03-27, in the middle.
    days = np.sort(rng.choice(np.arange(first_day, first_day + 75), 4, replace=False))
    origins = clock.day_start(days) + (0 if midnight else rng.integers(0, 20, 4) * HOUR_US)
    known_before = int(clock.day_start(first_day + int(rng.integers(30, 80))))
    customers = None
    pairs = [(c, int(o)) for o in origins for c in range(len(h))]
    if pairwise:
        customers = rng.integers(0, len(h), 4)
        pairs = list(zip(customers.tolist(), origins.tolist(), strict=True))
    found = cutoff.cut(h, origins, HORIZONS, clock, value=value, customers=customers, known_before=known_before)
    assert_same(found, naive_rows(h, pairs, clock, value, known_before))
    assert np.array_equal(found.origin_day, clock.local_day(found.origin))


def test_an_event_that_arrives_late_is_in_no_past_before_it_arrived(make_events: MakeEvents) -> None:
    origin = LONDON.parse("2011-06-12")
    rows = [
        {"event_time": origin - 3 * DAY_US, "amount": 1.0},
        {"event_time": origin - 2 * DAY_US, "known_at": origin + DAY_US, "amount": 10.0},
        {"event_time": origin - DAY_US, "known_at": origin - 1, "amount": 100.0},
        {"event_time": origin, "amount": 1_000.0},
    ]
    h = history(make_events(rows))
    past = cutoff.cut(h, origin, HORIZONS, LONDON)
    assert h.amount[past.index].tolist() == [1.0, 100.0]
    assert past.labels is None
    later = cutoff.cut(h, origin + 2 * DAY_US, HORIZONS, LONDON)
    assert h.amount[later.index].tolist() == [1.0, 10.0, 100.0, 1_000.0]
    # It happened before the origin, so it is no outcome either.
    labelled = cutoff.cut(h, origin, (30,), LONDON, known_before=origin + 90 * DAY_US)
    assert labelled.labels is not None
    assert labelled.labels.value.tolist() == [[1_000.0]]


def test_the_origin_belongs_to_the_future_and_the_end_of_the_horizon_does_not(make_events: MakeEvents) -> None:
    origin = LONDON.parse("2011-06-12")
    times = [origin - DAY_US, origin - 1, origin, origin + 7 * DAY_US - 1, origin + 7 * DAY_US]
    h = history(make_events([{"event_time": t, "amount": 10.0**i} for i, t in enumerate(times)]))
    cut = cutoff.cut(h, origin, (7,), LONDON, known_before=origin + 8 * DAY_US)
    assert h.amount[cut.index].tolist() == [1.0, 10.0]
    assert cut.labels is not None
    assert cut.labels.value.tolist() == [[1_100.0]]
    assert cut.labels.orders.tolist() == [[2.0]]
    assert cut.labels.next_days.tolist() == [0.0]


def test_a_horizon_of_days_ends_at_local_midnight_across_a_change_of_the_clocks(make_events: MakeEvents) -> None:
    origin = LONDON.parse("2011-03-26")
    end = LONDON.parse("2011-03-28")
    assert end - origin == 47 * HOUR_US
    rows = [{"event_time": origin - 1}, {"event_time": end - 1, "amount": 1.0}, {"event_time": end, "amount": 10.0}]
    h = history(make_events(rows))
    cut = cutoff.cut(h, origin, (2,), LONDON, known_before=end)
    assert cut.labels is not None
    assert cut.labels.observed.all()
    assert cut.labels.value.tolist() == [[1.0]]
    early = cutoff.cut(h, origin, (2,), LONDON, known_before=end - 1)
    assert early.labels is not None
    assert not early.labels.observed.any()
    assert np.isnan(early.labels.value).all()


def test_returns_lower_net_value_down_to_zero_and_leave_gross_alone(make_events: MakeEvents) -> None:
    origin = LONDON.parse("2011-06-12")
    rows = [
        {"event_time": origin - 1, "customer_id": "A"},
        {"event_time": origin + 1, "customer_id": "A", "amount": 10.0},
        {"event_time": origin + 2, "customer_id": "A", "amount": -4.0, "event_type": "return"},
        {"event_time": origin - 1, "customer_id": "B"},
        {"event_time": origin + 2, "customer_id": "B", "amount": -4.0, "event_type": "return"},
        {"event_time": origin + 3, "customer_id": "B", "amount": 9.0, "event_type": "view"},
    ]
    h = history(make_events(rows))
    found = {}
    kinds: tuple[Value, ...] = ("gross", "net", "none")
    for value in kinds:
        labels = cutoff.cut(h, origin, (7,), LONDON, value=value, known_before=origin + 9 * DAY_US).labels
        assert labels is not None
        found[value] = labels.value[:, 0].tolist()
    assert found == {"gross": [10.0, 0.0], "net": [6.0, 0.0], "none": [0.0, 0.0]}


def test_values_of_nobody_buying_are_exactly_zero_after_large_totals(make_events: MakeEvents) -> None:
    origin = LONDON.parse("2011-06-12")
    rng = np.random.default_rng(0)
    rows = [{"event_time": origin - i * DAY_US - 1, "amount": float(a)} for i, a in enumerate(rng.random(300) * 1e7)]
    rows += [{"event_time": origin - 1, "customer_id": "B", "amount": 0.1}]
    cut = cutoff.cut(history(make_events(rows)), origin, (7,), LONDON, known_before=origin + 9 * DAY_US)
    assert cut.labels is not None
    assert cut.labels.value.tolist() == [[0.0], [0.0]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 9))
def test_newest_and_take_agree_with_slices(seed: int, num: int, random_events: RandomEvents) -> None:
    h = history(random_events(seed))
    origins = LONDON.day_start(LONDON.local_day(LONDON.parse("2011-04-01")) + np.array([0, 20]))
    cut = cutoff.cut(h, origins, HORIZONS, LONDON, known_before=int(origins[1]))
    offsets, place = cut.newest(num)
    slices = [cut.index[a:b] for a, b in zip(cut.offsets[:-1], cut.offsets[1:], strict=True)]
    for i, tokens in enumerate(slices):
        assert np.array_equal(cut.index[place[offsets[i] : offsets[i + 1]]], tokens[-num:])
    rows = np.random.default_rng(seed).integers(0, max(len(cut), 1), 5) if len(cut) else np.zeros(0, np.int64)
    part = cut.take(rows)
    assert part.labels is not None
    assert cut.labels is not None
    assert np.array_equal(part.labels.value, cut.labels.value[rows], equal_nan=True)
    for i, row in enumerate(rows):
        assert np.array_equal(part.index[part.offsets[i] : part.offsets[i + 1]], slices[row])
        assert part.customer[i] == cut.customer[row]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-5, 5), max_size=8), min_size=1, max_size=6), st.integers(-7, 7))
def test_first_not_before_is_a_binary_search_in_every_segment(segments: list[list[int]], query: int) -> None:
    values = np.array([v for segment in segments for v in sorted(segment)], np.int64)
    offsets = np.append(0, np.cumsum([len(s) for s in segments]))
    queries = np.full(len(segments), query)
    found = cutoff.search_segments(values, offsets[:-1], offsets[1:], queries)
    expected = [offsets[i] + np.searchsorted(sorted(s), query) for i, s in enumerate(segments)]
    assert found.tolist() == [int(e) for e in expected]


def test_nobody_is_cut_before_the_log_begins(random_events: RandomEvents) -> None:
    cut = cutoff.cut(history(random_events(1)), LONDON.parse("2000-01-01"), HORIZONS, LONDON, known_before=0)
    assert len(cut) == 0
    assert cut.labels is not None
    assert cut.labels.value.shape == (0, 3)
    assert cut.offsets.tolist() == [0]
