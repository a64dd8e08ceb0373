"""Interfaces between HTTP routes, scorers and predictor; `scoring.backend.LiveBackend` implements `Backend`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from clv.data.clock import Clock
from clv.serve.store.protocol import Store


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """Version, dates and settings of a loaded bundle; instants in microseconds UTC, horizons in days."""

    version: str
    cut: int
    data_through: int
    currency: str | None
    horizons: tuple[int, ...]
    clock: Clock


@dataclass(frozen=True, kw_only=True)
class RequestCounts:
    """Requests answered, how many of them failed, and the sum of their seconds."""

    answered: int = 0
    errors: int = 0
    seconds: float = 0.0


class NotReady(Exception):
    """No bundle is in service yet."""


class PredictorProtocol(Protocol):
    """The part of `clv.forecast.predictor.Predictor` that serving uses."""

    @property
    def version(self) -> str: ...
    @property
    def cut(self) -> datetime: ...
    @property
    def data_through(self) -> datetime: ...
    @property
    def currency(self) -> str | None: ...
    @property
    def horizons(self) -> tuple[int, ...]: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def max_tokens(self) -> int: ...
    def check_origin(self, as_of: int, data_through: int | None = None) -> int: ...
    def predict(self, histories: pa.Table, as_of: int, horizons: Sequence[int] | None = None) -> pa.Table: ...
    def portfolio(self, histories: pa.Table, as_of: int, horizons: Sequence[int] | None = None) -> pa.Table: ...


class Scorer(Protocol):
    """One loaded bundle. A request uses the same scorer for its checks and for its answer."""

    @property
    def facts(self) -> BundleFacts: ...

    def check(self, as_of: int, data_through: int) -> None:
        """Raises ValueError for an `as_of` that lies before the bundle's cut, or too long after `data_through`."""

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        """Returns SCORES by customer and horizon, without the customers that have no event before `as_of`."""

    async def portfolio(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        """Returns PORTFOLIO of all these customers together."""


class Backend(Protocol):
    """A bundle in service and a store. `stored` and the store may block: call them in a thread."""

    @property
    def store(self) -> Store | None: ...

    def scorer(self, pinned: str | None = None) -> Scorer:
        """Returns the scorer of one request, of version `pinned` where that is loaded; raises NotReady."""

    def data_through(self, *, wait: bool) -> int | None:
        """Returns the time of the store's newest event (microseconds UTC), None without one. Asks the store and may
        raise StoreUnavailableError if `wait`; else returns at once what is known, at most about a second old."""

    def stored(self, customer_ids: Sequence[str]) -> pa.Table:
        """Returns histories of the stored ones among these customers; an empty table without a store."""
