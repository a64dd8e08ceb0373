"""Predictions of one horizon: expected value, purchase probability and predictive distribution of each customer.

Also the hurdle lognormal distribution and the randomised probability integral transform (PIT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]

# Quantile levels: dense enough for CRPS, with exact .1, .5 and .9, and with a tail. Where 65 to 95 % of the customers
# spend nothing, the upper levels hold all the value.
LEVELS: Array = np.concatenate([[0.005], np.arange(1, 100) / 100, [0.995, 0.999]])
# The quantile levels that score tables report: the bounds of the 80 % interval, and the median between them.
INTERVAL_LEVELS: Array = np.array([0.1, 0.5, 0.9])


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """Predictive distribution of each customer's value (floored at zero), as a table of quantiles.

    levels (Q,) ascend inside (0, 1); values (n, Q) are in shop currency, non-negative and non-decreasing along a row;
    p_zero (n,) is the probability of zero, taken from the table where it is not given. Between levels the quantile
    function is linear; beyond the last level only the probability is known, not the value. Raises ValueError for
    levels, values or probabilities that break these rules.
    """

    levels: Array
    values: Array
    p_zero: Array

    def __init__(self, levels: ArrayLike, values: ArrayLike, p_zero: ArrayLike | None = None) -> None:
        lev, val = np.asarray(levels, float), np.asarray(values, float)
        if lev.ndim != 1 or not len(lev) or np.any(np.diff(lev) <= 0) or lev[0] <= 0 or lev[-1] >= 1:
            raise ValueError(f"quantile levels {lev} must ascend strictly inside (0, 1)")
        if val.ndim != 2 or val.shape[1] != len(lev):
            raise ValueError(f"quantile values have shape {val.shape}; give (customers, {len(lev)} levels)")
        steps = np.diff(val, axis=1, prepend=0.0)
        bad = np.flatnonzero(~np.all(np.isfinite(val) & (steps >= -1e-9 * (1 + np.abs(val))), axis=1))
        if len(bad):
            row, at = val[bad[0]], int(bad[0])
            raise ValueError(f"quantiles must be finite, non-negative and non-decreasing; row {at} is {row}")
        if p_zero is None:
            zero = (val <= 0).sum(axis=1)
            mass = np.where(zero > 0, lev[np.maximum(zero - 1, 0)], 0.0)
        else:
            mass = np.asarray(p_zero, float)
            if mass.shape != (len(val),) or not np.all((mass >= 0) & (mass <= 1)):
                raise ValueError(f"p_zero must hold {len(val)} probabilities, one per row of the quantile table")
            val = np.where(lev[None, :] <= mass[:, None], 0.0, val)
        object.__setattr__(self, "levels", lev)
        object.__setattr__(self, "values", val)
        object.__setattr__(self, "p_zero", mass)

    def __len__(self) -> int:
        return len(self.values)

    def weights(self) -> Array:
        """(Q,) width of the part of the unit interval that each level represents (midpoint rule); the sum is 1."""
        edges = np.concatenate([[0.0], (self.levels[1:] + self.levels[:-1]) / 2, [1.0]])
        return np.diff(edges)

    def quantile(self, level: ArrayLike) -> Array:
        """(n, m) quantiles, currency, at a scalar level, at (m,) levels of every row, or at (n, m) levels.

        Levels outside the table get its first or last quantile.
        """
        want = np.broadcast_to(np.atleast_1d(np.asarray(level, float)), (len(self), np.atleast_2d(level).shape[-1]))
        right = np.clip(np.searchsorted(self.levels, want), 0, len(self.levels) - 1)
        left = np.maximum(right - 1, 0)
        v_lo = np.where(right > 0, np.take_along_axis(self.values, left, 1), 0.0)
        v_hi = np.take_along_axis(self.values, right, 1)
        lo, hi = np.where(right > 0, self.levels[left], 0.0), self.levels[right]
        # The mass at zero ends between two levels: the linear part starts there, not at the level below.
        lo = np.minimum(np.where(v_lo <= 0, np.maximum(lo, self.p_zero[:, None]), lo), hi)
        share = np.divide(want - lo, hi - lo, out=np.ones_like(want), where=hi > lo)
        return np.where(want <= self.p_zero[:, None], 0.0, v_lo + np.clip(share, 0, 1) * (v_hi - v_lo))

    def mean(self) -> Array:
        """(n,) mean of the table, currency; the tail beyond the last level counts with the last quantile."""
        return self.values @ self.weights()

    def variance(self) -> Array:
        """(n,) variance of the table, currency squared; the tail is cut as in `mean`."""
        return np.maximum(self.values**2 @ self.weights() - self.mean() ** 2, 0.0)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Quantiles:
        """The distributions of the customers selected by index or mask."""
        return Quantiles(self.levels, self.values[rows], self.p_zero[rows])


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predictions of n customers for one horizon.

    value (n,) is the expected spend in the horizon, shop currency; p_purchase (n,) the probability of a purchase, and
    quantiles the distribution of the spend, both None where the model has none. Two numbers describe sums of customers
    (`clv.forecast.portfolio`): `factor_error` is the standard deviation of the log of the seasonal factor, which all
    customers share; `sum_spread` is the actual over the predicted variance of sums. Raises ValueError for values that
    are not finite, probabilities outside 0..1, and unequal lengths.
    """

    value: Array
    p_purchase: Array | None = None
    quantiles: Quantiles | None = None
    factor_error: float = 0.0
    sum_spread: float = 1.0

    def __post_init__(self) -> None:
        n = len(self.value)
        if self.value.ndim != 1 or not np.all(np.isfinite(self.value)):
            bad = int(np.sum(~np.isfinite(self.value)))
            raise ValueError(f"predicted values must be one finite number per customer; {bad} of {n} are not")
        p = self.p_purchase
        if p is not None and not (p.shape == (n,) and np.all((p >= 0) & (p <= 1))):
            raise ValueError(f"p_purchase must hold {n} probabilities, got shape {p.shape} or values outside 0..1")
        if self.quantiles is not None and len(self.quantiles) != n:
            raise ValueError(f"{len(self.quantiles)} rows of quantiles for {n} predicted values")

    def __len__(self) -> int:
        return len(self.value)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Prediction:
        """The predictions of the customers selected by index or mask."""
        return replace(
            self,
            value=self.value[rows],
            p_purchase=None if self.p_purchase is None else self.p_purchase[rows],
            quantiles=None if self.quantiles is None else self.quantiles.take(rows),
        )


