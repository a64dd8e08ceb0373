"""Calibration on held-out customers: purchase probabilities, value distributions, and intervals of sums.

A calibration is fitted on one fully observed origin that training did not use, stored as JSON and applied to later
predictions. All its parameters are shrunk, so that few customers hardly change the predictions. The distribution is
calibrated in two parts, so that the mass at zero stays 1 - p_purchase: Platt scaling of the probability, and a monotone
remap of the quantile levels of buyers' value.

Calibration keeps the predicted number of buyers and the predicted total value: the seasonal factor, which has learned
from this origin too, corrects totals. Otherwise the best season of a year would widen the intervals of the next season,
and the mean of a distribution would differ from the predicted value.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit

from clv.forecast import portfolio
from clv.forecast.distributions import Array, Prediction, Quantiles, pit

GRID: Array = np.linspace(0, 1, 51)  # quantile levels at which the remap of buyers' value is stored
AGE_EDGES = (90.0, 365.0)  # days since the first purchase
FREQUENCY_EDGES = (1.0, 3.0)  # repeat purchase days
_CELLS = {"format": 2, "age_edges": list(AGE_EDGES), "frequency_edges": list(FREQUENCY_EDGES)}
NUM_CELLS = (len(AGE_EDGES) + 1) * (len(FREQUENCY_EDGES) + 1)
PRIOR_BUYERS = 50.0  # weight, in buyers, of the remap of all cells in that of a cell, and of the identity in the former
PRIOR_PLATT = 5.0  # precision of the intercepts around 0 and of the slope around 1: about 20 customers at p = .5
MAX_LOG_FACTOR = 1.5  # limit of the log factor on buyers' values, around the factor that matches their mean
MEAN_SAMPLE = 5_000  # customers whose distributions give the mean of all
PRIOR_ORIGINS = 6.0  # weight, in origins, of the prior that the stated error of the seasonal factor is right


def age_frequency_cells(age_days: ArrayLike, frequency: ArrayLike) -> NDArray[np.int64]:
    """(n,) index of the age x frequency cell, 0 to NUM_CELLS - 1.

    `age_days` are days since the first purchase (T of the sample frame), `frequency` repeat purchase days.
    """
    age = np.searchsorted(AGE_EDGES, np.asarray(age_days, float), side="right")
    often = np.searchsorted(FREQUENCY_EDGES, np.asarray(frequency, float), side="right")
    return np.asarray(age * (len(FREQUENCY_EDGES) + 1) + often, np.int64)


def cell_names() -> list[str]:
    """Names of the cells for people, by index."""
    ages = ("up to 90 days old", "90 days to a year old", "over a year old")
    return [f"{age}, {often}" for age in ages for often in ("one purchase day", "2-3 purchase days", "4 or more")]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration of one horizon, fitted at one origin by `fit_calibration`."""

    intercept: tuple[float, ...]  # (NUM_CELLS,) logit p' = intercept[cell] + slope logit p
    slope: float
    remap: tuple[tuple[float, ...], ...]  # (NUM_CELLS, len(GRID)) level to read for each level of GRID
    factor_error_scale: float  # factor on the stated error of the seasonal factor
    sum_spread: float  # actual over predicted variance of sums of customers, given the seasonal factor
    customers: int

    def apply(self, prediction: Prediction, age_days: ArrayLike, frequency: ArrayLike) -> Prediction:
        """The calibrated prediction: value does not change, quantiles stay monotone, p_zero is 1 - p_purchase.

        Raises ValueError unless there is one age and one frequency for each prediction.
        """
        cell = age_frequency_cells(age_days, frequency)
        if len(cell) != len(prediction):
            raise ValueError(
                f"{len(cell)} ages and frequencies for {len(prediction)} predictions; give one per customer"
            )
        p = None if prediction.p_purchase is None else self.probability(prediction.p_purchase, cell)
        quantiles = prediction.quantiles
        if quantiles is not None:
            p_value = 1 - quantiles.p_zero
            quantiles = _remap_buyers(quantiles, self.probability(p_value, cell), cell, np.asarray(self.remap))
        return Prediction(value=prediction.value, p_purchase=p, quantiles=quantiles)

    def probability(self, p: Array, cell: NDArray[np.int64]) -> Array:
        """(n,) calibrated probabilities of customers in the given cells; exact 0 and 1 do not change."""
        moved = expit(np.asarray(self.intercept)[cell] + self.slope * _logit(p))
        return np.where((p > 0) & (p < 1), moved, p)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the number of the format and the edges of the cells."""
        return _CELLS | asdict(self) | {"intercept": list(self.intercept), "remap": [list(row) for row in self.remap]}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`; ValueError for another format or other cells."""
        found = tuple(plain.get(name) for name in _CELLS)
        if found != tuple(_CELLS.values()):
            raise ValueError(
                f"calibration has format and cells {found}, this version reads {_CELLS['format']}; train again"
            )
        own = {name: value for name, value in plain.items() if name not in _CELLS}
        return cls(**own | {"intercept": tuple(own["intercept"]), "remap": tuple(map(tuple, own["remap"]))})


