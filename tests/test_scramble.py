import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clv.data import cutoff, features, histories
from clv.data.clock import Clock
from clv.data.events import EVENTS
from tests.scramble import scramble_future

CLOCK = Clock("Europe/London")
ORIGIN = CLOCK.parse("2011-06-12")
DAY = 86_400_000_000


def events(n: int = 600, late: bool = True) -> pa.Table:
    rng = np.random.default_rng(0)
    time = ORIGIN + rng.integers(-200 * DAY, 90 * DAY, n)
    known = time + (rng.random(n) < 0.2) * rng.integers(0, 30 * DAY, n) * int(late)
    columns = {
        "event_id": [f"e{i}" for i in range(n)],
        "customer_id": [f"c{i}" for i in rng.integers(0, 40, n)],
        "event_time": pa.array(time).cast(EVENTS.field("event_time").type),
        "known_at": pa.array(known).cast(EVENTS.field("known_at").type),
        "event_type": rng.choice(["purchase", "view"], n),
        "order_id": [f"o{i}" for i in range(n)],
        "item_id": rng.choice(["a", "b", "c"], n),
        "quantity": np.ones(n),
        "amount": rng.gamma(2.0, 10.0, n),
        "amount_filled": np.zeros(n, bool),
        "text": pa.nulls(n, pa.string()),
        "channel": pa.nulls(n, pa.string()),
    }
    return pa.table({name: columns[name] for name in EVENTS.names}).cast(EVENTS)


def frame_of(table: pa.Table) -> "features.pd.DataFrame":
    return features_at(table, ORIGIN)


def features_at(table: pa.Table, origin: int) -> "features.pd.DataFrame":
    cut = cutoff.cut(histories.Histories.from_table(table), [origin], [30], CLOCK)
    frame = features.sample_frame(cut, (30,))
    return frame.sort_values("customer_id").reset_index(drop=True)


def visible(table: pa.Table) -> pa.Table:
    when = pc.max_element_wise(table["event_time"].cast(pa.int64()), table["known_at"].cast(pa.int64()))
    return table.filter(pc.less(when, ORIGIN))


def test_visible_events_stay_and_all_others_change() -> None:
    before = events()
    after = scramble_future(before, ORIGIN, seed=1)
    assert after.schema == before.schema
    assert visible(after).equals(visible(before))
    hidden = after.slice(len(visible(before)))
    assert len(hidden) > 50
    assert pc.min(hidden["event_time"].cast(pa.int64())).as_py() >= ORIGIN
    assert not set(hidden["event_id"].to_pylist()) & set(before["event_id"].to_pylist())
    assert not after.equals(scramble_future(before, ORIGIN, seed=2))
    assert after.equals(scramble_future(before, ORIGIN, seed=1))


def test_features_of_scrambled_events_are_bit_identical() -> None:
    before = events()
    after = scramble_future(before, ORIGIN, seed=1)
    first, second = (frame_of(histories.build(t, CLOCK)) for t in (before, after))
    assert first.equals(second)


def test_features_of_scrambled_histories_are_bit_identical() -> None:
    before = histories.build(events(), CLOCK)
    after = scramble_future(before, ORIGIN, seed=1)
    assert after.schema == before.schema
    assert frame_of(before).equals(frame_of(after))
    assert not after.equals(before)
    amounts = [pc.sum(pc.list_flatten(t["amount"])).as_py() for t in (before, after)]
    assert amounts[0] != amounts[1]
    first = pc.list_element(after["time"], 0).cast(pa.int64())
    assert first.equals(after["first_time"].cast(pa.int64()))


def dated_attributes() -> pa.Table:
    rng, ids = np.random.default_rng(2), [f"c{i}" for i in range(40)]
    known = ORIGIN + rng.integers(-50, 50, 40) * float(DAY)
    known[0] = ORIGIN  # known at the origin is not known before it
    columns = {"attr_income": rng.normal(40, 9, 40), "attr_town": rng.choice(["Leeds", "York", "Bath"], 40)}
    dated = {f"{name}@known_at": known for name in columns}
    return pa.table({"customer_id": ids, **columns, **dated, "attr_town@fill": ["nowhere"] * 40})


def test_attributes_that_become_known_later_are_scrambled_and_do_not_show() -> None:
    before = histories.build(events(), CLOCK, dated_attributes())
    after = scramble_future(before, ORIGIN, seed=1)
    assert after.schema == before.schema
    first, second = frame_of(before), frame_of(after)
    assert first.equals(second)
    income = dict(zip(before["customer_id"].to_pylist(), before["attr_income"].to_pylist(), strict=True))
    known = dict(zip(before["customer_id"].to_pylist(), before["attr_income@known_at"].to_pylist(), strict=True))
    for who, seen, town, filled in zip(
        *(first[c] for c in ("customer_id", "attr_income", "attr_town", "attr_town_filled")), strict=True
    ):
        hidden = known[who] >= ORIGIN
        assert np.isnan(seen) if hidden else seen == income[who]
        assert (town == "nowhere", filled) == (hidden, float(hidden))
    assert before["attr_income"] != after["attr_income"]
    later = [features_at(t, ORIGIN + 400 * DAY)["attr_income"].to_list() for t in (before, after)]
    assert later[0] != later[1]


def test_scrambling_histories_catches_a_pipeline_that_looks_ahead() -> None:
    before = histories.build(events(), CLOCK)
    after = scramble_future(before, ORIGIN, seed=1)
    leaky = [dict(zip(t["customer_id"].to_pylist(), t["last_time"].to_pylist(), strict=True)) for t in (before, after)]
    assert leaky[0] != leaky[1]


def test_a_table_without_a_future_stays_and_a_foreign_one_is_refused() -> None:
    table = events(late=False)
    assert scramble_future(table, ORIGIN + 1000 * DAY).equals(table)
    with pytest.raises(ValueError, match="neither events"):
        scramble_future(pa.table({"x": [1]}), ORIGIN)
