"""Metrics of predictive distributions: CRPS, pinball loss, and coverage and width of the 80 % interval.

Where 65 to 95 % of the customers spend nothing, a central interval always covers too many, so coverage is measured by
the randomised PIT (`clv.forecast.distributions.pit`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from clv.forecast.distributions import Array, Quantiles, actual_values, pit


def pinball(y: ArrayLike, quantile: ArrayLike, level: float) -> Array:
    """(n,) pinball loss of one quantile, currency (Koenker and Bassett 1978)."""
    error = np.asarray(y, float) - np.asarray(quantile, float)
    return np.asarray(np.maximum(level * error, (level - 1) * error), float)


def crps(y: ArrayLike, quantiles: Quantiles) -> Array:
    """(n,) continuous ranked probability score, currency: twice the pinball loss integrated over the levels.

    Source: Laio and Tamea 2007, eq. 7. It is the absolute error for a point forecast; y below zero counts as zero.
    """
    error = actual_values(y, quantiles)[:, None] - quantiles.values
    loss = np.where(error >= 0, quantiles.levels, quantiles.levels - 1) * error
    return np.asarray(2 * loss @ quantiles.weights(), float)


def pit80(u: ArrayLike) -> float:
    """Coverage of the 80 % interval by the randomised PIT: share of PIT values in [.1, .9]."""
    values = np.asarray(u, float)
    return float(np.mean((values >= 0.1) & (values <= 0.9))) if len(values) else float("nan")


def coverage_and_width(y: ArrayLike, quantiles: Quantiles, level: float = 0.8) -> tuple[float, float]:
    """Share of y inside the central interval of that level, and its mean width in currency; NaN without customers."""
    real = actual_values(y, quantiles)
    low, high = quantiles.quantile([(1 - level) / 2, (1 + level) / 2]).T
    if not len(real):
        return float("nan"), float("nan")
    return float(np.mean((real >= low) & (real <= high))), float(np.mean(high - low))


def by_cell(y: ArrayLike, quantiles: Quantiles, cell: ArrayLike, seed: int = 0) -> dict[str, dict[str, float]]:
    """Per cell label: customers, and pit80, plain coverage and mean width (currency) of the 80 % interval."""
    real, labels = np.asarray(y, float), np.asarray(cell)
    u = pit(real, quantiles, seed)
    out = {}
    for label in np.unique(labels):
        rows = labels == label
        covered, width = coverage_and_width(real[rows], quantiles.take(rows))
        out[str(label)] = {"customers": float(rows.sum()), "pit80": pit80(u[rows]), "coverage": covered, "width": width}
    return out
