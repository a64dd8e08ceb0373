"""Metrics of predictive distributions: CRPS, pinball, randomised PIT, coverage and width.

With 65 to 95 % zeros a central interval always over-covers, so calibration is judged by the randomised PIT.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from clv.evaluate.prediction import Array, Quantiles


def _realised(y: ArrayLike, quantiles: Quantiles) -> Array:
    out: Array = np.maximum(np.asarray(y, float), 0.0)
    if out.shape != (len(quantiles),):
        raise ValueError(f"{out.shape} realised values for {len(quantiles)} predictive distributions")
    return out


def pinball(y: ArrayLike, quantile: ArrayLike, level: float) -> Array:
    """(n,) pinball loss of one quantile, currency (Koenker and Bassett 1978)."""
    error = np.asarray(y, float) - np.asarray(quantile, float)
    return np.asarray(np.maximum(level * error, (level - 1) * error), float)


def crps(y: ArrayLike, quantiles: Quantiles) -> Array:
    """(n,) continuous ranked probability score, currency: twice the pinball loss integrated over the levels.

    Laio and Tamea 2007, eq. 7. Equals the absolute error for a point forecast. y below zero counts as zero.
    """
    error = _realised(y, quantiles)[:, None] - quantiles.values
    loss = np.where(error >= 0, quantiles.levels, quantiles.levels - 1) * error
    return np.asarray(2 * loss @ quantiles.weights(), float)


def pit(y: ArrayLike, quantiles: Quantiles, seed: int = 0) -> Array:
    """(n,) randomised probability integral transform F(y-) + V (F(y) - F(y-)), V uniform and seeded (Smith 1985).

    Uniform on (0, 1) for a calibrated model, point mass at zero or not. Above the last level V spreads the rest.
    """
    real = _realised(y, quantiles)
    v = np.random.default_rng(seed).random(len(real))
    levels, values, mass = quantiles.levels, quantiles.values, quantiles.p_zero
    last = len(levels) - 1
    below = (values < real[:, None]).sum(axis=1)  # (n,) nodes strictly under y
    upto = (values <= real[:, None]).sum(axis=1)
    rows = np.arange(len(real))
    hi, lo = np.minimum(below, last), np.maximum(below - 1, 0)
    v_lo = np.where(below > 0, values[rows, lo], 0.0)
    f_lo = np.where(below > 0, levels[lo], 0.0)
    f_lo = np.where(v_lo <= 0, np.maximum(f_lo, mass), f_lo)
    v_hi, f_hi = values[rows, hi], np.maximum(levels[hi], f_lo)
    share = np.divide(real - v_lo, v_hi - v_lo, out=np.zeros_like(real), where=v_hi > v_lo)
    between = f_lo + np.clip(share, 0, 1) * (f_hi - f_lo)
    # A value that several nodes share is an atom from the first of them to the last.
    first, end = levels[hi], levels[np.maximum(upto - 1, hi)]
    atom = first + v * (end - first)
    out = np.where(upto > below, atom, between)
    top = np.maximum(levels[last], mass)
    out = np.where(below > last, top + v * (1 - top), out)
    return np.asarray(np.where(real <= 0, v * mass, out), float)


def pit80(u: ArrayLike) -> float:
    """Share of PIT values in [.1, .9]: .8 when calibrated, more when the bands are too wide."""
    values = np.asarray(u, float)
    return float(np.mean((values >= 0.1) & (values <= 0.9))) if len(values) else float("nan")


def coverage_and_width(y: ArrayLike, quantiles: Quantiles, level: float = 0.8) -> tuple[float, float]:
    """Share of y inside the central interval, and its mean width in currency."""
    real = _realised(y, quantiles)
    low, high = quantiles.at([(1 - level) / 2, (1 + level) / 2]).T
    if not len(real):
        return float("nan"), float("nan")
    return float(np.mean((real >= low) & (real <= high))), float(np.mean(high - low))


def by_cell(y: ArrayLike, quantiles: Quantiles, cell: ArrayLike, seed: int = 0) -> dict[str, dict[str, float]]:
    """Per cell label (such as age x frequency): customers, pit80, coverage and mean width of the 80 % interval."""
    real, labels = np.asarray(y, float), np.asarray(cell)
    u = pit(real, quantiles, seed)
    out = {}
    for label in np.unique(labels):
        rows = labels == label
        covered, width = coverage_and_width(real[rows], quantiles.take(rows))
        out[str(label)] = {"customers": float(rows.sum()), "pit80": pit80(u[rows]), "coverage": covered, "width": width}
    return out
