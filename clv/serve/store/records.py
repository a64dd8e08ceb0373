"""The stored form of customers, the same in every store: a blob of tokens, and a line per new event."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data import event_lines as log
from clv.data.clock import Clock
from clv.data.events import US
from clv.data.histories import ATTRIBUTE_PREFIX, TOKEN_FIELDS, Histories, ranges

_NUMPY = {
    name: np.dtype("int64") if kind == US else np.dtype(kind.to_pandas_dtype()) for name, kind in TOKEN_FIELDS.items()
}
# A blob holds these columns one after the other. Wide ones first, so that in a blob padded to 8 bytes every column
# starts at a multiple of its width and all blobs of an answer can be read with one index per column.
_LAYOUT: list[tuple[str, np.dtype[Any]]] = sorted(
    [*_NUMPY.items(), ("items", np.dtype("int64")), ("item_counts", np.dtype("int32"))],
    key=lambda column: (-column[1].itemsize, column[0]),
)
FORMAT = json.dumps([3, [[name, kind.str] for name, kind in _LAYOUT], log.LINE.itemsize])
DIGEST = 8  # bytes of an event's key, and of a line that the histories hold by now


@dataclass(frozen=True)
class Record:
    """A customer on the way into a store. `history` is empty where only events are known."""

    customer_id: str
    last_time: int  # of the newest event, us
    tokens: int
    items: int
    history: bytes | memoryview


@dataclass(frozen=True)
class Held:
    """An event as a store holds it: `line` is the event itself, or its digest once the history contains it."""

    customer_id: str
    event: bytes
    line: bytes

    @property
    def open(self) -> bool:
        return len(self.line) == log.LINE.itemsize


class ConflictError(ValueError):
    """An event id stands already for another event of the customer; `rows` are places in the table given."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"events {rows} have ids that stand for other events of their customers")
        self.rows = rows


@dataclass(frozen=True)
class EventAppend:
    """Events to append: row i is event `keys[i]` of customer `names[i]`."""

    names: list[str]
    keys: list[bytes]
    lines: log.Lines

    @classmethod
    def of(cls, events: pa.Table, clock: Clock) -> EventAppend:
        """ValueError for events without an id."""
        ids = events["event_id"].to_pylist()
        if None in ids:
            raise ValueError("an event without event_id cannot be appended: it could not be told from its repetition")
        return cls(
            events["customer_id"].to_pylist(), [digest(one.encode()) for one in ids], log.encode_events(events, clock)
        )

    def fresh(self, held: Mapping[tuple[str, bytes], bytes]) -> list[int]:
        """Rows that are not stored yet; ConflictError for an id of another event, in the store or in the batch."""
        known, rows, wrong = dict(held), [], []
        for row, place in enumerate(zip(self.names, self.keys, strict=True)):
            line = self.lines[row].tobytes()
            if place not in known:
                known[place] = line
                rows.append(row)
            elif known[place] not in (line, digest(line)):
                wrong.append(row)
        if wrong:
            raise ConflictError(wrong)
        return rows

    def newest(self, rows: Sequence[int]) -> dict[str, int]:
        """Time (us) of the newest event in `rows` of each of their customers."""
        found: dict[str, int] = {}
        for row in rows:
            name = self.names[row]
            found[name] = max(found.get(name, -(2**63)), int(self.lines[row]["time"]))
        return found


@dataclass(frozen=True)
class Put:
    """What a bulk load writes: whole customers, and the events that their histories hold by now."""

    records: list[Record]
    attributes: pa.Table  # a row per record, one `attr_*` column each
    covered: list[Held]

    @classmethod
    def plan(cls, histories: pa.Table, held: Sequence[Held], erased: Mapping[str, int]) -> Put:
        """`held`: open events of these customers; `erased`: when customers were erased (us), nothing older returns."""
        if (pc.list_value_length(histories["time"]).to_numpy() < 1).any():
            raise ValueError("a customer without events cannot be stored: drop empty histories")
        if erased:
            times = [erased.get(name, -(2**63)) for name in histories["customer_id"].to_pylist()]
            histories = log.drop_before(histories, np.array(times, np.int64))
        names = histories["customer_id"].to_pylist()
        here = set(names)
        owned = [one for one in held if one.customer_id in here]
        lines = joined([one.line for one in owned])
        owners = [one.customer_id for one in owned]
        done = log.already_in_histories(histories, owners, lines) if owned else np.zeros(0, bool)
        newest, place = histories["last_time"].cast(pa.int64()).to_pylist(), {name: i for i, name in enumerate(names)}
        for i in np.flatnonzero(~done):  # events that the histories do not hold stay beside them
            row = place[owners[i]]
            newest[row] = max(newest[row], int(lines[i]["time"]))
        tokens, items, blobs = encode(Histories.from_table(histories))
        rows = zip(names, newest, tokens.tolist(), items.tolist(), blobs, strict=True)
        given = [name for name in histories.column_names if name.startswith(ATTRIBUTE_PREFIX)]
        return cls(
            [Record(*row) for row in rows],
            histories.select(given),
            [Held(one.customer_id, one.event, digest(one.line)) for one, yes in zip(owned, done, strict=True) if yes],
        )


