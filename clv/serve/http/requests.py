"""From a request about scores to a checked question: which bundle, whose histories, at which instant and horizons."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from clv.serve.http import inline_events
from clv.serve.http.inline_events import Asked
from clv.serve.http.middleware import ProblemError
from clv.serve.http.schemas import FieldError, PortfolioRequest, PredictRequest
from clv.serve.scoring.protocol import Backend, Facts, NotReady, Scorer
from clv.serve.store.protocol import StoreUnavailableError


@dataclass(frozen=True)
class Question:
    """A checked request: who answers, whose histories, at which instant (µs UTC), over which horizons (days)."""

    scorer: Scorer
    names: list[str]
    histories: pa.Table
    as_of: int
    horizons: tuple[int, ...]
    data_through: int


def in_service(backend: Backend, pinned: str | None = None) -> Scorer:
    """503 when no bundle is in service."""
    try:
        return backend.scorer(pinned)
    except NotReady:
        raise ProblemError(503, "No bundle is in service yet.", retry_after_s=5) from None


def of_predict(asked: PredictRequest, backend: Backend) -> Question:
    """Customers by id and with their events."""
    names = [customer.customer_id for customer in asked.customers]
    by_id = any(customer.events is None for customer in asked.customers)
    return ask(asked, names, lambda clock: inline_events.gather(asked.customers, backend.stored, clock), backend, by_id)


def of_portfolio(asked: PortfolioRequest, backend: Backend) -> Question:
    """Stored customers that are worth something together."""
    inline_events.refuse_repeated(asked.customer_ids, "customer_ids[{}]")
    return ask(asked, asked.customer_ids, lambda clock: Asked(backend.stored(asked.customer_ids), None), backend, True)


def ask(
    asked: PredictRequest | PortfolioRequest,
    names: list[str],
    gather: Callable[..., Asked],
    backend: Backend,
    by_id: bool,
) -> Question:
    """Blocks while the store is read. ProblemError 422 for an instant that must not be asked about; what needs no
    customer of the store (`by_id` false) goes on without it."""
    scorer = in_service(backend, asked.model_version)
    facts = scorer.facts
    through = data_through(backend, facts, needed=by_id)
    given = gather(facts.clock)
    if asked.as_of is None:
        as_of = default_as_of(facts, max(through, given.newest or through), now())
    else:
        as_of = int(inline_events.to_us([asked.as_of], facts.clock)[0])
    check(scorer, as_of, through)
    horizons = tuple(sorted(set(asked.horizons_days))) if asked.horizons_days else facts.horizons
    return Question(scorer, names, given.histories, as_of, horizons, through)


def data_through(backend: Backend, facts: Facts, *, needed: bool = True) -> int:
    """Time of the newest event known (µs UTC): of the store, or without one of the bundle's data."""
    try:
        return (backend.store.data_through() if backend.store else None) or facts.data_through
    except StoreUnavailableError:
        if needed:
            raise
        return facts.data_through


def check(scorer: Scorer, as_of: int, data_through: int) -> None:
    """422 for an instant this bundle must not be asked about."""
    try:
        scorer.check(as_of, data_through)
    except ValueError as error:
        raise ProblemError(422, f"as_of: {error}.", errors=[FieldError(field="as_of", message=str(error))]) from None


def default_as_of(facts: Facts, newest: int, now: int) -> int:
    """First local midnight after the newest event, no later than the coming midnight, no earlier than the cut."""
    days = facts.clock.local_day([newest, now]) + 1
    after_newest, coming = facts.clock.day_start(days).tolist()
    return max(facts.cut, min(after_newest, coming))


def now() -> int:
    """Microseconds UTC."""
    return time.time_ns() // 1000
