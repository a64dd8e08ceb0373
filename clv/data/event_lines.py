"""Recent events of the online store: hashed records of fixed size, merged into prepared histories at prediction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clv.data.clock import Clock
from clv.data.events import PURCHASE, RETURN, stable_hash, type_code
from clv.data.histories import Histories, changes, floats, join_attributes, microseconds, ranges

LINE = np.dtype(
    [
        *((name, "<i8") for name in ("time", "known_at", "order", "item", "channel", "text")),
        *((name, "<f8") for name in ("amount", "quantity")),
        *(("day", "<i4"), ("type", "<i2"), ("filled", "<i2")),
    ]
)
_SHARED = ("time", "known_at", "order", "channel", "text", "amount", "day", "type", "filled")

Lines = NDArray[np.void]


def encode_events(events: pa.Table, clock: Clock) -> Lines:
    """Returns one record of dtype `LINE` per row of `events` (schema `EVENTS`), in its order."""
    lines = np.zeros(len(events), LINE)
    lines["time"] = microseconds(events["event_time"])
    lines["known_at"] = np.maximum(microseconds(events["known_at"]), lines["time"])
    lines["day"] = clock.local_day(lines["time"])
    lines["type"] = type_code(events["event_type"])
    grouped = (lines["type"] == PURCHASE) | (lines["type"] == RETURN)
    lines["order"] = np.where(grouped, stable_hash(events["order_id"]), 0)
    for name, column in (("item", "item_id"), ("channel", "channel"), ("text", "text")):
        lines[name] = stable_hash(events[column])
    lines["amount"], lines["quantity"] = floats(events["amount"]), floats(events["quantity"], 1.0)
    lines["filled"] = events["amount_filled"].fill_null(False).to_numpy(zero_copy_only=False)
    return lines


def merge(base: pa.Table, names: Sequence[str], lines: Lines) -> pa.Table:
    """Returns the histories of `base` with lines[i] added to customer names[i], as `histories.build` of all events.

    The items of an order may have another order, and sums differ by rounding (1e-15 for amounts, 1e-7 for quantities);
    an order in both keeps channel and text of the base where times are equal.
    """
    h = Histories.from_table(base)
    old = h.customer_id.to_pylist()
    ids = sorted({*old, *names})
    index_of = {name: i for i, name in enumerate(ids)}
    owner = np.array([index_of[name] for name in (*old, *names)], np.int64)
    part: dict[str, NDArray[Any]] = {
        name: np.concatenate([getattr(h, name), lines[name].astype(getattr(h, name).dtype)]) for name in _SHARED
    }
    customer = np.repeat(owner, np.append(np.diff(h.offsets), np.ones(len(names), np.int64)))
    quantity = np.concatenate([h.quantity.astype(np.float64), lines["quantity"]])
    count = np.concatenate([h.lines, np.ones(len(lines), np.int32)])
    has_item = lines["item"] != 0
    items = np.concatenate([h.items, lines["item"][has_item]])
    item_stop = np.cumsum(np.concatenate([np.diff(h.item_offsets), has_item]))
    item_start = np.append(0, item_stop[:-1])[: len(item_stop)]
    first_item = np.where(item_stop > item_start, np.append(items, 0)[item_start], 0)

    time, known, kind, order = part["time"], part["known_at"], part["type"], part["order"]
    grouped = (kind == PURCHASE) | (kind == RETURN)
    group = np.where(order != 0, order, time)
    added = np.arange(len(time)) >= len(h.time)
    # As in `build`; of equal parts, those of the base are first.
    keys = (part["channel"], part["text"], part["amount"], quantity, first_item, added, known, time)
    rows = np.lexsort((*keys, group, order != 0, kind, customer))
    c, k, g, o = customer[rows], kind[rows], group[rows], order[rows]
    new = changes(c, k, g, o) | ~grouped[rows]
    start = np.flatnonzero(new)
    priced = ~np.isnan(part["amount"][rows])
    total = np.add.reduceat(np.nan_to_num(part["amount"][rows]), start)
    token: dict[str, Any] = {
        "time": time[rows][start],
        "known_at": np.maximum.reduceat(known[rows], start),
        "day": part["day"][rows][start],
        "type": k[start],
        "order": o[start],
        "amount": np.where(np.logical_or.reduceat(priced, start), total, np.nan),
        "quantity": np.add.reduceat(quantity[rows], start).astype(np.float32),
        "lines": np.add.reduceat(count[rows], start).astype(np.int32),
        "filled": np.add.reduceat(part["filled"][rows], start).astype(np.int32),
        "channel": part["channel"][rows][start],
        "text": part["text"][rows][start],
    }
    token_of_row = np.cumsum(new) - 1
    num_items = (item_stop - item_start)[rows]
    flat = items[ranges(item_start[rows], item_stop[rows])]
    # Items of an order with several parts are sorted by time, then by key; those of a whole order keep their order.
    several = np.repeat(np.diff(start, append=len(rows))[token_of_row] > 1, num_items)
    token_of_item = np.repeat(token_of_row, num_items)
    by = (flat, np.repeat(known[rows], num_items), np.repeat(time[rows], num_items))
    flat = flat[np.lexsort((*(np.where(several, values, 0) for values in by), token_of_item))]
    stop = np.cumsum(np.bincount(token_of_item, minlength=len(start)))
    begin = np.append(0, stop[:-1])[: len(stop)]
    first = np.where(stop > begin, np.append(flat, 0)[begin], 0)

    who = c[start]
    final = np.lexsort((first, token["amount"], token["order"], token["type"], token["known_at"], token["time"], who))
    merged = Histories(
        customer_id=pa.array(ids, pa.string()),
        offsets=np.searchsorted(who[final], np.arange(len(ids) + 1)),
        item_offsets=np.append(0, np.cumsum((stop - begin)[final])),
        items=flat[ranges(begin[final], stop[final])],
        **{name: values[final] for name, values in token.items()},
    ).to_table()
    return join_attributes(merged, base)


def already_in_histories(base: pa.Table, names: Sequence[str], lines: Lines) -> NDArray[np.bool_]:
    """Returns whether the histories already hold line i of customer names[i].

    A purchase or return is identified by its order (without one, its instant) and item, any other event by its
    instant, item, channel and text.
    """
    h = Histories.from_table(base)
    index_of = {name: i for i, name in enumerate(h.customer_id.to_pylist())}
    customer = np.repeat(np.arange(len(h)), np.diff(h.offsets)).tolist()
    counts = np.diff(h.item_offsets).tolist()
    flat, at = h.items.tolist(), 0
    held: set[tuple[int, ...]] = set()
    wanted = {index_of[name] for name in names if name in index_of}
    fields = (h.type.tolist(), h.order.tolist(), h.time.tolist(), h.channel.tolist(), h.text.tolist())
    for who, num, kind, order, time, channel, text in zip(customer, counts, *fields, strict=True):
        if who in wanted:
            for item in (0, *flat[at : at + num]):
                held.add((who, *_event_key(kind, order, time, channel, text), item))
        at += num
    rows = lines[["type", "order", "time", "channel", "text", "item"]].tolist()
    keys = ((index_of.get(name), *_event_key(*key), item) for name, (*key, item) in zip(names, rows, strict=True))
    return np.array([key in held for key in keys], bool)


def drop_before(histories: pa.Table, times: NDArray[np.int64]) -> pa.Table:
    """Returns the tokens of customer i from times[i] (us) on; customers without such tokens are dropped."""
    h = Histories.from_table(histories)
    keep = h.time >= np.repeat(times, np.diff(h.offsets))
    remaining = np.add.reduceat(np.append(keep, False), h.offsets[:-1]) * (np.diff(h.offsets) > 0)
    rows = np.flatnonzero(remaining)
    token = np.flatnonzero(keep)
    remainder = Histories(
        customer_id=h.customer_id.take(pa.array(rows)),
        offsets=np.append(0, np.cumsum(remaining[rows])),
        item_offsets=np.append(0, np.cumsum(np.diff(h.item_offsets)[token])),
        items=h.items[ranges(h.item_offsets[token], h.item_offsets[token + 1])],
        **{name: getattr(h, name)[token] for name in (*_SHARED, "quantity", "lines")},
    ).to_table()
    return join_attributes(remainder, histories)


def _event_key(kind: int, order: int, time: int, channel: int, text: int) -> tuple[int, ...]:
    if kind in (PURCHASE, RETURN):
        return (kind, order, 0, 0, 0) if order else (kind, 0, time, 0, 0)
    return kind, 0, time, channel, text
