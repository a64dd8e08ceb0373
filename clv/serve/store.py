"""The online store: histories by customer id, one compact blob per customer, in SQLite."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

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
FILE = "store.sqlite"
FORMAT = json.dumps([1, [[name, kind.str] for name, kind in _LAYOUT]])


class Store(Protocol):
    """Histories (schema HISTORIES and `attr_*` columns) by customer id. Safe to use from several threads."""

    def put_histories(self, histories: pa.Table) -> int:
        """Insert or replace whole customers, all or none of them; returns how many."""

    def get(self, customer_ids: Sequence[str]) -> pa.Table:
        """Histories of those that are stored, sorted by customer_id; unknown ids are absent."""

    def delete(self, customer_ids: Sequence[str]) -> int:
        """Remove customers; returns how many were there."""

    def count(self) -> int:
        """Number of customers stored."""

    def data_through(self) -> int | None:
        """Time of the newest event stored, microseconds UTC; None when empty."""

    def close(self) -> None:
        """Release files and connections."""


class SqliteStore:
    """A `Store` in one SQLite file (WAL) of a folder: many processes read while one writes; a put that returned
    survives a crash."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.path = path = folder / FILE
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise ValueError(f"no store in {folder}: fill one with python -m ray_jobs.load_store --store {folder}")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        connection = self._connection()
        found = connection.execute("SELECT name FROM sqlite_master WHERE name = 'meta'").fetchone()
        if found is None and create:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS customers (customer_id TEXT PRIMARY KEY, last_time INTEGER NOT NULL, "
                    "tokens INTEGER NOT NULL, items INTEGER NOT NULL, history BLOB NOT NULL)"
                )
                connection.execute("CREATE INDEX IF NOT EXISTS customers_last_time ON customers (last_time)")
                connection.execute("INSERT OR IGNORE INTO meta VALUES ('format', ?)", (FORMAT,))
        stored = (
            connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone() if found or create else None
        )
        if stored is None or stored[0] != FORMAT:
            self.close()
            raise ValueError(
                f"{path} is not a store of this version: fill a new one with python -m ray_jobs.load_store"
            )

    def put_histories(self, histories: pa.Table) -> int:
        if not len(histories):
            return 0
        h = Histories.from_table(histories)
        if (np.diff(h.offsets) < 1).any():
            raise ValueError("a customer without events cannot be stored: drop empty histories")
        tokens, items, blobs = _encode(h)
        attributes = [name for name in histories.column_names if name.startswith(ATTRIBUTE_PREFIX)]
        rows = zip(
            h.customer_id.to_pylist(),
            h.time[h.offsets[1:] - 1].tolist(),
            tokens.tolist(),
            items.tolist(),
            blobs,
            *(histories[name].to_pylist() for name in attributes),
            strict=True,
        )
        names = ["customer_id", "last_time", "tokens", "items", "history", *map(_quoted, attributes)]
        connection = self._connection()
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            present = {name for name, _ in self._attributes(connection)}
            for name in attributes:
                if name not in present:
                    kind = "TEXT" if pa.types.is_string(histories.schema.field(name).type) else "REAL"
                    connection.execute(f"ALTER TABLE customers ADD COLUMN {_quoted(name)} {kind}")
            marks = ",".join("?" * len(names))
            connection.executemany(f"INSERT OR REPLACE INTO customers ({','.join(names)}) VALUES ({marks})", rows)
        return len(h)

    def get(self, customer_ids: Sequence[str]) -> pa.Table:
        connection = self._connection()
        with connection:  # one read transaction: columns and rows belong to the same state
            connection.execute("BEGIN")
            attributes = self._attributes(connection)
            names = ",".join(["customer_id", "tokens", "items", "history", *(_quoted(name) for name, _ in attributes)])
            rows = connection.execute(
                f"SELECT {names} FROM customers WHERE customer_id IN (SELECT value FROM json_each(?)) "
                "ORDER BY customer_id",
                (json.dumps(list(customer_ids)),),
            ).fetchall()
        columns = list(zip(*rows, strict=True)) if rows else [()] * (4 + len(attributes))
        table = _decode(
            pa.array(columns[0], pa.string()),
            np.array(columns[1], np.int64),
            np.array(columns[2], np.int64),
            columns[3],
        )
        for (name, kind), values in zip(attributes, columns[4:], strict=True):
            table = table.append_column(name, pa.array(values, kind))
        return table

    def delete(self, customer_ids: Sequence[str]) -> int:
        connection = self._connection()
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            return connection.execute(
                "DELETE FROM customers WHERE customer_id IN (SELECT value FROM json_each(?))",
                (json.dumps(list(customer_ids)),),
            ).rowcount

    def count(self) -> int:
        return int(self._connection().execute("SELECT count(*) FROM customers").fetchone()[0])

    def data_through(self) -> int | None:
        newest = self._connection().execute("SELECT max(last_time) FROM customers").fetchone()[0]
        return None if newest is None else int(newest)

    def close(self) -> None:
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            try:
                # isolation_level None: transactions are the explicit BEGINs above.
                connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
            except sqlite3.DatabaseError as error:
                raise ValueError(f"{self.path} cannot be used as a store: {error}") from error
            self._local.connection = connection
            with self._lock:
                self._connections.append(connection)
        return connection

    @staticmethod
    def _attributes(connection: sqlite3.Connection) -> list[tuple[str, pa.DataType]]:
        columns = connection.execute("SELECT name, type FROM pragma_table_info('customers')").fetchall()
        kinds = {"TEXT": pa.string(), "REAL": pa.float64()}
        return [(name, kinds[kind]) for name, kind in columns if name.startswith(ATTRIBUTE_PREFIX)]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


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


def _encode(h: Histories) -> tuple[NDArray[np.int64], NDArray[np.int64], Iterable[memoryview]]:
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


def _decode(
    customer_id: pa.Array, tokens: NDArray[np.int64], items: NDArray[np.int64], blobs: Iterable[bytes]
) -> pa.Table:
    places, bounds = _places(tokens, items)
    joined = b"".join(blobs)
    if len(joined) != bounds[-1]:
        raise ValueError(f"the store is damaged: {len(joined)} bytes of histories where {bounds[-1]} belong")
    buffer = np.frombuffer(joined, np.uint8)
    columns: dict[str, Any] = {
        name: buffer.view(kind)[_elements(places[name], items if name == "items" else tokens, kind)]
        for name, kind in _LAYOUT
    }
    item_offsets = np.append(0, np.cumsum(columns.pop("item_counts"), dtype=np.int64))
    offsets = np.append(0, np.cumsum(tokens))
    return Histories(customer_id=customer_id, offsets=offsets, item_offsets=item_offsets, **columns).to_table()