def identity_calibration() -> Calibration:
    """A calibration that changes no prediction."""
    return Calibration(
        intercept=(0.0,) * NUM_CELLS,
        slope=1.0,
        remap=(tuple(GRID.tolist()),) * NUM_CELLS,
        factor_error_scale=1.0,
        sum_spread=1.0,
        customers=0,
    )


def fit_calibration(
    prediction: Prediction,
    y: ArrayLike,
    orders: ArrayLike,
    age_days: ArrayLike,
    frequency: ArrayLike,
    *,
    factor_error: float = 0.1,
    seed: int = 0,
) -> Calibration:
    """Calibration of one horizon from held-out predictions and outcomes, (n,) each; `y` is the actual value, currency.

    `factor_error` is the stated standard error of the log of the seasonal factor: one origin cannot estimate the error,
    only check it. Where the prediction has no p_purchase or no quantiles, their calibration is the identity. Raises
    ValueError for unequal lengths.
    """
    real, hit = np.maximum(np.asarray(y, float), 0.0), np.asarray(orders, float) > 0
    cell = age_frequency_cells(age_days, frequency)
    if not len(real) == len(hit) == len(cell) == len(prediction):
        raise ValueError(
            f"{len(prediction)} predictions, {len(real)} values, {len(hit)} orders, {len(cell)} cells: unequal"
        )
    if not len(real):
        return identity_calibration()
    intercept, slope = np.zeros(NUM_CELLS), 1.0
    p = prediction.p_purchase
    if p is None and prediction.quantiles is not None:
        p = 1 - prediction.quantiles.p_zero
    if p is not None:
        intercept, slope = _platt(p, hit, cell)
        intercept = intercept + _shift_to_mean(p, intercept[cell] + slope * _logit(p))
    remap = np.tile(GRID, (NUM_CELLS, 1))
    if prediction.quantiles is not None:
        remap = _remap(real, prediction.quantiles, cell, seed)
    fitted = Calibration(
        intercept=tuple(intercept.tolist()),
        slope=slope,
        remap=tuple(map(tuple, remap.tolist())),
        factor_error_scale=_error_scale(real, prediction.value, factor_error),
        sum_spread=1.0,
        customers=len(real),
    )
    after = fitted.apply(prediction, age_days, frequency)
    return replace(fitted, sum_spread=portfolio.fit_sum_spread(real, after, seed))


def _error_scale(y: Array, value: Array, factor_error: float) -> float:
    """Factor on the stated error of the seasonal factor, from the size of its error at this origin."""
    if y.sum() <= 0 or value.sum() <= 0:
        return 1.0
    ratio = float(y.sum() / value.sum())
    error = float(np.sqrt(np.sum((y - ratio * value) ** 2)) / y.sum())
    surprise = float(np.log(ratio) ** 2 / max(error**2 + factor_error**2, 1e-12))
    return float(np.clip(np.sqrt((PRIOR_ORIGINS + surprise) / (PRIOR_ORIGINS + 1)), 1.0, 3.0))


def _platt(p: Array, hit: NDArray[np.bool_], cell: NDArray[np.int64]) -> tuple[Array, float]:
    """Intercepts of the cells (shrunk to a common one) and the slope, by penalised likelihood (Platt 1999)."""
    z, y = _logit(p), hit.astype(float)

    def loss(w: Array) -> tuple[float, Array]:
        common, slope, own = w[0], w[1], w[2:]
        s = common + own[cell] + slope * z
        prior = np.r_[common, slope - 1, own]
        residual = expit(s) - y
        gradient = np.r_[residual.sum(), residual @ z, np.bincount(cell, weights=residual, minlength=NUM_CELLS)]
        nll = float(np.sum(np.logaddexp(0.0, s) - y * s))
        return nll + PRIOR_PLATT / 2 * float(prior @ prior), gradient + PRIOR_PLATT * prior

    # A slope near or below zero would reverse the order of customers.
    bounds = [(None, None), (0.1, 10.0)] + [(None, None)] * NUM_CELLS
    w = minimize(loss, np.r_[0.0, 1.0, np.zeros(NUM_CELLS)], jac=True, method="L-BFGS-B", bounds=bounds).x
    return w[0] + w[2:], float(w[1])


