"""The real `Backend`: a predictor behind a batcher, and a store. A new bundle is swapped in without a gap."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from datetime import UTC, datetime

import pyarrow as pa

from clv.data import histories
from clv.registry import Candidate
from clv.serve.http.metrics import Metrics
from clv.serve.rollout.canary import Canary, Shadow, ShadowComparison
from clv.serve.scoring.batching import Batching, one_thread
from clv.serve.scoring.protocol import NotReady, Scorer
from clv.serve.scoring.scorer import BatchedScorer, Predicts
from clv.serve.store.protocol import Store

LOG = logging.getLogger(__name__)


class LiveBackend:
    """A `Backend` whose bundle can be replaced while it serves: running requests end on the old one."""

    def __init__(
        self, store: Store | None = None, batching: Batching | None = None, metrics: Metrics | None = None
    ) -> None:
        self.store = store
        self.batching = batching or Batching()
        self.metrics = metrics or Metrics()
        self.current: BatchedScorer | None = None
        self.candidate: BatchedScorer | None = None
        self.comparison = ShadowComparison()
        self.trial: Candidate | None = None
        self._thread = one_thread()

    def prepare(self, predictor: Predicts) -> BatchedScorer:
        """The predictor behind a batcher, warmed up; raises what it raises."""
        scorer = BatchedScorer(predictor, self.batching, self.metrics, self._thread)
        scorer.warm_up()
        return scorer

    def install(self, predictor: Predicts) -> None:
        """Warm the predictor up, then put it in service; raises what it raises, the old one then stays."""
        self.put_in_service(self.prepare(predictor))

    def put_in_service(self, scorer: BatchedScorer) -> None:
        """From the next request on this one answers."""
        self.current = scorer
        self.metrics.in_service(scorer.facts.version, to_datetime(scorer.facts.cut))
        LOG.info("bundle %s is in service", scorer.facts.version)

    def fit_holdout(self, scorer: BatchedScorer, trial: Candidate) -> None:
        """From the next request on this one gets its share, or is compared."""
        self.candidate, self.trial, self.comparison = scorer, trial, ShadowComparison()
        LOG.info("bundle %s is tried on %g of the requests", trial.version, trial.share)

    def end_trial(self) -> None:
        """All requests belong to the bundle in service again."""
        self.candidate = self.trial = None

    def scorer(self, pinned: str | None = None) -> Scorer:
        """The scorer of one request: that of the version it is pinned to, if that is loaded, or as the trial has it."""
        current, candidate, trial = self.current, self.candidate, self.trial
        if current is None:
            raise NotReady
        if candidate is None or trial is None or pinned == current.facts.version:
            return current
        if pinned == candidate.facts.version:
            return candidate
        if random.random() >= trial.share:
            return current
        return Shadow(candidate, current, self.comparison) if trial.shadow else Canary(candidate, current)

    def check_health(self, stuck_s: float) -> None:
        """Raises when nothing is in service, or a call to the predictor has not ended for `stuck_s`."""
        if self.current is None:
            raise NotReady
        for scorer in (self.current, self.candidate):
            if scorer and scorer.busy_s() > stuck_s:
                raise RuntimeError(f"scoring with {scorer.facts.version} has not ended for {stuck_s:g} s")

    def stored(self, customer_ids: Sequence[str]) -> pa.Table:
        return histories.HISTORIES.empty_table() if self.store is None else self.store.get(customer_ids)


def to_datetime(us: int) -> datetime:
    """Aware datetime of microseconds UTC."""
    return datetime.fromtimestamp(us / 1e6, UTC)
