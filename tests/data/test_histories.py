from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clv.data import histories
from clv.data.clock import DAY_US, Clock
from clv.data.events import EVENTS, stable_hash, type_code
from clv.data.histories import HISTORIES, RAW_TEXT, Histories

CLOCK = Clock("Europe/London")
NOON = CLOCK.parse("2011-06-12T12:00")
MINUTE = 60_000_000

MakeEvents = Callable[[list[dict[str, Any]]], pa.Table]
RandomEvents = Callable[..., pa.Table]


def tokens(table: pa.Table) -> pd.DataFrame:
    """One row per token, `items` as lists."""
    names = [name for name in table.column_names if pa.types.is_list(table.schema.field(name).type)]
    frame = table.select(["customer_id", *names]).to_pandas().explode(names, ignore_index=True)
    frame["items"] = frame["items"].map(list)
    return frame.astype({"amount": float, "quantity": float, "lines": int, "filled": int})


def test_the_schema_is_the_contract(make_events: MakeEvents) -> None:
    table = histories.build(make_events([{"event_time": NOON}]), CLOCK)
    assert table.column_names == HISTORIES.names
    assert table.schema.types == HISTORIES.types


def test_the_text_of_an_event_stands_beside_its_token(make_events: MakeEvents) -> None:
    rows: list[dict[str, object]] = [
        {"event_type": "message", "event_time": NOON + 9 * MINUTE, "text": "where is it?"},
        {"event_time": NOON, "order_id": "1"},
        {"event_type": "message", "event_time": NOON + MINUTE, "text": "hello"},
        {"customer_id": "B", "event_time": NOON},
    ]
    table = histories.build(make_events(rows), CLOCK)
    assert table[RAW_TEXT].to_pylist() == [[None, "hello", "where is it?"], [None]]
    found = Histories.from_table(table)
    assert found.raw_text is not None
    written = [text for text in found.raw_text.to_pylist() if text is not None]
    assert found.text[found.text != 0].tolist() == stable_hash(written).tolist()
    assert found.to_table().drop_columns("amount").equals(table.drop_columns("amount"))  # no amount: NaN is not itself
    # Beside histories without a text, whose tokens then have none.
    silent = histories.build(
        make_events([{"customer_id": "C", "event_time": NOON + i * MINUTE} for i in range(3)]), CLOCK
    )
    assert RAW_TEXT not in silent.column_names
    both = histories.concat([silent, table])
    assert both[RAW_TEXT].to_pylist() == [[None] * 3, *table[RAW_TEXT].to_pylist()]
    torn = pa.concat_tables([silent, table], promote_options="default")
    with pytest.raises(ValueError, match="not a histories table: 4 texts of 7 tokens in column raw_text"):
        Histories.from_table(torn)


def test_lines_of_one_order_are_one_token_with_exact_sums(make_events: MakeEvents) -> None:
    rows = [
        {"order_id": "1", "item_id": "x", "quantity": 2.0, "amount": 10.0, "event_time": NOON + MINUTE, "channel": "b"},
        {"order_id": "1", "item_id": "y", "quantity": 1.0, "amount": 0.5, "event_time": NOON, "channel": "a"},
        {"order_id": "1", "item_id": None, "quantity": None, "amount": 3.0, "event_time": NOON, "amount_filled": True},
    ]
    (token,) = tokens(histories.build(make_events(rows), CLOCK)).to_dict("records")
    assert token["amount"] == 13.5
    assert token["quantity"] == 4.0  # a missing quantity is 1
    assert (token["lines"], token["filled"]) == (3, 1)
    assert sorted(token["items"]) == sorted(stable_hash(["x", "y"]))
    assert token["order"] == stable_hash(["1"])[0]
    assert token["day"] == CLOCK.local_day(NOON)


