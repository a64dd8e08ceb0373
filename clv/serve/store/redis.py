"""The online store in Redis, for replicas on several machines. One server (or its replicas), not a Redis Cluster."""

from __future__ import annotations

import json
import logging
import random
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from clv.data.clock import Clock
from clv.serve.store.protocol import BACKUP, OTHER_VERSION, REMEDY, AppendCounts, StoreUnavailableError
from clv.serve.store.records import FORMAT, BulkLoad, EventAppend, StoredEvent, decode, digest, merge_events

LOG = logging.getLogger(__name__)
T = TypeVar("T")

META, CUSTOMERS, ERASED = "clv:meta", "clv:customers", "clv:erased"
PART = 1_000  # customers of one transaction
ATTEMPTS = 50  # of a transaction whose keys another client changed
WAIT_S, SERVING_WAIT_S = 10.0, 0.3  # for an answer of the server
PAUSE_S = 2.0  # in which a serving store fails at once, after the server did not answer in time
_COUNTS = struct.Struct("<II")


class RedisStore:
    """A `Store` in one database of a Redis server.

    The hash `clv:c:ID` holds a customer's history (h: counts and blob, a: attributes as JSON), the hash `clv:e:ID` its
    events; the sorted set `clv:customers` orders customers by their newest event. Writes are durable with `appendonly
    yes`.
    """

    def __init__(self, url: str, *, create: bool = False, serving: bool = False) -> None:
        self._create, self._serving, self._resume_at = create, serving, 0.0
        wait_s = SERVING_WAIT_S if serving else WAIT_S
        # A connection that the server has closed meanwhile is opened again; a server that hangs is not asked again.
        lost = (redis.exceptions.ConnectionError,)
        retry = Retry(NoBackoff(), 1, lost) if serving else Retry(ExponentialBackoff(cap=0.2, base=0.02), 2)
        self._redis: Any = redis.Redis.from_url(url, socket_timeout=wait_s, socket_connect_timeout=wait_s, retry=retry)
        self._key: bytes | None = None
        try:
            self._salt()
        except StoreUnavailableError as error:
            if create:
                raise ValueError(f"the store cannot be opened: {error}") from error
            LOG.warning("the online store does not answer yet; requests with events of their own are served")

    def put_histories(self, histories: pa.Table) -> int:
        """Writes all or none of each PART customers."""
        return sum(self._put(histories.slice(start, PART)) for start in range(0, len(histories), PART))

    def append(self, events: pa.Table, clock: Clock) -> AppendCounts:
        self._salt()
        batch = EventAppend.from_events(events, clock)
        wanted = list(dict.fromkeys(zip(batch.names, batch.keys, strict=True)))

        def attempt(pipe: Any) -> list[int]:
            pipe.watch(*map(_events, set(batch.names)))
            with self._redis.pipeline(transaction=False) as reading:
                for name, key in wanted:
                    reading.hget(_events(name), key)
                lines = reading.execute()
            rows = batch.new_rows({event: line for event, line in zip(wanted, lines, strict=True) if line is not None})
            pipe.multi()
            for row in rows:
                pipe.hset(_events(batch.names[row]), batch.keys[row], batch.lines[row].tobytes())
            if rows:
                pipe.zadd(CUSTOMERS, batch.newest_times(rows), gt=True)
            pipe.execute()
            return rows

        rows = self._attempts(attempt)
        return AppendCounts(len(rows), len(events) - len(rows))

    def get(self, customer_ids: Sequence[str]) -> pa.Table:
        self._salt()
        names = sorted(set(customer_ids))
        with self._translate_errors(), self._redis.pipeline(transaction=True) as pipe:
            for name in names:
                pipe.hmget(_customer(name), "h", "a")
                pipe.hvals(_events(name))
            found = pipe.execute()
        records, held = [], []
        for name, (history, given), lines in zip(names, found[::2], found[1::2], strict=True):
            if history is not None:
                counts, blob = _COUNTS.unpack_from(history), history[_COUNTS.size :]
                records.append((name, *counts, blob, json.loads(given or b"{}")))
            held += [StoredEvent(name, b"", line) for line in lines]
        columns = list(zip(*records, strict=True)) if records else [()] * 5
        table = decode(columns[0], columns[1], columns[2], columns[3])
        for name in sorted({key for given in columns[4] for key in given}):
            values = [given.get(name) for given in columns[4]]
            kind = pa.string() if any(isinstance(value, str) for value in values) else pa.float64()
            table = table.append_column(name, pa.array(values, kind))
        return merge_events(table, held)

    def delete(self, customer_ids: Sequence[str]) -> int:
        self._salt()
        now = time.time_ns() // 1000
        names = list(dict.fromkeys(customer_ids))

        def attempt(pipe: Any) -> int:
            pipe.watch(*_keys(names))
            gone = [name for name in names if pipe.exists(_customer(name), _events(name))]
            pipe.multi()
            for name in gone:
                pipe.delete(_customer(name), _events(name))
                pipe.zrem(CUSTOMERS, name)
                pipe.hset(ERASED, self._digest(name), now)
            pipe.execute()
            return len(gone)

        return self._attempts(attempt) if names else 0

    def pseudonym(self, customer_id: str) -> str:
        return self._digest(customer_id)[:8].hex()

    def count(self) -> int:
        self._salt()
        with self._translate_errors():
            return int(self._redis.zcard(CUSTOMERS))

    def data_through(self) -> int | None:
        self._salt()
        with self._translate_errors():
            newest = self._redis.zrange(CUSTOMERS, 0, 0, desc=True, withscores=True)
        return int(newest[0][1]) if newest else None

    def size_bytes(self) -> int:
        with self._translate_errors():
            found = self._redis.info("memory")
        return int(found["used_memory"] - found["used_memory_startup"])

    def dump(self) -> Iterator[pa.Table]:
        self._salt()
        cursor, seen = 0, set()
        while True:
            with self._translate_errors():
                cursor, pairs = self._redis.zscan(CUSTOMERS, cursor, count=PART)
                names = [name for name, _ in pairs if name not in seen]
                seen.update(names)
                with self._redis.pipeline(transaction=True) as pipe:
                    for name in names:
                        pipe.hgetall(b"clv:c:" + name)
                        pipe.hgetall(b"clv:e:" + name)
                        pipe.zscore(CUSTOMERS, name)
                    found = pipe.execute()
            rows = [
                _backup(name.decode(), customer, events, int(newest))
                for name, customer, events, newest in zip(names, found[::3], found[1::3], found[2::3], strict=True)
                if newest is not None
            ]
            if rows:
                yield pa.Table.from_pylist(rows, BACKUP)
            if cursor == 0:
                return

    def restore(self, part: pa.Table) -> int:
        self._salt()
        names = part["customer_id"].to_pylist()
        with self._translate_errors():
            erased = self._redis.hmget(ERASED, [self._digest(name) for name in names]) if names else []
            rows = [row for row, at in zip(part.to_pylist(), erased, strict=True) if at is None]
            for start in range(0, len(rows), PART):
                with self._redis.pipeline(transaction=True) as pipe:
                    for row in rows[start : start + PART]:
                        name = row["customer_id"]
                        pipe.delete(_customer(name), _events(name))
                        if row["tokens"]:
                            pipe.hset(_customer(name), mapping=_fields(row, json.loads(row["attributes"])))
                        if row["events"]:
                            pipe.hset(_events(name), mapping=dict(zip(row["events"], row["lines"], strict=True)))
                        pipe.zadd(CUSTOMERS, {name: row["last_time"]})
                    pipe.execute()
        return len(rows)

    def erasures(self) -> pa.Table:
        salt = self._salt()
        with self._translate_errors():
            rows = self._redis.hgetall(ERASED)
        columns = [pa.array(list(rows), pa.binary()), pa.array([int(at) for at in rows.values()], pa.int64())]
        return pa.table(columns, ["digest", "at"]).replace_schema_metadata({"salt": salt.hex()})

    def restore_erasures(self, erasures: pa.Table) -> None:
        salt = bytes.fromhex((erasures.schema.metadata or {})[b"salt"].decode())
        with self._translate_errors():
            if salt != self._salt() and (self._redis.exists(CUSTOMERS) or self._redis.exists(ERASED)):
                raise ValueError("this Redis holds other customers: restore into an empty store")
            self._redis.hset(META, "salt", salt)
            rows = dict(zip(erasures["digest"].to_pylist(), erasures["at"].to_pylist(), strict=True))
            if rows:
                self._redis.hset(ERASED, mapping=rows)
        self._key = salt

    def close(self) -> None:
        self._redis.close()

    def _put(self, histories: pa.Table) -> int:
        self._salt()
        names = histories["customer_id"].to_pylist()

        def attempt(pipe: Any) -> int:
            pipe.watch(*_keys(names))
            with self._redis.pipeline(transaction=False) as reading:
                reading.hmget(ERASED, [self._digest(name) for name in names])
                for name in names:
                    reading.hgetall(_events(name))
                erased, *logs = reading.execute()
            held = [
                StoredEvent(name, key, line) for name, log in zip(names, logs, strict=True) for key, line in log.items()
            ]
            since = {name: int(at) for name, at in zip(names, erased, strict=True) if at is not None}
            put = BulkLoad.plan(histories, [event for event in held if event.pending], since)
            pipe.multi()
            for one, given in zip(put.records, put.attributes.to_pylist() or [{}] * len(put.records), strict=True):
                pipe.hdel(_customer(one.customer_id), "a")
                pipe.hset(_customer(one.customer_id), mapping=_fields(one._asdict(), given))
                pipe.zadd(CUSTOMERS, {one.customer_id: one.last_time})
            for event in put.contained:
                pipe.hset(_events(event.customer_id), event.event, event.line)
            pipe.execute()
            return len(put.records)

        return self._attempts(attempt)

    def _attempts(self, attempt: Callable[[Any], T]) -> T:
        """Calls `attempt`, which watches the keys it reads, until no other client has changed them meanwhile."""
        with self._translate_errors():
            for number in range(ATTEMPTS):
                with self._redis.pipeline(transaction=True) as pipe:
                    try:
                        return attempt(pipe)
                    except redis.WatchError:
                        time.sleep(random.uniform(0, 0.002 * 2 ** min(number, 6)))
        raise StoreUnavailableError("The online store is busy with the same customers.")

    def _salt(self) -> bytes:
        """Returns the store's key for digests; raises ValueError for a database that is no store of this version."""
        if self._key is None:
            with self._translate_errors():
                if self._create:
                    self._redis.hsetnx(META, "salt", secrets.token_bytes(16))
                    self._redis.hsetnx(META, "format", FORMAT)
                meta = self._redis.hgetall(META)
                self._warn_about_settings()
            if not meta:
                raise ValueError(f"no store in this Redis: {REMEDY} with its address")
            if meta.get(b"format") != FORMAT.encode():
                raise ValueError(f"this Redis {OTHER_VERSION} another database")
            self._key = meta[b"salt"]
        return self._key

    def _warn_about_settings(self) -> None:
        found = self._redis.info()
        if not found.get("aof_enabled"):
            LOG.warning("Redis runs with appendonly no: a crash loses acknowledged writes")
        if found.get("maxmemory") and found.get("maxmemory_policy") != "noeviction":
            LOG.warning("Redis may evict customers: set maxmemory-policy noeviction")

    def _digest(self, name: str) -> bytes:
        return digest(name.encode(), self._salt(), 16)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        """Translates errors of the server, and fails at once for a while after it did not answer in time (a circuit
        breaker): every thread that waits for a server that hangs is one that answers nobody."""
        if time.monotonic() < self._resume_at:
            raise StoreUnavailableError("The online store does not answer in time.")
        try:
            yield
        except redis.exceptions.ConnectionError as error:
            raise StoreUnavailableError("The online store does not answer.") from error
        except redis.exceptions.TimeoutError as error:
            if self._serving:
                self._resume_at = time.monotonic() + PAUSE_S
            raise StoreUnavailableError("The online store does not answer in time.") from error
        except redis.exceptions.RedisError as error:
            raise StoreUnavailableError(
                "The online store refuses the command; the log of the service has the reason."
            ) from error


def _customer(name: str) -> str:
    return f"clv:c:{name}"


def _events(name: str) -> str:
    return f"clv:e:{name}"


def _keys(names: Iterable[str]) -> list[str]:
    return [key for name in names for key in (_customer(name), _events(name))]


def _fields(row: dict[str, Any], attributes: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"h": _COUNTS.pack(row["tokens"], row["items"]) + bytes(row["history"])}
    given = {name: value for name, value in attributes.items() if value is not None}
    if given:
        fields["a"] = json.dumps(given, ensure_ascii=False)
    return fields


def _backup(name: str, customer: dict[bytes, bytes], events: dict[bytes, bytes], newest: int) -> dict[str, Any]:
    history = customer.get(b"h")
    tokens, items = _COUNTS.unpack_from(history) if history else (0, 0)
    return {
        "customer_id": name,
        "last_time": newest,
        "tokens": tokens,
        "items": items,
        "history": history[_COUNTS.size :] if history else b"",
        "attributes": customer.get(b"a", b"{}").decode(),
        "events": list(events),
        "lines": list(events.values()),
    }
