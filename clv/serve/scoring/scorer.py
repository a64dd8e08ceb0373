"""BatchedScorer: one loaded bundle behind a batcher, with a warm-up prediction and counts of its requests."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa

from clv.data import histories
from clv.data.clock import DAY_US, to_datetime, to_us
from clv.data.events import EVENTS
from clv.serve.http.metrics import Metrics
from clv.serve.scoring.batching import Batcher, Batching, Overloaded
from clv.serve.scoring.protocol import BundleFacts, PredictorProtocol, RequestCounts


class BatchedScorer:
    """Implements `Scorer` over one predictor. Its requests are counted in `counts`."""

    def __init__(
        self,
        predictor: PredictorProtocol,
        batching: Batching,
        metrics: Metrics,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self.facts = BundleFacts(
            version=predictor.version,
            cut=to_us(predictor.cut),
            data_through=to_us(predictor.data_through),
            currency=predictor.currency,
            horizons=tuple(predictor.horizons),
            clock=predictor.clock,
        )
        self.counts = RequestCounts()
        self._predictor, self._metrics = predictor, metrics
        self._batcher = Batcher(predictor.predict, batching, metrics, thread, predictor.max_tokens)

    def check(self, as_of: int, data_through: int) -> None:
        self._predictor.check_origin(as_of, data_through)

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        scores = await self._count(self._batcher.score(histories, as_of, horizons))
        self._metrics.observe_scores(scores)
        return scores

    async def portfolio(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        call = partial(self._predictor.portfolio, histories, as_of, horizons)
        return await self._count(self._batcher.run_alone(call, histories))

    async def _count(self, work: Awaitable[pa.Table]) -> pa.Table:
        began, failed = time.perf_counter(), 0
        try:
            return await work
        except Exception as error:
            failed = int(not isinstance(error, Overloaded))
            raise
        finally:
            c, seconds = self.counts, time.perf_counter() - began
            self.counts = RequestCounts(answered=c.answered + 1, errors=c.errors + failed, seconds=c.seconds + seconds)

    def busy_s(self) -> float:
        """Returns the seconds since the running call of the predictor began; 0 without one."""
        return self._batcher.busy_s()

    def warm_up(self) -> None:
        """Makes one small prediction, so that no caller pays for the first call; raises what the predictor raises, and
        ValueError when it scores nobody."""
        scores = self._predictor.predict(warm_up_histories(self.facts), self.facts.cut, self.facts.horizons)
        if not len(scores):
            raise ValueError(f"bundle {self.facts.version} scores none of the warm-up customers: it cannot be served")


def warm_up_histories(facts: BundleFacts) -> pa.Table:
    """Returns histories of four customers with 1, 2, 4 and 8 weekly orders before the cut."""
    times = [to_datetime(facts.cut - weeks * 7 * DAY_US) for weeks in range(1, 9)]
    events = [
        {"customer_id": f"warm-up-{i}", "event_time": at, "known_at": at, "event_type": "purchase", "amount": 10.0}
        for i, orders in enumerate((1, 2, 4, 8))
        for at in times[:orders]
    ]
    return histories.build(pa.Table.from_pylist(events, EVENTS), facts.clock)
