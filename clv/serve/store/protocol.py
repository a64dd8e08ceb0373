"""Protocol of the online store: histories by customer id, to which events are appended; SQLite or Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from clv.data.clock import Clock

REMEDY = "fill one with python -m ray_jobs.load_store --store"
OTHER_VERSION = "is not a store of this version: load it again with python -m ray_jobs.load_store --store"

# Schema of a backup: a row per customer; `attributes` is JSON, `lines[i]` is the content of event `events[i]`.
BACKUP = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        *(pa.field(name, pa.int64(), nullable=False) for name in ("last_time", "tokens", "items")),
        pa.field("history", pa.binary(), nullable=False),
        pa.field("attributes", pa.string(), nullable=False),
        pa.field("events", pa.list_(pa.binary()), nullable=False),
        pa.field("lines", pa.list_(pa.binary()), nullable=False),
    ]
)


class StoreUnavailableError(Exception):
    """The store does not answer or cannot be written now; the text may be shown to a caller."""


@dataclass(frozen=True)
class AppendCounts:
    """Number of events stored, and of `repeated` events that the store held already."""

    stored: int
    repeated: int


class Store(Protocol):
    """Histories (schema HISTORIES and `attr_*` columns) by customer id, and the events appended since.

    The store keeps a hash of a customer's text, not the text itself (column `raw_text` of histories). Several threads
    and processes may use it. A write survives a crash of the process once it has returned. Every call but `close` may
    raise StoreUnavailableError.
    """

    def put_histories(self, histories: pa.Table) -> int:
        """Inserts or replaces whole customers and returns their number. Appended events that the histories lack remain;
        of an erased customer only events after the erasure are stored."""

    def append(self, events: pa.Table, clock: Clock) -> AppendCounts:
        """Adds events (schema EVENTS, each with an id), all or none, with the local days of `clock`.

        An event with the id and content of a stored one is counted as repeated. Raises ConflictError for the id of
        another event of the customer.
        """

    def get(self, customer_ids: Sequence[str]) -> pa.Table:
        """Returns histories of the stored customers, with appended events, sorted by customer_id."""

    def delete(self, customer_ids: Sequence[str]) -> int:
        """Erases customers, records the erasures, and returns the number of customers that were stored."""

    def pseudonym(self, customer_id: str) -> str:
        """Returns a name for logs: a keyed hash of the id, whose key only this store holds."""

    def count(self) -> int:
        """Returns the number of customers."""

    def data_through(self) -> int | None:
        """Returns the time of the newest event in microseconds UTC; None for an empty store."""

    def size_bytes(self) -> int:
        """Returns the bytes on disk (SQLite) or in memory (Redis)."""

    def dump(self) -> Iterator[pa.Table]:
        """Yields all customers in parts of schema BACKUP; each customer is consistent in time."""

    def restore(self, part: pa.Table) -> int:
        """Restores customers of a dump, except those erased in this store; returns their number."""

    def erasures(self) -> pa.Table:
        """Returns `digest` and time `at` (microseconds UTC) of the erasures; the schema's metadata holds the key."""

    def restore_erasures(self, erasures: pa.Table) -> None:
        """Restores erasures and key of a dump; raises ValueError for a store that holds other customers."""

    def close(self) -> None:
        """Closes files and connections."""
