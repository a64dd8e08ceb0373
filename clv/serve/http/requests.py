"""Resolves validated prediction and portfolio requests: scorer, histories, prediction time and horizons."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from clv.data.clock import Clock
from clv.serve.http import inline_events
from clv.serve.http.inline_events import RequestHistories
from clv.serve.http.middleware import ProblemError
from clv.serve.http.schemas import FieldError, PortfolioRequest, PredictRequest
from clv.serve.scoring.protocol import Backend, BundleFacts, NotReady, Scorer


@dataclass(frozen=True)
class ScoringRequest:
    """A request ready to be scored. `histories` lacks unknown customers; `as_of` and `data_through` are microseconds
    UTC, `horizons` days."""

    scorer: Scorer
    customer_ids: Sequence[str]
    histories: pa.Table
    as_of: int
    horizons: tuple[int, ...]
    data_through: int


def scorer_in_service(backend: Backend, pinned: str | None = None) -> Scorer:
    """Returns the scorer of a request; raises ProblemError 503 while no bundle is in service."""
    try:
        return backend.scorer(pinned)
    except NotReady:
        raise ProblemError(503, "No bundle is in service yet.", retry_after_s=5) from None


def resolve_prediction(request: PredictRequest, backend: Backend) -> ScoringRequest:
    """Resolves a request for customers of the store and customers with their events; blocks while the store is read.

    Raises ProblemError 422 for a repeated customer, too many events or an impossible `as_of`.
    """
    load = partial(inline_events.build_histories, request.customers, backend.stored)
    ids = [customer.customer_id for customer in request.customers]
    return _resolve(request, ids, load, backend, wait=needs_store(request))


def resolve_portfolio(request: PortfolioRequest, backend: Backend) -> ScoringRequest:
    """Resolves a request for customers of the store, with the errors of `resolve_prediction`."""
    ids = request.customer_ids
    inline_events.check_unique(ids, "customer_ids[{}]")
    return _resolve(request, ids, lambda clock: RequestHistories(backend.stored(ids), None), backend, wait=True)


def _resolve(
    request: PredictRequest | PortfolioRequest,
    customer_ids: Sequence[str],
    load: Callable[[Clock], RequestHistories],
    backend: Backend,
    *,
    wait: bool,
) -> ScoringRequest:
    scorer = scorer_in_service(backend, request.model_version)
    facts = scorer.facts
    through = data_through(backend, facts, wait=wait)
    loaded = load(facts.clock)
    if request.as_of is None:
        as_of = default_as_of(facts, max(through, loaded.newest or through), now_us())
    else:
        as_of = int(inline_events.instants_us([request.as_of], facts.clock)[0])
    try:
        scorer.check(as_of, through)
    except ValueError as error:
        raise ProblemError(422, f"as_of: {error}.", errors=[FieldError(field="as_of", message=str(error))]) from None
    horizons = tuple(sorted(set(request.horizons_days))) if request.horizons_days else facts.horizons
    return ScoringRequest(scorer, customer_ids, loaded.histories, as_of, horizons, through)


def data_through(backend: Backend, facts: BundleFacts, wait: bool = True) -> int:
    """Returns the time of the newest event (microseconds UTC) in the store, or without one in the bundle's data.

    Asks the store if `wait`, and raises StoreUnavailableError where it is down; else returns the time last known, so
    that a request which brings its events neither waits for the store nor gets another prediction time without it.
    """
    return backend.data_through(wait=wait) or facts.data_through


def needs_store(request: PredictRequest) -> bool:
    """Returns whether some customer of the request comes without events."""
    return any(customer.events is None for customer in request.customers)


def default_as_of(facts: BundleFacts, newest: int, now: int) -> int:
    """Returns the first local midnight after the newest event, at the latest the next midnight from now, at the
    earliest the cut."""
    days = facts.clock.local_day([newest, now]) + 1
    after_newest, next_midnight = facts.clock.day_start(days).tolist()
    return max(facts.cut, min(after_newest, next_midnight))


def now_us() -> int:
    """Returns the present time in microseconds UTC."""
    return time.time_ns() // 1000
