"""The HTTP endpoints over a `Backend`. Plain FastAPI: the same under uvicorn, Ray Serve and a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from clv.serve.http import arrow, requests, responses, writes
from clv.serve.http.metrics import Metrics
from clv.serve.http.middleware import Guard, ProblemError
from clv.serve.http.openapi import BINARY, KEY, document, problems, request_body
from clv.serve.http.rate_limits import Limiter
from clv.serve.http.requests import Question, in_service
from clv.serve.http.schemas import (
    EVENTS_EXAMPLE,
    EXAMPLE,
    MAX_CUSTOMERS,
    MAX_EVENTS,
    PORTFOLIO_EXAMPLE,
    CustomerResponse,
    EventsRequest,
    FieldError,
    ModelResponse,
    PortfolioRequest,
    PortfolioResponse,
    PredictRequest,
    PredictResponse,
    Stored,
)
from clv.serve.http.security import Keys, KeySource
from clv.serve.scoring.batching import Overloaded
from clv.serve.scoring.protocol import Backend
from clv.serve.store.protocol import StoreUnavailableError
from clv.version import __version__

MAX_ERRORS = 20
JSON = "application/json"
M = TypeVar("M", bound=BaseModel)


def routes(
    backend: Backend,
    keys: KeySource | None = None,
    *,
    limiter: Limiter | None = None,
    per_minute: int | None = None,
    metrics: Metrics | None = None,
    deadline_s: float = 30.0,
    echo_request_id: bool = True,
) -> FastAPI:
    """The application. A request not answered within `deadline_s` gets 503 and is withdrawn from the queue."""
    metrics = metrics or Metrics()
    app = FastAPI(title="Customer lifetime value", version=__version__, redoc_url=None)
    app.add_middleware(
        Guard,
        keys=keys or Keys(),
        metrics=metrics,
        limiter=limiter,
        per_minute=per_minute,
        echo_request_id=echo_request_id,
    )
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]

    @app.post(
        "/v1/predict",
        tags=["scores"],
        dependencies=[KEY],
        response_model=PredictResponse,
        responses={200: {"content": {arrow.MEDIA: BINARY}}, **problems(401, 403, 413, 415, 422, 429, 503)},
        openapi_extra=request_body(
            PredictRequest,
            {
                "by id and with events": EXAMPLE,
                "by id, default time and horizons": {"customers": [{"customer_id": "12347"}]},
            },
        ),
    )
    async def predict(request: Request) -> Response:
        """Scores of up to 1,000 customers, by id or with their events.

        In JSON, or as an Arrow IPC stream with `customer_id` alone or a row per event, the other fields then as
        parameters of the address; the answer is what Accept asks for.
        """
        media, body = await _body(request, deadline_s, (JSON, arrow.MEDIA))
        as_arrow = arrow.MEDIA in request.headers.get("accept", "")

        def ask() -> Question:
            if media == JSON:
                return requests.of_predict(_parsed(PredictRequest, body), backend)
            given = arrow.request_of(body, request.query_params)
            return requests.of_predict(_checked(PredictRequest.model_validate, given), backend)

        async with _answering(deadline_s, metrics):
            q = await asyncio.to_thread(ask)
            table = await q.scorer.score(q.histories, q.as_of, q.horizons) if len(q.histories) else None
            write = arrow.of_prediction if as_arrow else responses.of_prediction
            content, known = await asyncio.to_thread(write, q, table)
        _count(metrics, q, known)
        return Response(content, media_type=arrow.MEDIA if as_arrow else JSON)

    @app.post(
        "/v1/portfolio",
        tags=["scores"],
        dependencies=[KEY],
        response_model=PortfolioResponse,
        responses=problems(401, 403, 413, 415, 422, 429, 503),
        openapi_extra=request_body(PortfolioRequest, {"by id": PORTFOLIO_EXAMPLE}),
    )
    async def portfolio(request: Request) -> Response:
        """What up to 10,000 stored customers will be worth together, with the band of the sum."""
        _, body = await _body(request, deadline_s)
        async with _answering(deadline_s, metrics):
            q = await asyncio.to_thread(lambda: requests.of_portfolio(_parsed(PortfolioRequest, body), backend))
            content, known = responses.of_portfolio(q, await q.scorer.portfolio(q.histories, q.as_of, q.horizons))
        _count(metrics, q, known)
        return Response(content, media_type=JSON)

    @app.get(
        "/v1/customers/{customer_id:path}",
        tags=["customers"],
        dependencies=[KEY],
        response_model=CustomerResponse,
        responses=problems(401, 403, 404, 422, 429, 503),
    )
    async def customer(customer_id: str) -> Response:
        """What the store holds of one customer, and the scores at the default time and horizons."""
        async with _answering(deadline_s, metrics):
            asked = PortfolioRequest.model_construct(customer_ids=[customer_id])
            q = await asyncio.to_thread(requests.of_portfolio, asked, backend)
            if not len(q.histories):
                raise _unknown()
            content = responses.of_customer(q, await q.scorer.score(q.histories, q.as_of, q.horizons))
        return Response(content, media_type=JSON)

    @app.delete(
        "/v1/customers/{customer_id:path}",
        tags=["customers"],
        dependencies=[KEY],
        status_code=204,
        response_class=Response,
        responses=problems(401, 403, 404, 422, 429, 503),
    )
    async def erase(request: Request, customer_id: str) -> Response:
        """Erases a customer. A load of histories brings nothing back that is older than the erasure; an event that is
        posted later begins a new history."""
        async with _answering(deadline_s, metrics):
            if not await asyncio.to_thread(writes.erase, backend, customer_id, request.state.request_id):
                raise _unknown()
        return Response(status_code=204)

    @app.post(
        "/v1/events",
        tags=["customers"],
        dependencies=[KEY],
        response_model=Stored,
        responses=problems(401, 403, 404, 409, 413, 415, 422, 429, 503),
        openapi_extra=request_body(EventsRequest, {"an order's line": EVENTS_EXAMPLE}),
    )
    async def events(request: Request) -> Response:
        """Stores up to 1,000 events, all or none. An event id that is stored already, with the same content, changes
        nothing: whoever got no answer sends the batch again."""
        _, body = await _body(request, deadline_s)
        async with _answering(deadline_s, metrics):
            stored = await asyncio.to_thread(
                lambda: writes.store(backend, _parsed(EventsRequest, body), request.state.request_id)
            )
        metrics.events.labels("stored").inc(stored.stored)
        metrics.events.labels("repeated").inc(stored.repeated)
        return JSONResponse(stored.model_dump())

    @app.get(
        "/v1/model",
        tags=["service"],
        dependencies=[KEY],
        response_model=ModelResponse,
        responses=problems(401, 403, 429, 503),
    )
    async def model() -> Response:
        """The bundle in service and the data behind it."""
        async with _answering(deadline_s, metrics):
            facts = in_service(backend).facts
            through = await asyncio.to_thread(requests.data_through, backend, facts)
            stored = await asyncio.to_thread(backend.store.count) if backend.store else None
        answer = responses.header(facts, requests.default_as_of(facts, through, requests.now()), through) | {
            "timezone": facts.clock.timezone,
            "horizons_days": list(facts.horizons),
            "customers_stored": stored,
            "max_customers": MAX_CUSTOMERS,
            "max_events": MAX_EVENTS,
        }
        return JSONResponse(answer)

    @app.get("/healthz", tags=["service"])
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"], responses=problems(503))
    async def readyz() -> dict[str, str]:
        """A bundle is in service; 503 until then."""
        return {"status": "ready", "version": in_service(backend).facts.version}

    @app.get(
        "/metrics",
        tags=["service"],
        dependencies=[KEY],
        response_class=PlainTextResponse,
        responses=problems(401, 403, 429),
    )
    async def prometheus() -> Response:
        """Prometheus metrics of the process that answers: with several replicas, one of them."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _count(metrics: Metrics, q: Question, known: int) -> None:
    metrics.customers.labels("ok").inc(known)
    metrics.customers.labels("unknown_customer").inc(len(q.names) - known)
    metrics.data_through.set(q.data_through / 1e6)


