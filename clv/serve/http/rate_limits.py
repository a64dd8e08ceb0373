"""Rate limits per API key, by a sliding window over a tenth of a minute, counted in Redis for all replicas together.

Without a Redis store each replica counts for itself, in memory.
"""

from __future__ import annotations

import asyncio
import logging
import time
from fractions import Fraction
from typing import Any

from limits import RateLimitItemPerSecond
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as LostConnectionError

from clv.serve.store.factory import is_redis

LOG = logging.getLogger(__name__)

WINDOW_S = 6
CONNECTIONS = 16
TIMEOUT_S = 0.3  # of a call of Redis
PAUSE_S = 2.0  # without calls after a failure of Redis


class RateLimiter:
    """Counts the requests of each key, in the online store `store` if that is a Redis. It belongs to one event loop.

    While Redis does not answer, requests pass uncounted and a warning is logged, so that the service continues.
    """

    def __init__(self, store: str | None = None) -> None:
        storage = _redis_storage(store) if store is not None and is_redis(store) else MemoryStorage()
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._paused_until = 0.0

    async def wait_s(self, name: str, per_minute: int) -> float:
        """Counts one request of `name` and returns 0, or returns the seconds until the next request may pass."""
        limit = rate_window(per_minute)
        async with self._turns:
            if time.monotonic() < self._paused_until:
                return 0.0
            try:
                if await self._limiter.hit(limit, name):
                    return 0.0
                reset, _ = await self._limiter.get_window_stats(limit, name)
            except StorageError as error:
                if time.monotonic() >= self._paused_until:
                    LOG.warning("requests pass uncounted: the Redis of the rate limits does not answer (%s)", error)
                self._paused_until = time.monotonic() + PAUSE_S
                return 0.0
        return max(reset - time.time(), 0.001)


def rate_window(per_minute: int) -> RateLimitItemPerSecond:
    """Returns a limit with a whole number of requests in at most WINDOW_S, else in the fewest seconds that allow one.

    60 a minute are 6 in 6 seconds, 90 are 9 in 6, 25 are 5 in 12, and 7 are 7 in 60.
    """
    pace = Fraction(per_minute, 60)
    times = max(1, WINDOW_S // pace.denominator)
    return RateLimitItemPerSecond(times * pace.numerator, times * pace.denominator, namespace="clv")


def _redis_storage(address: str) -> RedisStorage:
    # An own pool: the library refuses addresses without a port, and redis-py would retry for seconds.
    pool: Any = ConnectionPool.from_url(
        address,
        socket_timeout=TIMEOUT_S,
        socket_connect_timeout=TIMEOUT_S,
        retry=Retry(NoBackoff(), 1, (LostConnectionError,)),
    )
    return RedisStorage(
        "redis://", wrap_exceptions=True, implementation="redispy", key_prefix="clv:limit", connection_pool=pool
    )
