"""Records of the online store, the same in SQLite and Redis: a blob of tokens per customer, a line per event."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data import event_lines
from clv.data.clock import Clock
from clv.data.events import US
from clv.data.histories import ATTRIBUTE_PREFIX, TOKEN_FIELDS, Histories, ranges

# A blob holds these columns one after the other, wide ones first: in a blob padded to 8 bytes every column then begins
# at a multiple of its width, and one index per column reads all blobs of an answer.
_LAYOUT: list[tuple[str, np.dtype[Any]]] = sorted(
    [
        *((name, np.dtype(np.int64 if kind == US else kind.to_pandas_dtype())) for name, kind in TOKEN_FIELDS.items()),
        ("items", np.dtype(np.int64)),
        ("item_counts", np.dtype(np.int32)),
    ],
    key=lambda column: (-column[1].itemsize, column[0]),
)
FORMAT = json.dumps([3, [[name, kind.str] for name, kind in _LAYOUT], event_lines.LINE.itemsize])
DIGEST = 8  # bytes of an event's key, and of the line of an event that the histories contain


class CustomerRecord(NamedTuple):
    """A customer to be stored; `history` is empty where the store holds events only."""

    customer_id: str
    last_time: int  # of the newest event, us
    tokens: int
    items: int
    history: bytes | memoryview


class StoredEvent(NamedTuple):
    """A stored event: `line` is its content, or the digest of its content once the history contains the event."""

    customer_id: str
    event: bytes
    line: bytes

    @property
    def pending(self) -> bool:
        """Whether the history lacks the event."""
        return len(self.line) == event_lines.LINE.itemsize


class ConflictError(ValueError):
    """The ids of events belong to other events of their customers; `rows` are row numbers of the appended table."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"events {rows} have the ids of other events of their customers")
        self.rows = rows


@dataclass(frozen=True)
class EventAppend:
    """Events to append: `lines[i]` is the event with key `keys[i]` of customer `names[i]`."""

    names: list[str]
    keys: list[bytes]
    lines: event_lines.Lines

    @classmethod
    def from_events(cls, events: pa.Table, clock: Clock) -> EventAppend:
        """Builds the lines of `events` (schema EVENTS); raises ValueError for an event without an id."""
        ids = events["event_id"].to_pylist()
        if None in ids:
            raise ValueError("an event without event_id cannot be appended: its repetition could not be detected")
        return cls(
            events["customer_id"].to_pylist(),
            [digest(one.encode()) for one in ids],
            event_lines.encode_events(events, clock),
        )

    def new_rows(self, held: Mapping[tuple[str, bytes], bytes]) -> list[int]:
        """Returns the rows that neither the store (`held`: lines by customer and key) nor an earlier row holds.

        Raises ConflictError for the id of another event.
        """
        known, rows, conflicts = dict(held), [], []
        for row, event in enumerate(zip(self.names, self.keys, strict=True)):
            line = self.lines[row].tobytes()
            if event not in known:
                known[event] = line
                rows.append(row)
            elif known[event] not in (line, digest(line)):
                conflicts.append(row)
        if conflicts:
            raise ConflictError(conflicts)
        return rows

    def newest_times(self, rows: Sequence[int]) -> dict[str, int]:
        """Returns the time (microseconds UTC) of the newest event in `rows`, by customer."""
        times = self.lines["time"].tolist()
        return {self.names[row]: times[row] for row in sorted(rows, key=times.__getitem__)}


@dataclass(frozen=True)
class BulkLoad:
    """The writes of a bulk load: whole customers, and the stored events that their new histories contain."""

    records: list[CustomerRecord]
    attributes: pa.Table  # a row per record, one `attr_*` column each
    contained: list[StoredEvent]

    @classmethod
    def plan(cls, histories: pa.Table, held: Sequence[StoredEvent], erased: Mapping[str, int]) -> BulkLoad:
        """Returns the writes for `histories`, given the pending events of these customers and their erasures.

        `erased` holds times in microseconds UTC: older events of these customers are not stored. Raises ValueError for
        a customer without events.
        """
        if (pc.list_value_length(histories["time"]).to_numpy() < 1).any():
            raise ValueError("a customer without events cannot be stored: drop empty histories")
        if erased:
            times = [erased.get(name, -(2**63)) for name in histories["customer_id"].to_pylist()]
            histories = event_lines.drop_before(histories, np.array(times, np.int64))
        names = histories["customer_id"].to_pylist()
        row_of = {name: i for i, name in enumerate(names)}
        events = [event for event in held if event.customer_id in row_of]
        lines = join_lines([event.line for event in events])
        owners = [event.customer_id for event in events]
        contained = event_lines.already_in_histories(histories, owners, lines) if events else np.zeros(0, bool)
        newest = histories["last_time"].cast(pa.int64()).to_pylist()
        for i in np.flatnonzero(~contained):
            row = row_of[owners[i]]
            newest[row] = max(newest[row], int(lines[i]["time"]))
        tokens, items, blobs = encode(Histories.from_table(histories))
        attributes = [name for name in histories.column_names if name.startswith(ATTRIBUTE_PREFIX)]
        return cls(
            list(map(CustomerRecord, names, newest, tokens.tolist(), items.tolist(), blobs)),
            histories.select(attributes),
            [event._replace(line=digest(event.line)) for event in compress(events, contained)],
        )


