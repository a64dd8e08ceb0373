"""Rates hold for all who share a counter, and a counter that is down stops nobody."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from clv.serve.limits import Limiter, MemoryLimiter, open_limiter, step


@pytest.fixture(params=["memory", "sqlite", "redis"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Limiter, Limiter]:
    """Counters of two replicas; the one in memory is shared, the others find each other."""
    if request.param == "memory":
        one = open_limiter(None)
        assert isinstance(one, MemoryLimiter)
        return one, one
    address = str(tmp_path) if request.param == "sqlite" else request.getfixturevalue("redis_url")
    return open_limiter(address), open_limiter(address)


def test_two_replicas_in_turn_allow_no_more_than_one(pair: tuple[Limiter, Limiter]) -> None:
    waits = [pair[i % 2].take("key", 600) for i in range(90)]
    allowed = waits.count(0.0)
    assert 60 <= allowed <= 75, "a tenth of a minute's at once, and what a moment adds"
    assert all(0 < wait <= 0.1 for wait in waits[-3:] if wait)
    assert pair[0].take("other key", 600) == 0


def test_the_rate_holds_over_time(pair: tuple[Limiter, Limiter]) -> None:
    """1,200 a minute are 20 a second."""
    while not pair[0].take("key", 1_200):
        pass
    began, allowed = time.monotonic(), 0
    while time.monotonic() - began < 1.0:
        allowed += pair[allowed % 2].take("key", 1_200) == 0
        time.sleep(0.002)
    assert 17 <= allowed <= 22


def test_threads_do_not_share_one_permission(pair: tuple[Limiter, Limiter]) -> None:
    allowed: list[float] = []

    def ask(limiter: Limiter) -> None:
        allowed.extend(1 for _ in range(40) if limiter.take("key", 60) == 0)

    threads = [threading.Thread(target=ask, args=(pair[i % 2],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 6 <= len(allowed) <= 8


def test_the_arithmetic_of_a_bucket() -> None:
    """60 a minute: six at once, the seventh a second after the first."""
    empty = 0.0
    for _ in range(6):
        wait, empty = step(empty, 100.0, 60)
        assert wait == 0
    assert step(empty, 100.0, 60) == (1.0, 106.0)
    assert step(empty, 101.0, 60) == (0.0, 107.0)
    assert step(0.0, 100.0, 5) == (0.0, 112.0)
    assert step(112.0, 100.0, 5) == (12.0, 112.0)


def test_a_counter_that_is_down_lets_everybody_pass_without_a_wait(
    redis_server: Any, redis_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = open_limiter(redis_url)
    redis_server.kill()
    try:
        began = time.monotonic()
        assert [limiter.take("key", 1) for _ in range(50)] == [0.0] * 50
        assert time.monotonic() - began < 1
        assert caplog.text.count("does not answer") == 1
    finally:
        redis_server.start()
    time.sleep(1.1)
    assert limiter.take("key", 1) == 0
    assert limiter.take("key", 1) > 50
    assert open_limiter(str(tmp_path / "no such folder")).take("key", 1) == 0
