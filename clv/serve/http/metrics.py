"""Prometheus metrics of one replica. No label holds anything a caller can invent, and none names a customer."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SAMPLED = 64


class Metrics:
    """Prometheus metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
        self.requests = Counter("clv_requests_total", "Requests answered.", ["method", "route", "status"], registry=r)
        self.latency = Histogram(
            "clv_request_seconds", "Seconds from request to answer.", ["route"], buckets=seconds, registry=r
        )
        self.customers = Counter(
            "clv_customers_total", "Customers answered for, by result status.", ["status"], registry=r
        )
        self.events = Counter("clv_events_total", "Events posted, stored or repeated.", ["status"], registry=r)
        self.waiting = Gauge("clv_waiting_customers", "Customers queued for a predictor call.", registry=r)
        self.queued = Histogram(
            "clv_queue_seconds", "Seconds a request waits for its predictor call.", buckets=seconds, registry=r
        )
        self.batch = Histogram(
            "clv_batch_customers",
            "Customers of one predictor call.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096),
            registry=r,
        )
        self.call = Histogram("clv_batch_seconds", "Seconds of one predictor call.", buckets=seconds, registry=r)
        self.tokens = Counter("clv_tokens_total", "Tokens of predictor calls, real or padding.", ["kind"], registry=r)
        self.p_purchase = Histogram(
            "clv_score_p_purchase",
            f"Purchase probability at the shortest horizon asked for; at most {SAMPLED} customers per request.",
            buckets=tuple(i / 10 for i in range(1, 11)),
            registry=r,
        )
        self.value = Histogram(
            "clv_score_value",
            f"Expected value at the shortest horizon asked for; at most {SAMPLED} customers per request.",
            buckets=(0.1, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 100_000),
            registry=r,
        )
        self.store_errors = Counter("clv_store_errors_total", "Requests that the store did not answer.", registry=r)
        self.failed_bundles = Gauge("clv_failed_bundles", "Named bundles that this replica cannot load.", registry=r)
        self.model = Gauge("clv_model_info", "1 for the bundle in service.", ["version", "cut"], registry=r)
        self.data_through = Gauge(
            "clv_data_through_timestamp_seconds", "Time of the newest event in the store, Unix seconds.", registry=r
        )

    def batched(self, customers: int, real: int, padded: int, seconds: float) -> None:
        """One predictor call: its customers, the tokens of their histories, and those computed with the padding."""
        self.batch.observe(customers)
        self.call.observe(seconds)
        self.tokens.labels("real").inc(real)
        self.tokens.labels("padding").inc(padded - real)

    def in_service(self, version: str, cut: datetime) -> None:
        """The bundle that answers from now on."""
        self.model.clear()
        self.model.labels(version, cut.isoformat()).set(1)

    def answers_and_errors(self) -> tuple[int, int]:
        """Requests answered so far, and how many of them with 5xx."""
        found = [
            sample for metric in self.requests.collect() for sample in metric.samples if sample.name.endswith("_total")
        ]
        errors = sum(sample.value for sample in found if sample.labels["status"].startswith("5"))
        return int(sum(sample.value for sample in found)), int(errors)

    def scored(self, scores: pa.Table) -> None:
        """The distribution of scores, from an evenly spaced sample of one answer."""
        shortest = scores.filter(pc.equal(scores["horizon_days"], pc.min(scores["horizon_days"])))
        rows = pa.array(np.unique(np.linspace(0, len(shortest) - 1, SAMPLED).astype(np.int64))[: len(shortest)])
        sample = shortest.select(["p_purchase", "value_mean"]).take(rows)
        for name, histogram in (("p_purchase", self.p_purchase), ("value_mean", self.value)):
            values = sample[name].to_numpy()
            for value in values[np.isfinite(values)].tolist():
                histogram.observe(value)
