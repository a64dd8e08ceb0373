"""Statistics of a prepared log: sums over the customers of a shard, which `merge` adds up over all shards."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clv.data.events import PURCHASE, RETURN
from clv.data.histories import Histories, changes
from clv.data.sessions import sessions

Stats = dict[str, Any]
_ORDER_STEPS = [0, 1, 2, 3, 4, 5, 10, 20, 50, 100, 1000]
# Edges of the histogram of total purchases per customer: steps of about 12 % resolve the share of the top tenth.
SPEND_EDGES = np.concatenate([[-np.inf, 0.0], 10.0 ** np.arange(-3, 9.01, 0.05), [np.inf]])
_SMALLEST, _LARGEST = {"first_us"}, {"last_us", "largest_history"}


def measure(table: pa.Table) -> Stats:
    """Returns sums over the customers of a histories table; amounts in shop currency, times in us UTC."""
    h = Histories.from_table(table)
    purchase, returned = h.type == PURCHASE, h.type == RETURN
    owner = np.repeat(np.arange(len(h)), np.diff(h.offsets))
    month = h.day.astype("datetime64[D]").astype("datetime64[M]").astype(np.int64)
    amount = np.nan_to_num(h.amount)
    orders = np.bincount(owner[purchase], minlength=len(h))
    spend = np.bincount(owner[purchase], amount[purchase], minlength=len(h))
    spend = spend[orders > 0]
    # Tokens ascend in time within a customer, so a month of a customer begins where either changes.
    new = changes(month, owner)
    first = np.full(len(h), -1)
    first[owner[purchase][::-1]] = month[purchase][::-1]  # ascending in time, so the earliest is written last
    cohort = first[orders > 0]
    return {
        **sessions(owner, h.time, h.type).funnel(),
        "cohort_buyers_by_month": _by_month(cohort),
        "cohort_again_by_month": _by_month(cohort, orders[orders > 0] > 1),
        "cohort_orders_by_month": _by_month(cohort, orders[orders > 0]),
        "cohort_amount_by_month": _by_month(cohort, spend),
        "customers": len(h),
        "tokens": len(h.time),
        "lines": int(h.lines.sum()),
        "filled_lines": int(h.filled.sum()),
        "orders": int(purchase.sum()),
        "returns": int(returned.sum()),
        "buyers": int((orders > 0).sum()),
        "one_time_buyers": int((orders == 1).sum()),
        "amount": float(amount[purchase].sum()),
        "returned": float(-amount[returned].sum()),
        "tokens_by_type": {str(code): int(count) for code, count in zip(*np.unique_counts(h.type), strict=True)},
        "orders_by_month": _by_month(month[purchase]),
        "amount_by_month": _by_month(month[purchase], amount[purchase]),
        "active_by_month": _by_month(month[new]),
        "first_seen_by_month": _by_month(month[h.offsets[:-1]] if len(h) else month),
        "customers_by_orders": _bins(orders),
        "spend_counts": np.histogram(spend, SPEND_EDGES)[0].tolist(),
        "spend_sums": np.histogram(spend, SPEND_EDGES, weights=spend)[0].tolist(),
        "largest_history": int(np.diff(h.offsets).max()) if len(h) else 0,
        "first_us": int(h.time.min()) if len(h.time) else None,
        "last_us": int(h.time.max()) if len(h.time) else None,
    }


def merge(parts: list[Stats]) -> Stats:
    """Returns the statistics of all shards together; `parts` holds at least one."""
    total = dict(parts[0])
    for part in parts[1:]:
        for key, value in part.items():
            if key in _SMALLEST or key in _LARGEST:
                known = [v for v in (total[key], value) if v is not None]
                total[key] = (min if key in _SMALLEST else max)(known) if known else None
            elif isinstance(value, dict):
                total[key] = {name: total[key].get(name, 0) + value.get(name, 0) for name in {**total[key], **value}}
            elif isinstance(value, list):
                total[key] = [a + b for a, b in zip(total[key], value, strict=True)]
            else:
                total[key] += value
    return {k: dict(sorted(v.items())) if k.endswith("_by_month") else v for k, v in total.items()}


def top_share(stats: Stats, share: float) -> float:
    """Returns the part of all purchases made by the `share` of the buyers who spent most, NaN without purchases."""
    counts = np.array(stats["spend_counts"][::-1], float)
    sums = np.array(stats["spend_sums"][::-1], float)
    if not counts.sum() or sums.sum() <= 0:
        return float("nan")
    # Within a step of the histogram all buyers count as equal.
    spent = np.interp(share * counts.sum(), np.append(0, counts.cumsum()), np.append(0, sums.cumsum()))
    return float(spent / sums.sum())


def _by_month(month: NDArray[Any], weights: NDArray[Any] | None = None) -> dict[str, float]:
    months, where = np.unique(month, return_inverse=True)
    sums = np.bincount(where, weights, len(months))
    names = months.astype("datetime64[M]").astype(str)
    return {str(n): (int(s) if weights is None else round(float(s), 6)) for n, s in zip(names, sums, strict=True)}


def _bins(orders: NDArray[Any]) -> dict[str, int]:
    names = [str(low) if high == low + 1 else f"{low}–{high - 1}" for low, high in pairwise(_ORDER_STEPS)]
    names.append(f"{_ORDER_STEPS[-1]} and more")
    counts = np.bincount(np.searchsorted(_ORDER_STEPS, orders, side="right") - 1, minlength=len(names))
    return {name: int(n) for name, n in zip(names, counts, strict=True)}
