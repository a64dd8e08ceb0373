"""A set of customers whose scores are computed here and asked of the running service: both must agree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from clv.serve.client import Client, ClvError
from clv.serve.http import inline_events, responses
from clv.serve.http.schemas import PredictRequest, PredictResponse
from clv.serve.scoring.scorer import Predicts, to_us

TOLERANCE = 1e-4  # relative: a replica may compute on another device
LOOKS_PER_REPLICA = 4  # the proxy chooses who answers


class SmokeTestError(ValueError):
    """The service answers something else than the bundle says, or the bundle says something impossible."""


class SmokeTest:
    """`request` brings the events of all its customers, so that no store can make a difference."""

    def __init__(self, predictor: Predicts, request: PredictRequest, url: str, key: str | None = None) -> None:
        if any(customer.events is None for customer in request.customers) or request.as_of is None:
            raise SmokeTestError("a probe needs as_of, and the events of every customer")
        self._url, self._key = url, key
        self._version, self.num_customers = predictor.version, len(request.customers)
        self._request = request
        as_of = int(inline_events.to_us([request.as_of], predictor.clock)[0])
        given = inline_events.gather(request.customers, lambda ids: pa.table({}), predictor.clock)
        horizons = tuple(sorted(set(request.horizons_days or predictor.horizons)))
        self._expected = responses.scores_of(predictor.predict(given.histories, as_of, horizons))
        self._believable()

    @classmethod
    def of(cls, predictor: Predicts, url: str, key: str | None = None, file: Path | None = None) -> SmokeTest:
        """The probe of a file (JSON of a prediction request); without one, twelve invented customers at the cut."""
        if file is None:
            return cls(predictor, PredictRequest.model_validate(invented(predictor)), url, key)
        try:
            request = PredictRequest.model_validate_json(file.read_bytes())
        except ValidationError as error:
            raise SmokeTestError(f"{file} is not a prediction request: {error}") from error
        return cls(predictor, request, url, key)

    def check(self, num_replicas: int) -> int:
        """Asks over several connections; returns how often. ProbeError for another bundle or other scores."""
        times = LOOKS_PER_REPLICA * max(num_replicas, 1)
        for _ in range(times):
            found = self._ask()
            if found.model.version != self._version:
                raise SmokeTestError(f"{self._url} answers with {found.model.version}, not with {self._version}")
            for result in found.results:
                here = self._expected.get(result.customer_id, [])
                self._compare(here, [score.model_dump() for score in result.scores])
        return times

    def _ask(self) -> PredictResponse:
        asked = self._request
        try:
            with Client(self._url, self._key) as client:
                return client.predict(
                    asked.customers,
                    as_of=asked.as_of,
                    horizons_days=asked.horizons_days,
                    model_version=self._version,
                )
        except (ClvError, httpx.TransportError) as error:
            raise SmokeTestError(f"{self._url} does not answer the probe of {self._version}: {error}") from error

    def _compare(self, here: list[dict[str, Any]], there: list[dict[str, Any]]) -> None:
        if len(here) != len(there):
            raise SmokeTestError(
                f"{self._version} is served with {len(there)} scores of a customer where it has {len(here)}"
            )
        for one, other in zip(here, there, strict=True):
            for name, value in one.items():
                served = other[name]
                if isinstance(value, float) and served is not None:
                    same = bool(np.isclose(served, value, rtol=TOLERANCE, atol=1e-9))
                else:
                    same = name in ("customer_id", "origin") or served == value
                if not same:
                    days = one["horizon_days"]
                    raise SmokeTestError(
                        f"{name} over {days} days is {value} by {self._version}, but served as {served}"
                    )

    def _believable(self) -> None:
        scores = [score for one in self._expected.values() for score in one]
        if not scores:
            raise SmokeTestError(f"{self._version} scores nobody of the probe")
        for score in scores:
            p, value = score["p_purchase"], score["value_mean"]
            if p is None or not 0 <= p <= 1 or (value is not None and value < 0):
                raise SmokeTestError(f"{self._version} gives a probe customer p_purchase {p} and value_mean {value}")


def invented(predictor: Predicts) -> Mapping[str, Any]:
    """Customers with 1 to 12 orders, in rhythms of 3 to 36 days, the last one 1 to 12 days before the cut."""
    cut, day = to_us(predictor.cut), 86_400_000_000
    customers = [
        {
            "customer_id": f"probe-{n}",
            "events": [
                {
                    "event_time": responses.iso(cut - (n + 3 * n * i) * day),
                    "event_type": "purchase",
                    "order_id": str(i),
                    "amount": 5.0 * n + i,
                }
                for i in range(n)
            ],
        }
        for n in range(1, 13)
    ]
    return {"as_of": responses.iso(cut), "customers": customers}
