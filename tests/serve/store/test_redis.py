"""Redis: transactions that meet other writers, and databases that are down or hold no store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clv.data.histories import build
from clv.serve.store.factory import open_store
from clv.serve.store.protocol import StoreUnavailableError
from clv.serve.store.records import BulkLoad, EventAppend
from tests.serve.store.test_events import CLOCK, assert_equal, ids, shop


def test_redis_counts_an_event_once_that_arrives_during_a_load_which_holds_it(
    redis_url: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, store, other = shop(rng), open_store(redis_url, create=True), open_store(redis_url)
    plan = BulkLoad.plan

    def slow_plan(*given: Any) -> BulkLoad:
        other.append(events.slice(0, 1), CLOCK)
        return plan(*given)

    monkeypatch.setattr(BulkLoad, "plan", slow_plan)
    store.put_histories(build(events, CLOCK))
    assert_equal(store.get(ids(events)), build(events, CLOCK))


def test_redis_stores_a_whole_batch_anew_whose_customer_is_erased_meanwhile(
    redis_url: str, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, store, other = shop(rng, customers=1), open_store(redis_url, create=True), open_store(redis_url)
    store.append(events.slice(0, 1), CLOCK)
    new_rows = EventAppend.new_rows

    def slow_new_rows(self: EventAppend, held: Any) -> list[int]:
        other.delete(["c000"])
        return new_rows(self, held)

    monkeypatch.setattr(EventAppend, "new_rows", slow_new_rows)
    assert store.append(events.slice(0, 2), CLOCK).stored == 2
    assert_equal(store.get(["c000"]), build(events.slice(0, 2), CLOCK))


def test_a_redis_without_a_store_is_refused_and_one_that_is_down_is_asked_later(redis_url: str) -> None:
    with pytest.raises(ValueError, match=r"ray_jobs\.load_store"):
        open_store(redis_url)
    down = "redis://127.0.0.1:9/0"
    with pytest.raises(ValueError, match="does not answer"):
        open_store(down, create=True)
    store = open_store(down)
    for call in (store.count, store.data_through, lambda: store.get(["a"]), lambda: store.delete(["a"])):
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            call()
