"""Prometheus metrics: scores, the bundle in service, and counts of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from clv.data.clock import Clock
from clv.data.events import EVENTS, US
from clv.data.histories import build
from clv.serve.http.metrics import Metrics

AS_OF = 1_307_836_800_000_000


def history(name: str, amount: float) -> pa.Table:
    time = pa.array([AS_OF - 10**12]).cast(US)
    columns = {column: pa.nulls(1, EVENTS.field(column).type) for column in EVENTS.names}
    columns |= {"customer_id": pa.array([name]), "event_time": time, "known_at": time}
    columns |= {"event_type": pa.array(["purchase"]), "amount": pa.array([amount])}
    return build(pa.table(columns, schema=EVENTS), Clock("UTC"))


def test_scores_and_the_bundle_in_service_show_in_the_metrics(backend: Any) -> None:
    value = backend.metrics.registry.get_sample_value
    assert value("clv_model_info", {"version": "v1", "cut": "2011-06-01T00:00:00+00:00"}) == 1
    histories = pa.concat_tables([history("A", 73.0), history("B", 730.0), history("C", 1.0)])
    asyncio.run(backend.scorer().score(histories, AS_OF, (365, 730)))
    assert value("clv_score_value_count") == value("clv_score_p_purchase_count") == 3
    assert value("clv_score_value_sum") == pytest.approx(804.0), "at the shortest horizon"
    assert value("clv_score_value_bucket", {"le": "100.0"}) == 2


def test_a_large_answer_is_sampled_evenly(make_predictor: Callable[..., Any]) -> None:
    metrics = Metrics()
    many = pa.concat_tables([history(f"c{i:04d}", float(i)) for i in range(1, 1001)])
    metrics.observe_scores(make_predictor().predict(many, AS_OF, (365,)))
    value = metrics.registry.get_sample_value
    assert value("clv_score_value_count") == 64
    assert value("clv_score_value_sum") / 64 == pytest.approx(500, rel=0.05)
    metrics.observe_scores(make_predictor().predict(many, 0, (365,)))
    assert value("clv_score_value_count") == 64


def test_responses_are_counted_with_their_5xx() -> None:
    metrics = Metrics()
    for status, times in ((200, 5), (422, 2), (500, 1), (503, 2)):
        metrics.requests.labels("GET", "/", status).inc(times)
    assert metrics.count_responses() == (10, 3)
