"""Batching: concurrent requests of one replica share calls of the predictor, which run in a thread of their own."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from clv.data.histories import concat
from clv.serve.http.metrics import Metrics

ScoreFunction = Callable[[pa.Table, int, tuple[int, ...]], pa.Table]
# Weight of earlier calls, after each new one, in the pace from which waiting times are estimated.
DECAY = 0.8


class Overloaded(Exception):
    """The replica would answer too late; the caller should retry after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: int = 1) -> None:
        super().__init__(f"too many customers are waiting, retry after {retry_after_s} s")
        self.retry_after_s = retry_after_s


# Histories that the predictor pads to one length, in order of length.
PADDED_ROWS = 512


class Batching(BaseModel):
    """How requests are joined into calls of the predictor; `args.batching` of the application in a Serve file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wait_s: float = Field(0.002, ge=0, le=1, description="Seconds that the first request of an idle replica waits.")
    max_customers: int = Field(1_024, ge=1, description="Customers of a call.")
    max_tokens: int = Field(
        32_768,
        ge=1,
        description="Customers times the longest history of a call, which is what the network computes, padding "
        "included; one request alone may exceed it.",
    )
    max_waiting: int = Field(20_000, ge=1, description="Customers that wait in a replica; more are refused with 429.")
    max_wait_s: float = Field(
        30.0,
        gt=0,
        description="A request that would wait longer at the present pace is refused with 429; at most deadline_s.",
    )


@dataclass
class _PendingRequest:
    histories: pa.Table
    key: tuple[int, tuple[int, ...]]
    lengths: NDArray[np.int64]  # tokens that the predictor computes, by customer
    result: asyncio.Future[pa.Table] = field(repr=False)
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Calls `score(histories, as_of, horizons)` in one thread, on the joined histories of waiting requests.

    Requests of different `as_of` or horizons are never joined. Batchers may share a thread: they then take turns.
    max_length: newest tokens of a history that the predictor computes.
    """

    def __init__(
        self,
        score: ScoreFunction,
        options: Batching,
        metrics: Metrics | None = None,
        thread: ThreadPoolExecutor | None = None,
        max_length: int = 512,
    ) -> None:
        self.options, self.max_length = options, max_length
        self._score = score
        self._metrics = metrics or Metrics()
        self._thread = thread or scoring_thread()
        self._waiting: deque[_PendingRequest] = deque()
        self._num_waiting = 0
        self._tokens_waiting = 0
        self._shortest_call_s = math.inf  # seconds of the shortest call: what a call costs whatever it holds
        self._seconds = self._tokens = 0.0  # of the latest calls, beyond that
        self._worker: asyncio.Task[None] | None = None
        self._began: float | None = None  # when the running call did

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        """Returns SCORES of the histories; raises Overloaded for a too long wait. Cancelling withdraws the request."""
        self._check_capacity(len(histories))
        lengths = pc.list_value_length(histories["time"]).to_numpy().astype(np.int64)
        lengths = np.clip(lengths, 1, self.max_length)
        entry = _PendingRequest(histories, (as_of, horizons), lengths, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._count(len(lengths), int(lengths.sum()))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await entry.result

    async def run_alone(self, call: Callable[[], pa.Table], histories: pa.Table) -> pa.Table:
        """Returns the result of `call`, run in this batcher's thread; raises Overloaded as `score` does."""
        self._check_capacity(len(histories))
        tokens = int(pc.sum(pc.list_value_length(histories["time"])).as_py() or 0)
        self._count(len(histories), tokens)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        finally:
            self._count(-len(histories), -tokens)

    def busy_s(self) -> float:
        """Returns the seconds since the running call began; 0 without one."""
        began = self._began
        return time.perf_counter() - began if began is not None else 0.0

    def _check_capacity(self, customers: int) -> None:
        wait_s = self._tokens_waiting * self._seconds / self._tokens if self._tokens else 0.0
        full = self._num_waiting and self._num_waiting + customers > self.options.max_waiting
        if full or wait_s > self.options.max_wait_s:
            raise Overloaded(max(1, math.ceil(min(wait_s, self.options.max_wait_s) / 2)))

    def _count(self, customers: int, tokens: int) -> None:
        self._num_waiting += customers
        self._tokens_waiting += tokens
        self._metrics.waiting.inc(customers)

    async def _work(self) -> None:
        await asyncio.sleep(self.options.wait_s)
        while batch := self._next_batch():
            await self._run(batch)

    def _next_batch(self) -> list[_PendingRequest]:
        """Removes and returns the oldest request and, in order, the requests that can share its call."""
        batch: list[_PendingRequest] = []
        later: deque[_PendingRequest] = deque()
        customers = longest = 0
        while self._waiting:
            entry = self._waiting.popleft()
            if entry.result.done():
                self._count(-len(entry.lengths), -int(entry.lengths.sum()))
                continue
            together = customers + len(entry.lengths)
            width = max(longest, int(entry.lengths.max(initial=1)))
            fits = together <= self.options.max_customers and together * width <= self.options.max_tokens
            if batch and not (entry.key == batch[0].key and fits):
                later.append(entry)
            else:
                batch.append(entry)
                customers, longest = together, width
        self._waiting = later
        now = time.perf_counter()
        for entry in batch:
            self._count(-len(entry.lengths), -int(entry.lengths.sum()))
            self._metrics.queued.observe(now - entry.since)
        return batch

    async def _run(self, batch: list[_PendingRequest]) -> None:
        try:
            tables = await asyncio.get_running_loop().run_in_executor(self._thread, self._call, batch)
        except Exception as error:
            if len(batch) > 1:  # one request's history must not fail its neighbours
                for entry in batch:
                    await self._run([entry])
            elif not batch[0].result.done():
                batch[0].result.set_exception(error)
            return
        for entry, table in zip(batch, tables, strict=True):
            if not entry.result.done():
                entry.result.set_result(table)

    def _call(self, batch: list[_PendingRequest]) -> list[pa.Table]:
        sizes = [len(entry.histories) for entry in batch]
        histories = concat([entry.histories for entry in batch])
        ids = histories["customer_id"]
        # Two requests may hold different histories of one customer: within the call, a row's number is its id.
        numbers = pa.array(np.char.zfill(np.arange(len(histories)).astype(str), 9))
        where = histories.schema.get_field_index("customer_id")
        self._began = began = time.perf_counter()
        try:
            scores = self._score(histories.set_column(where, "customer_id", numbers), *batch[0].key)
        finally:
            self._began = None
        self._observe(np.concatenate([entry.lengths for entry in batch]), time.perf_counter() - began)
        row: Any = scores["customer_id"].to_numpy(zero_copy_only=False).astype(np.int64)
        order = np.lexsort((scores["horizon_days"].to_numpy(), row))
        row, scores = row[order], scores.take(pa.array(order))
        scores = scores.set_column(scores.schema.get_field_index("customer_id"), "customer_id", ids.take(pa.array(row)))
        bounds = np.searchsorted(row, np.append(0, np.cumsum(sizes)))
        return [scores.slice(start, stop - start) for start, stop in pairwise(bounds)]

    def _observe(self, lengths: NDArray[np.int64], seconds: float) -> None:
        real = int(lengths.sum())
        self._metrics.observe_batch(len(lengths), real, padded_tokens(lengths, PADDED_ROWS), seconds)
        self._shortest_call_s = min(self._shortest_call_s, seconds)
        self._seconds = DECAY * self._seconds + seconds - self._shortest_call_s
        self._tokens = DECAY * self._tokens + real


def scoring_thread() -> ThreadPoolExecutor:
    """Returns the executor, of one thread, in which the predictor runs."""
    return ThreadPoolExecutor(1, thread_name_prefix="clv-score")


def padded_tokens(lengths: NDArray[np.int64], rows: int) -> int:
    """Returns the tokens computed for histories of these lengths, sorted and padded to the longest of each `rows`."""
    ordered = np.sort(lengths)
    starts = np.arange(0, len(ordered), rows)
    ends = np.minimum(starts + rows, len(ordered))
    return int(((ends - starts) * ordered[ends - 1]).sum())
