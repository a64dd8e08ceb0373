"""Rates hold for all replicas that share a Redis, and a Redis that is down stops nobody."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from clv.serve.http import rate_limits
from clv.serve.http.rate_limits import RateLimiter, rate_window

Pair = Callable[[], tuple[RateLimiter, RateLimiter]]


@pytest.fixture(params=["memory", "redis"])
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pair:
    """Makes the limiters of two replicas; memory belongs to one replica, which then stands for both."""
    monkeypatch.setattr(rate_limits, "TIMEOUT_S", 10.0)  # of a machine that has other work
    if request.param == "redis":
        address = request.getfixturevalue("redis_url")
        return lambda: (RateLimiter(address), RateLimiter(address))
    one = RateLimiter()
    return lambda: (one, one)


def run(work: Coroutine[Any, Any, None]) -> None:
    """A window in memory begins at a multiple of its length; this one begins early enough to hold the whole test."""
    left = rate_limits.WINDOW_S - time.time() % rate_limits.WINDOW_S
    if left < 2:
        time.sleep(left)
    asyncio.run(work)


def test_two_replicas_in_turn_admit_no_more_than_one(pair: Pair) -> None:
    async def ask() -> None:
        replicas = pair()
        waits = [await replicas[i % 2].wait_s("key", 600) for i in range(90)]
        assert waits[:60] == [0.0] * 60, "a tenth of a minute's at once"
        assert all(0 < wait <= 6 for wait in waits[60:])
        assert await replicas[0].wait_s("other key", 600) == 0

    run(ask())


def test_requests_at_the_same_time_do_not_share_one_permission(pair: Pair) -> None:
    async def ask() -> None:
        replicas = pair()
        waits = await asyncio.gather(*(replicas[i % 2].wait_s("key", 60) for i in range(160)))
        assert waits.count(0.0) == 6

    run(ask())


def test_whoever_waits_as_long_as_asked_keeps_the_pace(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,200 a minute are 20 a second, none of them refused twice."""
    monkeypatch.setattr(rate_limits, "WINDOW_S", 1)

    async def ask() -> None:
        replica, other = pair()
        began, times, refused_twice, waited = time.monotonic(), [], 0, False
        while (now := time.monotonic() - began) < 3.4:
            wait = await replica.wait_s("key", 1_200)
            refused_twice += waited and wait > 0
            waited = wait > 0
            if wait:
                await asyncio.sleep(wait + 0.002)
            else:
                times.append(now)
            replica, other = other, replica
        assert sum(at < 0.1 for at in times) >= 20, "a window's at once"
        assert 25 <= sum(1.4 <= at < 3.4 for at in times) <= 41, "then one at a time"
        assert refused_twice <= 2

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("per_minute", "requests", "seconds"),
    [(1, 1, 60), (5, 1, 12), (7, 7, 60), (20, 2, 6), (25, 5, 12), (60, 6, 6), (90, 9, 6), (6_000, 600, 6)],
)
def test_a_rate_is_kept_exactly_in_whole_seconds(per_minute: int, requests: int, seconds: int) -> None:
    found = rate_window(per_minute)
    assert (found.amount, found.get_expiry()) == (requests, seconds)
    assert requests * 60 == per_minute * seconds


def test_replicas_with_an_sqlite_store_count_each_for_itself(tmp_path: Path) -> None:
    async def ask() -> None:
        for address in (str(tmp_path), f"sqlite://{tmp_path}"):
            for replica in (RateLimiter(address), RateLimiter(address)):
                assert await replica.wait_s("key", 10) == 0
                assert await replica.wait_s("key", 10) > 0

    run(ask())


def test_a_redis_that_is_down_lets_everybody_pass_and_is_asked_again_later(
    redis_server: Any, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask() -> None:
        limiter = RateLimiter(redis_url)
        assert await limiter.wait_s("before", 1) == 0
        redis_server.kill()
        try:
            began = time.monotonic()
            assert await asyncio.gather(*(limiter.wait_s("key", 1) for _ in range(200))) == [0.0] * 200
            assert [await limiter.wait_s("key", 1) for _ in range(20)] == [0.0] * 20
            assert time.monotonic() - began < 1
            assert caplog.text.count("does not answer") == 1
        finally:
            redis_server.start()
        await asyncio.sleep(rate_limits.PAUSE_S + 0.1)
        assert await limiter.wait_s("key", 1) == 0
        assert await limiter.wait_s("key", 1) > 50

    asyncio.run(ask())


def test_a_redis_that_hangs_delays_nobody_for_long(redis_server: Any, redis_url: str) -> None:
    async def ask() -> None:
        limiter = RateLimiter(redis_url)
        assert await limiter.wait_s("before", 1) == 0
        redis_server.process.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert await asyncio.gather(*(limiter.wait_s("key", 1) for _ in range(200))) == [0.0] * 200
            assert time.monotonic() - began < 1.5
        finally:
            redis_server.process.send_signal(signal.SIGCONT)

    asyncio.run(ask())
