"""Events and erasures change the store, and the log names no customer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from clv.serve.http.middleware import ProblemError
from clv.serve.http.schemas import EventsRequest
from clv.serve.http.writes import erase_customer, store_events
from clv.serve.scoring.backend import LiveBackend


def request(time: datetime, amount: float = 1.0) -> EventsRequest:
    event = {"event_id": "e1", "customer_id": "A", "event_type": "purchase", "event_time": time, "amount": amount}
    return EventsRequest.model_validate({"events": [event]})


def test_events_are_stored_once_and_an_id_of_another_event_is_409(backend: LiveBackend) -> None:
    time = datetime(2011, 6, 12, tzinfo=UTC)
    results = [store_events(backend, request(time), "r1") for _ in range(2)]
    assert [(one.stored, one.repeated) for one in results] == [(1, 0), (0, 1)]
    with pytest.raises(ProblemError, match="is the id of another event") as error:
        store_events(backend, request(time, amount=2.0), "r2")
    assert (error.value.status, error.value.errors[0].field) == (409, "events[0].event_id")


def test_an_event_more_than_a_day_ahead_is_422(backend: LiveBackend) -> None:
    now = datetime.now(UTC)
    assert store_events(backend, request(now + timedelta(hours=23)), "r1").stored == 1
    with pytest.raises(ProblemError, match=r"events\[0\]\.event_time lies in the future"):
        store_events(backend, request(now + timedelta(hours=25)), "r2")


def test_an_erasure_is_logged_under_a_pseudonym_and_needs_a_store(
    backend: LiveBackend, make_predictor: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "clv.serve.http.writes")
    assert erase_customer(backend, "A", "r1")
    assert not erase_customer(backend, "A", "r2")
    assert backend.store is not None
    assert caplog.messages == [f"request r1 erased customer {backend.store.pseudonym('A')}"]
    with pytest.raises(ProblemError, match="no online store"):
        erase_customer(LiveBackend(), "A", "r3")