def merge_events(base: pa.Table, held: Sequence[StoredEvent]) -> pa.Table:
    """Returns the histories of `base` with the pending events merged into them."""
    pending = [event for event in held if event.pending]
    if not pending:
        return base
    names = [event.customer_id for event in pending]
    grown = pc.is_in(base["customer_id"], pa.array(sorted(set(names)), pa.string()))
    merged = event_lines.merge(base.filter(grown), names, join_lines([event.line for event in pending]))
    table = pa.concat_tables([base.filter(pc.invert(grown)), merged.select(base.column_names)])
    return table.take(pc.sort_indices(table["customer_id"])).combine_chunks()


def join_lines(lines: Iterable[bytes]) -> event_lines.Lines:
    """Returns the lines as one array of dtype LINE."""
    return np.frombuffer(b"".join(lines), event_lines.LINE)


def digest(content: bytes, salt: bytes = b"", size: int = DIGEST) -> bytes:
    """Returns the BLAKE2b digest of the content, with `size` bytes."""
    return hashlib.blake2b(content, digest_size=size, key=salt).digest()


def _column_offsets(
    tokens: NDArray[np.int64], items: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Returns the first byte of each customer's part of every column, and the bounds of the blobs, in joined blobs."""
    counts = {name: items if name == "items" else tokens for name, _ in _LAYOUT}
    length = sum((counts[name] * kind.itemsize for name, kind in _LAYOUT), np.zeros(len(tokens), np.int64))
    bounds = np.append(0, np.cumsum((length + 7) // 8 * 8))
    offsets, offset = {}, bounds[:-1]
    for name, kind in _LAYOUT:
        offsets[name] = offset
        offset = offset + counts[name] * kind.itemsize
    return offsets, bounds


def _element_indices(first: NDArray[np.int64], count: NDArray[np.int64], kind: np.dtype[Any]) -> NDArray[np.int64]:
    start = first // kind.itemsize
    return ranges(start, start + count)


def encode(h: Histories) -> tuple[NDArray[np.int64], NDArray[np.int64], Iterable[memoryview]]:
    """Returns the token counts, the item counts and the blobs of all customers."""
    tokens = np.diff(h.offsets)
    items = h.item_offsets[h.offsets[1:]] - h.item_offsets[h.offsets[:-1]]
    columns_at, bounds = _column_offsets(tokens, items)
    buffer = np.zeros(int(bounds[-1]), np.uint8)
    for name, kind in _LAYOUT:
        values = np.diff(h.item_offsets) if name == "item_counts" else getattr(h, name)
        count = items if name == "items" else tokens
        buffer.view(kind)[_element_indices(columns_at[name], count, kind)] = values
    view = buffer.data
    return tokens, items, (view[start:stop] for start, stop in pairwise(bounds.tolist()))


def decode(names: Sequence[str], tokens: Sequence[int], items: Sequence[int], blobs: Iterable[bytes]) -> pa.Table:
    """Returns the histories of blobs made by `encode`; raises ValueError where their length does not fit the counts."""
    num_tokens, num_items = np.array(tokens, np.int64), np.array(items, np.int64)
    columns_at, bounds = _column_offsets(num_tokens, num_items)
    joined = b"".join(blobs)
    if len(joined) != bounds[-1]:
        raise ValueError(f"the store is damaged: {len(joined)} bytes of histories instead of {bounds[-1]}")
    buffer = np.frombuffer(joined, np.uint8)
    columns: dict[str, Any] = {
        name: buffer.view(kind)[_element_indices(columns_at[name], num_items if name == "items" else num_tokens, kind)]
        for name, kind in _LAYOUT
    }
    item_offsets = np.append(0, np.cumsum(columns.pop("item_counts"), dtype=np.int64))
    offsets = np.append(0, np.cumsum(num_tokens))
    customer_id = pa.array(names, pa.string())
    return Histories(customer_id=customer_id, offsets=offsets, item_offsets=item_offsets, **columns).to_table()
