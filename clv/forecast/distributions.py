"""What any model says about n customers and one horizon: a value, a purchase probability, a predictive distribution."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]

# Dense enough for CRPS, with exact .1, .5, .9 and a tail: with 65-95 % zeros the upper levels carry all the money.
LEVELS: Array = np.concatenate([[0.005], np.arange(1, 100) / 100, [0.995, 0.999]])


@dataclass(frozen=True, kw_only=True)
class Quantiles:
    """A predictive distribution per customer of a value floored at zero, as a table of quantiles.

    levels (Q,) ascending inside (0, 1); values (n, Q) in shop currency, non-negative and non-decreasing along a row;
    p_zero (n,) is the exact mass at zero, read off the table where it is not given. Between levels the quantile
    function is linear; beyond the last level only the probability is known, not the value.
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
        """(Q,) share of the unit interval that each level stands for; they sum to 1 (midpoint rule)."""
        edges = np.concatenate([[0.0], (self.levels[1:] + self.levels[:-1]) / 2, [1.0]])
        return np.diff(edges)

    def at(self, level: ArrayLike) -> Array:
        """Quantiles at a level: a scalar, (m,) for every row, or (n, m); returns (n, m). Beyond the table: its ends."""
        want = np.broadcast_to(np.atleast_1d(np.asarray(level, float)), (len(self), np.atleast_2d(level).shape[-1]))
        right = np.clip(np.searchsorted(self.levels, want), 0, len(self.levels) - 1)
        left = np.maximum(right - 1, 0)
        v_lo = np.where(right > 0, np.take_along_axis(self.values, left, 1), 0.0)
        v_hi = np.take_along_axis(self.values, right, 1)
        lo, hi = np.where(right > 0, self.levels[left], 0.0), self.levels[right]
        # The zero mass ends inside a cell: start the ramp there, not at the grid point below it.
        lo = np.minimum(np.where(v_lo <= 0, np.maximum(lo, self.p_zero[:, None]), lo), hi)
        share = np.divide(want - lo, hi - lo, out=np.ones_like(want), where=hi > lo)
        return np.where(want <= self.p_zero[:, None], 0.0, v_lo + np.clip(share, 0, 1) * (v_hi - v_lo))

    def mean(self) -> Array:
        """(n,) mean of the table, currency; what lies beyond the last level counts at the last value."""
        return self.values @ self.weights()

    def variance(self) -> Array:
        """(n,) variance of the table, currency squared; same cut of the tail as `mean`."""
        return np.maximum(self.values**2 @ self.weights() - self.mean() ** 2, 0.0)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Quantiles:
        """The distributions of some customers."""
        return Quantiles(self.levels, self.values[rows], self.p_zero[rows])


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """value (n,) expected spend in the horizon, shop currency; p_purchase (n,) and quantiles if the model has them.

    For sums of customers (`clv.forecast.portfolio`): `factor_error`, the log standard deviation of the level that all
    share, and `sum_spread`, realised over predicted variance of sums.
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
        if self.p_purchase is not None and not (
            self.p_purchase.shape == (n,) and np.all((self.p_purchase >= 0) & (self.p_purchase <= 1))
        ):
            raise ValueError(
                f"p_purchase must hold {n} probabilities, got shape {self.p_purchase.shape} or values outside 0..1"
            )
        if self.quantiles is not None and len(self.quantiles) != n:
            raise ValueError(f"{len(self.quantiles)} rows of quantiles for {n} predicted values")

    def __len__(self) -> int:
        return len(self.value)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Prediction:
        """The predictions of some customers."""
        return replace(
            self,
            value=self.value[rows],
            p_purchase=None if self.p_purchase is None else self.p_purchase[rows],
            quantiles=None if self.quantiles is None else self.quantiles.take(rows),
        )


def hurdle_lognormal(p_purchase: ArrayLike, mu: ArrayLike, sigma: ArrayLike, levels: Array = LEVELS) -> Quantiles:
    """Quantiles of: zero with probability 1 - p, else lognormal(mu, sigma) (Wang et al. 2019, sec. 3). Inputs (n,)."""
    p = np.asarray(p_purchase, float)[:, None]
    inner = np.divide(levels[None, :] - (1 - p), p, out=np.zeros((len(p), len(levels))), where=p > 0)
    inside = inner > 0
    z = ndtri(np.clip(np.where(inside, inner, 0.5), 1e-12, 1 - 1e-12))
    log_value = np.asarray(mu, float)[:, None] + np.asarray(sigma, float).reshape(-1, 1) * z
    return Quantiles(levels, np.where(inside, np.exp(log_value), 0.0), 1 - p[:, 0])


def realised_values(y: ArrayLike, quantiles: Quantiles) -> Array:
    out: Array = np.maximum(np.asarray(y, float), 0.0)
    if out.shape != (len(quantiles),):
        raise ValueError(f"{out.shape} realised values for {len(quantiles)} predictive distributions")
    return out


def pit(y: ArrayLike, quantiles: Quantiles, seed: int = 0) -> Array:
    """(n,) randomised probability integral transform F(y-) + V (F(y) - F(y-)), V uniform and seeded (Smith 1985).

    Uniform on (0, 1) for a calibrated model, point mass at zero or not. Above the last level V spreads the rest.
    """
    real = realised_values(y, quantiles)
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