def test_a_token_happens_with_its_first_line_and_is_known_with_its_last(make_events: MakeEvents) -> None:
    rows = [
        {"order_id": "1", "event_time": NOON, "known_at": NOON + 5 * MINUTE},
        {"order_id": "1", "event_time": NOON + MINUTE, "known_at": NOON + 2 * MINUTE},
        # Nobody could know the whole of this order at its first line.
        {"order_id": "2", "event_time": NOON + 20 * MINUTE},
        {"order_id": "2", "event_time": NOON + 30 * MINUTE},
    ]
    h = Histories.from_table(histories.build(make_events(rows), CLOCK))
    assert ((h.time - NOON) // MINUTE).tolist() == [0, 20]
    assert ((h.known_at - NOON) // MINUTE).tolist() == [5, 30]


def test_what_makes_an_order(make_events: MakeEvents) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any], int]] = [
        ({"order_id": "1"}, {"order_id": "1", "event_time": NOON + DAY_US}, 1),
        ({"order_id": "1"}, {"order_id": "2"}, 2),
        ({"order_id": "1"}, {"order_id": None}, 2),
        ({"order_id": None}, {"order_id": None}, 1),
        ({"order_id": None}, {"order_id": None, "event_time": NOON + 1}, 2),
        ({"order_id": "1"}, {"order_id": "1", "customer_id": "B"}, 2),
        ({"order_id": "1"}, {"order_id": "1", "event_type": "return"}, 2),
        ({"order_id": None}, {"order_id": None, "event_type": "return"}, 2),
        ({"event_type": "return", "order_id": "1"}, {"event_type": "return", "order_id": "1"}, 1),
        ({"event_type": "view"}, {"event_type": "view"}, 2),
        ({"event_type": "cart", "order_id": "1"}, {"event_type": "cart", "order_id": "1"}, 2),
    ]
    for first, second, num in cases:
        rows = [{"event_time": NOON} | first, {"event_time": NOON} | second]
        assert len(tokens(histories.build(make_events(rows), CLOCK))) == num, (first, second)


def test_only_orders_have_an_order_key(make_events: MakeEvents) -> None:
    rows = [{"event_time": NOON, "event_type": "view", "order_id": "1"}, {"event_time": NOON, "order_id": "1"}]
    h = Histories.from_table(histories.build(make_events(rows), CLOCK))
    assert dict(zip(h.type.tolist(), (h.order != 0).tolist(), strict=True)) == {2: False, 0: True}


def test_an_amount_is_missing_only_if_no_line_has_one(make_events: MakeEvents) -> None:
    rows = [
        {"event_time": NOON, "order_id": "1", "amount": None},
        {"event_time": NOON, "order_id": "1", "amount": 4.0},
        {"event_time": NOON + 1, "order_id": "2", "amount": None},
        {"event_time": NOON + 2, "order_id": "3", "amount": 0.0},
    ]
    amount = Histories.from_table(histories.build(make_events(rows), CLOCK)).amount
    assert amount[0] == 4.0
    assert np.isnan(amount[1])
    assert amount[2] == 0.0


def test_tokens_are_ordered_by_time_then_arrival_then_type(make_events: MakeEvents) -> None:
    rows = [
        {"event_time": NOON + 1, "event_type": "view"},
        {"event_time": NOON, "event_type": "view", "known_at": NOON + 9},
        {"event_time": NOON, "event_type": "view"},
        {"event_time": NOON, "event_type": "purchase"},
    ]
    h = Histories.from_table(histories.build(make_events(rows), CLOCK))
    assert (h.time - NOON).tolist() == [0, 0, 0, 1]
    assert (h.known_at - NOON).tolist() == [0, 0, 9, 1]
    assert h.type.tolist() == [0, 2, 2, 2]


def test_customers_are_sorted_by_id_with_first_and_last_time(make_events: MakeEvents) -> None:
    ids = ["b", "Z", "ä", "10", "9", "b"]
    rows = [{"customer_id": name, "event_time": NOON + i} for i, name in enumerate(ids)]
    table = histories.build(make_events(rows), CLOCK)
    assert table["customer_id"].to_pylist() == ["10", "9", "Z", "b", "ä"]
    b = table.filter(pc.equal(table["customer_id"], "b"))
    assert [b[name].cast(pa.int64())[0].as_py() - NOON for name in ("first_time", "last_time")] == [0, 5]


def test_no_events_make_no_histories() -> None:
    table = histories.build(EVENTS.empty_table(), CLOCK)
    assert table.num_rows == 0
    assert table.column_names == HISTORIES.names
    assert len(Histories.from_table(table)) == 0


