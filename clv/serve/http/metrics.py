"""Prometheus metrics of one replica. No label holds a text of a caller or names a customer."""

from __future__ import annotations

from datetime import datetime
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SCORES_PER_REQUEST = 64


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
        self.requests = counter("clv_requests_total", "Requests answered.", ["method", "route", "status"])
        self.latency = histogram("clv_request_seconds", "Seconds from request to answer.", ["route"], buckets=seconds)
        self.customers = counter("clv_customers_total", "Customers of predictions, by result status.", ["status"])
        self.events = counter("clv_events_total", "Events posted, stored or repeated.", ["status"])
        self.waiting = gauge("clv_waiting_customers", "Customers queued for a predictor call.")
        self.queued = histogram("clv_queue_seconds", "Seconds a request waits for its predictor call.", buckets=seconds)
        self.batch = histogram(
            "clv_batch_customers", "Customers of one predictor call.", buckets=[2**power for power in range(13)]
        )
        self.call = histogram("clv_batch_seconds", "Seconds of one predictor call.", buckets=seconds)
        self.tokens = counter("clv_tokens_total", "Tokens of predictor calls, real or padding.", ["kind"])
        sampled = f"at the shortest horizon; at most {SCORES_PER_REQUEST} customers per request."
        self.p_purchase = histogram(
            "clv_score_p_purchase", f"Purchase probability {sampled}", buckets=[i / 10 for i in range(1, 11)]
        )
        self.value = histogram(
            "clv_score_value",
            f"Expected value {sampled}",
            buckets=(0.1, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 100_000),
        )
        self.store_errors = counter("clv_store_errors_total", "Requests that failed because of the store.")
        self.failed_bundles = gauge("clv_failed_bundles", "Bundles of the registry that this replica cannot load.")
        self.model = gauge("clv_model_info", "1 for the bundle in service.", ["version", "cut"])
        self.data_through = gauge(
            "clv_data_through_timestamp_seconds", "Time of the newest event in the store, Unix seconds."
        )

    def observe_batch(self, customers: int, real: int, padded: int, seconds: float) -> None:
        """Records one predictor call: its customers, the tokens of their histories, and the tokens with padding."""
        self.batch.observe(customers)
        self.call.observe(seconds)
        self.tokens.labels("real").inc(real)
        self.tokens.labels("padding").inc(padded - real)

    def set_model(self, version: str, cut: datetime) -> None:
        """Records the version and cut of the bundle in service."""
        self.model.clear()
        self.model.labels(version, cut.isoformat()).set(1)

    def count_responses(self) -> tuple[int, int]:
        """Returns the number of requests answered so far, and how many of them with 5xx."""
        (metric,) = self.requests.collect()
        found = [sample for sample in metric.samples if sample.name.endswith("_total")]
        errors = sum(sample.value for sample in found if sample.labels["status"].startswith("5"))
        return int(sum(sample.value for sample in found)), int(errors)

    def observe_scores(self, scores: pa.Table) -> None:
        """Records scores of an evenly spaced sample of the customers of one answer."""
        shortest = scores.filter(pc.equal(scores["horizon_days"], pc.min(scores["horizon_days"])))
        rows = np.unique(np.linspace(0, len(shortest) - 1, SCORES_PER_REQUEST).astype(np.int64))[: len(shortest)]
        sample = shortest.take(pa.array(rows))
        for name, histogram in (("p_purchase", self.p_purchase), ("value_mean", self.value)):
            values = sample[name].to_numpy()
            for value in values[np.isfinite(values)].tolist():
                histogram.observe(value)
