"""The HTTP endpoints over a `Backend`. Plain FastAPI: the same under uvicorn, Ray Serve and a test."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from clv import __version__
from clv.data.clock import Clock
from clv.data.events import PURCHASE
from clv.data.histories import Histories
from clv.serve import answers, inline
from clv.serve.batching import Overloaded
from clv.serve.guard import Guard, ProblemError
from clv.serve.metrics import Metrics
from clv.serve.openapi import document
from clv.serve.schemas import (
    MAX_CUSTOMERS,
    MAX_EVENTS,
    CustomerResponse,
    FieldError,
    ModelResponse,
    PredictRequest,
    PredictResponse,
)
from clv.serve.security import Keys

MAX_ERRORS = 20


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


class Backend(Protocol):
    """What the routes need. `stored`, `count` and `data_through` may block: they are called in threads."""

    def scorer(self) -> Scorer:
        """The bundle in service; raises NotReady."""

    def stored(self, customer_ids: Sequence[str]) -> pa.Table:
        """Histories of those that the store holds; empty without a store."""

    def count(self) -> int | None:
        """Customers in the store; None without a store."""

    def data_through(self) -> int | None:
        """Time of the newest stored event, microseconds UTC; None without a store or with an empty one."""


def default_as_of(facts: Facts, newest: int, now: int) -> int:
    """First local midnight after the newest event, no later than the coming midnight, no earlier than the cut."""
    days = facts.clock.day_of([newest, now]) + 1
    after_newest, coming = facts.clock.start_of(days).tolist()
    return max(facts.cut, min(after_newest, coming))


@dataclass(frozen=True)
class _Question:
    """A checked request: whose histories, at which instant (µs UTC), over which horizons (days)."""

    names: list[str]
    histories: pa.Table
    as_of: int
    horizons: tuple[int, ...]
    data_through: int


def _question(body: bytes, scorer: Scorer, backend: Backend) -> _Question:
    try:
        asked = PredictRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_input=False)) from None
    facts = scorer.facts
    through = backend.data_through() or facts.data_through
    given = inline.gather(asked.customers, backend.stored, facts.clock)
    if asked.as_of is None:
        as_of = default_as_of(facts, max(through, given.newest or through), _now())
    else:
        as_of = int(inline.to_us([asked.as_of], facts.clock)[0])
    _check(scorer, as_of, through)
    horizons = tuple(sorted(set(asked.horizons_days))) if asked.horizons_days else facts.horizons
    return _Question([c.customer_id for c in asked.customers], given.histories, as_of, horizons, through)


def _check(scorer: Scorer, as_of: int, data_through: int) -> None:
    try:
        scorer.check(as_of, data_through)
    except ValueError as error:
        raise ProblemError(422, f"as_of: {error}.", errors=[FieldError(field="as_of", message=str(error))]) from None


def _now() -> int:
    return time.time_ns() // 1000


def _header(facts: Facts, as_of: int, data_through: int) -> dict[str, Any]:
    return {
        "model": {"version": facts.version, "cut": answers.iso(facts.cut)},
        "currency": facts.currency,
        "as_of": answers.iso(as_of),
        "data_through": answers.iso(data_through),
    }


def _summary(histories: pa.Table) -> dict[str, Any]:
    """What one customer's history holds."""
    h = Histories.from_table(histories)
    priced = h.amount[h.amount == h.amount]
    return {
        "customer_id": h.customer_id[0].as_py(),
        "first_time": answers.iso(int(h.time[0])),
        "last_time": answers.iso(int(h.time[-1])),
        "tokens": len(h.time),
        "orders": int((h.type == PURCHASE).sum()),
        "amount": float(priced.sum()) if len(priced) else None,
    }


