"""The online store in one SQLite file of a folder, in WAL mode: many processes read while one writes."""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from clv.data.clock import Clock
from clv.data.event_lines import LINE
from clv.data.histories import ATTRIBUTE_PREFIX
from clv.serve.store.protocol import BACKUP, OTHER_VERSION, REMEDY, AppendCounts, StoreUnavailableError
from clv.serve.store.records import (
    FORMAT,
    BulkLoad,
    CustomerRecord,
    EventAppend,
    StoredEvent,
    decode,
    digest,
    merge_events,
)

FILE = "store.sqlite"
PART = 5_000  # customers of one part of a dump
WAIT_S, SERVING_WAIT_S = 10.0, 2.0  # for which a writer waits for another one; readers never wait

_TABLES = (
    "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS customers (customer_id TEXT PRIMARY KEY, last_time INTEGER NOT NULL, "
    "tokens INTEGER NOT NULL, items INTEGER NOT NULL, history BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS customers_last_time ON customers (last_time)",
    "CREATE TABLE IF NOT EXISTS events (customer_id TEXT, event BLOB, line BLOB NOT NULL, "
    "PRIMARY KEY (customer_id, event)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS erased (digest BLOB PRIMARY KEY, at INTEGER NOT NULL) WITHOUT ROWID",
)
_AMONG = "customer_id IN (SELECT value FROM json_each(?))"
_PUT_EVENT = "INSERT OR REPLACE INTO events VALUES (?, ?, ?)"


