"""JSON answers: scores per customer, null for NaN, counts of known customers."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from clv.serve.http.requests import resolve_portfolio
from clv.serve.http.responses import portfolio_json, score_objects, to_json
from clv.serve.http.schemas import PortfolioRequest
from clv.serve.scoring.backend import LiveBackend


def test_scores_are_grouped_by_customer_with_null_for_nan_and_no_rank(backend: LiveBackend, predictor: Any) -> None:
    found = score_objects(predictor.predict(backend.stored(["A", "B"]), 1_307_836_800_000_000, (30, 365)))
    assert {name: [score["horizon_days"] for score in scores] for name, scores in found.items()} == {
        "A": [30, 365],
        "B": [30, 365],
    }
    assert found["A"][1]["value_mean"] == 50.0
    assert found["B"][1]["value_mean"] is None
    assert found["A"][0]["value_rank"] is found["A"][0]["value_decile"] is None
    assert found["A"][0]["origin"] == "2011-06-12T00:00:00Z"


def test_a_portfolio_counts_known_and_unknown_customers(backend: LiveBackend) -> None:
    request = PortfolioRequest.model_validate({"as_of": "2011-06-12T00:00:00Z", "customer_ids": ["A", "nobody"]})
    totals = pa.table({"horizon_days": [30], "customers": [1], "value_mean": [float("nan")]})
    content, known = portfolio_json(resolve_portfolio(request, backend), totals)
    answer = json.loads(content)
    assert (known, answer["customers"], answer["unknown"]) == (1, 1, 1)
    assert answer["totals"] == [{"horizon_days": 30, "value_mean": None}]
    assert (answer["model"]["version"], answer["currency"]) == ("v1", "GBP")


def test_nan_is_no_json() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"value": float("nan")})
