"""Candidate bundles beside the one in service: a canary answers requests, a shadow only computes and is compared."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from clv.serve.scoring.batching import Overloaded
from clv.serve.scoring.protocol import Scorer

LOG = logging.getLogger(__name__)

# Shadow predictions that may run at once in a replica; further requests are answered and not compared.
MAX_SHADOWS = 2
# Bin edges of the histogram of value(candidate) / value(current).
RATIOS = (0.5, 0.75, 0.9, 0.95, 0.99, 1.01, 1.05, 1.1, 1.25, 2.0)


class CanaryScorer:
    """Scores one request with the candidate; where the candidate fails, the bundle in service answers."""

    def __init__(self, candidate: Scorer, current: Scorer) -> None:
        self._candidate, self._current = candidate, current
        self.facts = candidate.facts

    def check(self, as_of: int, data_through: int) -> None:
        self._candidate.check(as_of, data_through)

    async def score(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        return await self._with_fallback(lambda scorer: scorer.score(histories, as_of, horizons))

    async def portfolio(self, histories: pa.Table, as_of: int, horizons: tuple[int, ...]) -> pa.Table:
        return await self._with_fallback(lambda scorer: scorer.portfolio(histories, as_of, horizons))

    async def _with_fallback(self, call: Callable[[Scorer], Awaitable[pa.Table]]) -> pa.Table:
        try:
            return await call(self._candidate)
        except Overloaded:
            raise
        except Exception:
            LOG.exception("the canary %s failed; %s answers instead", self.facts.version, self._current.facts.version)
        self.facts = self._current.facts
        return await call(self._current)


class ShadowScorer:
    """Scores one request with the bundle in service; the candidate scores it afterwards, for the comparison."""

    def __init__(self, candidate: Scorer, current: Scorer, comparison: ShadowComparison) -> None:
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
    """Compares two bundles on the same histories, by sums per horizon that can be added over replicas."""

    def __init__(self) -> None:
        self.running: set[asyncio.Task[None]] = set()
        self.skipped = 0
        self._sums: dict[int, dict[str, Any]] = {}

    def add(self, current: pa.Table, candidate: pa.Table) -> None:
        """Adds SCORES of the same customers and horizons in the same order; raises ValueError when they differ."""
        if candidate.select(["customer_id", "horizon_days"]) != current.select(["customer_id", "horizon_days"]):
            raise ValueError(f"the candidate scored other customers: {len(candidate)} rows instead of {len(current)}")
        horizon = current["horizon_days"].to_numpy()
        value, other = (np.nan_to_num(table["value_mean"].to_numpy()) for table in (current, candidate))
        p, p_other = (table["p_purchase"].to_numpy() for table in (current, candidate))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(value == other, 1.0, other / value)
        x, y = np.log1p(value), np.log1p(np.maximum(other, 0))
        for days in np.unique(horizon):
            rows = horizon == days
            sums = {
                "customers": int(rows.sum()),
                "value": float(value[rows].sum()),
                "value_candidate": float(other[rows].sum()),
                "p_difference": float(np.abs(p - p_other)[rows].sum()),
                "log": [float((x[rows] ** i * y[rows] ** j).sum()) for i, j in _MOMENTS],
                "ratios": np.bincount(np.searchsorted(RATIOS, ratio[rows]), minlength=len(RATIOS) + 1).tolist(),
            }
            self._sums[int(days)] = _add_sums([self._sums[int(days)], sums]) if int(days) in self._sums else sums

    def to_json(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "horizons": {str(days): sums for days, sums in self._sums.items()}}


# Exponents (i, j) of the sums of log(1 + current)^i * log(1 + candidate)^j, from which the correlation follows.
_MOMENTS = ((0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1))


def shadow_report(comparisons: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per horizon, over the `ShadowComparison.to_json` of all replicas: ratio of totals, correlation of
    log(1 + value), mean absolute difference of the purchase probability, and the shares of customers whose value
    differs by more than 5 and 25 %."""
    by_days: dict[int, list[dict[str, Any]]] = {}
    for comparison in comparisons:
        for days, sums in comparison["horizons"].items():
            by_days.setdefault(int(days), []).append(sums)
    rows = []
    for days, parts in sorted(by_days.items()):
        sums = _add_sums(parts)
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


def _add_sums(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: np.sum([part[name] for part in parts], axis=0).tolist()
        if isinstance(first, list)
        else sum(part[name] for part in parts)
        for name, first in parts[0].items()
    }