class SqliteStore:
    """A `Store` on a disk of this machine."""

    def __init__(self, folder: Path, *, create: bool = False, serving: bool = False) -> None:
        self._wait_s = SERVING_WAIT_S if serving else WAIT_S
        self.path = path = folder / FILE
        if create:
            folder.mkdir(parents=True, exist_ok=True)
        elif not path.is_file():
            raise ValueError(f"no store in {folder}: {REMEDY} {folder}")
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        try:
            connection = self._connection()
            found = connection.execute("SELECT name FROM sqlite_master WHERE name = 'meta'").fetchone()
            if found is None and create:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    for statement in _TABLES:
                        connection.execute(statement)
                    fresh: list[tuple[str, object]] = [("format", FORMAT), ("salt", secrets.token_bytes(16))]
                    connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", fresh)
            rows = connection.execute("SELECT key, value FROM meta").fetchall() if found or create else []
        except sqlite3.DatabaseError as error:
            self.close()
            raise ValueError(f"{path} cannot be used as a store: {error}") from error
        stored: dict[str, Any] = dict(rows)
        if stored.get("format") != FORMAT:
            self.close()
            raise ValueError(f"{path} {OTHER_VERSION} another folder")
        self._salt: bytes = stored["salt"]

    def put_histories(self, histories: pa.Table) -> int:
        if not len(histories):
            return 0
        names = histories["customer_id"].to_pylist()
        with self._transaction("IMMEDIATE") as connection:
            put = BulkLoad.plan(histories, _pending(connection, names), self._erased(connection, names))
            for field in put.attributes.schema:
                self._add_attribute(connection, field.name, pa.types.is_string(field.type))
            given = put.attributes.to_pylist() or [{}] * len(put.records)
            rows = [(*record, *values.values()) for record, values in zip(put.records, given, strict=True)]
            connection.executemany(_put_customer(put.attributes.column_names), rows)
            connection.executemany(_PUT_EVENT, put.contained)
        return len(put.records)

    def append(self, events: pa.Table, clock: Clock) -> AppendCounts:
        batch = EventAppend.from_events(events, clock)
        with self._transaction("IMMEDIATE") as connection:
            held = {}
            for event in set(zip(batch.names, batch.keys, strict=True)):
                row = connection.execute(
                    "SELECT line FROM events WHERE customer_id = ? AND event = ?", event
                ).fetchone()
                if row is not None:
                    held[event] = row[0]
            rows = batch.new_rows(held)
            lines = ((batch.names[row], batch.keys[row], batch.lines[row].tobytes()) for row in rows)
            connection.executemany(_PUT_EVENT, lines)
            connection.executemany(
                "INSERT INTO customers (customer_id, last_time, tokens, items, history) VALUES (?, ?, 0, 0, x'') "
                "ON CONFLICT (customer_id) DO UPDATE SET last_time = max(last_time, excluded.last_time)",
                batch.newest_times(rows).items(),
            )
        return AppendCounts(len(rows), len(events) - len(rows))

    def get(self, customer_ids: Sequence[str]) -> pa.Table:
        with self._transaction() as connection:
            attributes = self._attributes(connection)
            names = ",".join(["customer_id", "tokens", "items", "history", *(_quoted(name) for name, _ in attributes)])
            rows = connection.execute(
                f"SELECT {names} FROM customers WHERE {_AMONG} AND tokens > 0 ORDER BY customer_id",
                (json.dumps(list(customer_ids)),),
            ).fetchall()
            held = _pending(connection, customer_ids)
        columns = list(zip(*rows, strict=True)) if rows else [()] * (4 + len(attributes))
        table = decode(columns[0], columns[1], columns[2], columns[3])
        for (name, kind), values in zip(attributes, columns[4:], strict=True):
            table = table.append_column(name, pa.array(values, kind))
        return merge_events(table, held)

    def delete(self, customer_ids: Sequence[str]) -> int:
        now, gone = time.time_ns() // 1000, 0
        with self._transaction("IMMEDIATE") as connection:
            for name in dict.fromkeys(customer_ids):
                if connection.execute("DELETE FROM customers WHERE customer_id = ?", (name,)).rowcount:
                    gone += 1
                    connection.execute("DELETE FROM events WHERE customer_id = ?", (name,))
                    connection.execute("INSERT OR REPLACE INTO erased VALUES (?, ?)", (self._digest(name), now))
        with self._translate_errors():  # otherwise the write-ahead log would keep erased pages until it is full
            self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return gone

    def pseudonym(self, customer_id: str) -> str:
        return self._digest(customer_id)[:8].hex()

    def count(self) -> int:
        with self._transaction() as connection:
            return int(connection.execute("SELECT count(*) FROM customers").fetchone()[0])

    def data_through(self) -> int | None:
        with self._transaction() as connection:
            newest: int | None = connection.execute("SELECT max(last_time) FROM customers").fetchone()[0]
        return newest

    def size_bytes(self) -> int:
        files = (self.path, self.path.with_name(f"{FILE}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def dump(self) -> Iterator[pa.Table]:
        after = ""
        while True:
            with self._transaction() as connection:
                attributes = [name for name, _ in self._attributes(connection)]
                pairs = ",".join(f"{_text(name)},{_quoted(name)}" for name in attributes)
                rows = connection.execute(
                    f"SELECT customer_id, last_time, tokens, items, history, json_object({pairs}) "
                    "FROM customers WHERE customer_id > ? ORDER BY customer_id LIMIT ?",
                    (after, PART),
                ).fetchall()
                if not rows:
                    return
                before, after = rows[0][0], rows[-1][0]
                held: dict[str, tuple[list[bytes], list[bytes]]] = {row[0]: ([], []) for row in rows}
                for name, event, line in connection.execute(
                    "SELECT * FROM events WHERE customer_id BETWEEN ? AND ? ORDER BY customer_id, event",
                    (before, after),
                ):
                    held[name][0].append(event)
                    held[name][1].append(line)
            whole = [(*row, *held[row[0]]) for row in rows]
            yield pa.table([list(column) for column in zip(*whole, strict=True)], schema=BACKUP)

    def restore(self, part: pa.Table) -> int:
        with self._transaction("IMMEDIATE") as connection:
            erased = self._erased(connection, part["customer_id"].to_pylist())
            rows = [row for row in part.to_pylist() if row["customer_id"] not in erased]
            for row in rows:
                given = {name: value for name, value in json.loads(row["attributes"]).items() if value is not None}
                for name, value in given.items():
                    self._add_attribute(connection, name, isinstance(value, str))
                record = [row[name] for name in CustomerRecord._fields]
                connection.execute(_put_customer(given), [*record, *given.values()])
                connection.execute("DELETE FROM events WHERE customer_id = ?", (row["customer_id"],))
                events = zip(row["events"], row["lines"], strict=True)
                connection.executemany(_PUT_EVENT, [(row["customer_id"], *event) for event in events])
        return len(rows)

    def erasures(self) -> pa.Table:
        with self._transaction() as connection:
            rows = connection.execute("SELECT digest, at FROM erased").fetchall()
        columns = [pa.array([row[0] for row in rows], pa.binary()), pa.array([row[1] for row in rows], pa.int64())]
        return pa.table(columns, ["digest", "at"]).replace_schema_metadata({"salt": self._salt.hex()})

    def restore_erasures(self, erasures: pa.Table) -> None:
        salt = bytes.fromhex((erasures.schema.metadata or {})[b"salt"].decode())
        with self._transaction("IMMEDIATE") as connection:
            used = connection.execute("SELECT EXISTS (SELECT 1 FROM customers) OR EXISTS (SELECT 1 FROM erased)")
            if salt != self._salt and used.fetchone()[0]:
                raise ValueError(f"{self.path} holds other customers: restore into an empty store")
            connection.execute("UPDATE meta SET value = ? WHERE key = 'salt'", (salt,))
            rows = zip(erasures["digest"].to_pylist(), erasures["at"].to_pylist(), strict=True)
            connection.executemany("INSERT OR REPLACE INTO erased VALUES (?, ?)", rows)
            self._salt = salt

    def close(self) -> None:
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()

    def _add_attribute(self, connection: sqlite3.Connection, name: str, text: bool) -> None:
        if name not in {present for present, _ in self._attributes(connection)}:
            connection.execute(f"ALTER TABLE customers ADD COLUMN {_quoted(name)} {'TEXT' if text else 'REAL'}")

    def _digest(self, name: str) -> bytes:
        return digest(name.encode(), self._salt, 16)

    def _erased(self, connection: sqlite3.Connection, names: Sequence[str]) -> dict[str, int]:
        if not connection.execute("SELECT EXISTS (SELECT 1 FROM erased)").fetchone()[0]:
            return {}
        found = {}
        for name in names:
            row = connection.execute("SELECT at FROM erased WHERE digest = ?", (self._digest(name),)).fetchone()
            if row is not None:
                found[name] = int(row[0])
        return found

    @contextmanager
    def _transaction(self, kind: Literal["DEFERRED", "IMMEDIATE"] = "DEFERRED") -> Iterator[sqlite3.Connection]:
        """Begins a transaction, IMMEDIATE for writing; a deferred one reads all rows in the same state."""
        with self._translate_errors(), self._connection() as connection:
            connection.execute(f"BEGIN {kind}")
            yield connection

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            busy = "is busy" if "locked" in str(error) or "busy" in str(error) else "cannot be read or written"
            raise StoreUnavailableError(f"The online store {busy}.") from error

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # isolation_level None: this class begins transactions itself.
            connection = sqlite3.connect(self.path, timeout=self._wait_s, isolation_level=None, check_same_thread=False)
            with self._lock:
                self._connections.append(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")  # overwrites erased content
            self._local.connection = connection
        return connection

    @staticmethod
    def _attributes(connection: sqlite3.Connection) -> list[tuple[str, pa.DataType]]:
        columns = connection.execute("SELECT name, type FROM pragma_table_info('customers')").fetchall()
        kinds: dict[str, Any] = {"TEXT": pa.string(), "REAL": pa.float64()}
        return [(name, kinds[kind]) for name, kind in columns if name.startswith(ATTRIBUTE_PREFIX)]


def _pending(connection: sqlite3.Connection, names: Sequence[str]) -> list[StoredEvent]:
    """Returns the events of these customers that their histories lack."""
    query = f"SELECT customer_id, event, line FROM events WHERE {_AMONG} AND length(line) = ?"
    return [StoredEvent(*row) for row in connection.execute(query, (json.dumps(list(names)), LINE.itemsize))]


def _put_customer(attributes: Iterable[str]) -> str:
    names = [*CustomerRecord._fields, *map(_quoted, attributes)]
    return f"INSERT OR REPLACE INTO customers ({','.join(names)}) VALUES ({','.join('?' * len(names))})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