def naive(events: pa.Table) -> pd.DataFrame:
    """Tokens by plain Python: a dictionary of orders, a loop over rows."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    stamps = {name: events[name].cast(pa.int64()).to_pylist() for name in ("event_time", "known_at")}
    for i, row in enumerate(events.to_pylist()):
        row |= {name: values[i] for name, values in stamps.items()}
        key: tuple[Any, ...] = (i,)
        if row["event_type"] in ("purchase", "return"):
            order = ("id", row["order_id"]) if row["order_id"] is not None else ("at", row["event_time"])
            key = (row["customer_id"], row["event_type"], order)
        groups.setdefault(key, []).append(row)
    out = []
    for rows in groups.values():
        amounts = [row["amount"] for row in rows if row["amount"] is not None]
        out.append(
            {
                "customer_id": rows[0]["customer_id"],
                "time": min(row["event_time"] for row in rows),
                "known_at": max(row["known_at"] for row in rows),
                "type": type_code([rows[0]["event_type"]])[0],
                "amount": round(sum(amounts), 6) if amounts else np.nan,
                "quantity": sum(1.0 if row["quantity"] is None else row["quantity"] for row in rows),
                "lines": len(rows),
                "filled": sum(row["amount_filled"] for row in rows),
                "items": sorted(stable_hash([row["item_id"] for row in rows if row["item_id"] is not None]).tolist()),
            }
        )
    return pd.DataFrame(out)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_tokens_agree_with_a_plain_loop(seed: int, random_events: RandomEvents) -> None:
    events = random_events(seed)
    expected = naive(events)
    found = tokens(histories.build(events, CLOCK))
    assert np.array_equal(CLOCK.local_day(found["time"].astype("int64")), found["day"].to_numpy(int))
    found = found[[*expected.columns]]
    for name in ("time", "known_at"):
        found[name] = pd.to_datetime(found[name], utc=True).astype("datetime64[us, UTC]").astype("int64")
    found["items"] = found["items"].map(lambda keys: sorted(map(int, keys)))
    found["amount"] = found["amount"].round(6)
    frames = []
    for frame in (expected, found):
        frame = frame.astype({"type": int, "filled": int})
        frame["items"] = frame["items"].map(str)
        frames.append(frame.sort_values([*frame.columns]).reset_index(drop=True))
    pd.testing.assert_frame_equal(frames[0], frames[1], check_dtype=False)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_rows_does_not_matter_to_the_last_bit(seed: int, random_events: RandomEvents) -> None:
    events = random_events(seed)
    # Everything twice: rows that differ in nothing but their id.
    events = pa.concat_tables([events, events])
    shuffled = events.take(np.random.default_rng(seed).permutation(len(events)))
    first, second = (Histories.from_table(histories.build(t, CLOCK)) for t in (events, shuffled))
    for name in ("offsets", "item_offsets", "items", *histories.TOKEN_FIELDS):
        assert np.array_equal(getattr(first, name), getattr(second, name), equal_nan=name == "amount"), name


@pytest.mark.parametrize("spread", ["lines", "arrival", "instant"])
def test_tokens_and_lines_stand_in_the_order_of_a_plain_sort(spread: str, rng: np.random.Generator) -> None:
    """The fast sort packs its keys; whatever varies within an order, items come as sorting by every key has them."""
    count = 3000
    order = rng.integers(0, 700, count)
    late = rng.integers(0, 3, count) * MINUTE
    time = NOON + order * 7919 + (late if spread == "lines" else 0)
    events = pa.table(
        {
            "event_id": pa.nulls(count, pa.string()),
            "customer_id": (order % 90).astype(str),
            "event_time": pa.array(time).cast(pa.timestamp("us", tz="UTC")),
            "known_at": pa.array(time + (late if spread == "arrival" else 0)).cast(pa.timestamp("us", tz="UTC")),
            "event_type": np.array(["purchase", "return", "view"])[order % 3],
            "order_id": pa.array(order.astype(str), mask=order % 5 == 0),
            "item_id": rng.integers(0, 6, count).astype(str),
            "quantity": rng.integers(1, 3, count).astype(float),
            "amount": rng.integers(1, 4, count) / 10,
            "amount_filled": np.zeros(count, bool),
            "text": pa.nulls(count, pa.string()),
            "channel": rng.choice(["web", "shop"], count),
        },
        schema=EVENTS,
    )
    frame = events.to_pandas()
    frame["item"], frame["word"] = stable_hash(events["item_id"]), stable_hash(events["channel"])
    frame["kind"] = type_code(events["event_type"])
    frame["key"] = np.where(events["order_id"].is_valid().to_numpy(), order, time)
    frame["key"] = np.where(frame["kind"] == 2, np.arange(count) + NOON * 2, frame["key"])
    frame["at"] = time
    frame = frame.sort_values(["at", "known_at", "item", "quantity", "amount", "word"])
    found = histories.build(events, CLOCK)
    expected = [
        (who, group["at"].iloc[0], kind, group["item"].tolist(), round(sum(group["amount"]), 6))
        for (who, kind, _, _), group in frame.groupby(["customer_id", "kind", "key", frame["order_id"].isna()])
    ]
    view = Histories.from_table(found)
    owner = np.repeat(view.customer_id.to_pylist(), np.diff(view.offsets))
    items = [part.tolist() for part in np.split(view.items, view.item_offsets[1:-1])]
    rows = zip(
        owner.tolist(), view.time.tolist(), view.type.tolist(), items, view.amount.round(6).tolist(), strict=True
    )
    assert sorted(rows) == sorted(expected)
    assert all(np.all(np.diff(part) >= 0) for part in np.split(view.time, view.offsets[1:-1]))


def test_two_groups_that_share_a_hash_stay_two_tokens(
    random_events: RandomEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = random_events(5)
    expected = histories.build(events, CLOCK)
    monkeypatch.setattr(histories, "_mixed", lambda *columns: np.zeros(len(columns[0]), np.uint64))
    assert_same(histories.build(events, CLOCK), expected)


def assert_same(first: pa.Table, second: pa.Table) -> None:
    """Equal tables, NaN amounts too (Arrow says NaN != NaN)."""
    assert first.drop_columns("amount").equals(second.drop_columns("amount"))
    amounts = [np.concatenate([[], *t["amount"].to_pylist()]) for t in (first, second)]
    assert np.array_equal(*amounts, equal_nan=True)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), start=st.integers(0, 3), length=st.integers(0, 4))
def test_any_slice_survives_the_numpy_view(seed: int, start: int, length: int, random_events: RandomEvents) -> None:
    table = histories.build(random_events(seed), CLOCK)
    part = table.slice(start, length)
    view = Histories.from_table(part)
    assert len(view) == part.num_rows
    assert view.offsets[0] == view.item_offsets[0] == 0
    assert view.offsets[-1] == len(view.time)
    assert_same(view.to_table(), part)


def test_shards_join_into_one_table(random_events: RandomEvents) -> None:
    table = histories.build(random_events(3), CLOCK)
    joined = histories.concat([table.slice(2), table.slice(0, 2)])
    view = Histories.from_table(joined)
    assert view.customer_id.to_pylist() == ["C", "D", "A", "B"]
    assert_same(view.to_table().sort_by("customer_id"), table)


def test_attributes_are_joined_by_id_and_survive_the_numpy_view(make_events: MakeEvents) -> None:
    events = make_events([{"customer_id": name, "event_time": NOON} for name in "CAB"])
    attributes = pa.table(
        {
            "customer_id": ["B", "A", "unknown"],
            "attr_town": ["Leeds", None, "York"],
            "attr_age": [30.0, 40.0, 50.0],
            "other": [1, 2, 3],
        }
    )
    table = histories.build(events, CLOCK, attributes)
    assert table["attr_town"].to_pylist() == [None, "Leeds", None]
    assert table["attr_age"].to_pylist() == [40.0, 30.0, None]
    assert "other" not in table.column_names
    view = Histories.from_table(table)
    assert view.attributes["town"].tolist() == [None, "Leeds", None]
    again = view.to_table()
    assert again["attr_town"].to_pylist() == [None, "Leeds", None]
    assert again["attr_age"].to_pylist() == [40.0, 30.0, None]


def test_a_foreign_table_is_refused_with_the_missing_columns() -> None:
    with pytest.raises(ValueError, match=r"not a histories table: columns \['time', 'known_at'.* are missing"):
        Histories.from_table(pa.table({"customer_id": ["A"]}))
