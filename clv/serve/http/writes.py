"""What changes the store: events, and erasures. Both are logged, customers by the store's pseudonyms only."""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.compute as pc

from clv.data.clock import DAY_US
from clv.serve.http import inline_events, requests
from clv.serve.http.middleware import ProblemError
from clv.serve.http.schemas import EventsRequest, FieldError, Stored
from clv.serve.scoring.protocol import Backend
from clv.serve.store.protocol import Store
from clv.serve.store.records import ConflictError

LOG = logging.getLogger(__name__)

# An event of tomorrow may come from a clock in another time zone; one of next year would be taken for the newest data.
AHEAD_US = DAY_US


def store(backend: Backend, asked: EventsRequest, request_id: str) -> Stored:
    """409 for an id that stands for another event, 422 for an event of the future; either way nothing is stored."""
    clock = requests.in_service(backend).facts.clock
    events = inline_events.events_table([event.customer_id for event in asked.events], asked.events, clock)
    late = pc.greater(events["event_time"].cast(pa.int64()), requests.now() + AHEAD_US).to_pylist()
    if any(late):
        raise inline_events.refused(f"events[{late.index(True)}].event_time", "lies in the future")
    try:
        done = _store(backend).append(events, clock)
    except ConflictError as conflict:
        message = "stands for another event of this customer; an event that was stored cannot be changed"
        fields = [FieldError(field=f"events[{row}].event_id", message=message) for row in conflict.rows]
        raise ProblemError(409, f"{fields[0].field} {message}.", errors=fields) from None
    LOG.info("request %s stored %d events, %d were stored before", request_id, done.stored, done.repeated)
    return Stored(stored=done.stored, repeated=done.repeated)


def erase(backend: Backend, customer_id: str, request_id: str) -> bool:
    """Whether the customer was there."""
    kept = _store(backend)
    if not kept.delete([customer_id]):
        return False
    LOG.info("request %s erased customer %s", request_id, kept.pseudonym(customer_id))
    return True


def _store(backend: Backend) -> Store:
    if backend.store is None:
        raise ProblemError(404, "This service has no online store: requests bring their events.")
    return backend.store