def hurdle_lognormal(p_purchase: ArrayLike, mu: ArrayLike, sigma: ArrayLike, levels: Array = LEVELS) -> Quantiles:
    """Quantiles of the zero-inflated lognormal distribution (Wang et al. 2019, sec. 3); parameters are (n,) each.

    The value is zero with probability 1 - p_purchase, and else lognormal with `mu` and `sigma` of the log value.
    """
    p = np.asarray(p_purchase, float)[:, None]
    inner = np.divide(levels[None, :] - (1 - p), p, out=np.zeros((len(p), len(levels))), where=p > 0)
    inside = inner > 0
    z = ndtri(np.clip(np.where(inside, inner, 0.5), 1e-12, 1 - 1e-12))
    log_value = np.asarray(mu, float)[:, None] + np.asarray(sigma, float).reshape(-1, 1) * z
    return Quantiles(levels, np.where(inside, np.exp(log_value), 0.0), 1 - p[:, 0])


def actual_values(y: ArrayLike, quantiles: Quantiles) -> Array:
    """(n,) actual values floored at zero; ValueError unless there is one for each distribution."""
    out: Array = np.maximum(np.asarray(y, float), 0.0)
    if out.shape != (len(quantiles),):
        raise ValueError(f"{out.shape} actual values for {len(quantiles)} predictive distributions")
    return out


def pit(y: ArrayLike, quantiles: Quantiles, seed: int = 0) -> Array:
    """(n,) randomised probability integral transform F(y-) + V (F(y) - F(y-)), V uniform and seeded (Smith 1985).

    It is uniform on (0, 1) for a calibrated model, with or without a mass at zero. Values above the last quantile are
    spread uniformly over the probability that remains there.
    """
    real = actual_values(y, quantiles)
    v = np.random.default_rng(seed).random(len(real))
    levels, values, mass = quantiles.levels, quantiles.values, quantiles.p_zero
    last = len(levels) - 1
    below = (values < real[:, None]).sum(axis=1)  # (n,) number of quantiles below y
    upto = (values <= real[:, None]).sum(axis=1)
    rows = np.arange(len(real))
    hi, lo = np.minimum(below, last), np.maximum(below - 1, 0)
    v_lo = np.where(below > 0, values[rows, lo], 0.0)
    f_lo = np.where(below > 0, levels[lo], 0.0)
    f_lo = np.where(v_lo <= 0, np.maximum(f_lo, mass), f_lo)
    v_hi, f_hi = values[rows, hi], np.maximum(levels[hi], f_lo)
    share = np.divide(real - v_lo, v_hi - v_lo, out=np.zeros_like(real), where=v_hi > v_lo)
    between = f_lo + np.clip(share, 0, 1) * (f_hi - f_lo)
    # A value that several levels share is an atom from the first of these levels to the last.
    first, end = levels[hi], levels[np.maximum(upto - 1, hi)]
    atom = first + v * (end - first)
    out = np.where(upto > below, atom, between)
    top = np.maximum(levels[last], mass)
    out = np.where(below > last, top + v * (1 - top), out)
    return np.asarray(np.where(real <= 0, v * mass, out), float)
