"""A typed HTTP client. Every call is a read, so a call whose answer was lost is simply made again."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import ValidationError

from clv.serve.schemas import (
    MAX_CUSTOMERS,
    Customer,
    CustomerResponse,
    ModelResponse,
    PredictRequest,
    PredictResponse,
    Problem,
)

# 500 stands here for Ray Serve's own "the replica died" (plain text); our 500 is a problem and is not repeated.
_AGAIN = frozenset({429, 500, 502, 503, 504})
_PROBLEM = "application/problem+json"


class ClvError(ValueError):
    """An answer that is not 200. `status` and, when the server sent one, `problem`."""

    def __init__(self, status: int, problem: Problem | None, request_id: str) -> None:
        what = problem.detail if problem else "no explanation was sent"
        super().__init__(f"HTTP {status}: {what} (request {request_id})")
        self.status, self.problem, self.request_id = status, problem, request_id


class Client:
    """Calls one service; one instance may be shared by threads.

    Repeats after dropped connections, 429 and 503, up to `retries` times with growing random pauses (at least what
    Retry-After says, at most `max_pause_s`).
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retries: int = 5,
        max_pause_s: float = 10.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, transport=transport)
        self._retries, self._max_pause_s = retries, max_pause_s

    def predict(
        self,
        customers: Sequence[str | Customer | Mapping[str, Any]],
        *,
        as_of: datetime | str | None = None,
        horizons_days: Sequence[int] | None = None,
    ) -> PredictResponse:
        """Scores of any number of customers, asked for in requests of 1,000; a string is a stored customer's id.

        Raises ValidationError before anything is sent, ClvError for a refusal, httpx.TransportError without an answer.
        """
        if not customers:
            raise ValueError("customers is empty: name at least one")
        given = [{"customer_id": one} if isinstance(one, str) else one for one in customers]
        horizons = list(horizons_days) if horizons_days is not None else None
        for _ in range(self._retries + 1):
            parts: list[PredictResponse] = []
            for start in range(0, len(given), MAX_CUSTOMERS):
                # The first part's default time holds for all parts, so that they are one answer.
                at = parts[0].as_of if parts else as_of
                part = given[start : start + MAX_CUSTOMERS]
                parts.append(self._predict({"as_of": at, "horizons_days": horizons, "customers": part}))
                if parts[-1].model != parts[0].model:
                    break  # a new bundle took over: scores of two models must not stand in one answer
            else:
                return parts[0].model_copy(update={"results": [result for one in parts for result in one.results]})
            time.sleep(min(1.0, self._max_pause_s))
        raise ClvError(503, None, "the bundle in service changed between the parts of every attempt")

    def _predict(self, request: dict[str, Any]) -> PredictResponse:
        body = PredictRequest.model_validate(request).model_dump_json(exclude_none=True)
        headers = {"Content-Type": "application/json"}
        return PredictResponse.model_validate_json(self._call("POST", "/v1/predict", content=body, headers=headers))

    def customer(self, customer_id: str) -> CustomerResponse | None:
        """What is stored of one customer, with scores; None for an unknown one."""
        try:
            return CustomerResponse.model_validate_json(
                self._call("GET", f"/v1/customers/{quote(customer_id, safe='')}")
            )
        except ClvError as error:
            if error.status == 404:
                return None
            raise

    def model(self) -> ModelResponse:
        """The bundle in service."""
        return ModelResponse.model_validate_json(self._call("GET", "/v1/model"))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(
        self, method: str, path: str, *, content: str | None = None, headers: dict[str, str] | None = None
    ) -> bytes:
        request_id = uuid.uuid4().hex
        headers = {**(headers or {}), "X-Request-ID": request_id}
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            wait = 0.0
            try:
                answer = self._http.request(method, path, content=content, headers=headers)
            except httpx.TransportError:
                if last:
                    raise
            else:
                if answer.status_code == 200:
                    return answer.content
                ours = answer.headers.get("content-type", "").startswith(_PROBLEM)
                final = answer.status_code not in _AGAIN or (answer.status_code == 500 and ours)
                if last or final:
                    raise ClvError(answer.status_code, _problem(answer) if ours else None, request_id)
                wait = _seconds(answer.headers.get("retry-after"))
            pause = random.uniform(0.5, 1.0) * 0.1 * 2**attempt
            time.sleep(min(max(pause, wait), self._max_pause_s))
        raise AssertionError("the last attempt returns or raises")


def _problem(answer: httpx.Response) -> Problem | None:
    try:
        return Problem.model_validate_json(answer.content)
    except ValidationError:
        return None


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds; its form as a date is not used by this service."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0
