"""Typed HTTP client of the service. Calls have no effect when repeated, so a call without an answer is retried."""

from __future__ import annotations

import math
import ssl
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exception, wait_random_exponential

from clv.serve.http.schemas import (
    MAX_CUSTOMERS,
    MAX_POSTED,
    Customer,
    CustomerResponse,
    EventsRequest,
    EventsResponse,
    ModelResponse,
    PortfolioRequest,
    PortfolioResponse,
    PostedEvent,
    PredictRequest,
    PredictResponse,
    Problem,
)

if TYPE_CHECKING:
    import pyarrow as pa

# The server has not worked on these requests; another 5xx would probably fail again.
_RETRYABLE = frozenset({429, 503})
_PROBLEM = "application/problem+json"
_ARROW = "application/vnd.apache.arrow.stream"


class ClvError(ValueError):
    """An answer that is not a success: its `status`, the server's `problem` document when there was one, the
    `request_id` under which the server logs the call, and the seconds of its Retry-After header."""

    def __init__(self, status: int, problem: Problem | None, request_id: str, retry_after_s: float = 0.0) -> None:
        what = problem.detail if problem else "no explanation was sent"
        super().__init__(f"HTTP {status}: {what} (request {request_id})")
        self.status, self.problem, self.request_id, self.retry_after_s = status, problem, request_id, retry_after_s


