"""Cutoff between past and future: `cut` returns the events before each origin and the labels after it.

Features, tokens and labels are computed from what `cut` returns and from nothing else, so none of them sees the future.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clv.data.attributes import known_attributes
from clv.data.clock import DAY_US, Clock
from clv.data.events import PURCHASE, RETURN
from clv.data.histories import Histories, changes, ranges

Value = Literal["gross", "net", "none"]


@dataclass(frozen=True)
class Labels:
    """Outcomes in [origin, origin + horizon) of S rows and H horizons, arrays (S, H).

    `value` is in shop currency; `orders` counts purchases, `days` distinct local days with one. `observed` is true
    where the log covers the whole horizon; elsewhere the outcomes are NaN.
    """

    horizons: tuple[int, ...]
    value: NDArray[np.float64]
    orders: NDArray[np.float64]
    days: NDArray[np.float64]
    observed: NDArray[np.bool_]
    next_days: NDArray[np.float64]  # (S,) days from the origin to the next purchase, inf if none is known


@dataclass(frozen=True)
class Cut:
    """Rows (customer, origin) with at least one event that happened and was known before the origin.

    `index[offsets[i]:offsets[i + 1]]` are the tokens of row i's past in `histories`, ascending in time; `origin`
    is in microseconds UTC, `origin_day` in local days since 1970.
    """

    histories: Histories
    value: Value
    customer: NDArray[np.int64]
    origin: NDArray[np.int64]
    origin_day: NDArray[np.int32]
    offsets: NDArray[np.int64]
    index: NDArray[np.int64]
    labels: Labels | None

    def __len__(self) -> int:
        return len(self.customer)

    def token_values(self) -> NDArray[np.float64]:
        """Returns the value of each token of the histories, in shop currency (see the function `token_values`)."""
        return token_values(self.histories, self.value)

    def attributes(self) -> dict[str, NDArray[Any]]:
        """Returns, by name, the attributes of each row's customer that were known before the row's origin."""
        return known_attributes(self.histories.attributes, self.customer, self.origin)

    def newest(self, num_tokens: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns (offsets, positions in `index`) of the newest `num_tokens` tokens of each row's past."""
        start = np.maximum(self.offsets[:-1], self.offsets[1:] - num_tokens)
        return np.append(0, np.cumsum(self.offsets[1:] - start)), ranges(start, self.offsets[1:])

    def take(self, rows: NDArray[np.int64]) -> Cut:
        """Returns the cut of the given rows, in the given order."""
        start, stop = self.offsets[:-1][rows], self.offsets[1:][rows]
        labels = self.labels
        if labels is not None:
            names = ("value", "orders", "days", "observed", "next_days")
            labels = replace(labels, **{name: getattr(labels, name)[rows] for name in names})
        return replace(
            self,
            customer=self.customer[rows],
            origin=self.origin[rows],
            origin_day=self.origin_day[rows],
            offsets=np.append(0, np.cumsum(stop - start)),
            index=self.index[ranges(start, stop)],
            labels=labels,
        )


def token_values(histories: Histories, value: Value) -> NDArray[np.float64]:
    """Returns the value of each token in shop currency; every kind of event that does not count has the value 0.

    Purchases count for "gross", purchases and returns for "net", nothing for "none".
    """
    kinds = {"gross": (PURCHASE,), "net": (PURCHASE, RETURN), "none": ()}[value]
    return np.where(np.isin(histories.type, kinds), np.nan_to_num(histories.amount), 0.0)


