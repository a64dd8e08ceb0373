"""What the HTTP routes need of the service behind them; the real one is `clv.serve.scoring.backend.LiveBackend`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from clv.data.clock import Clock
from clv.serve.store.protocol import Store


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What answers say about a bundle; instants in microseconds UTC."""

    version: str
    cut: int
    data_through: int
    currency: str | None
    horizons: tuple[int, ...]
    clock: Clock


class NotReady(Exception):
    """No bundle is in service yet."""


class Scorer(Protocol):
    """One loaded bundle. A request uses the same one from its first check to its answer."""

    @property
    def facts(self) -> Facts: ...

    def check(self, as_of: int, data_through: int) -> None:
        """ValueError for an instant this bundle must not be asked about: before its cut, or too long after its data."""

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        """SCORES, by customer and horizon; customers without an event before `as_of` are absent."""

    async def portfolio(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        """PORTFOLIO of all these customers together."""


class Backend(Protocol):
    """A bundle in service and a store; `stored` and the store may block, so they are called in threads."""

    @property
    def store(self) -> Store | None: ...

    def scorer(self, pinned: str | None = None) -> Scorer:
        """The scorer of one request, of the version `pinned` where that is loaded; raises NotReady."""

    def stored(self, customer_ids: Sequence[str]) -> pa.Table:
        """Histories of those that the store holds; empty without a store."""
