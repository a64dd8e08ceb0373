"""Cleaning rules. Row rules look at one row; customer rules need all rows of a customer. All are off unless given."""

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
from clv.data.prepare.accounting import RowAccounting, Verdict
from clv.data.spec.models import Bounds, DatasetSpec


@dataclass(frozen=True)
class Prices:
    """List price by item, for `missing_amount: item_price`; `key` ascends."""

    key: NDArray[np.int64]
    price: NDArray[np.float64]

    def of(self, item_id: pa.Array | None, count: int) -> NDArray[np.float64]:
        """Price of each item, NaN where the item table has none."""
        if item_id is None or not len(self.key):
            return np.full(count, np.nan)
        wanted = stable_hash(item_id)
        at = np.minimum(np.searchsorted(self.key, wanted), len(self.key) - 1)
        return np.where(self.key[at] == wanted, self.price[at], np.nan)


@dataclass
class Draft:
    """A block on its way to events; the row rules rewrite it in place."""

    kind: Any
    time: NDArray[np.int64]
    order_id: Any | None
    item_id: Any | None
    quantity: NDArray[np.float64]
    unit_price: NDArray[np.float64]
    amount: NDArray[np.float64]
    filled: NDArray[np.bool_]


def row_rules(
    draft: Draft, spec: DatasetSpec, verdict: Verdict, accounting: RowAccounting, prices: Prices | None = None
) -> None:
    """Ignored ids, returns, missing amounts, bounds: in this order, the first reason of a row stands."""
    rules, clock = spec.cleaning, spec.clock
    if rules.ignore_orders and draft.order_id is not None:
        verdict.reject(matches(draft.order_id, rules.ignore_orders), "order_id is to be ignored")
    if rules.ignore_items and draft.item_id is not None:
        verdict.reject(matches(draft.item_id, rules.ignore_items), "item_id is to be ignored")

    returned = _recognise_returns(draft, spec)
    sale = np.asarray(pc.equal(draft.kind, "purchase").fill_null(False).to_numpy(zero_copy_only=False))
    if spec.value != "none":
        _fill_amounts(draft, sale | returned, rules.missing_amount, verdict, accounting, prices)
    magnitude = np.where(returned, np.abs(draft.quantity), draft.quantity)
    _bound(magnitude, rules.bounds.quantity, "quantity", verdict)
    _bound(draft.unit_price, rules.bounds.unit_price, "unit_price", verdict)
    _bound(np.where(returned, np.abs(draft.amount), draft.amount), rules.bounds.amount, "amount", verdict)
    draft.quantity = magnitude
    if returned.any():
        draft.amount = np.where(returned, -np.abs(draft.amount), draft.amount)
        accounting.notices["rows recognised as returns"] += int((returned & verdict.accepted).sum())
    limits = rules.bounds.event_time
    if limits.min is not None:
        verdict.reject(draft.time < clock.parse(limits.min), f"event_time before {limits.min}")
    if limits.below is not None:
        verdict.reject(draft.time >= clock.parse(limits.below), f"event_time not before {limits.below}")
    negative = sale & ~returned & (draft.amount < 0) & verdict.accepted
    if negative.any():
        accounting.notices["purchases with a negative amount (no rule in cleaning.returns covers them)"] += int(
            negative.sum()
        )


