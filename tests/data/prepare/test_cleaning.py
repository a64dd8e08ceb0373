"""Cleaning rules: each does what it says, nothing is cleaned that was not asked for, and every row is accounted for."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clv.data.events import stable_hash
from clv.data.prepare import cleaning, mapping
from clv.data.prepare.cleaning import Prices
from clv.data.prepare.intake import apply_customer_rules
from clv.data.sources.reading import SourceBlock
from clv.data.spec.models import DatasetSpec

SPEC = """
name: shop
timezone: Europe/Berlin
currency: EUR
events:
  path: log.parquet
  columns: {customer_id: c, event_time: t, order_id: o, item_id: i, quantity: q, amount: x}
"""


def spec_with(**cleaning: Any) -> DatasetSpec:
    base = DatasetSpec.parse(SPEC, "shop.yaml").model_dump()
    return DatasetSpec.model_validate(base | {"cleaning": cleaning})


def mapped(spec: DatasetSpec, prices: Prices | None = None, **columns: list[Any]) -> mapping.MappedBlock:
    count = len(next(iter(columns.values())))
    rows = {"c": ["a"] * count, "t": ["2020-05-05 10:00"] * count, "o": [None] * count, "i": [None] * count}
    rows |= {"q": [1.0] * count, "x": [1.0] * count} | columns
    return mapping.map_events(SourceBlock(pa.table(rows), 0), spec.events[0], spec, "log.parquet", prices)


def test_nothing_is_cleaned_unless_asked_for() -> None:
    got = mapped(spec_with(), x=[0.0, -5.0, 1.0, 1.0], q=[0.0, -1.0, 1.0, 1.0], o=["C1", "2", "3", "3"])
    assert got.accounting.accepted == 4
    assert got.rows["event_type"].to_pylist() == ["purchase"] * 4
    assert got.accounting.notices == {"purchases with a negative amount (no rule in cleaning.returns covers them)": 1}


@pytest.mark.parametrize(
    ("rule", "returned"),
    [
        ({"order_id": ["C*"]}, [True, False, False]),
        ({"negative_quantity": True}, [True, True, False]),
        ({"negative_amount": True}, [False, True, False]),
    ],
)
def test_a_return_is_recognised_and_carries_a_negative_amount(rule: dict[str, Any], returned: list[bool]) -> None:
    got = mapped(spec_with(returns=rule), o=["C1", "2", "c3"], q=[-2.0, -1.0, 3.0], x=[4.0, -5.0, 6.0])
    kinds = got.rows["event_type"].to_pylist()
    assert kinds == ["return" if r else "purchase" for r in returned]
    amounts = got.rows["amount"].to_numpy()
    assert (amounts[np.array(returned)] < 0).all()
    assert (got.rows["quantity"].to_numpy()[np.array(returned)] > 0).all()
    assert got.accounting.notices["rows recognised as returns"] == sum(returned)


def test_bounds_look_at_the_magnitude_of_a_return() -> None:
    spec = spec_with(returns={"order_id": ["C*"]}, bounds={"quantity": {"above": 0}, "amount": {"max": 100}})
    got = mapped(spec, o=["C1", "2", "C3"], q=[-1.0, -1.0, -1.0], x=[-10.0, 5.0, -500.0])
    assert got.rows["order_id"].to_pylist() == ["C1"]
    assert got.accounting.rejected == {"quantity <= 0": 1, "amount > 100": 1}


def test_bounds_include_min_and_max_and_exclude_above_and_below() -> None:
    spec = spec_with(bounds={"amount": {"min": 1, "max": 3}, "quantity": {"above": 1, "below": 4}})
    got = mapped(spec, x=[0.9, 1, 3, 3.1, 2, 2], q=[2, 2, 3, 2, 1, 4])
    assert got.rows["amount"].to_pylist() == [1, 3]
    assert got.accounting.rejected == {"amount < 1": 1, "amount > 3": 1, "quantity <= 1": 1, "quantity >= 4": 1}


def test_time_bounds_are_local_to_the_shop() -> None:
    spec = spec_with(bounds={"event_time": {"min": "2020-05-05", "below": "2020-05-06"}})
    got = mapped(
        spec, t=["2020-05-04T21:59:59Z", "2020-05-04T22:00:00Z", "2020-05-05T21:59:59Z", "2020-05-05T22:00:00Z"]
    )
    assert got.accounting.accepted == 2
    assert got.accounting.rejected == {"event_time before 2020-05-05": 1, "event_time not before 2020-05-06": 1}


def test_ignored_ids_match_exactly_or_by_pattern_and_case_counts() -> None:
    spec = spec_with(ignore_items=["POST", "gift_0001_*", "A?"], ignore_orders=["C*"])
    got = mapped(
        spec,
        i=["POST", "post", "POSTCARD", "gift_0001_20", "gift_1", "A1", "A12", None, "x"],
        o=["1", "1", "1", "1", "1", "1", "1", "1", "C9"],
    )
    assert got.rows["item_id"].to_pylist() == ["post", "POSTCARD", "gift_1", "A12", None]
    assert got.accounting.rejected == {"item_id is to be ignored": 3, "order_id is to be ignored": 1}


def test_missing_amounts_are_rejected_unless_a_rule_fills_and_flags_them() -> None:
    columns = {"x": [None, 2.0, None], "i": ["a", "a", "b"], "q": [3.0, 1.0, 1.0]}
    assert mapped(spec_with(), **columns).accounting.rejected == {"amount is missing": 2}

    zero = mapped(spec_with(missing_amount="zero"), **columns).rows
    assert zero["amount"].to_pylist() == [0.0, 2.0, 0.0]
    assert zero["amount_filled"].to_pylist() == [True, False, True]

    prices = Prices(stable_hash(["a"]), np.array([1.5]))
    listed = mapped(spec_with(missing_amount="item_price"), prices, **columns)
    assert listed.rows["amount"].to_pylist() == [4.5, 2.0]
    assert listed.rows["amount_filled"].to_pylist() == [True, False]
    assert listed.accounting.rejected == {"amount is missing": 1}


def test_the_first_of_exact_duplicates_stays_and_equal_rows_of_others_do_too() -> None:
    spec = spec_with(exact_duplicates="drop")
    got = mapped(spec, c=["a", "b", "a", "a"], o=["1", "1", "1", "1"], x=[5.0, 5.0, 5.0, 6.0])
    rows = got.rows.append_column("unit", pa.array([0] * 4, pa.int32()))
    cleaned = apply_customer_rules(rows, spec, ["log.parquet"])
    assert cleaned.rows["amount"].to_pylist() == [5.0, 5.0, 6.0]
    assert cleaned.accounting.rejected == {"exact duplicate of another row": 1}
    assert cleaned.rejects["row"].to_pylist() == [2]
    assert cleaned.rejects["source"].to_pylist() == ["log.parquet"]


def test_a_duplicate_differs_in_no_column_not_even_in_one_that_is_not_mapped() -> None:
    spec = spec_with(exact_duplicates="drop")
    got = mapped(spec, x=[5.0, 5.0], other=["first", "second"])
    assert len(set(got.rows["row_hash"].to_pylist())) == 2
    assert not cleaning.reject_duplicates(got.rows, spec).code.any()


def test_an_order_loaded_twice_under_two_ids_is_dropped_whole() -> None:
    spec = spec_with(duplicated_orders="drop")
    got = mapped(
        spec,
        o=["1", "1", "2", "2", "3", "3", "4"],
        i=["x", "y", "y", "x", "x", "z", "x"],
        x=[1.0, 2.0, 2.0, 1.0, 1.0, 2.0, 1.0],
        t=["2020-05-05 10:00"] * 6 + ["2020-05-05 11:00"],
    )
    outcomes = cleaning.reject_duplicates(got.rows, spec)
    dropped = {order for order, code in zip(got.rows["order_id"].to_pylist(), outcomes.code, strict=True) if code}
    # Orders 1 and 2 hold the same lines at the same time; 3 has another item, 4 another hour. One of the two stays.
    assert len(dropped) == 1
    assert dropped <= {"1", "2"}
    assert (outcomes.code > 0).sum() == 2


def test_events_without_prices_need_none() -> None:
    base = DatasetSpec.parse(SPEC, "shop.yaml").model_dump() | {"value": "none", "currency": None}
    got = mapped(DatasetSpec.model_validate(base), x=[None, 1.0])
    assert got.accounting.accepted == 2
    assert got.rows["amount"].to_pylist() == [None, 1.0]
