"""Changes of the online store: new events and erasures. The log names customers by the store's pseudonyms."""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.compute as pc

from clv.data.clock import DAY_US
from clv.serve.http import inline_events, requests
from clv.serve.http.middleware import ProblemError
from clv.serve.http.schemas import EventsRequest, EventsResponse, FieldError
from clv.serve.scoring.protocol import Backend
from clv.serve.store.protocol import Store
from clv.serve.store.records import ConflictError

LOG = logging.getLogger(__name__)

# A caller in another time zone may send a time up to a day ahead; a later one would shift the default `as_of`.
MAX_FUTURE_US = DAY_US


def store_events(backend: Backend, request: EventsRequest, request_id: str) -> EventsResponse:
    """Stores all events of the request. Raises ProblemError, and stores nothing: 409 for the id of another event, 422
    for an event of the future, 404 without a store."""
    clock = requests.scorer_in_service(backend).facts.clock
    events = inline_events.events_table([event.customer_id for event in request.events], request.events, clock)
    late = pc.greater(events["event_time"].cast(pa.int64()), requests.now_us() + MAX_FUTURE_US).to_pylist()
    if any(late):
        raise inline_events.invalid_field(f"events[{late.index(True)}].event_time", "lies in the future")
    try:
        done = _require_store(backend).append(events, clock)
    except ConflictError as conflict:
        message = "is the id of another event of this customer; a stored event cannot be changed"
        fields = [FieldError(field=f"events[{row}].event_id", message=message) for row in conflict.rows]
        raise ProblemError(409, f"{fields[0].field} {message}.", errors=fields) from None
    LOG.info("request %s stored %d events; %d were stored before", request_id, done.stored, done.repeated)
    return EventsResponse(stored=done.stored, repeated=done.repeated)


def erase_customer(backend: Backend, customer_id: str, request_id: str) -> bool:
    """Erases a customer; returns whether the store held one. Raises ProblemError 404 without a store."""
    store = _require_store(backend)
    if not store.delete([customer_id]):
        return False
    LOG.info("request %s erased customer %s", request_id, store.pseudonym(customer_id))
    return True


def _require_store(backend: Backend) -> Store:
    if backend.store is None:
        raise ProblemError(404, "This service has no online store: send the events with the request.")
    return backend.store
