"""Maximum likelihood of the BTYD models: checked and grouped purchase histories, the maximiser, standard errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

Floats = NDArray[np.float64]
Loss = Callable[[Floats], tuple[float, Floats]]

_HESSIAN_STEP = 1e-4  # in log parameters; differences of an analytic gradient, so errors stay near 1e-8


@dataclass(frozen=True)
class PurchaseHistories:
    """Distinct (x, t_x, T) rows with their counts, and the distinct x, on which special functions are evaluated."""

    x: Floats  # (G,) repeat purchases
    t_x: Floats  # (G,) days from the first to the last purchase
    T: Floats  # (G,) days from the first purchase to the origin
    weight: Floats  # (G,) customers
    distinct: Floats  # (X,) distinct x
    x_index: NDArray[np.int64]  # (G,) index of each row's x in `distinct`


def group_histories(
    frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, weights: ArrayLike | None = None
) -> PurchaseHistories:
    """Check the rows of a purchase model and add up the weights of equal rows.

    Raises ValueError for weights that do not fit, and for the first row that is no history: a value that is negative or
    not finite, t_x > T, or t_x > 0 without a repeat purchase.
    """
    x, t_x, t = check_histories(frequency, recency, T)
    weight = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    if len(weight) != len(x):
        raise ValueError(f"weights has {len(weight)} rows, frequency {len(x)}: pass one weight per row")
    if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.sum() > 0):
        raise ValueError("weights must be finite, not negative and not all zero")
    order = np.lexsort((t, t_x, x))
    x, t_x, t, weight = x[order], t_x[order], t[order], weight[order]
    new = np.append(True, (np.diff(x) != 0) | (np.diff(t_x) != 0) | (np.diff(t) != 0))
    start = np.flatnonzero(new)
    distinct, x_index = np.unique(x[start], return_inverse=True)
    return PurchaseHistories(x[start], t_x[start], t[start], np.add.reduceat(weight, start), distinct, x_index)


def check_histories(frequency: ArrayLike, recency: ArrayLike, T: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """(x, t_x, T) as float64 of one common shape (N,); ValueError names the first row that is no history."""
    x, t_x, t = np.broadcast_arrays(*(np.atleast_1d(np.asarray(a, np.float64)) for a in (frequency, recency, T)))
    if x.size == 0:
        raise ValueError("no rows: the purchase model needs at least one customer with a purchase")
    with np.errstate(invalid="ignore"):
        bad = ~((x >= 0) & (t_x >= 0) & (t_x <= t) & np.isfinite(x + t) & ((x > 0) | (t_x == 0)))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise ValueError(
            f"row {i} is no purchase history: frequency {x[i]:g}, recency {t_x[i]:g}, T {t[i]:g}; "
            "needed are 0 <= recency <= T, all finite, and recency 0 where frequency is 0"
        )
    return x, t_x, t


@dataclass(frozen=True)
class Maximum:
    """The best point (log parameters), its log-likelihood and standard errors, NaN on a flat ridge or a bound."""

    theta: Floats
    log_likelihood: float
    stderr: Floats


def maximise(loss: Loss, starts: Sequence[ArrayLike], bounds: Sequence[tuple[float, float]]) -> Maximum:
    """The best result of L-BFGS-B from every start; `loss` returns the negative log-likelihood and its gradient."""
    low, high = np.array(bounds, np.float64).T
    options = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-6}
    found = [
        minimize(loss, np.clip(start, low, high), jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        for start in starts
    ]
    best = min(found, key=lambda result: result.fun)
    return Maximum(best.x, -float(best.fun), _stderr(loss, best.x, low, high))


def _stderr(loss: Loss, theta: Floats, low: Floats, high: Floats) -> Floats:
    """Standard errors of the parameters inside their bounds; those on a bound are held fixed and get NaN."""
    stderr = np.full(len(theta), np.nan)
    free = np.flatnonzero((theta > low + 2 * _HESSIAN_STEP) & (theta < high - 2 * _HESSIAN_STEP))
    if len(free) == 0:
        return stderr
    steps = np.eye(len(theta))[free] * _HESSIAN_STEP
    rows = [(loss(theta + step)[1] - loss(theta - step)[1])[free] / (2 * _HESSIAN_STEP) for step in steps]
    hessian = (np.array(rows) + np.array(rows).T) / 2
    values, vectors = np.linalg.eigh(hessian)
    if values[0] <= 1e-8 * max(values[-1], 1.0):  # a flat ridge: the data do not determine the parameters
        return stderr
    stderr[free] = np.sqrt(((vectors**2) / values).sum(axis=1))
    return stderr
