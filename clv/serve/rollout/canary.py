"""A bundle tried beside the one in service: as a canary that answers, or as a shadow that is only compared."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from clv.serve.scoring.batching import Overloaded

if TYPE_CHECKING:
    from clv.serve.scoring.scorer import BatchedScorer

LOG = logging.getLogger(__name__)

# Shadow computations that may run at once in a replica; what comes meanwhile is answered and not compared.
MAX_SHADOWS = 2
# Bounds of candidate / current that are counted.
RATIOS = (0.5, 0.75, 0.9, 0.95, 0.99, 1.01, 1.05, 1.1, 1.25, 2.0)


class Canary:
    """The scorer of one request that the candidate answers; where it fails, the bundle in service does."""

    def __init__(self, candidate: BatchedScorer, current: BatchedScorer) -> None:
        self._candidate, self._current = candidate, current
        self.facts = candidate.facts

    def check(self, as_of: int, data_through: int) -> None:
        self._candidate.check(as_of, data_through)

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        return await self._first_that_can(lambda one: one.score(histories, as_of, horizons))

    async def portfolio(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        return await self._first_that_can(lambda one: one.portfolio(histories, as_of, horizons))

    async def _first_that_can(self, ask: Callable[[BatchedScorer], Awaitable[pa.Table]]) -> pa.Table:
        try:
            return await ask(self._candidate)
        except Overloaded:
            raise
        except Exception:
            LOG.exception("the canary %s failed, %s answers", self.facts.version, self._current.facts.version)
        self.facts = self._current.facts
        return await ask(self._current)


class Shadow:
    """The scorer of one request that the bundle in service answers and the candidate computes too, afterwards."""

    def __init__(self, candidate: BatchedScorer, current: BatchedScorer, comparison: ShadowComparison) -> None:
        self._candidate, self._current, self._comparison = candidate, current, comparison
        self.facts = current.facts

    def check(self, as_of: int, data_through: int) -> None:
        self._current.check(as_of, data_through)

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        scores = await self._current.score(histories, as_of, horizons)
        running = self._comparison.running
        if len(running) < MAX_SHADOWS:
            task = asyncio.create_task(self._compare(histories, as_of, horizons, scores))
            running.add(task)
            task.add_done_callback(running.discard)
        else:
            self._comparison.skipped += 1
        return scores

    async def portfolio(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        return await self._current.portfolio(histories, as_of, horizons)

    async def _compare(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...], current: pa.Table) -> None:
        try:
            self._comparison.add(current, await self._candidate.score(histories, as_of, horizons))
        except Exception:
            LOG.exception("the shadow %s failed", self._candidate.facts.version)


class ShadowComparison:
    """Scores of two bundles for the same histories, as sums per horizon: those of several replicas can be added."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[None]] = set()
        self.skipped = 0
        self._sums: dict[int, dict[str, Any]] = {}

    def add(self, current: pa.Table, candidate: pa.Table) -> None:
        """Both SCORES of the same customers and horizons, in the same order; ValueError when they are not."""
        if candidate.select(["customer_id", "horizon_days"]) != current.select(["customer_id", "horizon_days"]):
            raise ValueError(f"the candidate scored other customers: {len(candidate)} rows, not these {len(current)}")
        horizon = current["horizon_days"].to_numpy()
        value, other = (np.nan_to_num(table["value_mean"].to_numpy()) for table in (current, candidate))
        p, p_other = (table["p_purchase"].to_numpy() for table in (current, candidate))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(value == other, 1.0, other / value)
        x, y = np.log1p(value), np.log1p(np.maximum(other, 0))
        for days in np.unique(horizon):
            at = horizon == days
            found = {
                "customers": int(at.sum()),
                "value": float(value[at].sum()),
                "value_candidate": float(other[at].sum()),
                "p_difference": float(np.abs(p - p_other)[at].sum()),
                "log": [float(v) for v in ((x[at] ** i * y[at] ** j).sum() for i, j in _MOMENTS)],
                "ratios": np.bincount(np.searchsorted(RATIOS, ratio[at]), minlength=len(RATIOS) + 1).tolist(),
            }
            self._sums[int(days)] = _added([self._sums[int(days)], found]) if int(days) in self._sums else found

    def to_json(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "horizons": {str(days): sums for days, sums in self._sums.items()}}


_MOMENTS = ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1))


def report(of_replicas: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per horizon over all replicas' `ShadowComparison.to_json`: totals, correlation of log(1 + value), mean absolute
    difference of the purchase probability, and the share of customers whose value changed by more than 5 and 25 %."""
    by_days: dict[int, list[dict[str, Any]]] = {}
    for one in of_replicas:
        for days, sums in one["horizons"].items():
            by_days.setdefault(int(days), []).append(sums)
    rows = []
    for days, parts in sorted(by_days.items()):
        sums = _added(parts)
        num, counts = sums["customers"], np.array(sums["ratios"])
        n, sx, sy, sxx, syy, sxy = sums["log"]
        spread = np.sqrt(max(n * sxx - sx**2, 0) * max(n * syy - sy**2, 0))
        low, high = np.append(0.0, RATIOS), np.append(RATIOS, np.inf)
        rows.append(
            {
                "horizon_days": days,
                "customers": num,
                "total_candidate_over_current": sums["value_candidate"] / sums["value"] if sums["value"] else None,
                "correlation_log_value": float((n * sxy - sx * sy) / spread) if spread > 0 else None,
                "p_purchase_mean_abs_difference": sums["p_difference"] / num,
                "share_off_by_5_percent": float(counts[(high <= 0.95) | (low >= 1.05)].sum() / num),
                "share_off_by_25_percent": float(counts[(high <= 0.75) | (low >= 1.25)].sum() / num),
            }
        )
    return rows


def _added(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: np.sum([part[name] for part in parts], axis=0).tolist()
        if isinstance(first, list)
        else sum(part[name] for part in parts)
        for name, first in parts[0].items()
    }
