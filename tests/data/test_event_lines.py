"""Lines merged into histories give what building from all events at once gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clv.data import event_lines
from clv.data.clock import Clock
from clv.data.events import EVENTS, US
from clv.data.histories import HISTORIES, RAW_TEXT, Histories, build

CLOCK = Clock("Europe/London")
BEGIN = 1_300_000_000_000_000


def log(rng: np.random.Generator, rows: int = 400, customers: int = 25) -> pa.Table:
    """Orders of several lines, some at one instant, some over hours; orders without id or price, free events."""
    order = rng.integers(0, rows // 3, rows)
    customer = order % customers
    time = BEGIN + order * 7_200_000_000 + np.where(order % 2, rng.integers(0, 10**10, rows), 0)
    kind = np.array(["purchase", "purchase", "return", "view", "spin the wheel"])[order % 5]
    return pa.table(
        {
            "event_id": pa.array([f"e{i}" for i in range(rows)]),
            "customer_id": [f"c{i:03d}" for i in customer],
            "event_time": pa.array(time).cast(US),
            "known_at": pa.array(time + rng.integers(0, 10**9, rows)).cast(US),
            "event_type": kind,
            "order_id": pa.array([f"o{i}" for i in order], mask=order % 7 == 0),
            "item_id": pa.array([f"i{i}" for i in rng.integers(30, size=rows)], mask=rng.random(rows) < 0.2),
            "quantity": rng.integers(1, 9, rows).astype(float),
            "amount": pa.array(rng.normal(20, 5, rows).round(2), mask=rng.random(rows) < 0.1),
            "amount_filled": rng.random(rows) < 0.1,
            "text": pa.array(["hello"] * rows, mask=order % 11 < 5),
            "channel": pa.array(["web"] * rows, mask=order % 3 == 0),
        },
        schema=EVENTS,
    )


def assert_same(found: pa.Table, expected: pa.Table) -> None:
    """Equal in every column; the items of an order as a set, sums to rounding."""
    # A line holds the hash of its text alone.
    assert found.column_names == [name for name in expected.column_names if name != RAW_TEXT]
    left, right = Histories.from_table(found), Histories.from_table(expected)
    assert left.customer_id.equals(right.customer_id)
    for name in ("offsets", "item_offsets", "time", "known_at", "day", "type", "order", "lines", "filled"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    for name in ("channel", "text"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)
    for name, tolerance in (("amount", 1e-12), ("quantity", 1e-6)):
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=tolerance)
    pairs = zip(found["items"].to_pylist(), expected["items"].to_pylist(), strict=True)
    assert all(list(map(sorted, one)) == list(map(sorted, other)) for one, other in pairs)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_lines_beside_a_base_in_whatever_order_equal_a_build_of_all(rng: np.random.Generator, share: float) -> None:
    events = log(rng)
    events = events.take(pa.array(rng.permutation(len(events))))
    first = int(len(events) * share)
    base = build(events.slice(0, first), CLOCK) if first else HISTORIES.empty_table()
    rest = events.slice(first)
    found = event_lines.merge(base, rest["customer_id"].to_pylist(), event_lines.encode_events(rest, CLOCK))
    assert_same(found, build(events, CLOCK))


def test_attributes_stay_with_their_customers(rng: np.random.Generator) -> None:
    events = log(rng)
    named = pa.table({"customer_id": ["c003", "c004"], "attr_town": ["Leeds", "York"]})
    base = build(events.filter(pa.compute.less(events["customer_id"], "c005")), CLOCK, named)
    found = event_lines.merge(base, ["new", "c003"], event_lines.encode_events(events.slice(0, 2), CLOCK))
    assert dict(zip(found["customer_id"].to_pylist(), found["attr_town"].to_pylist(), strict=True)) == {
        **dict.fromkeys(["c000", "c001", "c002", "new"]),
        "c003": "Leeds",
        "c004": "York",
    }


def test_what_a_base_already_holds_is_recognised(rng: np.random.Generator) -> None:
    events = log(rng)
    owners: list[Any] = events["customer_id"].to_pylist()
    known = build(events.slice(0, 300), CLOCK)
    found = event_lines.already_in_histories(known, owners, event_lines.encode_events(events, CLOCK))
    assert found[:300].all()
    orders = set(zip(owners[:300], events["order_id"].to_pylist()[:300], strict=True))
    fresh = [i for i in range(300, 400) if (owners[i], events["order_id"].to_pylist()[i]) not in orders]
    assert len(fresh) > 5
    assert not found[fresh].any()
    assert not event_lines.already_in_histories(known, ["nobody"] * 400, event_lines.encode_events(events, CLOCK)).any()


def test_a_history_can_be_kept_from_a_time_on(rng: np.random.Generator) -> None:
    table = build(log(rng), CLOCK)
    times = table["first_time"].cast(pa.int64()).to_numpy().copy()
    middle = table["time"][3].as_py()[4]
    times[3] = pa.scalar(middle, US).cast(pa.int64()).as_py()
    times[7] = 2**62
    found = event_lines.drop_before(table, times)
    names = table["customer_id"].to_pylist()
    assert found["customer_id"].to_pylist() == names[:7] + names[8:]
    rows = {row["customer_id"]: row for row in table.to_pylist()}
    for row in found.to_pylist():
        first = 4 if row["customer_id"] == names[3] else 0
        assert repr(row["items"]) == repr(rows[row["customer_id"]]["items"][first:])
        assert repr(row["amount"]) == repr(rows[row["customer_id"]]["amount"][first:])
