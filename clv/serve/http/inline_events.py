"""Histories of the customers of a request: built from its events by the code of data preparation, or read by id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data import histories
from clv.data.clock import Clock
from clv.data.events import EVENTS, US
from clv.serve.http.middleware import ProblemError
from clv.serve.http.schemas import MAX_EVENTS, Customer, Event, FieldError


@dataclass(frozen=True)
class RequestHistories:
    """Histories of the known customers of one request, and the time of its newest event (microseconds UTC)."""

    histories: pa.Table
    newest: int | None


def build_histories(
    customers: Sequence[Customer], stored: Callable[[Sequence[str]], pa.Table], clock: Clock
) -> RequestHistories:
    """Returns histories in any order; `stored` loads those of customers without events in the request.

    Raises ProblemError 422 for a repeated customer or too many events.
    """
    check_unique([customer.customer_id for customer in customers], "customers[{}].customer_id")
    pairs = [(customer.customer_id, event) for customer in customers for event in customer.events or ()]
    if len(pairs) > MAX_EVENTS:
        raise invalid_field("customers", f"hold {len(pairs)} events, more than {MAX_EVENTS}: send fewer per request")
    tables, newest = [], None
    if ids := [customer.customer_id for customer in customers if customer.events is None]:
        tables.append(stored(ids))
    if pairs:
        events = events_table([owner for owner, _ in pairs], [event for _, event in pairs], clock)
        newest = pc.max(events["event_time"]).cast(pa.int64()).as_py()
        tables.append(histories.build(events, clock))
    return RequestHistories(histories.concat(tables), newest)


def check_unique(names: Sequence[str], path: str) -> None:
    """Raises ProblemError 422 for the first repeated name; `path` is its field, with {} for the position."""
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        paths = [path.format(i) for i, name in enumerate(names) if name == repeated[0]]
        raise invalid_field(paths[1], f"repeats {paths[0].removesuffix('.customer_id')}")


def events_table(owners: Sequence[str], events: Sequence[Event], clock: Clock) -> pa.Table:
    """Returns validated events as a table of schema EVENTS; times without an offset are in the shop's local time."""
    times = instants_us([event.event_time for event in events], clock)
    known = np.maximum(times, instants_us([event.known_at or event.event_time for event in events], clock))
    columns = {
        "customer_id": list(owners),
        "event_time": pa.array(times).cast(US),
        "known_at": pa.array(known).cast(US),
        "amount_filled": np.zeros(len(events), bool),
    }
    columns |= {name: [getattr(event, name) for event in events] for name in EVENTS.names if name not in columns}
    return pa.table(columns, schema=EVENTS)


def instants_us(times: Sequence[datetime], clock: Clock) -> NDArray[np.int64]:
    """Returns instants in microseconds UTC; those without an offset are local to the shop, as in `Clock.parse`."""
    naive = np.array([time.tzinfo is None for time in times], bool)
    aware = [time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC) for time in times]
    us = pa.array(aware, US).cast(pa.int64()).to_numpy().copy()
    if naive.any() and clock.timezone != "UTC":
        local = pd.DatetimeIndex(us[naive].view("datetime64[us]"))
        zoned = local.tz_localize(clock.timezone, ambiguous=np.ones(len(local), bool), nonexistent="shift_forward")
        us[naive] = zoned.tz_convert("UTC").tz_localize(None).to_numpy().astype("datetime64[us]").view(np.int64)
    return us


def invalid_field(field: str, message: str) -> ProblemError:
    """Returns a ProblemError 422 that names one field."""
    return ProblemError(422, f"{field} {message}.", errors=[FieldError(field=field, message=message)])
