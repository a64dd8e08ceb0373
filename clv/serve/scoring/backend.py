"""LiveBackend: the bundle in service, an optional candidate and the store; bundles are replaced without a gap."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from clv.data import histories
from clv.data.clock import to_datetime
from clv.registry import Candidate
from clv.serve.http.metrics import Metrics
from clv.serve.rollout.canary import CanaryScorer, ShadowComparison, ShadowScorer
from clv.serve.scoring.batching import Batching, scoring_thread
from clv.serve.scoring.protocol import NotReady, PredictorProtocol, Scorer
from clv.serve.scoring.scorer import BatchedScorer
from clv.serve.store.protocol import Store, StoreUnavailableError

LOG = logging.getLogger(__name__)

REFRESH_S = 1.0  # after which the time of the store's newest event is asked for again, in the background


class LiveBackend:
    """Implements `Backend`. Its bundle can be replaced while it serves: running requests finish on the previous one.

    Example: `LiveBackend(store).install(Predictor(bundle))`.
    """

    def __init__(
        self, store: Store | None = None, batching: Batching | None = None, metrics: Metrics | None = None
    ) -> None:
        self.store = store
        self.batching = batching or Batching()
        self.metrics = metrics or Metrics()
        self.current: BatchedScorer | None = None
        self.candidate: Candidate | None = None
        self.candidate_scorer: BatchedScorer | None = None
        self.comparison = ShadowComparison()
        self._thread = scoring_thread()
        self._watcher = ThreadPoolExecutor(1, "clv-watch")
        self._through: int | None = None
        self._refresh_at = math.inf
        self._refresh()

    def prepare(self, predictor: PredictorProtocol) -> BatchedScorer:
        """Returns a warmed-up scorer of the predictor; raises what the warm-up raises."""
        scorer = BatchedScorer(predictor, self.batching, self.metrics, self._thread)
        scorer.warm_up()
        return scorer

    def install(self, predictor: PredictorProtocol) -> None:
        """Warms the predictor up and puts it in service; after an error the previous bundle stays in service."""
        self.put_in_service(self.prepare(predictor))

    def put_in_service(self, scorer: BatchedScorer) -> None:
        """Routes all requests from now on to this scorer."""
        self.current = scorer
        self.metrics.set_model(scorer.facts.version, to_datetime(scorer.facts.cut))
        LOG.info("bundle %s is in service", scorer.facts.version)

    def start_candidate(self, scorer: BatchedScorer, candidate: Candidate) -> None:
        """Routes the candidate's share of the requests to this scorer, or compares them where it is a shadow."""
        self.candidate, self.candidate_scorer, self.comparison = candidate, scorer, ShadowComparison()
        kind = "shadow" if candidate.shadow else "canary"
        LOG.info("bundle %s is a %s for %g of the requests", candidate.version, kind, candidate.share)

    def end_candidate(self) -> None:
        """Routes all requests to the bundle in service again."""
        self.candidate = self.candidate_scorer = None

    def scorer(self, pinned: str | None = None) -> Scorer:
        """Returns the scorer of one request: of version `pinned` if that is loaded, else drawn by the candidate's
        share; raises NotReady without a bundle."""
        current, candidate, scorer = self.current, self.candidate, self.candidate_scorer
        if current is None:
            raise NotReady
        if candidate is None or scorer is None or pinned == current.facts.version:
            return current
        if pinned == scorer.facts.version:
            return scorer
        if random.random() >= candidate.share:
            return current
        return ShadowScorer(scorer, current, self.comparison) if candidate.shadow else CanaryScorer(scorer, current)

    def check_health(self, stuck_s: float) -> None:
        """Raises NotReady without a bundle, RuntimeError when a call of the predictor has run for over `stuck_s`."""
        if self.current is None:
            raise NotReady
        for scorer in (self.current, self.candidate_scorer):
            if scorer and scorer.busy_s() > stuck_s:
                raise RuntimeError(f"a prediction with {scorer.facts.version} has run for over {stuck_s:g} s")

    def data_through(self, *, wait: bool) -> int | None:
        if self.store is None:
            return None
        if wait:
            self._through = self.store.data_through()
        elif time.monotonic() >= self._refresh_at:
            self._refresh_at = math.inf  # until this one is done
            self._watcher.submit(self._refresh)
        return self._through

    def _refresh(self) -> None:
        try:
            self._through = self.store.data_through() if self.store else None
        except StoreUnavailableError as error:
            LOG.warning("%s The time of its newest event remains as it was known.", error)
        finally:
            self._refresh_at = time.monotonic() + REFRESH_S

    def stored(self, customer_ids: Sequence[str]) -> pa.Table:
        return histories.HISTORIES.empty_table() if self.store is None else self.store.get(customer_ids)
