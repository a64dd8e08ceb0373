"""How often a key may ask, counted for all replicas together: in the Redis or the folder that the store is in.

The generic cell rate algorithm (ITU-T I.371, ATM Forum TM 4.1 § 4.4.2): of each key one number is kept, the instant at
which its bucket is empty again. A tenth of a minute's requests may come at once.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import redis

from clv.serve.store import is_folder

LOG = logging.getLogger(__name__)

FILE = "limits.sqlite"
PAUSE_S = 1.0  # after a failure nobody waits for the counter again for so long

# Redis' own clock, so that replicas need not agree on the time.
_SCRIPT = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1e6
local empty = math.max(tonumber(redis.call('GET', KEYS[1]) or '0'), now)
local wait = empty - now - tonumber(ARGV[2])
if wait > 0 then return tostring(wait) end
redis.call('SET', KEYS[1], string.format('%.6f', empty + tonumber(ARGV[1])), 'PX', 120000)
return '0'
"""


class Limiter(Protocol):
    """Counts requests; safe to use from several threads."""

    def take(self, name: str, per_minute: int) -> float:
        """Seconds until `name` may ask again; 0: now, and that is counted."""


class MemoryLimiter:
    """Of this process alone."""

    def __init__(self) -> None:
        self._empty: dict[str, float] = {}
        self._lock = threading.Lock()

    def take(self, name: str, per_minute: int) -> float:
        with self._lock:
            wait, self._empty[name] = step(self._empty.get(name, 0.0), time.monotonic(), per_minute)
        return wait


class SqliteLimiter:
    """Of all processes that share a folder. A crash may forget the last requests: nothing waits for the disk."""

    def __init__(self, folder: Path) -> None:
        self._local = threading.local()
        self._path = folder / FILE

    def take(self, name: str, per_minute: int) -> float:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            row = connection.execute("SELECT empty FROM limits WHERE name = ?", (name,)).fetchone()
            wait, empty = step(row[0] if row else 0.0, time.time(), per_minute)
            connection.execute("INSERT OR REPLACE INTO limits VALUES (?, ?)", (name, empty))
        finally:
            connection.execute("COMMIT")
        return wait

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, timeout=0.5, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("CREATE TABLE IF NOT EXISTS limits (name TEXT PRIMARY KEY, empty REAL) WITHOUT ROWID")
            self._local.connection = connection
        return connection


class RedisLimiter:
    """Of all replicas that share a Redis."""

    def __init__(self, url: str) -> None:
        client: Any = redis.Redis.from_url(url, socket_timeout=0.5, socket_connect_timeout=0.5)
        self._script = client.register_script(_SCRIPT)

    def take(self, name: str, per_minute: int) -> float:
        interval, tolerance = pace(per_minute)
        return float(self._script(keys=[f"clv:limit:{name}"], args=[interval, tolerance]))


class Lenient:
    """A counter that is down must not stop the service: requests then pass uncounted, and that is logged."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._again = 0.0

    def take(self, name: str, per_minute: int) -> float:
        if time.monotonic() < self._again:
            return 0.0
        with suppress(redis.exceptions.RedisError, sqlite3.Error):
            return self._limiter.take(name, per_minute)
        self._again = time.monotonic() + PAUSE_S
        LOG.warning("requests are not counted against the limits of their keys: the counter does not answer")
        return 0.0


def open_limiter(store: str | None) -> Limiter:
    """The counter beside a store's address; without a store that of this process."""
    if store is None:
        return MemoryLimiter()
    return Lenient(SqliteLimiter(Path(store.removeprefix("sqlite://"))) if is_folder(store) else RedisLimiter(store))


def pace(per_minute: int) -> tuple[float, float]:
    """Seconds that one request takes from the bucket, and how far ahead the bucket may be emptied."""
    interval = 60.0 / per_minute
    return interval, interval * (max(1, per_minute // 10) - 1)


def step(empty: float, now: float, per_minute: int) -> tuple[float, float]:
    """Seconds to wait, and when the bucket is empty again afterwards."""
    interval, tolerance = pace(per_minute)
    empty = max(empty, now)
    wait = empty - now - tolerance
    return (wait, empty) if wait > 0 else (0.0, empty + interval)