class Client:
    """Calls one service; one instance may be shared by threads.

    A call is repeated after a dropped connection, 503 and 429, at most `retries` times and no later than `retry_for_s`
    after its first failure, after growing random pauses, to which Retry-After is added; a pause that would outlast the
    time left is not begun. `failures` counts the failed attempts by status or error, also when a repetition succeeded.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retries: int = 3,
        retry_for_s: float = 5.0,
        verify: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, verify=verify, transport=transport)
        self._retries, self._retry_for_s = retries, retry_for_s
        self.failures: Counter[str] = Counter()

    def predict(
        self,
        customers: Sequence[str | Customer | Mapping[str, Any]],
        *,
        as_of: datetime | str | None = None,
        horizons_days: Sequence[int] | None = None,
        model_version: str | None = None,
    ) -> PredictResponse:
        """Returns scores of any number of customers, in requests of 1,000; a string is a stored customer's id.

        Raises ValidationError before anything is sent, ClvError for a refusal, httpx.TransportError without an answer.
        """
        if not customers:
            raise ValueError("customers is empty: name at least one")
        given = [{"customer_id": one} if isinstance(one, str) else one for one in customers]
        horizons = list(horizons_days) if horizons_days is not None else None
        asked = {"as_of": as_of, "horizons_days": horizons, "model_version": model_version}
        for number in range(self._retries + 1):
            if number:
                time.sleep(min(1.0, self._retry_for_s))
            if (answer := self._predict_once(given, asked)) is not None:
                return answer
        raise ClvError(503, None, "the bundle in service changed between the parts of every attempt")

    def predict_table(
        self,
        customers: Sequence[str] | pa.Table,
        *,
        as_of: datetime | str | None = None,
        horizons_days: Sequence[int] | None = None,
        model_version: str | None = None,
    ) -> pa.Table:
        """Returns scores as a table, by Arrow: for at most 1,000 ids, or a table of events with `customer_id`.

        It has a row per customer and horizon, and a row with status unknown_customer for each unknown customer.
        """
        import pyarrow as pa

        table = customers if isinstance(customers, pa.Table) else pa.table({"customer_id": list(customers)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        days = ",".join(map(str, horizons_days)) if horizons_days is not None else None
        at = as_of.isoformat() if isinstance(as_of, datetime) else as_of
        asked = {"as_of": at, "horizons_days": days, "model_version": model_version}
        path = httpx.URL("/v1/predict", params={name: value for name, value in asked.items() if value is not None})
        headers = {"Content-Type": _ARROW, "Accept": _ARROW}
        answer = self._call("POST", str(path), content=sink.getvalue().to_pybytes(), headers=headers)
        return pa.ipc.open_stream(answer.content).read_all()

    def portfolio(
        self,
        customer_ids: Sequence[str],
        *,
        as_of: datetime | str | None = None,
        horizons_days: Sequence[int] | None = None,
    ) -> PortfolioResponse:
        """Returns the total value of up to 10,000 stored customers; raises the errors of `predict`."""
        horizons = list(horizons_days) if horizons_days is not None else None
        asked = {"as_of": as_of, "horizons_days": horizons, "customer_ids": list(customer_ids)}
        return PortfolioResponse.model_validate_json(self._post("portfolio", PortfolioRequest, asked))

    def send(self, events: Sequence[PostedEvent | Mapping[str, Any]]) -> EventsResponse:
        """Stores any number of events, 1,000 per request; the parts before a refused one are stored. Raises the
        errors of `predict`; ClvError 409 names the id of another event."""
        stored = repeated = 0
        for start in range(0, len(events), MAX_POSTED):
            part = {"events": list(events[start : start + MAX_POSTED])}
            done = EventsResponse.model_validate_json(self._post("events", EventsRequest, part))
            stored, repeated = stored + done.stored, repeated + done.repeated
        return EventsResponse(stored=stored, repeated=repeated)

    def erase(self, customer_id: str) -> bool:
        """Erases a customer and returns whether one was there; False also after an answer that was lost and repeated.

        Raises ClvError for every answer that is neither the service's 204 nor its own "no such customer".
        """
        answer = self._call_customer(customer_id, "DELETE")
        if answer is not None and answer.status_code != 204:
            raise ClvError(answer.status_code, None, answer.request.headers["X-Request-ID"])
        return answer is not None

    def customer(self, customer_id: str) -> CustomerResponse | None:
        """Returns summary and scores of a stored customer; None for an unknown one."""
        found = self._call_customer(customer_id, "GET")
        return None if found is None else CustomerResponse.model_validate_json(found.content)

    def model(self) -> ModelResponse:
        """Returns version and settings of the bundle in service."""
        return ModelResponse.model_validate_json(self._call("GET", "/v1/model").content)

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _predict_once(
        self, customers: Sequence[str | Customer | Mapping[str, Any]], asked: Mapping[str, Any]
    ) -> PredictResponse | None:
        """Returns None when a new bundle took over: one answer must not mix the scores of two bundles."""
        parts: list[PredictResponse] = []
        for start in range(0, len(customers), MAX_CUSTOMERS):
            request = {**asked, "customers": customers[start : start + MAX_CUSTOMERS]}
            if parts:
                # The first part's time and bundle hold for all parts, so that they are one answer.
                request |= {"as_of": parts[0].as_of, "model_version": parts[0].model.version}
            parts.append(PredictResponse.model_validate_json(self._post("predict", PredictRequest, request)))
            if parts[-1].model != parts[0].model:
                return None
        return parts[0].model_copy(update={"results": [result for one in parts for result in one.results]})

    def _call_customer(self, customer_id: str, method: str) -> httpx.Response | None:
        """Returns None only where the service itself writes that it holds no such customer. The 404 of a proxy, of a
        wrong prefix or of a service without a store is an error: an erasure must never be skipped in silence."""
        try:
            return self._call(method, f"/v1/customers/{quote(customer_id, safe='')}")
        except ClvError as error:
            fields = [one.field for one in error.problem.errors] if error.problem else []
            if error.status == 404 and fields == ["customer_id"]:
                return None
            raise

    def _post(self, name: str, model: type[BaseModel], request: dict[str, Any]) -> bytes:
        body = model.model_validate(request).model_dump_json(exclude_none=True)
        return self._call("POST", f"/v1/{name}", content=body, headers={"Content-Type": "application/json"}).content

    def _call(
        self, method: str, path: str, *, content: str | bytes | None = None, headers: dict[str, str] | None = None
    ) -> httpx.Response:
        request_id = uuid.uuid4().hex
        headers = {**(headers or {}), "X-Request-ID": request_id}

        def attempt() -> httpx.Response:
            try:
                answer = self._http.request(method, path, content=content, headers=headers)
            except httpx.TransportError as error:
                self.failures[type(error).__name__] += 1
                raise
            if answer.is_success:
                return answer
            self.failures[str(answer.status_code)] += 1
            after = answer.headers.get("retry-after", "")  # this service does not send dates
            wait_s = float(after) if after.isdecimal() else 0.0
            raise ClvError(answer.status_code, _problem(answer), request_id, wait_s)

        again = Retrying(
            retry=retry_if_exception(_is_retryable),
            stop=_StopAfter(self._retries + 1, self._retry_for_s),
            wait=wait_random_exponential(multiplier=0.2, min=0.1)
            + wait_exception(lambda error: getattr(error, "retry_after_s", 0.0)),
            reraise=True,
        )
        return again(attempt)


class _StopAfter:
    """Stops after a number of attempts, or before a pause that would end later than so long after the first failure;
    tenacity's `stop_before_delay` counts from the start of the call, which may have waited long for its answer."""

    def __init__(self, attempts: int, seconds: float) -> None:
        self._attempts, self._seconds, self._until = attempts, seconds, math.inf

    def __call__(self, state: RetryCallState) -> bool:
        assert state.outcome_timestamp is not None
        self._until = min(self._until, state.outcome_timestamp + self._seconds)
        late = state.outcome_timestamp + state.upcoming_sleep > self._until
        return late or state.attempt_number >= self._attempts


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, httpx.TransportError) or (isinstance(error, ClvError) and error.status in _RETRYABLE)


def _problem(answer: httpx.Response) -> Problem | None:
    if not answer.headers.get("content-type", "").startswith(_PROBLEM):
        return None
    try:
        return Problem.model_validate_json(answer.content)
    except ValidationError:
        return None
