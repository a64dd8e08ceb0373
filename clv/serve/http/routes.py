"""HTTP endpoints of the service: a FastAPI application over a `Backend`, for uvicorn, Ray Serve and tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends as Dependency
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from clv.serve.http import arrow, requests, responses, writes
from clv.serve.http.metrics import Metrics
from clv.serve.http.middleware import CHALLENGE, ProblemError, RequestMiddleware
from clv.serve.http.openapi import BINARY, KEY, openapi_document, problems, request_body
from clv.serve.http.rate_limits import RateLimiter
from clv.serve.http.requests import ScoringRequest, scorer_in_service
from clv.serve.http.schemas import (
    EVENTS_EXAMPLE,
    MAX_CUSTOMERS,
    MAX_EVENTS,
    PORTFOLIO_EXAMPLE,
    PREDICT_EXAMPLE,
    CustomerResponse,
    EventsRequest,
    EventsResponse,
    FieldError,
    ModelResponse,
    PortfolioRequest,
    PortfolioResponse,
    PredictRequest,
    PredictResponse,
)
from clv.serve.http.security import Keys, KeySource
from clv.serve.scoring.batching import Overloaded
from clv.serve.scoring.protocol import Backend
from clv.serve.store.protocol import StoreUnavailableError
from clv.version import __version__

MAX_ERRORS = 20
READERS, WRITERS = 4, 2  # threads of a replica that wait for its store, so that no other request waits with them
JSON = "application/json"
Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")


def create_app(
    backend: Backend,
    keys: KeySource | None = None,
    *,
    limiter: RateLimiter | None = None,
    per_minute: int | None = None,
    metrics: Metrics | None = None,
    deadline_s: float = 30.0,
    echo_request_id: bool = True,
) -> FastAPI:
    """Returns the application. A request without an answer within `deadline_s` gets 503 and leaves the queue.

    `per_minute` limits keys without a rate of their own; `echo_request_id` is false behind Ray Serve, whose proxy
    writes the X-Request-ID header. Example: `uvicorn.run(create_app(backend))`.
    """
    metrics = metrics or Metrics()
    readers, writers = ThreadPoolExecutor(READERS, "clv-read"), ThreadPoolExecutor(WRITERS, "clv-write")
    app = FastAPI(title="Customer lifetime value", version=__version__, redoc_url=None)
    app.add_middleware(
        RequestMiddleware,
        keys=keys or Keys(),
        metrics=metrics,
        limiter=limiter,
        per_minute=per_minute,
        echo_request_id=echo_request_id,
    )
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid_request)
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]

    @app.post(
        "/v1/predict",
        tags=["scores"],
        dependencies=require("read"),
        response_model=PredictResponse,
        responses={200: {"content": {arrow.MEDIA_TYPE: BINARY}}, **problems(401, 403, 413, 415, 422, 429, 503)},
        openapi_extra=request_body(
            PredictRequest,
            {
                "by id and with events": PREDICT_EXAMPLE,
                "by id, default time and horizons": {"customers": [{"customer_id": "12347"}]},
            },
        ),
    )
    async def predict(request: Request) -> Response:
        """Scores of up to 1,000 customers, by id or with their events.

        The body is JSON, or an Arrow IPC stream of customer ids or events with the other fields as query parameters.
        Accept selects the form of the answer.
        """
        media, body = await _read_body(request, deadline_s, (JSON, arrow.MEDIA_TYPE))
        as_arrow = arrow.MEDIA_TYPE in request.headers.get("accept", "")

        def parse() -> PredictRequest:
            if media == JSON:
                return _validate(PredictRequest.model_validate_json, body)
            return _validate(PredictRequest.model_validate, arrow.read_request(body, request.query_params))

        async with _translate_failures(deadline_s, metrics):
            parsed = await asyncio.to_thread(parse)
            pool = readers if requests.needs_store(parsed) else None
            asked = await _run(pool, requests.resolve_prediction, parsed, backend)
            known_any = len(asked.histories) > 0
            table = await asked.scorer.score(asked.histories, asked.as_of, asked.horizons) if known_any else None
            write = arrow.prediction_stream if as_arrow else responses.prediction_json
            content, known = await asyncio.to_thread(write, asked, table)
        _count_customers(metrics, asked, known)
        return Response(content, media_type=arrow.MEDIA_TYPE if as_arrow else JSON)

    @app.post(
        "/v1/portfolio",
        tags=["scores"],
        dependencies=require("read"),
        response_model=PortfolioResponse,
        responses=problems(401, 403, 413, 415, 422, 429, 503),
        openapi_extra=request_body(PortfolioRequest, {"by id": PORTFOLIO_EXAMPLE}),
    )
    async def portfolio(request: Request) -> Response:
        """Total value of up to 10,000 stored customers, with its quantiles."""
        _, body = await _read_body(request, deadline_s)
        async with _translate_failures(deadline_s, metrics):
            parsed = await asyncio.to_thread(_validate, PortfolioRequest.model_validate_json, body)
            asked = await _run(readers, requests.resolve_portfolio, parsed, backend)
            totals = await asked.scorer.portfolio(asked.histories, asked.as_of, asked.horizons)
            content, known = responses.portfolio_json(asked, totals)
        _count_customers(metrics, asked, known)
        return Response(content, media_type=JSON)

    @app.get(
        "/v1/customers/{customer_id:path}",
        tags=["customers"],
        dependencies=require("read"),
        response_model=CustomerResponse,
        responses=problems(401, 403, 404, 422, 429, 503),
    )
    async def customer(customer_id: str) -> Response:
        """Summary of one stored customer, and its scores at the default time and horizons."""
        async with _translate_failures(deadline_s, metrics):
            portfolio = PortfolioRequest.model_construct(customer_ids=[customer_id])
            asked = await _run(readers, requests.resolve_portfolio, portfolio, backend)
            if not len(asked.histories):
                raise _unknown_customer()
            scores = await asked.scorer.score(asked.histories, asked.as_of, asked.horizons)
            content = responses.customer_json(asked, scores)
        return Response(content, media_type=JSON)

    @app.delete(
        "/v1/customers/{customer_id:path}",
        tags=["customers"],
        dependencies=require("admin"),
        status_code=204,
        response_class=Response,
        responses=problems(401, 403, 404, 422, 429, 503),
    )
    async def erase(request: Request, customer_id: str) -> Response:
        """Erases a customer. Later loads of histories skip older events of the customer; an event posted later
        starts a new history."""
        async with _translate_failures(deadline_s, metrics):
            if not await _run(writers, writes.erase_customer, backend, customer_id, request.state.request_id):
                raise _unknown_customer()
        return Response(status_code=204)

    @app.post(
        "/v1/events",
        tags=["customers"],
        dependencies=require("write"),
        response_model=EventsResponse,
        responses=problems(401, 403, 404, 409, 413, 415, 422, 429, 503),
        openapi_extra=request_body(EventsRequest, {"an order's line": EVENTS_EXAMPLE}),
    )
    async def events(request: Request) -> Response:
        """Stores up to 1,000 events, all or none. An event that is stored already changes nothing, so a caller
        without an answer sends the same request again."""
        _, body = await _read_body(request, deadline_s)
        request_id = request.state.request_id
        async with _translate_failures(deadline_s, metrics):
            parsed = await asyncio.to_thread(_validate, EventsRequest.model_validate_json, body)
            stored = await _run(writers, writes.store_events, backend, parsed, request_id)
        metrics.events.labels("stored").inc(stored.stored)
        metrics.events.labels("repeated").inc(stored.repeated)
        return JSONResponse(stored.model_dump())

    @app.get(
        "/v1/model",
        tags=["service"],
        dependencies=require("read"),
        response_model=ModelResponse,
        responses=problems(401, 403, 429, 503),
    )
    async def model() -> Response:
        """The bundle in service and the data behind it; `customers_stored` is null without a store, and while it is
        down."""
        facts, stored = scorer_in_service(backend).facts, None
        try:
            async with asyncio.timeout(deadline_s):
                through = await _run(readers, requests.data_through, backend, facts)
                stored = await _run(readers, backend.store.count) if backend.store else None
        except (StoreUnavailableError, TimeoutError):
            metrics.store_errors.inc()
            through = requests.data_through(backend, facts, wait=False)
        answer = responses.common_fields(facts, requests.default_as_of(facts, through, requests.now_us()), through) | {
            "timezone": facts.clock.timezone,
            "horizons_days": list(facts.horizons),
            "customers_stored": stored,
            "max_customers": MAX_CUSTOMERS,
            "max_events": MAX_EVENTS,
        }
        return JSONResponse(answer)

    @app.get("/healthz", tags=["service"])
    async def healthz() -> dict[str, str]:
        """Liveness: the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["service"], responses=problems(503))
    async def readyz() -> dict[str, str]:
        """Readiness: a bundle is in service; 503 until then."""
        return {"status": "ready", "version": scorer_in_service(backend).facts.version}

    @app.get(
        "/metrics",
        tags=["service"],
        dependencies=require("read"),
        response_class=PlainTextResponse,
        responses=problems(401, 403, 429),
    )
    async def prometheus() -> Response:
        """Prometheus metrics of the replica that answers."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def require(scope: str) -> Sequence[Dependency]:
    """Returns the dependencies of a route that needs a key of this scope, where the service has keys."""

    async def check(request: Request) -> None:
        key = request.state.key
        if key is not None and not key.covers(scope):
            message = f"This needs a key of scope {scope}; this key has scope {key.scope}."
            challenge = f'{CHALLENGE}, error="insufficient_scope", scope="{scope}"'
            raise ProblemError(403, message, headers={"WWW-Authenticate": challenge})

    return [KEY, Depends(check)]


async def _run(pool: ThreadPoolExecutor | None, function: Callable[..., Result], *arguments: Any) -> Result:
    """Runs a function in a thread of the pool, or of the default one."""
    return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)


def _count_customers(metrics: Metrics, asked: ScoringRequest, known: int) -> None:
    metrics.customers.labels("ok").inc(known)
    metrics.customers.labels("unknown_customer").inc(len(asked.customer_ids) - known)
    metrics.data_through.set(asked.data_through / 1e6)


async def _read_body(request: Request, deadline_s: float, supported: tuple[str, ...] = (JSON,)) -> tuple[str, bytes]:
    """Returns media type and bytes of a body; raises ProblemError 415 for another type, 408 for a late body."""
    media, _, parameters = (part.strip() for part in request.headers.get("content-type", "").lower().partition(";"))
    if media not in supported or parameters.replace('"', "") not in ("", "charset=utf-8"):
        types = " or ".join(supported)
        raise ProblemError(415, f"Send the request as Content-Type: {types}.", headers={"Accept": ", ".join(supported)})
    try:
        async with asyncio.timeout(deadline_s):
            return media, await request.body()
    except TimeoutError:
        raise ProblemError(408, f"The request body did not arrive within {deadline_s:g} s.") from None


def _validate(validate: Callable[[Any], Model], content: Any) -> Model:
    try:
        return validate(content)
    except ValidationError as error:
        raise _validation_problem(error.errors(include_url=False, include_input=False)) from None


def _unknown_customer() -> ProblemError:
    """Returns 404 with an error for `customer_id`, which distinguishes it from the 404 of an unknown address."""
    message = "The store holds no customer of this id."
    return ProblemError(404, message, errors=[FieldError(field="customer_id", message="is not stored")])


@asynccontextmanager
async def _translate_failures(seconds: float, metrics: Metrics) -> AsyncIterator[None]:
    """Converts a late answer, a full queue and a store that is down to problems that a caller may retry."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ProblemError(503, f"No answer within {seconds:g} s.", retry_after_s=1) from None
    except Overloaded as full:
        raise ProblemError(429, "Too many customers are waiting.", retry_after_s=full.retry_after_s) from None
    except StoreUnavailableError as down:
        metrics.store_errors.inc()
        raise ProblemError(503, f"{down} Requests with events of their own are served.", retry_after_s=1) from None


def _validation_problem(errors: Sequence[Any]) -> ProblemError:
    """Returns 422 with the path of each invalid field, as customers[3].events[0].amount."""
    fields = [FieldError(field=_field_path(e["loc"]), message=e["msg"].removeprefix("Value error, ")) for e in errors]
    shown = fields[:MAX_ERRORS]
    more = f" ({len(fields)} errors, the first {MAX_ERRORS} are listed)" if len(fields) > MAX_ERRORS else ""
    return ProblemError(422, f"{shown[0].field}: {shown[0].message}{more}", errors=shown)


def _field_path(loc: Sequence[str | int]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".") or "body"


async def _answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    details = {404: "There is nothing at this address; see /docs.", 405: "This address does not support the method."}
    detail = details.get(error.status_code, str(error.detail))
    problem = ProblemError(error.status_code, detail, headers=dict(error.headers or {}))
    return problem.response(request.state.request_id)


async def _answer_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _validation_problem(error.errors()).response(request.state.request_id)