async def _body(request: Request, deadline_s: float, taken: tuple[str, ...] = (JSON,)) -> tuple[str, bytes]:
    """Media type and bytes of a body; 415 for another type than those taken, or charset, 408 when they do not come."""
    media, _, parameters = (part.strip() for part in request.headers.get("content-type", "").lower().partition(";"))
    if media not in taken or parameters.replace('"', "") not in ("", "charset=utf-8"):
        types = " or ".join(taken)
        raise ProblemError(415, f"Send the request as Content-Type: {types}.", headers={"Accept": ", ".join(taken)})
    try:
        async with asyncio.timeout(deadline_s):
            return media, await request.body()
    except TimeoutError:
        raise ProblemError(408, f"The request body did not come within {deadline_s:g} s.") from None


def _parsed(model: type[M], body: bytes) -> M:
    return _checked(model.model_validate_json, body)


def _checked(validate: Callable[[Any], M], given: Any) -> M:
    try:
        return validate(given)
    except ValidationError as error:
        raise _invalid(error.errors(include_url=False, include_input=False)) from None


def _unknown() -> ProblemError:
    """404 with an entry for `customer_id`, by which a client distinguishes it from the 404 of an unknown address."""
    message = "The store holds no customer of this id."
    return ProblemError(404, message, errors=[FieldError(field="customer_id", message="is not stored")])


@asynccontextmanager
async def _answering(seconds: float, metrics: Metrics) -> AsyncIterator[None]:
    """Failures that a caller may repeat, as problem details."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ProblemError(503, f"No answer within {seconds:g} s.", retry_after_s=1) from None
    except Overloaded as full:
        raise ProblemError(429, "Too many customers are waiting.", retry_after_s=full.retry_after_s) from None
    except StoreUnavailableError as down:
        metrics.store_errors.inc()
        raise ProblemError(503, f"{down} Requests that bring their events are served.", retry_after_s=1) from None


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
