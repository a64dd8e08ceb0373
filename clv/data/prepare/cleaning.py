"""Cleaning rules: ignored ids, returns, missing amounts, bounds, duplicates; all are off unless the spec has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data.events import stable_hash
from clv.data.histories import changes
from clv.data.prepare.accounting import RowAccounting, RowOutcomes
from clv.data.prepare.parsing import mask
from clv.data.spec.models import Bounds, DatasetSpec


@dataclass(frozen=True)
class Prices:
    """List prices by item key, for `missing_amount: item_price`; `key` is ascending."""

    key: NDArray[np.int64]
    price: NDArray[np.float64]

    def lookup(self, item_id: pa.Array) -> NDArray[np.float64]:
        """Returns the price of each item, (N,), NaN where the item table has none."""
        if not len(self.key):
            return np.full(len(item_id), np.nan)
        wanted = stable_hash(item_id)
        at = np.minimum(np.searchsorted(self.key, wanted), len(self.key) - 1)
        return np.where(self.key[at] == wanted, self.price[at], np.nan)


@dataclass
class EventArrays:
    """Columns of a block of events, which the row rules change in place; `filled` marks amounts that a rule filled."""

    event_type: Any
    time: NDArray[np.int64]
    order_id: Any
    item_id: Any
    quantity: NDArray[np.float64]
    unit_price: NDArray[np.float64]
    amount: NDArray[np.float64]
    filled: NDArray[np.bool_]


def apply_row_rules(
    event: EventArrays,
    spec: DatasetSpec,
    outcomes: RowOutcomes,
    accounting: RowAccounting,
    prices: Prices | None = None,
) -> None:
    """Applies the rules that look at one row: ignored ids, returns, missing amounts, bounds, in this order.

    Changes `event` in place, rejects rows in `outcomes` and adds notices to `accounting`.
    """
    rules, clock = spec.cleaning, spec.clock
    if rules.ignore_orders:
        outcomes.reject(matches(event.order_id, rules.ignore_orders), "order_id is to be ignored")
    if rules.ignore_items:
        outcomes.reject(matches(event.item_id, rules.ignore_items), "item_id is to be ignored")

    returned = _recognise_returns(event, spec)
    sale = mask(pc.equal(event.event_type, "purchase"))
    if spec.value != "none":
        _fill_amounts(event, sale | returned, rules.missing_amount, outcomes, accounting, prices)
    magnitude = np.where(returned, np.abs(event.quantity), event.quantity)
    _reject_outside(magnitude, rules.bounds.quantity, "quantity", outcomes)
    _reject_outside(event.unit_price, rules.bounds.unit_price, "unit_price", outcomes)
    _reject_outside(np.where(returned, np.abs(event.amount), event.amount), rules.bounds.amount, "amount", outcomes)
    event.quantity = magnitude
    if returned.any():
        event.amount = np.where(returned, -np.abs(event.amount), event.amount)
        accounting.notices["rows recognised as returns"] += int((returned & outcomes.accepted).sum())
    limits = rules.bounds.event_time
    if limits.min is not None:
        outcomes.reject(event.time < clock.parse(limits.min), f"event_time before {limits.min}")
    if limits.below is not None:
        outcomes.reject(event.time >= clock.parse(limits.below), f"event_time not before {limits.below}")
    negative = sale & ~returned & (event.amount < 0) & outcomes.accepted
    if negative.any():
        accounting.notices["purchases with a negative amount (no rule in cleaning.returns covers them)"] += int(
            negative.sum()
        )


def matches(ids: Any, patterns: Sequence[str]) -> NDArray[np.bool_]:
    """Returns a mask of the ids that match one of `patterns`, in which * and ? are wildcards; case matters."""
    plain = [p for p in patterns if not any(c in p for c in "*?[")]
    found = pc.is_in(ids, pa.array(plain, pa.string()))
    wild = [p for p in patterns if any(c in p for c in "*?[")]
    if wild:
        # RE2 supports neither \Z nor atomic groups, which the patterns of fnmatch do not need.
        regex = "|".join("^" + _plain_regex(p) + "$" for p in wild)
        found = pc.or_kleene(found, pc.match_substring_regex(ids, regex))
    return mask(found)


def _plain_regex(pattern: str) -> str:
    body = translate(pattern).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
    return "(?s:" + body.replace("(?>", "(?:") + ")"


def _recognise_returns(event: EventArrays, spec: DatasetSpec) -> NDArray[np.bool_]:
    rule = spec.cleaning.returns
    given = mask(pc.equal(event.event_type, "return"))
    found = np.zeros(len(event.time), bool)
    if rule.order_id is not None:
        found |= matches(event.order_id, rule.order_id)
    if rule.negative_quantity:
        found |= event.quantity < 0
    if rule.negative_amount:
        found |= event.amount < 0
    found &= mask(pc.equal(event.event_type, "purchase"))
    if found.any():
        event.event_type = pc.if_else(pa.array(found), "return", event.event_type)
    return np.asarray(found | given)


def _fill_amounts(
    event: EventArrays,
    needed: NDArray[np.bool_],
    rule: str,
    outcomes: RowOutcomes,
    accounting: RowAccounting,
    prices: Prices | None,
) -> None:
    missing = needed & np.isnan(event.amount)
    if not missing.any():
        return
    if rule == "zero":
        event.amount = np.where(missing, 0.0, event.amount)
    elif rule == "item_price" and prices is not None:
        event.amount = np.where(missing, event.quantity * prices.lookup(event.item_id), event.amount)
    event.filled = missing & ~np.isnan(event.amount)
    outcomes.reject(missing & ~event.filled, "amount is missing")
    filled = int((event.filled & outcomes.accepted).sum())
    if filled:
        accounting.notices[f"missing amounts filled by the rule {rule!r} and flagged"] += filled


def _reject_outside(values: NDArray[np.float64], bounds: Bounds, name: str, outcomes: RowOutcomes) -> None:
    if bounds.min is not None:
        outcomes.reject(values < bounds.min, f"{name} < {bounds.min:g}")
    if bounds.above is not None:
        outcomes.reject(values <= bounds.above, f"{name} <= {bounds.above:g}")
    if bounds.max is not None:
        outcomes.reject(values > bounds.max, f"{name} > {bounds.max:g}")
    if bounds.below is not None:
        outcomes.reject(values >= bounds.below, f"{name} >= {bounds.below:g}")


def reject_duplicates(events: pa.Table, spec: DatasetSpec) -> RowOutcomes:
    """Rejects exact duplicates and duplicated orders among all rows of customers; the first copy in file order stays.

    Exact duplicates need the column `row_hash`.
    """
    outcomes = RowOutcomes(len(events))
    if spec.cleaning.exact_duplicates == "drop":
        outcomes.reject(_duplicate_rows(events), "exact duplicate of another row")
    if spec.cleaning.duplicated_orders == "drop":
        outcomes.reject(_duplicate_orders(events, outcomes.accepted), "duplicate of another order")
    return outcomes


def _duplicate_rows(events: pa.Table) -> NDArray[np.bool_]:
    customer = stable_hash(events["customer_id"])
    row_hash = events["row_hash"].to_numpy()
    order = np.lexsort((row_hash, customer))  # stable: equal rows stay in the order of the file
    duplicate = np.zeros(len(events), bool)
    duplicate[order] = ~changes(row_hash[order], customer[order])
    return duplicate


def _duplicate_orders(events: pa.Table, accepted: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mask of the rows of orders whose customer, type, time and content equal those of an order with a smaller id."""
    customer = stable_hash(events["customer_id"])
    order_key = stable_hash(events["order_id"])
    kind = stable_hash(events["event_type"])
    time = events["event_time"].cast(pa.int64()).to_numpy()
    content = stable_hash(events["item_id"]).view(np.uint64)  # of a row, later the sum over an order
    for name in ("quantity", "amount"):
        values = events[name].fill_null(np.nan).to_numpy()
        content = (content ^ np.round(values * 1e6).astype(np.float64).view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        content ^= content >> np.uint64(31)
    rows = np.flatnonzero(accepted & (order_key != 0))
    if not len(rows):
        return np.zeros(len(events), bool)
    rows = rows[np.lexsort((order_key[rows], kind[rows], customer[rows]))]
    c, k, o = customer[rows], kind[rows], order_key[rows]
    start = np.flatnonzero(changes(c, k, o))
    num_rows = np.diff(start, append=len(rows))
    content = np.add.reduceat(content[rows], start)
    when = np.minimum.reduceat(time[rows], start)
    by_content = np.lexsort((o[start], num_rows, content, when, k[start], c[start]))
    keys = (values[by_content] for values in (c[start], k[start], when, content, num_rows))
    repeated = np.zeros(len(start), bool)
    repeated[by_content] = ~changes(*keys)
    out = np.zeros(len(events), bool)
    out[rows] = np.repeat(repeated, num_rows)
    return out