def routes(
    backend: Backend,
    keys: Keys | None = None,
    *,
    metrics: Metrics | None = None,
    deadline_s: float = 30.0,
    echo_request_id: bool = True,
) -> FastAPI:
    """The application. A request not answered within `deadline_s` gets 503 and is withdrawn from the queue."""
    metrics = metrics or Metrics()
    app = FastAPI(title="Customer lifetime value", version=__version__, redoc_url=None)
    app.add_middleware(Guard, keys=keys or Keys(), metrics=metrics, echo_request_id=echo_request_id)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]

    def in_service() -> Scorer:
        try:
            return backend.scorer()
        except NotReady:
            raise ProblemError(503, "No bundle is in service yet.", retry_after_s=5) from None

    async def scored(scorer: Scorer, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        try:
            return await scorer.score(histories, as_of, horizons)
        except Overloaded as full:
            raise ProblemError(429, "Too many customers are waiting.", retry_after_s=full.retry_after_s) from None

    @app.post("/v1/predict", tags=["scores"], response_model=PredictResponse)
    async def predict(request: Request) -> Response:
        """Scores of up to 1,000 customers, by id or with their events."""
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media != "application/json":
            raise ProblemError(
                415, "Send the request as Content-Type: application/json.", headers={"Accept": "application/json"}
            )
        body = await request.body()
        async with _deadline(deadline_s):
            scorer = in_service()
            q = await asyncio.to_thread(_question, body, scorer, backend)
            table = await scored(scorer, q.histories, q.as_of, q.horizons) if len(q.histories) else None
            content, known = await asyncio.to_thread(_answer, q, scorer.facts, table)
        metrics.customers.labels("ok").inc(known)
        metrics.customers.labels("unknown_customer").inc(len(q.names) - known)
        return Response(content, media_type="application/json")

    @app.get("/v1/customers/{customer_id:path}", tags=["scores"], response_model=CustomerResponse)
    async def customer(customer_id: str) -> Response:
        """What the store holds of one customer, and the scores at the default time and horizons."""
        async with _deadline(deadline_s):
            scorer = in_service()
            facts = scorer.facts
            histories = await asyncio.to_thread(backend.stored, [customer_id])
            if not len(histories):
                raise ProblemError(404, "The store holds no customer of this id.")
            through = await asyncio.to_thread(backend.data_through) or facts.data_through
            as_of = default_as_of(facts, through, _now())
            _check(scorer, as_of, through)
            scores = answers.scores_of(await scored(scorer, histories, as_of, facts.horizons))
        answer = _header(facts, as_of, through) | _summary(histories) | {"scores": scores.get(customer_id, [])}
        return Response(answers.to_json(answer), media_type="application/json")

    @app.get("/v1/model", tags=["service"], response_model=ModelResponse)
    async def model() -> Response:
        """The bundle in service and the data behind it."""
        facts = in_service().facts
        through = await asyncio.to_thread(backend.data_through) or facts.data_through
        answer = _header(facts, default_as_of(facts, through, _now()), through) | {
            "timezone": facts.clock.timezone,
            "horizons_days": list(facts.horizons),
            "customers_stored": await asyncio.to_thread(backend.count),
            "max_customers": MAX_CUSTOMERS,
            "max_events": MAX_EVENTS,
        }
        return JSONResponse(answer)

    @app.get("/healthz", tags=["service"])
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"])
    async def readyz() -> dict[str, str]:
        """A bundle is in service; 503 until then."""
        return {"status": "ready", "version": in_service().facts.version}

    @app.get("/metrics", tags=["service"])
    async def prometheus() -> Response:
        """Prometheus metrics of the process that answers: with several replicas, one of them."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _answer(q: _Question, facts: Facts, table: pa.Table | None) -> tuple[bytes, int]:
    """JSON of a prediction, and how many customers were known."""
    scores = answers.scores_of(table) if table is not None else {}
    results = [
        {"customer_id": name, "status": "ok" if name in scores else "unknown_customer", "scores": scores.get(name, [])}
        for name in q.names
    ]
    return answers.to_json(_header(facts, q.as_of, q.data_through) | {"results": results}), len(scores)


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ProblemError(503, f"No answer within {seconds:g} s.", retry_after_s=1) from None


def _invalid(errors: Sequence[Any]) -> ProblemError:
    """422 with the path of each wrong field, as customers[3].events[0].amount."""
    fields = [FieldError(field=_path(e["loc"]), message=e["msg"].removeprefix("Value error, ")) for e in errors]
    shown = fields[:MAX_ERRORS]
    more = f" ({len(fields)} errors, the first {MAX_ERRORS} are listed)" if len(fields) > MAX_ERRORS else ""
    return ProblemError(422, f"{shown[0].field}: {shown[0].message}{more}", errors=shown)


def _path(loc: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".") or "body"


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {404: "There is nothing at this address; see /docs.", 405: "This address does not take that method."}
    problem = ProblemError(
        error.status_code, details.get(error.status_code, str(error.detail)), headers=dict(error.headers or {})
    )
    return problem.response(request.state.request_id)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _invalid(error.errors()).response(request.state.request_id)