def _logit(p: Array) -> Array:
    return np.asarray(logit(np.clip(p, 1e-9, 1 - 1e-9)), float)


def _shift_to_mean(p: Array, moved: Array) -> float:
    """Shift of the logits `moved` with which their mean probability is that of p; p of 0 and 1 are left out."""
    inside = (p > 0) & (p < 1)
    if not inside.any():
        return 0.0
    return float(brentq(lambda shift: expit(moved[inside] + shift).mean() - p[inside].mean(), -1e3, 1e3))


def _remap_buyers(q: Quantiles, p_value: Array, cell: NDArray[np.int64], remap: Array) -> Quantiles:
    """Quantiles with probability `p_value` (n,) of a value above zero, and buyers' value by the remap of their cell."""
    zero = 1 - p_value
    buys = p_value[:, None] > 0
    inner = np.divide(q.levels - zero[:, None], p_value[:, None], out=np.zeros_like(q.values), where=buys)
    read = np.zeros_like(inner)
    for number in np.unique(cell):
        rows = cell == number
        read[rows] = np.interp(inner[rows], GRID, remap[number])
    values = q.quantile(q.p_zero[:, None] + (1 - q.p_zero[:, None]) * read)
    values = np.where(inner > 0, np.maximum.accumulate(values, axis=1), 0.0)
    return Quantiles(q.levels, values, zero)


def _remap(y: Array, quantiles: Quantiles, cell: NDArray[np.int64], seed: int) -> Array:
    """(NUM_CELLS, len(GRID)) levels to read, from y times the factor that keeps the mean of the distributions."""
    buyers = (y > 0) & (quantiles.p_zero < 1)
    some = np.arange(0, len(y), max(len(y) // MEAN_SAMPLE, 1))
    before = quantiles.take(some)
    mean = float(before.mean().sum())
    if mean <= 0 or not buyers.any():
        return np.tile(GRID, (NUM_CELLS, 1))
    bought, theirs, their_cell = y[buyers], quantiles.take(buyers), cell[buyers]

    def surplus(log_factor: float) -> float:
        """Log of the mean after the remap over the mean before it."""
        remap = _ranks(bought * np.exp(log_factor), theirs, their_cell, seed)
        return float(np.log(_remap_buyers(before, 1 - before.p_zero, cell[some], remap).mean().sum() / mean))

    start = np.log(mean / (1 - before.p_zero).sum() / bought.mean())
    low, high = start - MAX_LOG_FACTOR, start + MAX_LOG_FACTOR
    # With few buyers the shrunk remap hardly changes the mean, and no factor within the limits keeps it.
    decided = surplus(low) < 0 < surplus(high)
    factor = brentq(surplus, low, high, xtol=0.005) if decided else start
    return _ranks(bought * np.exp(factor), theirs, their_cell, seed)


def _ranks(y: Array, quantiles: Quantiles, cell: NDArray[np.int64], seed: int) -> Array:
    """(NUM_CELLS, len(GRID)) quantiles of buyers' PIT above the mass at zero, with n + 1 as in conformal prediction.

    The quantiles of a cell are shrunk to those of all cells, and these to the identity.
    """
    u, zero = pit(y, quantiles, seed), quantiles.p_zero
    v = np.clip((u - zero) / (1 - zero), 0, 1)
    everyone = _shrink(v, GRID)
    return np.stack([_shrink(v[cell == number], everyone) for number in range(NUM_CELLS)])


def _shrink(v: Array, towards: Array) -> Array:
    ranks = np.arange(len(v) + 2) / (len(v) + 1)
    own = np.interp(GRID, ranks, np.r_[0.0, np.sort(v), 1.0])
    return np.asarray((len(v) * own + PRIOR_BUYERS * towards) / (len(v) + PRIOR_BUYERS), float)
