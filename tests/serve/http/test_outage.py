"""A store that hangs, unlike one that refuses: requests that need it fail fast, and all others do not notice."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from clv.data.clock import Clock
from clv.data.histories import build
from clv.serve.http.routes import create_app
from clv.serve.scoring.backend import LiveBackend
from clv.serve.store.factory import open_store

EVENT = {"event_time": "2011-06-03", "event_type": "purchase", "amount": 3.0}
INLINE = {"customers": [{"customer_id": "new", "events": [EVENT]}]}
STORED = {"customers": [{"customer_id": "A"}]}
WRITE = {"events": [EVENT | {"event_id": "e1", "customer_id": "A"}]}


@pytest.fixture(params=["redis", "sqlite"])
def address(request: pytest.FixtureRequest, tmp_path: Path, redis_url: str) -> str:
    return redis_url if request.param == "redis" else str(tmp_path / "store")


def test_requests_with_events_health_and_model_go_on_while_the_store_hangs(
    address: str, redis_server: Any, predictor: Any, connect: Any, sample_events: Any
) -> None:
    """Redis is stopped by SIGSTOP; SQLite is locked by another writer, behind which several posts wait."""
    open_store(address, create=True).put_histories(build(sample_events, Clock("Europe/London")))
    backend = LiveBackend(open_store(address, serving=True))
    backend.install(predictor)
    hangs = address.startswith("redis")

    async def go() -> None:
        async with connect(create_app(backend, deadline_s=20.0)) as client:

            async def timed(method: str, path: str, **options: Any) -> tuple[int, float, Any]:
                began = time.monotonic()
                answer = await client.request(method, path, **options)
                return answer.status_code, time.monotonic() - began, answer

            _, _, before = await timed("POST", "/v1/predict", json=INLINE)
            if hangs:
                redis_server.process.send_signal(signal.SIGSTOP)
            else:
                blocker = sqlite3.connect(Path(address) / "store.sqlite", isolation_level=None)
                blocker.execute("BEGIN IMMEDIATE")
            try:
                waiting = [asyncio.create_task(timed("POST", "/v1/events", json=WRITE)) for _ in range(6)]
                waiting += [asyncio.create_task(timed("POST", "/v1/predict", json=STORED)) for _ in range(6)]
                await asyncio.sleep(0.05)
                free = await asyncio.gather(
                    *(timed("POST", "/v1/predict", json=INLINE) for _ in range(4)),
                    timed("GET", "/readyz"),
                    timed("GET", "/v1/model"),
                )
                assert [status for status, _, _ in free] == [200] * 6
                assert max(seconds for _, seconds, _ in free) < 8  # one try of a job's connection takes ten
                assert {answer.json()["as_of"] for _, _, answer in free[:4]} == {before.json()["as_of"]}
                ended = await asyncio.gather(*waiting)
                assert {status for status, _, _ in ended[:6]} == {503}
                assert {status for status, _, _ in ended[6:]} == {503 if hangs else 200}
                if hangs:  # the breaker is open: nobody waits any more
                    assert (await timed("POST", "/v1/predict", json=STORED))[0] == 503
                    status, _, answer = await timed("GET", "/v1/model")
                    assert (status, answer.json()["customers_stored"]) == (200, None)
            finally:
                if hangs:
                    redis_server.process.send_signal(signal.SIGCONT)
                else:
                    blocker.execute("ROLLBACK")
                    blocker.close()
            until = time.monotonic() + 10
            while (await timed("POST", "/v1/predict", json=STORED))[0] != 200:
                assert time.monotonic() < until
                await asyncio.sleep(0.1)

    asyncio.run(go())
