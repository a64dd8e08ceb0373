"""Smoke test of a running service: its scores of a few customers must equal those computed here from the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from clv.data.clock import DAY_US, to_us
from clv.serve.client import Client, ClvError
from clv.serve.http import inline_events, responses
from clv.serve.http.schemas import PredictRequest, PredictResponse
from clv.serve.scoring.protocol import PredictorProtocol

TOLERANCE = 1e-4  # relative: a replica may compute on another device
REQUESTS_PER_REPLICA = 4  # the proxy chooses the replica of a request


class SmokeTestError(ValueError):
    """The service returns other scores than the bundle, or the bundle returns impossible scores."""


class SmokeTest:
    """Compares the service with `predictor` on `request`, which holds the events of all its customers, so that the
    content of the store has no influence. Raises SmokeTestError for another request and for implausible scores.

    `histories` are those of the request's customers, `as_of` is its prediction time in microseconds UTC."""

    def __init__(self, predictor: PredictorProtocol, request: PredictRequest, url: str, key: str | None = None) -> None:
        if any(customer.events is None for customer in request.customers) or request.as_of is None:
            raise SmokeTestError("a smoke test needs as_of, and the events of every customer")
        self._url, self._key = url, key
        self._version, self.num_customers = predictor.version, len(request.customers)
        self._request = request
        self.as_of = int(inline_events.instants_us([request.as_of], predictor.clock)[0])
        loaded = inline_events.build_histories(request.customers, lambda ids: pa.table({}), predictor.clock)
        self.histories = loaded.histories
        horizons = tuple(sorted(set(request.horizons_days or predictor.horizons)))
        self._expected = responses.score_objects(predictor.predict(self.histories, self.as_of, horizons))
        if not self._expected:
            raise SmokeTestError(f"{self._version} scores none of the customers of the smoke test")
        for score in chain.from_iterable(self._expected.values()):
            p, value = score["p_purchase"], score["value_mean"]
            if p is None or not 0 <= p <= 1 or (value is not None and value < 0):
                raise SmokeTestError(
                    f"{self._version} gives a customer of the smoke test p_purchase {p} and value_mean {value}"
                )

    @classmethod
    def create(
        cls, predictor: PredictorProtocol, url: str, key: str | None = None, file: Path | None = None
    ) -> SmokeTest:
        """Returns the smoke test of a file (JSON of a prediction request), or of twelve synthetic customers."""
        if file is None:
            return cls(predictor, PredictRequest.model_validate(synthetic_request(predictor)), url, key)
        try:
            request = PredictRequest.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise SmokeTestError(f"{file} is not a prediction request: {error}") from error
        return cls(predictor, request, url, key)

    def run(self, num_replicas: int) -> int:
        """Sends the request over several connections and returns their number; raises SmokeTestError for an answer of
        another bundle or with other scores."""
        times = REQUESTS_PER_REPLICA * max(num_replicas, 1)
        for _ in range(times):
            answer = self._request_scores()
            if answer.model.version != self._version:
                raise SmokeTestError(f"{self._url} answers with {answer.model.version} instead of {self._version}")
            for result in answer.results:
                expected = self._expected.get(result.customer_id, [])
                self._compare(expected, [score.model_dump() for score in result.scores])
        return times

    def _request_scores(self) -> PredictResponse:
        try:
            with Client(self._url, self._key) as client:
                return client.predict(
                    self._request.customers,
                    as_of=self._request.as_of,
                    horizons_days=self._request.horizons_days,
                    model_version=self._version,
                )
        except (ClvError, httpx.TransportError) as error:
            raise SmokeTestError(f"{self._url} does not answer the smoke test of {self._version}: {error}") from error

    def _compare(self, expected: list[dict[str, Any]], served: list[dict[str, Any]]) -> None:
        if len(expected) != len(served):
            raise SmokeTestError(
                f"the service returns {len(served)} scores of a customer where {self._version} has {len(expected)}"
            )
        for here, there in zip(expected, served, strict=True):
            for name, value in here.items():
                other = there[name]
                if isinstance(value, float) and other is not None:
                    same = bool(np.isclose(other, value, rtol=TOLERANCE, atol=1e-9))
                else:
                    same = name in ("customer_id", "origin") or other == value
                if not same:
                    raise SmokeTestError(
                        f"{name} over {here['horizon_days']} days is {value} in {self._version}, but {other} in the "
                        "answer of the service"
                    )


def synthetic_request(predictor: PredictorProtocol) -> Mapping[str, Any]:
    """Returns a request for twelve customers with 1 to 12 orders, 3 to 36 days apart, the last 1 to 12 days before the
    cut."""
    cut = to_us(predictor.cut)
    customers = [
        {
            "customer_id": f"smoke-test-{n}",
            "events": [
                {
                    "event_time": responses.iso_time(cut - (n + 3 * n * i) * DAY_US),
                    "event_type": "purchase",
                    "order_id": str(i),
                    "amount": 5.0 * n + i,
                }
                for i in range(n)
            ],
        }
        for n in range(1, 13)
    ]
    return {"as_of": responses.iso_time(cut), "customers": customers}
