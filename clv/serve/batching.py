"""Concurrent requests of one replica share predictor calls; the event loop never waits for arithmetic."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

Score = Callable[[pa.Table, int, tuple[int, ...]], pa.Table]


class Overloaded(Exception):
    """More customers wait than the replica may queue; the caller should come back after `retry_after_s`."""

    def __init__(self, retry_after_s: int = 1) -> None:
        super().__init__(f"too many customers are waiting, retry after {retry_after_s} s")
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, kw_only=True)
class Batching:
    """`wait_s` is paid only by the first request of an idle replica; while a call runs, the next batch gathers."""

    wait_s: float = 0.002
    max_customers: int = 4_096
    max_waiting: int = 20_000

    def __post_init__(self) -> None:
        if self.wait_s < 0 or self.max_customers < 1 or self.max_waiting < 1:
            raise ValueError(f"wait_s must be >= 0, max_customers and max_waiting >= 1, got {self}")


@dataclass
class _Entry:
    histories: pa.Table
    key: tuple[int, tuple[int, ...]]
    result: asyncio.Future[pa.Table] = field(repr=False)


class Batcher:
    """Calls `score(histories, as_of, horizons)` in one thread, on the joined histories of waiting requests.

    Requests of different `as_of` or horizons are never joined. `observe` gets the number of customers of each call.
    """

    def __init__(
        self, score: Score, options: Batching, observe: Callable[[int], None] = lambda customers: None
    ) -> None:
        self.options = options
        self._score = score
        self._observe = observe
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clv-score")
        self._waiting: deque[_Entry] = deque()
        self._num_waiting = 0
        self._worker: asyncio.Task[None] | None = None

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        """SCORES of the histories; raises Overloaded when the queue is full. Cancelling withdraws the request."""
        if self._num_waiting and self._num_waiting + len(histories) > self.options.max_waiting:
            raise Overloaded
        entry = _Entry(histories, (as_of, horizons), asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._num_waiting += len(histories)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await entry.result

    def close(self) -> None:
        """Let the running call end and accept no more."""
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        await asyncio.sleep(self.options.wait_s)
        while batch := self._next_batch():
            await self._run(batch)

    def _next_batch(self) -> list[_Entry]:
        batch: list[_Entry] = []
        later: deque[_Entry] = deque()
        size = 0
        while self._waiting:
            entry = self._waiting.popleft()
            if entry.result.done():
                self._num_waiting -= len(entry.histories)
            elif not batch or (entry.key == batch[0].key and size + len(entry.histories) <= self.options.max_customers):
                batch.append(entry)
                size += len(entry.histories)
            else:
                later.append(entry)
        self._waiting = later
        self._num_waiting -= size
        return batch

    async def _run(self, batch: list[_Entry]) -> None:
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

    def _call(self, batch: list[_Entry]) -> list[pa.Table]:
        sizes = [len(entry.histories) for entry in batch]
        self._observe(sum(sizes))
        histories = pa.concat_tables([entry.histories for entry in batch], promote_options="default").combine_chunks()
        ids = histories["customer_id"]
        # Two requests may bring the same customer with different histories: within the call, a row's number is its id.
        numbers = pa.array(np.char.zfill(np.arange(len(histories)).astype(str), 9))
        where = histories.schema.get_field_index("customer_id")
        scores = self._score(histories.set_column(where, "customer_id", numbers), *batch[0].key)
        row: Any = scores["customer_id"].to_numpy(zero_copy_only=False).astype(np.int64)
        order = np.lexsort((scores["horizon_days"].to_numpy(), row))
        row, scores = row[order], scores.take(pa.array(order))
        scores = scores.set_column(scores.schema.get_field_index("customer_id"), "customer_id", ids.take(pa.array(row)))
        bounds = np.searchsorted(row, np.append(0, np.cumsum(sizes)))
        return [scores.slice(start, stop - start) for start, stop in pairwise(bounds)]
