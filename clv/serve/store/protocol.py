"""The online store: histories by customer id, which grow by events. One protocol, SQLite or Redis behind it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from clv.data.clock import Clock

REMEDY = "fill one with python -m ray_jobs.load_store --store"
OTHER_VERSION = "is not a store of this version: load it again with python -m ray_jobs.load_store --store"

# A customer as a backup holds it; `attributes` is JSON, events and lines belong together.
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
    """The store does not answer or cannot take what it is given now; the text may be shown to a caller."""


@dataclass(frozen=True)
class Appended:
    """What became of a batch of events; `repeated` ones were there already, and are not stored again."""

    stored: int
    repeated: int


class Store(Protocol):
    """Histories (schema HISTORIES and `attr_*` columns) by customer id, and events that came since.

    Of what customers wrote the hash is kept, not the text (column `raw_text` of histories).
    Safe to use from several threads and processes. What a write returned for survives a crash of the process. Every
    call but `close` may raise StoreUnavailableError.
    """

    def put_histories(self, histories: pa.Table) -> int:
        """Insert or replace whole customers; returns how many. Appended events that the histories do not hold stay;
        of an erased customer nothing older than the erasure returns."""

    def append(self, events: pa.Table, clock: Clock) -> Appended:
        """Add events (schema EVENTS, each with an id), all or none; days are counted by `clock`.

        An id that is stored for the customer with the same content is repeated; with another content: ConflictError.
        """

    def get(self, customer_ids: Sequence[str]) -> pa.Table:
        """Histories, appended events included, of those that are stored, sorted by customer_id."""

    def delete(self, customer_ids: Sequence[str]) -> int:
        """Erase customers and remember that they were; returns how many were there."""

    def pseudonym(self, customer_id: str) -> str:
        """What a log may say instead of the id: a keyed hash, with a key that only this store holds."""

    def count(self) -> int:
        """Number of customers stored."""

    def data_through(self) -> int | None:
        """Time of the newest event stored, microseconds UTC; None when empty."""

    def size_bytes(self) -> int:
        """What the store takes on disk (SQLite) or in memory (Redis)."""

    def dump(self) -> Iterator[pa.Table]:
        """Every customer, schema BACKUP, in parts; each customer as at one moment."""

    def restore(self, part: pa.Table) -> int:
        """Put customers of a dump back as they were, but those erased here; returns how many."""

    def erasures(self) -> pa.Table:
        """`digest` and `at` (us) of the erased, and the store's key in the schema's metadata."""

    def restore_erasures(self, erasures: pa.Table) -> None:
        """Take over erasures and key of a dump; only into an empty store, which ValueError says otherwise."""

    def close(self) -> None:
        """Release files and connections."""


def is_redis(address: str | Path) -> bool:
    """Whether the address is one of a Redis server."""
    return str(address).startswith(("redis:", "rediss:", "unix:"))
