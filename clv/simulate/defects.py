"""Plant defective rows in a simulated log, in known numbers by the reason for which prepare rejects them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from clv.data.clock import DAY_US
from clv.data.events import US
from clv.simulate.settings import ShopSettings
from clv.simulate.truth import Ints

MAX_AMOUNT = 100_000
IGNORED_ITEM, IGNORED_ORDERS = "gift-wrap", "TEST*"
_FAR_US = 60_000 * DAY_US  # 2134
MakeDefect = Callable[[pa.Table], pa.Table]


def defect_kinds(shop: ShopSettings) -> dict[str, MakeDefect]:
    """Returns functions that give copies of purchase rows one defect, by the reason for which prepare rejects it."""
    start, end = shop.start_us, shop.clock.parse(shop.end)
    return {
        "customer_id is missing (anonymous)": _set_column("customer_id", None),
        "event_time is missing": _set_column("event_time", None),
        "event_time is unreadable or outside 1970 to 2099": _set_column("event_time", _FAR_US),
        "known_at is unreadable or outside 1970 to 2099": _set_column("known_at", _FAR_US),
        f"event_time before {shop.start}": _set_column("event_time", start - 3 * DAY_US),
        f"event_time not before {shop.end}": _set_column("event_time", end + 3 * DAY_US),
        "event_type is missing": _set_column("event_type", None),
        "event_type is not in the map": _set_column("event_type", "pruchase"),
        "quantity is not a finite number": _set_column("quantity", np.inf),
        "quantity <= 0": _set_column("quantity", 0.0),
        "amount is not a finite number": _set_column("amount", -np.inf),
        "amount is missing": _set_column("amount", None),
        f"amount > {MAX_AMOUNT:g}": _set_column("amount", MAX_AMOUNT * 10.0),
        "item_id is to be ignored": _set_column("item_id", IGNORED_ITEM),
        "order_id is to be ignored": _set_column("order_id", "TEST-1"),
        "exact duplicate of another row": lambda rows: rows,
    }


def plant(rng: np.random.Generator, shop: ShopSettings, events: pa.Table, each: int) -> tuple[pa.Table, Counter[str]]:
    """Inserts `each` rows of every kind of defect and `each` duplicated orders among the events.

    Returns the rows and the number of planted rows by reason. All planted rows are copies of good purchase rows, which
    stay in the log.
    """
    bought = np.flatnonzero(pc.equal(events["event_type"], "purchase").to_numpy())
    planted: Counter[str] = Counter()
    parts, positions = [events], [np.arange(len(events)) * 1.0]
    if not len(bought) or each < 1:
        return events, planted
    for reason, make_defect in defect_kinds(shop).items():
        # Without replacement, so that every planted exact duplicate is the second copy of its row.
        rows = rng.choice(bought, min(each, len(bought)), replace=False)
        parts.append(make_defect(events.take(pa.array(rows))))
        positions.append(rows + 0.5)
        planted[reason] += len(rows)
    copies, rows = _duplicate_orders(rng, events, bought, each)
    parts.append(copies)
    positions.append(rows + 0.5)
    planted["duplicate of another order"] += len(rows)
    order = np.argsort(np.concatenate(positions), kind="stable")
    return pa.concat_tables(parts).combine_chunks().take(pa.array(order)), planted


def plant_items(items: pd.DataFrame) -> tuple[pd.DataFrame, Counter[str]]:
    """Adds an item without id, one whose price is no number, and one that has the id of another; returns the counts."""
    bad = items.iloc[[0, 1, 2]].copy()
    bad["item_id"] = [None, "I-unpriced", items["item_id"].iloc[2]]
    bad["price"] = [1.0, np.inf, 1.0]
    reasons = ["item_id is missing", "price is not a finite number", "item_id stands in the table before"]
    return pd.concat([items, bad], ignore_index=True), Counter(reasons)


def _set_column(name: str, value: object) -> MakeDefect:
    def make_defect(rows: pa.Table) -> pa.Table:
        kind = rows.schema.field(name).type
        fill = pa.scalar(value, pa.int64()).cast(US) if kind == US and value is not None else pa.scalar(value, kind)
        return rows.set_column(rows.column_names.index(name), name, pa.repeat(fill, len(rows)))

    return make_defect


def _duplicate_orders(rng: np.random.Generator, events: pa.Table, bought: Ints, each: int) -> tuple[pa.Table, Ints]:
    """Returns copies of all rows of `each` orders, with ids of their own, and the rows they copy."""
    names = events["order_id"].take(pa.array(bought)).combine_chunks().dictionary_encode()
    codes = names.indices.to_numpy(zero_copy_only=False)
    count = len(names.dictionary)
    chosen = rng.choice(count, min(each, count), replace=False)
    rows = bought[np.isin(codes, chosen)]
    copies = events.take(pa.array(rows))
    for name in ("event_id", "order_id"):
        again = pc.binary_join_element_wise(copies[name], "again", "-")
        copies = copies.set_column(copies.column_names.index(name), name, again)
    return copies, rows
