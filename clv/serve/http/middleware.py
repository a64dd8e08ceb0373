"""ASGI middleware of every request: id, size, API key, rate limit, headers, metrics, and RFC 9457 problem details."""

from __future__ import annotations

import logging
import math
import re
import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clv.serve.http.metrics import Metrics
from clv.serve.http.rate_limits import RateLimiter
from clv.serve.http.schemas import MAX_BODY_BYTES, FieldError, Problem
from clv.serve.http.security import Key, Keys, KeySource, host_name, is_loopback

LOG = logging.getLogger(__name__)

# Liveness and readiness probes send no key; the API documents hold no customers.
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
# The page of the API documents loads its script and style from a CDN.
_PAGE_POLICY = (
    "default-src 'none'; script-src https://cdn.jsdelivr.net 'unsafe-inline'; style-src https://cdn.jsdelivr.net "
    "'unsafe-inline'; img-src 'self' https://fastapi.tiangolo.com data:; connect-src 'self'; frame-ancestors 'none'"
)
CHALLENGE = 'Bearer realm="clv"'
_TLS = {"Strict-Transport-Security": "max-age=31536000"}
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class ProblemError(Exception):
    """Ends a request with problem details. The caller sees `detail`, which must name no internals."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        retry_after_s: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.errors = status, detail, list(errors)
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)

    def response(self, request_id: str) -> Response:
        """Returns the answer, media type application/problem+json."""
        title = HTTPStatus(self.status).phrase
        problem = Problem(
            title=title, status=self.status, detail=self.detail, request_id=request_id, errors=self.errors
        )
        return Response(problem.model_dump_json(), self.status, self.headers, "application/problem+json")


def too_large(limit: int = MAX_BODY_BYTES) -> ProblemError:
    """Returns ProblemError 413 for a body above `limit` bytes."""
    message = f"must not exceed {limit} bytes; send fewer customers per request"
    return ProblemError(413, f"The request body {message}.", errors=[FieldError(field="body", message=message)])


class RequestMiddleware:
    """Checks requests and websockets, and counts them. `per_minute` limits keys without a rate of their own.

    `echo_request_id` is false behind Ray Serve, whose proxy writes the X-Request-ID header itself.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: KeySource,
        metrics: Metrics,
        limiter: RateLimiter | None = None,
        per_minute: int | None = None,
        max_body: int = MAX_BODY_BYTES,
        echo_request_id: bool = True,
    ) -> None:
        self.app, self.keys, self.metrics = app, keys, metrics
        self.limiter, self.per_minute = limiter or RateLimiter(), per_minute
        self.max_body, self.echo_request_id = max_body, echo_request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["type"] == "websocket":
            await self._websocket(scope, receive, send, headers)
            return
        sent = headers.get("x-request-id", "")
        request_id = sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began, status, started = time.perf_counter(), 500, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                answer = MutableHeaders(scope=message)
                answer.update(_answer_headers(scope, headers))
                if self.echo_request_id:
                    answer["X-Request-ID"] = request_id
            await send(message)

        try:
            scope["state"]["key"] = await self._check_request(route_path(scope), headers)
            await self.app(scope, self._limit_body(receive), send_with_id)
        except ProblemError as problem:
            if started:
                raise
            await problem.response(request_id)(scope, receive, send_with_id)
        except Exception:
            LOG.exception("request %s failed", request_id)
            if started:
                raise
            failed = ProblemError(500, "The server failed; its log has the details under this request id.")
            await failed.response(request_id)(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.requests.labels(_method_label(scope["method"]), route, status).inc()
            self.metrics.latency.labels(route).observe(time.perf_counter() - began)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        """Requires a valid key, also where no keys are set: browsers let any page open a websocket."""
        try:
            await self._check_rate(self._authenticate(self.keys.current(), headers))
        except ProblemError as problem:
            await send({"type": "websocket.close", "code": 1008, "reason": problem.detail})
            return
        await self.app(scope, receive, send)

    async def _check_request(self, path: str, headers: Headers) -> Key | None:
        """Returns the key of the request, whose scope the route checks (`require`); None where no key is needed."""
        keys, key = self.keys.current(), None
        if path not in OPEN_PATHS:
            key = self._authenticate(keys, headers) if keys else None
            await self._check_rate(key)
        if not keys and not is_loopback(host_name(headers.get("host"))):
            # Otherwise a page in a browser of this machine could call the server by a name of its own (DNS rebinding).
            raise ProblemError(421, "Without API keys this server answers only to localhost.")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length) > self.max_body:
            raise too_large(self.max_body)
        return key

    @staticmethod
    def _authenticate(keys: Keys, headers: Headers) -> Key:
        key = keys.find(headers.get("authorization"))
        if key is None:
            message = "A valid key is needed: send Authorization: Bearer KEY."
            raise ProblemError(401, message, headers={"WWW-Authenticate": CHALLENGE})
        return key

    async def _check_rate(self, key: Key | None) -> None:
        name, rate = (key.name, key.per_minute or self.per_minute) if key else ("local", self.per_minute)
        wait = await self.limiter.wait_s(name, rate) if rate else 0.0
        if wait > 0:
            raise ProblemError(429, f"This key may send {rate} requests a minute.", retry_after_s=math.ceil(wait))

    def _limit_body(self, receive: Receive) -> Receive:
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body:
                raise too_large(self.max_body)
            return message

        return limited


def route_path(scope: Scope) -> str:
    """Returns the path of a request below the prefix at which the application is mounted."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path.removeprefix(root) if path.startswith(f"{root}/") else path


def _answer_headers(scope: Scope, headers: Headers) -> dict[str, str]:
    over_tls = scope["scheme"] == "https" or headers.get("x-forwarded-proto") == "https"
    page = {"Content-Security-Policy": _PAGE_POLICY} if route_path(scope) == "/docs" else {}
    return HEADERS | page | (_TLS if over_tls else {})


def _method_label(method: str) -> str:
    known = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"}
    return method if method in known else "other"  # a caller must not create labels of metrics
