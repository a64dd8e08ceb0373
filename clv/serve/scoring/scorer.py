"""One loaded bundle behind a batcher."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa

from clv.data import histories
from clv.data.clock import DAY_US, Clock
from clv.data.events import EVENTS, US
from clv.serve.http.metrics import Metrics
from clv.serve.rollout.heartbeat import Served
from clv.serve.scoring.batching import Batcher, Batching, Overloaded
from clv.serve.scoring.protocol import Facts


class Predicts(Protocol):
    """What is used of `clv.forecast.predictor.Predictor`."""

    @property
    def version(self) -> str: ...
    @property
    def cut(self) -> datetime: ...
    @property
    def data_through(self) -> datetime: ...
    @property
    def currency(self) -> str | None: ...
    @property
    def horizons(self) -> tuple[int, ...]: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def max_tokens(self) -> int: ...
    def check_origin(self, as_of: int, data_through: int | None = None) -> int: ...
    def predict(self, histories: pa.Table, as_of: int, horizons: Sequence[int] | None = None) -> pa.Table: ...
    def portfolio(self, histories: pa.Table, as_of: int, horizons: Sequence[int] | None = None) -> pa.Table: ...


class BatchedScorer:
    """A `Scorer` over one predictor."""

    def __init__(
        self, predictor: Predicts, batching: Batching, metrics: Metrics, thread: ThreadPoolExecutor | None = None
    ) -> None:
        self.facts = Facts(
            version=predictor.version,
            cut=to_us(predictor.cut),
            data_through=to_us(predictor.data_through),
            currency=predictor.currency,
            horizons=tuple(predictor.horizons),
            clock=predictor.clock,
        )
        self.served = Served()
        self._predictor, self._metrics = predictor, metrics
        options = replace(batching, longest=predictor.max_tokens)
        self._batcher = Batcher(predictor.predict, options, metrics, thread)

    def check(self, as_of: int, data_through: int) -> None:
        self._predictor.check_origin(as_of, data_through)

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        scores = await self._counted(self._batcher.score(histories, as_of, horizons))
        self._metrics.scored(scores)
        return scores

    async def portfolio(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        call = partial(self._predictor.portfolio, histories, as_of, horizons)
        return await self._counted(self._batcher.alone(call, histories))

    async def _counted(self, work: Awaitable[pa.Table]) -> pa.Table:
        began, failed = time.perf_counter(), 0
        try:
            return await work
        except Overloaded:
            raise
        except Exception:
            failed = 1
            raise
        finally:
            s, seconds = self.served, time.perf_counter() - began
            self.served = Served(answered=s.answered + 1, errors=s.errors + failed, seconds=s.seconds + seconds)

    def busy_s(self) -> float:
        """Seconds since the running call to the predictor began; 0 without one."""
        return self._batcher.busy_s()

    def warm_up(self) -> None:
        """One small prediction: no caller pays for first-call costs, and a bundle that cannot score is found now."""
        scores = self._predictor.predict(warm_up_histories(self.facts), self.facts.cut, self.facts.horizons)
        if not len(scores):
            raise ValueError(f"bundle {self.facts.version} scored nobody of the warm-up: it cannot be served")


def to_us(when: datetime) -> int:
    """Microseconds UTC of an aware datetime."""
    if when.tzinfo is None:
        raise ValueError(f"{when} has no time zone")
    return round(when.timestamp() * 1_000_000)


def warm_up_histories(facts: Facts) -> pa.Table:
    """Four customers with 1, 2, 4 and 8 weekly orders before the cut."""
    weeks = np.concatenate([np.arange(1, n + 1) for n in (1, 2, 4, 8)])
    owner = np.repeat(np.arange(4), (1, 2, 4, 8))
    time = pa.array(facts.cut - weeks * 7 * DAY_US).cast(US)
    columns = {name: pa.nulls(len(weeks), EVENTS.field(name).type) for name in EVENTS.names}
    columns |= {
        "customer_id": pa.array([f"warm-up-{i}" for i in owner]),
        "event_time": time,
        "known_at": time,
        "event_type": pa.array(["purchase"] * len(weeks)),
        "amount": pa.array(np.full(len(weeks), 10.0)),
    }
    return histories.build(pa.table(columns, schema=EVENTS), facts.clock)