def cut(
    histories: Histories,
    origins: ArrayLike,
    horizons_days: Sequence[int],
    clock: Clock,
    *,
    value: Value = "gross",
    customers: NDArray[np.int64] | None = None,
    known_before: int | None = None,
) -> Cut:
    """Returns the pasts of customers at origins, with labels.

    origins: int64 microseconds UTC. Without `customers` every customer is taken at every origin; with it (indices into
    `histories`) row i is customers[i] at origins[i]. A past holds events with time < origin and known_at < origin.
    Labels count purchases in [origin, origin + horizon), a horizon being whole local days, that were known before
    `known_before` (us); a horizon that ends after it is not fully observed. Without `known_before` there are no labels.

    >>> past = cut(histories, clock.parse("2011-06-12"), (30, 90), clock)  # doctest: +SKIP
    """
    instants = np.atleast_1d(np.asarray(origins, np.int64))
    if customers is None:
        who = np.tile(np.arange(len(histories), dtype=np.int64), len(instants))
        when = np.repeat(instants, len(histories))
    else:
        who, when = np.asarray(customers, np.int64), np.broadcast_to(instants, (len(customers),))
    begin, end = histories.offsets[who], histories.offsets[who + 1]
    split = search_segments(histories.time, begin, end, when)
    index = ranges(begin, split)
    length = split - begin
    if bool(np.any(histories.known_at > histories.time)):
        row = np.repeat(np.arange(len(who)), length)
        known = histories.known_at[index] < when[row]
        index, length = index[known], np.bincount(row[known], minlength=len(who))
    seen = length > 0
    who, when = who[seen], when[seen]
    origin_day = clock.local_day(when)
    labels = None
    if known_before is not None:
        labels = _labels(histories, who, when, origin_day, tuple(horizons_days), clock, value, known_before)
    offsets = np.append(0, np.cumsum(length[seen]))
    return Cut(histories, value, who, when, origin_day, offsets, index, labels)


def search_segments(
    values: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64], query: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Returns per row the first i in [begin, end) with values[i] >= query, or `end`: a binary search per segment."""
    low, high = begin.astype(np.int64), end.astype(np.int64)
    last = max(len(values) - 1, 0)
    while bool(np.any(open_ := low < high)):
        middle = (low + high) // 2
        less = values[np.minimum(middle, last)] < query
        low, high = np.where(open_ & less, middle + 1, low), np.where(open_ & ~less, middle, high)
    return low


def _labels(
    histories: Histories,
    who: NDArray[np.int64],
    when: NDArray[np.int64],
    origin_day: NDArray[np.int32],
    horizons: tuple[int, ...],
    clock: Clock,
    value: Value,
    known_before: int,
) -> Labels:
    known = histories.known_at < known_before
    bought = known & (histories.type == PURCHASE)
    value_sum = _running(np.where(known, token_values(histories, value), 0.0))
    order_sum = _running(bought.astype(np.float64))
    opens_day = first_of_day(np.repeat(np.arange(len(histories)), np.diff(histories.offsets)), histories.day, bought)
    day_sum = _running(opens_day.astype(np.float64))

    begin, end = histories.offsets[who, None], histories.offsets[who + 1, None]
    start = search_segments(histories.time, begin, end, when[:, None])
    buys = np.flatnonzero(bought)
    token = np.append(buys, len(bought))[np.searchsorted(buys, start)]  # the next known purchase of any customer
    found = token < end
    # An origin within a day can split its purchases: the first one after it does not open the day, but counts.
    split_day = found & ~np.append(opens_day, True)[token]
    days = origin_day[:, None]
    stop_time = clock.day_start(days + np.array(horizons, np.int64)) + (when[:, None] - clock.day_start(days))
    stop = search_segments(histories.time, begin, end, stop_time)
    observed = stop_time <= known_before
    # The difference of two large running totals could leave 1e-9 where nothing was bought.
    spent = np.where(stop > start, value_sum[stop] - value_sum[start], 0.0)
    num_days = day_sum[stop] - day_sum[start] + (split_day & (token < stop))
    outcomes = (np.maximum(np.round(spent, 6), 0.0), order_sum[stop] - order_sum[start], num_days)
    value_of, orders_of, days_of = (np.where(observed, outcome, np.nan) for outcome in outcomes)
    wait = (np.append(histories.time, 0)[token] - when[:, None]) / DAY_US
    next_days = np.where(found, wait, np.inf)[:, 0]
    return Labels(horizons, value_of, orders_of, days_of, observed, next_days)


def first_of_day(owner: NDArray[np.int64], day: NDArray[Any], bought: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns whether each token is the first purchase of its owner on its day; tokens ascend by owner and time."""
    buys = np.flatnonzero(bought)
    flags = np.zeros(len(bought), bool)
    flags[buys[changes(owner[buys], day[buys])]] = True
    return flags


def _running(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.append(0.0, np.cumsum(values))
