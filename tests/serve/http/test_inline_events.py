"""Events of a request become histories by the code of data preparation."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pytest

from clv.data.clock import Clock
from clv.data.histories import HISTORIES
from clv.serve.http.inline_events import build_histories, check_unique, events_table, instants_us
from clv.serve.http.middleware import ProblemError
from clv.serve.http.schemas import Customer, Event

LONDON = Clock("Europe/London")


def test_times_without_an_offset_are_local_and_known_at_is_never_before_the_event() -> None:
    events = [
        Event.model_validate({"event_time": "2011-06-03T14:20:00", "event_type": "view"}),
        Event.model_validate(
            {"event_time": "2011-06-03T14:20:00Z", "known_at": "2011-06-03T15:00:00", "event_type": "view"}
        ),
    ]
    table = events_table(["a", "b"], events, LONDON)
    assert [time.isoformat() for time in table["event_time"].to_pylist()] == [
        "2011-06-03T13:20:00+00:00",
        "2011-06-03T14:20:00+00:00",
    ]
    assert table["known_at"].to_pylist()[1].isoformat() == "2011-06-03T14:20:00+00:00"
    assert instants_us([events[0].event_time], LONDON)[0] == LONDON.parse("2011-06-03T14:20:00")


def test_stored_and_inline_histories_are_joined_and_the_newest_inline_event_is_returned() -> None:
    asked: list[list[str]] = []

    def stored(ids: Sequence[str]) -> pa.Table:
        asked.append(list(ids))
        return HISTORIES.empty_table()

    events = [{"event_time": "2011-06-03T00:00:00Z", "event_type": "view"}]
    customers = [Customer(customer_id="old"), Customer.model_validate({"customer_id": "new", "events": events})]
    found = build_histories(customers, stored, LONDON)
    assert asked == [["old"]]
    assert found.histories["customer_id"].to_pylist() == ["new"]
    assert found.newest == LONDON.parse("2011-06-03T00:00:00Z")


def test_a_repeated_customer_is_named_by_its_position() -> None:
    with pytest.raises(ProblemError, match=r"customer_ids\[2\] repeats customer_ids\[0\]") as error:
        check_unique(["a", "b", "a"], "customer_ids[{}]")
    assert (error.value.status, error.value.errors[0].field) == (422, "customer_ids[2]")
