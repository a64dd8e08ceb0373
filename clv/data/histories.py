"""Customer histories: one row per customer, whose events are tokens in list columns; an order is one token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data.clock import Clock
from clv.data.events import PURCHASE, RETURN, US, stable_hash, type_code

SCHEMA_VERSION = 2
ATTRIBUTE_PREFIX = "attr_"
RAW_TEXT = "raw_text"  # optional column beside those of HISTORIES: the text of each token, where the log has any

TOKEN_FIELDS: dict[str, pa.DataType] = {
    "time": US,
    "known_at": US,
    "day": pa.int32(),
    "type": pa.int16(),
    "order": pa.int64(),
    "amount": pa.float64(),
    "quantity": pa.float32(),
    "lines": pa.int32(),
    "filled": pa.int32(),
    "channel": pa.int64(),
    "text": pa.int64(),
}

HISTORIES = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        *(pa.field(name, pa.list_(kind)) for name, kind in TOKEN_FIELDS.items()),
        pa.field("items", pa.list_(pa.list_(pa.int64()))),
        pa.field("first_time", US),
        pa.field("last_time", US),
    ]
)


def build(events: pa.Table, clock: Clock, attributes: pa.Table | None = None) -> pa.Table:
    """Returns the histories of the customers in `events` (schema `EVENTS`), sorted by customer_id.

    A purchase or return is grouped by (customer, type, order_id), without an order id by its instant; any other event
    is a token of its own. A token has the time of its first line and the known_at of its last. `attributes` holds
    `customer_id` and `attr_*` columns. All events of a customer must be given at once; the row order does not matter.
    """
    ids, customer = _sorted_codes(events["customer_id"])
    time, known = (microseconds(events[name]) for name in ("event_time", "known_at"))
    kind = type_code(events["event_type"])
    order, item, text, channel = (stable_hash(events[name]) for name in ("order_id", "item_id", "text", "channel"))
    amount, quantity = floats(events["amount"]), np.nan_to_num(floats(events["quantity"]), nan=1.0)
    filled = pc.fill_null(events["amount_filled"], False).to_numpy().astype(np.int32)

    groups = (kind == PURCHASE) | (kind == RETURN)
    order = np.where(groups, order, 0)
    # A token is a type with an order id or, without one, a type with an instant; bitwise not separates the two.
    identity = np.where(order != 0, kind, ~kind).astype(np.int64)
    # The last keys order equal rows, so that float sums do not depend on the order of the input.
    rest = (channel, text, amount, quantity)
    rows, new = _lines_by_token(customer, identity, np.where(order != 0, order, time), time, known, item, rest)
    c, k, o = customer[rows], kind[rows], order[rows]
    start = np.flatnonzero(new | ~groups[rows])

    token_time = np.minimum.reduceat(time[rows], start) if len(rows) else start
    token_known = np.maximum.reduceat(known[rows], start) if len(rows) else start
    priced = ~np.isnan(amount[rows])
    has_item = item[rows] != 0
    token: dict[str, Any] = {
        "time": token_time,
        "known_at": np.maximum(token_known, token_time),
        "day": clock.local_day(token_time),
        "type": k[start],
        "order": o[start],
        "amount": np.where(_sums(priced, start) > 0, _sums(np.nan_to_num(amount[rows]), start), np.nan),
        "quantity": _sums(quantity[rows], start).astype(np.float32),
        "lines": np.diff(start, append=len(rows)).astype(np.int32),
        "filled": _sums(filled[rows], start).astype(np.int32),
        "channel": channel[rows][start],
        "text": text[rows][start],
    }
    owner = c[start]
    item_stop = np.cumsum(has_item)[np.append(start[1:], len(rows)) - 1] if len(rows) else start
    item_start = np.append(0, item_stop[:-1])[: len(start)]
    first_item = np.where(item_stop > item_start, np.append(item[rows][has_item], 0)[item_start], 0)
    final = _sorted(
        _packed(owner, token_time),
        (first_item, token["amount"], token["order"], token["type"], token["known_at"], token_time),
    )
    texts = events["text"].combine_chunks().cast(pa.string())
    table = Histories(
        customer_id=ids,
        offsets=np.searchsorted(owner[final], np.arange(len(ids) + 1)),
        item_offsets=np.append(0, np.cumsum((item_stop - item_start)[final])),
        items=item[rows][has_item][ranges(item_start[final], item_stop[final])],
        raw_text=None if texts.null_count == len(texts) else texts.take(pa.array(rows[start][final])),
        **{name: values[final] for name, values in token.items()},
    ).to_table()
    return table if attributes is None else join_attributes(table, attributes)


@dataclass(frozen=True)
class Histories:
    """Numpy view of a histories table: tokens of customer i are `offsets[i]:offsets[i + 1]`, ascending in time."""

    customer_id: pa.Array
    offsets: NDArray[np.int64]
    time: NDArray[np.int64]
    known_at: NDArray[np.int64]
    day: NDArray[np.int32]
    type: NDArray[np.int16]
    order: NDArray[np.int64]
    amount: NDArray[np.float64]
    quantity: NDArray[np.float32]
    lines: NDArray[np.int32]
    filled: NDArray[np.int32]
    channel: NDArray[np.int64]
    text: NDArray[np.int64]
    item_offsets: NDArray[np.int64]
    items: NDArray[np.int64]
    attributes: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    raw_text: pa.Array | None = None  # text of each token

    def __len__(self) -> int:
        return len(self.customer_id)

    @classmethod
    def from_table(cls, table: pa.Table) -> Histories:
        """Returns the view of a histories table, without copies where Arrow allows.

        Raises ValueError for a table that lacks columns of the schema `HISTORIES`.
        """
        missing = [name for name in HISTORIES.names if name not in table.column_names]
        if missing:
            raise ValueError(f"not a histories table: columns {missing} are missing")
        nested = table["items"].combine_chunks().flatten()
        return cls(
            customer_id=table["customer_id"].combine_chunks(),
            offsets=_offsets(table["time"].combine_chunks()),
            item_offsets=_offsets(nested),
            items=_numpy(nested.flatten(), pa.int64()),
            raw_text=_raw_text(table) if RAW_TEXT in table.column_names else None,
            attributes={
                name.removeprefix(ATTRIBUTE_PREFIX): table[name].to_numpy()
                for name in table.column_names
                if name.startswith(ATTRIBUTE_PREFIX)
            },
            **{name: _numpy(table[name].combine_chunks().flatten(), kind) for name, kind in TOKEN_FIELDS.items()},
        )

    def to_table(self) -> pa.Table:
        """Returns the histories table of this view."""
        offsets = pa.array(self.offsets.astype(np.int32))
        columns: dict[str, pa.Array] = {"customer_id": self.customer_id}
        for name, kind in TOKEN_FIELDS.items():
            columns[name] = pa.ListArray.from_arrays(offsets, pa.array(getattr(self, name)).cast(kind))
        lines = pa.ListArray.from_arrays(pa.array(self.item_offsets.astype(np.int32)), pa.array(self.items, pa.int64()))
        columns["items"] = pa.ListArray.from_arrays(offsets, lines)
        columns["first_time"] = pa.array(self.time[self.offsets[:-1]], pa.int64()).cast(US)
        columns["last_time"] = pa.array(self.time[self.offsets[1:] - 1], pa.int64()).cast(US)
        if self.raw_text is not None:
            columns[RAW_TEXT] = pa.ListArray.from_arrays(offsets, self.raw_text)
        for name, values in self.attributes.items():
            columns[ATTRIBUTE_PREFIX + name] = pa.array(values, from_pandas=True)
        return pa.table(columns)


def concat(tables: list[pa.Table]) -> pa.Table:
    """Returns one histories table from those of several shards, which must not share a customer."""
    if any(RAW_TEXT in table.column_names for table in tables):
        tables = [_with_raw_text(table) for table in tables]
    return pa.concat_tables(tables, promote_options="default").combine_chunks()


def _with_raw_text(table: pa.Table) -> pa.Table:
    """Returns the table with a text, or null, for every token."""
    if RAW_TEXT in table.column_names:
        return table
    offsets = _offsets(table["time"].combine_chunks())
    nothing = pa.nulls(int(offsets[-1]), pa.string())
    return table.append_column(RAW_TEXT, pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), nothing))


def _raw_text(table: pa.Table) -> pa.Array:
    """Returns the text of each token. Raises ValueError where customers lack theirs, which `concat` fills with null."""
    texts = table[RAW_TEXT].combine_chunks().flatten()
    tokens = int(_offsets(table["time"].combine_chunks())[-1])
    if len(texts) != tokens:
        raise ValueError(f"not a histories table: {len(texts)} texts of {tokens} tokens in column {RAW_TEXT}")
    return texts


def _sorted_codes(strings: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    encoded = strings.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy(zero_copy_only=False)]


def _mixed(*columns: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Returns a 64-bit hash of each row of the columns."""
    total = np.zeros(len(columns[0]), np.uint64)
    for column in columns:
        total = (total ^ column.view(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(29)
    return total


def _packed(first: NDArray[np.int64], then: NDArray[Any]) -> NDArray[np.uint64]:
    """Returns keys that order by `first` (not negative), then by as many leading bits of `then` as fit."""
    room = 64 - int(first.max(initial=0)).bit_length()
    low = then - then.min() if len(then) and then.dtype == np.int64 else then
    surplus = max(int(low.max(initial=0)).bit_length() - room, 0)
    return (first.astype(np.uint64) << np.uint64(room % 64)) | (low.astype(np.uint64) >> np.uint64(surplus))


def _sorted(
    packed: NDArray[np.uint64], keys: tuple[NDArray[Any], ...], of: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Returns the rows `of` (by default all), one per key, sorted by `packed`, then by `keys` as in np.lexsort.

    `packed` must agree with the order of the keys; the slow sort orders only rows that have equal `packed`.
    """
    order = np.argsort(packed)
    ranked = packed[order]
    equal = ranked[1:] == ranked[:-1]
    rows = order if of is None else of[order]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        some = order[tied]
        keyed = some if of is None else of[some]
        rows[tied] = keyed[np.lexsort((some, *(key[keyed] for key in keys), ranked[tied]))]
    return rows


def _lines_by_token(
    customer: NDArray[np.int64],
    identity: NDArray[np.int64],
    group: NDArray[np.int64],
    time: NDArray[np.int64],
    known: NDArray[np.int64],
    item: NDArray[np.int64],
    rest: tuple[NDArray[Any], ...],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Returns the rows ordered by token, within a token by (time, known, item, *reversed(rest)), and its first rows.

    A token is the rows with equal (customer, identity, group).
    """
    packed = _packed(customer, _mixed(identity, group))
    rows = np.argsort(packed)
    ranked = packed[rows]
    new = changes(customer[rows], identity[rows], group[rows])
    if bool(np.any(new[1:] & (ranked[1:] == ranked[:-1]))):  # two groups have one hash
        rows = np.lexsort((group, identity, customer))
        new = changes(customer[rows], identity[rows], group[rows])
    if not len(rows) or bool(new.all()):
        return rows, new
    number, start = np.cumsum(new) - 1, np.flatnonzero(new)
    within = item[rows].view(np.uint64) ^ np.uint64(1 << 63)
    # Lines of an order mostly have one instant; then the key is the number of the order and the item.
    for values in (known[rows], time[rows]):
        since = values - np.minimum.reduceat(values, start)[number]
        if since.any():
            within = _packed(since, within)
    return _sorted(_packed(number, within), (*rest, item, known, time), rows), new


def changes(*columns: NDArray[Any]) -> NDArray[np.bool_]:
    """Returns whether each row of the columns differs from the row before it, (N,); the first row does."""
    new = np.arange(len(columns[0])) == 0
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _sums(values: NDArray[Any], start: NDArray[np.int64]) -> NDArray[Any]:
    return np.add.reduceat(values, start, dtype=np.float64) if len(values) else np.zeros(0)


def ranges(start: NDArray[np.int64], stop: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the concatenation of arange(start[i], stop[i])."""
    length = stop - start
    ends = np.cumsum(length)
    return np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(start - (ends - length), length)


def join_attributes(table: pa.Table, attributes: pa.Table) -> pa.Table:
    """Returns the histories with the `attr_*` columns of `attributes`, null for customers who are not in it."""
    where = pc.index_in(table["customer_id"], attributes["customer_id"].combine_chunks())
    for name in attributes.column_names:
        if name.startswith(ATTRIBUTE_PREFIX):
            table = table.append_column(name, attributes[name].combine_chunks().take(where))
    return table


def _offsets(lists: Any) -> NDArray[np.int64]:
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return np.asarray(offsets - offsets[0] if len(offsets) else np.zeros(1, np.int64))


def _numpy(values: pa.Array, kind: pa.DataType) -> NDArray[Any]:
    return np.asarray((values.cast(pa.int64()) if kind == US else values).to_numpy(zero_copy_only=False))


def microseconds(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Returns the instants of a column of times in microseconds since 1970, (N,)."""
    return np.asarray(column.cast(US).cast(pa.int64()).to_numpy())


def floats(column: pa.ChunkedArray, missing: float = np.nan) -> NDArray[np.float64]:
    """Returns the numbers of a column, (N,), with `missing` for null."""
    return np.asarray(column.cast(pa.float64()).fill_null(missing).to_numpy())
