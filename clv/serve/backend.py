"""The real `Backend`: a predictor behind a batcher, and a store. A new bundle is swapped in without a gap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

import numpy as np
import pyarrow as pa

from clv.data import histories
from clv.data.clock import DAY_US, Clock
from clv.data.events import EVENTS, US
from clv.serve.batching import Batcher, Batching
from clv.serve.metrics import Metrics
from clv.serve.routes import Facts, NotReady
from clv.serve.store import Store

LOG = logging.getLogger(__name__)


class Predicts(Protocol):
    """What is used of `clv.predict.Predictor`."""

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


class BatchedScorer:
    """A `Scorer` over one predictor."""

    def __init__(self, predictor: Predicts, batching: Batching, metrics: Metrics) -> None:
        self.facts = Facts(
            version=predictor.version,
            cut=to_us(predictor.cut),
            data_through=to_us(predictor.data_through),
            currency=predictor.currency,
            horizons=tuple(predictor.horizons),
            clock=predictor.clock,
        )
        self._predictor, self._metrics = predictor, metrics
        self._batcher = Batcher(predictor.predict, replace(batching, longest=predictor.max_tokens), metrics)

    def check(self, as_of: int, data_through: int) -> None:
        self._predictor.check_origin(as_of, data_through)

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        scores = await self._batcher.score(histories, as_of, horizons)
        self._metrics.scored(scores)
        return scores

    def warm_up(self) -> None:
        """One small prediction: no caller pays for first-call costs, and a bundle that cannot score is found now."""
        scores = self._predictor.predict(warm_up_histories(self.facts), self.facts.cut, self.facts.horizons)
        if not len(scores):
            raise ValueError(f"bundle {self.facts.version} scored nobody of the warm-up: it cannot be served")


class LiveBackend:
    """A `Backend` whose bundle can be replaced while it serves: running requests end on the old one."""

    def __init__(
        self, store: Store | None = None, batching: Batching | None = None, metrics: Metrics | None = None
    ) -> None:
        self.store = store
        self.batching = batching or Batching()
        self.metrics = metrics or Metrics()
        self._scorer: BatchedScorer | None = None

    def install(self, predictor: Predicts) -> None:
        """Warm the predictor up, then put it in service; raises what it raises, the old one then stays."""
        scorer = BatchedScorer(predictor, self.batching, self.metrics)
        scorer.warm_up()
        self._scorer = scorer
        self.metrics.in_service(scorer.facts.version, predictor.cut)
        LOG.info("bundle %s is in service", scorer.facts.version)

    async def follow(self, pointed: Callable[[], str], load: Callable[[str], Predicts], every_s: float) -> None:
        """Install what `pointed()` names whenever it changes; a bundle that fails is logged and not tried again."""
        tried = self._scorer.facts.version if self._scorer else None
        while True:
            await asyncio.sleep(every_s)
            try:
                version = await asyncio.to_thread(pointed)
                if version != tried:
                    tried = version
                    predictor = await asyncio.to_thread(load, version)
                    await asyncio.to_thread(self.install, predictor)
            except Exception:
                LOG.exception("cannot follow the production pointer, still serving the bundle from before")

    def scorer(self) -> BatchedScorer:
        if self._scorer is None:
            raise NotReady
        return self._scorer

    def stored(self, customer_ids: Sequence[str]) -> pa.Table:
        return histories.HISTORIES.empty_table() if self.store is None else self.store.get(customer_ids)

    def count(self) -> int | None:
        return None if self.store is None else self.store.count()

    def data_through(self) -> int | None:
        return None if self.store is None else self.store.data_through()


def to_us(time: datetime) -> int:
    """Microseconds UTC of an aware datetime."""
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone")
    return int(np.datetime64(round(time.timestamp() * 1_000_000), "us").astype(np.int64))


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