def matches(ids: Any, patterns: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each id is one of `patterns`, in which * and ? are wildcards; upper and lower case differ."""
    plain = [p for p in patterns if not any(c in p for c in "*?[")]
    found = pc.is_in(ids, pa.array(plain, pa.string()))
    wild = [p for p in patterns if any(c in p for c in "*?[")]
    if wild:
        # RE2 knows no \Z and no atomic groups; fnmatch's parts are simple enough without.
        regex = "|".join("^" + _plain_regex(p) + "$" for p in wild)
        found = pc.or_(found, pc.fill_null(pc.match_substring_regex(ids, regex), False))
    return np.asarray(found.to_numpy(zero_copy_only=False))


def _plain_regex(pattern: str) -> str:
    body = translate(pattern).removeprefix("(?s:").removesuffix(r")\Z").removesuffix(r")\z")
    return "(?s:" + body.replace("(?>", "(?:") + ")"


def _recognise_returns(draft: Draft, spec: DatasetSpec) -> NDArray[np.bool_]:
    rule = spec.cleaning.returns
    given = np.asarray(pc.equal(draft.kind, "return").fill_null(False).to_numpy(zero_copy_only=False))
    found = np.zeros(len(draft.time), bool)
    if rule.order_id is not None and draft.order_id is not None:
        found |= matches(draft.order_id, rule.order_id)
    if rule.negative_quantity:
        found |= draft.quantity < 0
    if rule.negative_amount:
        found |= draft.amount < 0
    found &= np.asarray(pc.equal(draft.kind, "purchase").fill_null(False).to_numpy(zero_copy_only=False))
    if found.any():
        draft.kind = pc.if_else(pa.array(found), "return", draft.kind)
    return np.asarray(found | given)


def _fill_amounts(
    draft: Draft,
    needed: NDArray[np.bool_],
    rule: str,
    verdict: Verdict,
    accounting: RowAccounting,
    prices: Prices | None,
) -> None:
    missing = needed & np.isnan(draft.amount)
    if not missing.any():
        return
    if rule == "zero":
        draft.amount = np.where(missing, 0.0, draft.amount)
    elif rule == "item_price" and prices is not None:
        draft.amount = np.where(missing, draft.quantity * prices.of(draft.item_id, len(missing)), draft.amount)
    draft.filled = missing & ~np.isnan(draft.amount)
    verdict.reject(missing & ~draft.filled, "amount is missing")
    filled = int((draft.filled & verdict.accepted).sum())
    if filled:
        accounting.notices[f"missing amounts filled by the rule {rule!r} and flagged"] += filled


def _bound(values: NDArray[np.float64], bounds: Bounds, name: str, verdict: Verdict) -> None:
    if bounds.min is not None:
        verdict.reject(values < bounds.min, f"{name} < {bounds.min:g}")
    if bounds.above is not None:
        verdict.reject(values <= bounds.above, f"{name} <= {bounds.above:g}")
    if bounds.max is not None:
        verdict.reject(values > bounds.max, f"{name} > {bounds.max:g}")
    if bounds.below is not None:
        verdict.reject(values >= bounds.below, f"{name} >= {bounds.below:g}")


def customer_rules(events: pa.Table, spec: DatasetSpec) -> Verdict:
    """Rules that need whole customers: exact duplicates and duplicated orders. The first copy in file order stays."""
    verdict = Verdict(len(events))
    if spec.cleaning.exact_duplicates == "drop":
        verdict.reject(_repeats(events), "exact duplicate of another row")
    if spec.cleaning.duplicated_orders == "drop":
        verdict.reject(_repeated_orders(events, verdict.accepted), "duplicate of another order")
    return verdict


def _repeats(events: pa.Table) -> NDArray[np.bool_]:
    customer = stable_hash(events["customer_id"])
    row_hash = events["row_hash"].to_numpy()
    order = np.lexsort((row_hash, customer))  # stable: equal rows stay in the order of the file
    repeat = np.zeros(len(events), bool)
    same = (row_hash[order][1:] == row_hash[order][:-1]) & (customer[order][1:] == customer[order][:-1])
    repeat[order[1:]] = same
    return repeat


def _repeated_orders(events: pa.Table, alive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Rows of an order whose customer, type, time and lines equal those of an order with a smaller id."""
    customer = stable_hash(events["customer_id"])
    order_key = stable_hash(events["order_id"])
    kind = stable_hash(events["event_type"])
    time = events["event_time"].cast(pa.int64()).to_numpy()
    line = stable_hash(events["item_id"]).view(np.uint64)
    for name in ("quantity", "amount"):
        values = events[name].fill_null(np.nan).to_numpy()
        line = (line ^ np.round(values * 1e6).astype(np.float64).view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        line ^= line >> np.uint64(31)
    rows = np.flatnonzero(alive & (order_key != 0))
    if not len(rows):
        return np.zeros(len(events), bool)
    rows = rows[np.lexsort((order_key[rows], kind[rows], customer[rows]))]
    c, k, o = customer[rows], kind[rows], order_key[rows]
    new = np.append(True, (c[1:] != c[:-1]) | (k[1:] != k[:-1]) | (o[1:] != o[:-1]))
    start = np.flatnonzero(new)
    lines = np.diff(start, append=len(rows))
    content = np.add.reduceat(line[rows], start)
    when = np.minimum.reduceat(time[rows], start)
    by_content = np.lexsort((o[start], lines, content, when, k[start], c[start]))
    keys = [values[by_content] for values in (c[start], k[start], when, content, lines)]
    same = np.ones(len(by_content) - 1, bool)
    for values in keys:
        same &= values[1:] == values[:-1]
    repeated = np.zeros(len(start), bool)
    repeated[by_content[1:]] = same
    out = np.zeros(len(events), bool)
    out[rows] = np.repeat(repeated, lines)
    return out


def event_ids(events: pa.Table) -> pa.Array:
    """The given event_id, or else the row's hash and its ordinal among equal rows, as 24 hex digits.

    Needs `row_hash`; the same rows get the same ids in whatever order they come.
    """
    if events["event_id"].null_count == 0:
        return events["event_id"].combine_chunks()
    row_hash = events["row_hash"].to_numpy()
    order = np.argsort(row_hash, kind="stable")
    ranked = row_hash[order]
    new = np.append(True, ranked[1:] != ranked[:-1])[: len(ranked)]
    position = np.arange(len(ranked))
    ordinal = np.empty(len(ranked), np.uint32)
    ordinal[order] = position - np.maximum.accumulate(np.where(new, position, 0))
    digits = np.concatenate(
        [row_hash.astype(">i8").view(np.uint8).reshape(-1, 8), ordinal.astype(">u4").view(np.uint8).reshape(-1, 4)],
        axis=1,
    )
    nibbles = np.stack([digits >> 4, digits & 15], axis=2).reshape(len(digits), 24)
    text = np.frombuffer(b"0123456789abcdef", np.uint8)[nibbles]
    offsets = np.arange(len(digits) + 1, dtype=np.int32) * 24
    made = pa.StringArray.from_buffers(len(digits), pa.py_buffer(offsets), pa.py_buffer(text.tobytes()))
    return pc.coalesce(events["event_id"].combine_chunks(), made)