def with_events(base: pa.Table, held: Sequence[Held]) -> pa.Table:
    """Histories of `base` and of the open events beside it."""
    found = [one for one in held if one.open]
    if not found:
        return base
    names = [one.customer_id for one in found]
    grown = pc.is_in(base["customer_id"], pa.array(sorted(set(names)), pa.string()))
    merged = log.merge(base.filter(grown), names, joined([one.line for one in found]))
    table = pa.concat_tables([base.filter(pc.invert(grown)), merged.select(base.column_names)])
    return table.take(pc.sort_indices(table["customer_id"])).combine_chunks()


def joined(lines: Iterable[bytes]) -> log.Lines:
    return np.frombuffer(b"".join(lines), log.LINE)


def digest(content: bytes, salt: bytes = b"", size: int = DIGEST) -> bytes:
    """BLAKE2b of the content."""
    return hashlib.blake2b(content, digest_size=size, key=salt).digest()


def _places(
    tokens: NDArray[np.int64], items: NDArray[np.int64]
) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """First byte of each customer's part of every column, and the bounds of the blobs, all in one joined buffer."""
    counts = {name: items if name == "items" else tokens for name, _ in _LAYOUT}
    length = sum((counts[name] * kind.itemsize for name, kind in _LAYOUT), np.zeros(len(tokens), np.int64))
    bounds = np.append(0, np.cumsum((length + 7) // 8 * 8))
    places, place = {}, bounds[:-1]
    for name, kind in _LAYOUT:
        places[name] = place
        place = place + counts[name] * kind.itemsize
    return places, bounds


def _elements(first: NDArray[np.int64], count: NDArray[np.int64], kind: np.dtype[Any]) -> NDArray[np.int64]:
    start = first // kind.itemsize
    return ranges(start, start + count)


def encode(h: Histories) -> tuple[NDArray[np.int64], NDArray[np.int64], Iterable[memoryview]]:
    """Token and item counts, and the blob, of each customer."""
    tokens = np.diff(h.offsets)
    items = h.item_offsets[h.offsets[1:]] - h.item_offsets[h.offsets[:-1]]
    places, bounds = _places(tokens, items)
    buffer = np.zeros(int(bounds[-1]), np.uint8)
    for name, kind in _LAYOUT:
        values = np.diff(h.item_offsets) if name == "item_counts" else getattr(h, name)
        count = items if name == "items" else tokens
        buffer.view(kind)[_elements(places[name], count, kind)] = values
    view, cuts = buffer.data, bounds.tolist()
    return tokens, items, (view[start:stop] for start, stop in pairwise(cuts))


def decode(names: Sequence[str], tokens: Sequence[int], items: Sequence[int], blobs: Iterable[bytes]) -> pa.Table:
    """Histories of blobs made by `encode`; ValueError where their length does not fit the counts."""
    num_tokens, num_items = np.array(tokens, np.int64), np.array(items, np.int64)
    places, bounds = _places(num_tokens, num_items)
    whole = b"".join(blobs)
    if len(whole) != bounds[-1]:
        raise ValueError(f"the store is damaged: {len(whole)} bytes of histories where {bounds[-1]} belong")
    buffer = np.frombuffer(whole, np.uint8)
    columns: dict[str, Any] = {
        name: buffer.view(kind)[_elements(places[name], num_items if name == "items" else num_tokens, kind)]
        for name, kind in _LAYOUT
    }
    item_offsets = np.append(0, np.cumsum(columns.pop("item_counts"), dtype=np.int64))
    offsets = np.append(0, np.cumsum(num_tokens))
    customer_id = pa.array(names, pa.string())
    return Histories(customer_id=customer_id, offsets=offsets, item_offsets=item_offsets, **columns).to_table()
