"""Schemas refuse wrong units, types and orders of times."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
from pydantic import ValidationError

from clv.serve.http.schemas import Event

EVENT = {"event_time": "2011-06-03T14:20:00", "event_type": "purchase"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"event_time": "1989-12-31"}, "must lie between 1990 and 2100"),
        ({"event_time": "2101-01-01"}, "must lie between 1990 and 2100"),
        ({"event_time": "last Friday"}, "must be an ISO 8601 date or time"),
        ({"event_time": 1_307_836_800}, "valid datetime"),
        ({"known_at": "2011-06-03T14:19:00"}, "known_at lies before event_time"),
        ({"amount": "19.90"}, "valid number"),
        ({"amount": 1e13}, "less than or equal"),
        ({"amount": float("nan")}, "finite number"),
        ({"order_id": "a\tb"}, "should match pattern"),
        ({"colour": "red"}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_event_is_refused(fields: dict[str, Any], message: str) -> None:
    Event.model_validate(EVENT)
    with pytest.raises(ValidationError, match=message):
        Event.model_validate(EVENT | fields)


def test_known_at_with_an_offset_is_not_compared_with_a_local_time() -> None:
    assert Event.model_validate(EVENT | {"known_at": "2011-06-03T14:19:00Z"}).known_at is not None


@pytest.mark.parametrize(
    "time", ["1990-01-01", "2100-12-31T23:59:59.999999", "2011-06-03T14:20Z", "2011-06-03T14:20+02:00"]
)
def test_the_published_pattern_accepts_the_times_that_are_read(time: str) -> None:
    event = Event.model_validate(EVENT | {"event_time": time, "known_at": time})
    assert event.known_at == event.event_time == datetime.fromisoformat(time)
    pattern = Event.model_json_schema()["properties"]["event_time"]["pattern"]
    assert re.search(pattern, time)
    assert not re.search(pattern, "1989-12-31")
