"""What an anchor needs of one customer, kept up to date event by event without reading the history."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clv.data.events import PURCHASE, RETURN
from clv.data.histories import Histories

_FORMAT = struct.Struct("<iiiiqdddd")
_LOW = 2**32 - 1

STATISTICS = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        *(pa.field(name, pa.int32()) for name in ("first_day", "last_day", "days")),
        *(pa.field(name, pa.float64()) for name in ("spent", "repeat_spent", "returned", "repeat_returned")),
    ]
)


@dataclass
class Statistics:
    """Shop-local days of the first and last purchase (days since 1970), distinct purchase days, sums in shop currency.

    `repeat_*` sums what lies after the first purchase day; returns are negative. Frequency is `days - 1`, recency
    `last_day - first_day`, the mean repeat value `(repeat_spent [+ repeat_returned]) / (days - 1)`.
    """

    first_day: int = 0
    last_day: int = 0
    days: int = 0
    stale: int = 0  # an event came that these numbers cannot place (late, or of an old order): count the history again
    last_order: int = 0
    spent: float = 0.0
    repeat_spent: float = 0.0
    returned: float = 0.0
    repeat_returned: float = 0.0

    @classmethod
    def unpack(cls, state: bytes) -> tuple[Self, bytes]:
        """The statistics, and the customer's order keys (4 bytes each), of a stored state."""
        return cls(*_FORMAT.unpack_from(state)), state[_FORMAT.size :]

    def pack(self, orders: bytes) -> bytes:
        numbers = (self.first_day, self.last_day, self.days, self.stale, self.last_order)
        sums = (self.spent, self.repeat_spent, self.returned, self.repeat_returned)
        return _FORMAT.pack(*numbers, *sums) + orders

    def add(self, kind: int, day: int, order: int, amount: float, orders: bytes) -> bytes:
        """One event more, in constant time but for a search of `orders`; returns the order keys with it."""
        if kind not in (PURCHASE, RETURN):
            return orders
        amount = 0.0 if amount != amount else amount
        if kind == RETURN:
            # Also where the first purchase may still move: whether a return counts as repeat is not known for good.
            self.stale |= int(self.days == 0 or day <= self.first_day)
            self.returned += amount
            self.repeat_returned += amount
            return orders
        key = order_keys(np.array([order])) if order else b""
        if key and key in orders:  # a match across two keys only costs a count of the history
            self.stale |= int(order != self.last_order or day != self.last_day)
        else:
            orders += key
            self.stale |= int(self.days > 0 and day < self.last_day)
            self.stale |= int(self.days == 0 and self.returned != 0)
            if self.days == 0 or day > self.last_day:
                self.first_day = day if self.days == 0 else self.first_day
                self.last_day, self.days = day, self.days + 1
        self.last_order = order
        self.spent += amount
        self.repeat_spent += amount if day > self.first_day else 0.0
        return orders


def order_keys(orders: NDArray[np.int64]) -> bytes:
    """4 bytes of each order's hash."""
    return (orders & _LOW).astype("<u4").tobytes()


def of_histories(histories: pa.Table) -> list[bytes]:
    """The state of each customer, counted from the history."""
    h = Histories.from_table(histories)
    num = len(h)
    owner = np.repeat(np.arange(num), np.diff(h.offsets))
    buy, back = h.type == PURCHASE, h.type == RETURN
    amount = np.nan_to_num(h.amount)
    first, last = np.full(num, 2**31 - 1), np.zeros(num, np.int64)
    np.minimum.at(first, owner[buy], h.day[buy])
    np.maximum.at(last, owner[buy], h.day[buy])
    repeat = h.day > first[owner]

    def total(where: NDArray[np.bool_]) -> list[float]:
        return np.bincount(owner[where], amount[where], num).tolist()

    pairs = np.unique(np.stack([owner[buy], h.day[buy]]), axis=1)
    days = np.bincount(pairs[0], minlength=num)
    stale = np.bincount(owner[back & ~repeat], minlength=num) > 0
    newest = np.full(num, -1)
    np.maximum.at(newest, owner[buy], np.flatnonzero(buy))
    last_order = np.where(newest >= 0, np.append(h.order, 0)[newest], 0)
    numbers = zip(
        np.where(days > 0, first, 0).tolist(), last.tolist(), days.tolist(), stale.astype(int).tolist(),
        last_order.tolist(), total(buy), total(buy & repeat), total(back), total(back & repeat),
        strict=True,
    )  # fmt: skip
    named = buy & (h.order != 0)
    keys = order_keys(h.order[named])
    stop = 4 * np.cumsum(np.bincount(owner[named], minlength=num))
    start = np.append(0, stop[:-1])[:num]
    bounds = zip(start.tolist(), stop.tolist(), strict=True)
    return [Statistics(*row).pack(keys[a:b]) for row, (a, b) in zip(numbers, bounds, strict=True)]


def to_table(names: list[str], states: list[bytes]) -> pa.Table:
    """STATISTICS of stored states."""
    found = [Statistics.unpack(state)[0] for state in states]
    columns = {field.name: [getattr(one, field.name) for one in found] for field in list(STATISTICS)[1:]}
    return pa.table({"customer_id": names, **columns}, schema=STATISTICS)
