"""Calibration on held-out customers: who buys, how values spread, bands for persons and for sums.

Fitted on one fully observed origin that training never saw, stored as JSON, applied to any later prediction. Everything is
shrunk: few calibration customers leave the model as it is. The distribution is calibrated in two parts, so that the
mass at zero stays 1 - p_purchase: the probability by Platt scaling, the value of buyers by a monotone remap of levels.

Totals are left to the level, which has learned from this origin too: as many buy as predicted, for as much. A year's
best season would otherwise widen the bands of the next, and the mean of a distribution leave the stated value.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit, logit

from clv.forecast import portfolio
from clv.forecast.distributions import Array, Prediction, Quantiles, pit

FORMAT = 2
GRID: Array = np.linspace(0, 1, 51)  # levels at which the remap of buyers' values is stored
AGE_EDGES = (90.0, 365.0)  # days since the first purchase
FREQUENCY_EDGES = (1.0, 3.0)  # repeat purchase days
NUM_CELLS = (len(AGE_EDGES) + 1) * (len(FREQUENCY_EDGES) + 1)
PRIOR_BUYERS = 50.0  # so many buyers of a cell weigh as much as the remap of all cells, and so many of all as none
PRIOR_PLATT = 5.0  # precision of intercepts around 0 and of the slope around 1: about 20 customers at p = .5
FURTHEST_TOTAL = 1.5  # |log| by which what came may lie off what was said for another reason than the buyers' mean
ENOUGH = 5_000  # customers whose distributions tell the mean of all
PRIOR_FACTORS = 6.0  # so many origins weigh as much as "the level misses by what its error says"


def cells(age_days: ArrayLike, frequency: ArrayLike) -> NDArray[np.int64]:
    """(n,) number of the age x frequency cell, 0 .. NUM_CELLS - 1; age = T of the sample frame."""
    age = np.searchsorted(AGE_EDGES, np.asarray(age_days, float), side="right")
    often = np.searchsorted(FREQUENCY_EDGES, np.asarray(frequency, float), side="right")
    return np.asarray(age * (len(FREQUENCY_EDGES) + 1) + often, np.int64)


def cell_names() -> list[str]:
    """Names of the cells in plain words, by number."""
    ages = ("up to 90 days old", "90 days to a year old", "over a year old")
    return [f"{age}, {often}" for age in ages for often in ("one purchase day", "2-3 purchase days", "4 or more")]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What one calibration origin taught about one horizon (`fit_calibration`); identity where nothing was learned."""

    intercept: tuple[float, ...]  # (NUM_CELLS,) logit p' = intercept[cell] + slope logit p
    slope: float
    remap: tuple[tuple[float, ...], ...]  # (NUM_CELLS, len(GRID)) level of buyers' values to read for a wanted level
    factor_error_scale: float  # factor on the error that the level states of itself
    sum_spread: float  # realised over predicted variance of sums of customers, the level aside
    customers: int

    def apply(self, prediction: Prediction, age_days: ArrayLike, frequency: ArrayLike) -> Prediction:
        """The calibrated prediction; value is untouched, quantiles stay monotone, p_zero = 1 - p_purchase."""
        cell = cells(age_days, frequency)
        if len(cell) != len(prediction):
            raise ValueError(
                f"{len(cell)} ages and frequencies for {len(prediction)} predictions; give one per customer"
            )
        p = None if prediction.p_purchase is None else self.probability(prediction.p_purchase, cell)
        quantiles = prediction.quantiles
        if quantiles is not None:
            pay = 1 - quantiles.p_zero
            quantiles = _spread(quantiles, self.probability(pay, cell), cell, np.asarray(self.remap))
        return Prediction(value=prediction.value, p_purchase=p, quantiles=quantiles)

    def probability(self, p: Array, cell: NDArray[np.int64]) -> Array:
        """(n,) calibrated probabilities; exact 0 and 1 stay."""
        moved = expit(np.asarray(self.intercept)[cell] + self.slope * _logit(p))
        return np.where((p > 0) & (p < 1), moved, p)

    def to_json(self) -> str:
        """JSON text with the format's number; floats survive exactly."""
        edges = {"age_edges": AGE_EDGES, "frequency_edges": FREQUENCY_EDGES}
        return json.dumps({"format": FORMAT} | edges | asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """The inverse of `to_json`; ValueError for another format or other cells."""
        content = json.loads(text)
        found = content.pop("format", None), content.pop("age_edges", None), content.pop("frequency_edges", None)
        if found != (FORMAT, list(AGE_EDGES), list(FREQUENCY_EDGES)):
            raise ValueError(f"calibration has format and cells {found}, this version reads {FORMAT}; fit it again")
        content.pop("level", None)  # 1 in older ones
        content["intercept"] = tuple(content["intercept"])
        content["remap"] = tuple(tuple(row) for row in content["remap"])
        return cls(**content)


def identity() -> Calibration:
    """A calibration that changes nothing."""
    row = tuple(float(g) for g in GRID)
    return Calibration(
        intercept=(0.0,) * NUM_CELLS,
        slope=1.0,
        remap=(row,) * NUM_CELLS,
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
    """Calibration of one horizon from held-out predictions and what happened, all (n,), y in currency.

    `factor_error`: log standard error that the forecast level stated of itself; one origin alone cannot tell it, only
    whether it is believable. Without p_purchase or quantiles those parts stay the identity.
    """
    real, hit = np.maximum(np.asarray(y, float), 0.0), np.asarray(orders, float) > 0
    cell = cells(age_days, frequency)
    if not len(real) == len(hit) == len(cell) == len(prediction):
        raise ValueError(
            f"{len(prediction)} predictions, {len(real)} values, {len(hit)} orders, {len(cell)} cells: unequal"
        )
    start = identity()
    if not len(real):
        return start
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
        intercept=tuple(float(a) for a in intercept),
        slope=float(slope),
        remap=tuple(tuple(float(g) for g in row) for row in remap),
        factor_error_scale=_stretch(real, prediction.value, factor_error),
        sum_spread=1.0,
        customers=len(real),
    )
    after = fitted.apply(prediction, age_days, frequency)
    if after.quantiles is None:
        return fitted
    return replace(fitted, sum_spread=portfolio.fit_spread(real, after, seed))


def _stretch(y: Array, value: Array, factor_error: float) -> float:
    """Factor on the stated error of the level, by how far it missed."""
    if y.sum() <= 0 or value.sum() <= 0:
        return 1.0
    ratio = float(y.sum() / value.sum())
    error = float(np.sqrt(np.sum((y - ratio * value) ** 2)) / y.sum())
    surprise = float(np.log(ratio) ** 2 / max(error**2 + factor_error**2, 1e-12))
    stretch = float(np.sqrt((PRIOR_FACTORS + surprise) / (PRIOR_FACTORS + 1)))
    return float(np.clip(stretch, 1.0, 3.0))


def _platt(p: Array, hit: NDArray[np.bool_], cell: NDArray[np.int64]) -> tuple[Array, float]:
    """Intercepts of the cells around a common one, and the slope (Platt 1999), by penalised likelihood."""
    z, y = _logit(p), hit.astype(float)

    def loss(w: Array) -> tuple[float, Array]:
        common, slope, own = w[0], w[1], w[2:]
        s = common + own[cell] + slope * z
        prior = np.r_[common, slope - 1, own]
        residual = expit(s) - y
        gradient = np.r_[residual.sum(), residual @ z, np.bincount(cell, weights=residual, minlength=NUM_CELLS)]
        nll = float(np.sum(np.logaddexp(0.0, s) - y * s))
        return nll + PRIOR_PLATT / 2 * float(prior @ prior), gradient + PRIOR_PLATT * prior

    w = minimize(loss, np.r_[0.0, 1.0, np.zeros(NUM_CELLS)], jac=True, method="L-BFGS-B", bounds=_bounds()).x
    return w[0] + w[2:], float(w[1])


def _logit(p: Array) -> Array:
    return np.asarray(logit(np.clip(p, 1e-9, 1 - 1e-9)), float)


def _shift_to_mean(p: Array, moved: Array) -> float:
    """What to add to the logits `moved` so that their mean probability is that of p; certainties aside."""
    inside = (p > 0) & (p < 1)
    if not inside.any():
        return 0.0
    want = p[inside].mean()
    return float(brentq(lambda shift: expit(moved[inside] + shift).mean() - want, -1e3, 1e3))


def _bounds() -> list[tuple[float | None, float | None]]:
    # A slope near or under zero would turn the order of customers around.
    return [(None, None), (0.1, 10.0)] + [(None, None)] * NUM_CELLS


def _spread(q: Quantiles, pay: Array, cell: NDArray[np.int64], remap: Array) -> Quantiles:
    """The value of buyers by the cell's remap, above the new mass at zero, 1 - pay."""
    zero = 1 - pay
    inner = np.divide(q.levels - zero[:, None], pay[:, None], out=np.zeros_like(q.values), where=pay[:, None] > 0)
    read = np.zeros_like(inner)
    for number in np.unique(cell):
        rows = cell == number
        read[rows] = np.interp(inner[rows], GRID, remap[number])
    values = q.at(q.p_zero[:, None] + (1 - q.p_zero[:, None]) * read)
    values = np.where(inner > 0, np.maximum.accumulate(values, axis=1), 0.0)
    return Quantiles(q.levels, values, zero)


def _remap(y: Array, quantiles: Quantiles, cell: NDArray[np.int64], seed: int) -> Array:
    """(NUM_CELLS, grid) levels to read, from y times the factor that keeps the mean of the distributions."""
    buyers = (y > 0) & (quantiles.p_zero < 1)
    some = np.arange(0, len(y), max(len(y) // ENOUGH, 1))
    before = quantiles.take(some)
    mean = float(before.mean().sum())
    if mean <= 0 or not buyers.any():
        return np.tile(GRID, (NUM_CELLS, 1))
    bought, theirs, their_cell = y[buyers], quantiles.take(buyers), cell[buyers]

    def surplus(log_factor: float) -> float:
        remap = _ranks(bought * np.exp(log_factor), theirs, their_cell, seed)
        return float(np.log(_spread(before, 1 - before.p_zero, cell[some], remap).mean().sum() / mean))

    start = np.log(mean / (1 - before.p_zero).sum() / bought.mean())
    low, high = start - FURTHEST_TOTAL, start + FURTHEST_TOTAL
    # A few buyers hardly move the mean, wherever they lie.
    decided = surplus(low) < 0 < surplus(high)
    factor = brentq(surplus, low, high, xtol=0.005) if decided else start
    return _ranks(bought * np.exp(factor), theirs, their_cell, seed)


def _ranks(y: Array, quantiles: Quantiles, cell: NDArray[np.int64], seed: int) -> Array:
    """(NUM_CELLS, grid) quantiles of buyers' PIT above the mass at zero, with the conformal n + 1; shrunk twice."""
    u, zero = pit(y, quantiles, seed), quantiles.p_zero
    v = np.clip((u - zero) / (1 - zero), 0, 1)
    everyone = _shrink(v, GRID)
    return np.stack([_shrink(v[cell == number], everyone) for number in range(NUM_CELLS)])


def _shrink(v: Array, towards: Array) -> Array:
    ranks = np.arange(len(v) + 2) / (len(v) + 1)
    own = np.interp(GRID, ranks, np.r_[0.0, np.sort(v), 1.0])
    return np.asarray((len(v) * own + PRIOR_BUYERS * towards) / (len(v) + PRIOR_BUYERS), float)
