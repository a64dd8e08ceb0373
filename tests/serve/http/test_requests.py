"""Resolved requests: default time, horizons, and a store that is down."""

from __future__ import annotations

from typing import Any

import pytest

from clv.data.clock import Clock
from clv.serve.http.requests import default_as_of, resolve_portfolio, resolve_prediction
from clv.serve.http.schemas import PortfolioRequest, PredictRequest
from clv.serve.scoring.backend import LiveBackend
from clv.serve.scoring.protocol import BundleFacts
from clv.serve.store.protocol import StoreUnavailableError


def test_the_default_time_stays_between_the_cut_and_the_next_midnight() -> None:
    clock = Clock("Europe/London")
    day = clock.parse
    facts = BundleFacts(version="v", cut=day("2011-06-01"), data_through=0, currency=None, horizons=(30,), clock=clock)
    assert default_as_of(facts, newest=day("2011-06-10T15:00"), now=day("2012-01-01")) == day("2011-06-11")
    assert default_as_of(facts, newest=day("2050-01-01"), now=day("2012-01-01T09:00")) == day("2012-01-02")
    assert default_as_of(facts, newest=day("2010-01-01"), now=day("2012-01-01")) == day("2011-06-01")


def test_horizons_are_sorted_and_unique_and_unknown_customers_have_no_history(backend: LiveBackend) -> None:
    body = {"as_of": "2011-06-12", "horizons_days": [90, 30, 90], "customer_ids": ["nobody", "A"]}
    found = resolve_portfolio(PortfolioRequest.model_validate(body), backend)
    assert (found.horizons, found.customer_ids) == ((30, 90), ["nobody", "A"])
    assert found.histories["customer_id"].to_pylist() == ["A"]
    assert found.as_of == Clock("Europe/London").parse("2011-06-12")


def test_a_store_that_is_down_is_an_error_only_where_it_is_needed(backend: LiveBackend, monkeypatch: Any) -> None:
    def down() -> int:
        raise StoreUnavailableError("The online store does not answer.")

    event = {"event_time": "2011-06-03", "event_type": "purchase"}
    inline = PredictRequest.model_validate({"customers": [{"customer_id": "new", "events": [event]}]})
    before = resolve_prediction(inline, backend)
    monkeypatch.setattr(backend.store, "data_through", down)
    during = resolve_prediction(inline, backend)
    newest = Clock("UTC").parse("2011-06-11T09:00")
    assert (before.data_through, before.as_of) == (during.data_through, during.as_of) == (newest, before.as_of)
    stored = PredictRequest.model_validate({"customers": [{"customer_id": "A"}]})
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        resolve_prediction(stored, backend)
