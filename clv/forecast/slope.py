"""Slope of log actual value on log predicted value: corrects forecasts that spread customers too little or too much.

Early stopping and the blend with the BTYD model shrink a forecast: the best customers get too little, the others too
much. The actual value is then proportional to the slope-th power of the predicted one, with a slope above 1. The order
of customers does not change. The season of one origin may favour large customers too, so the slope estimated at one
origin is shrunk at least halfway to 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from clv.forecast.distributions import Array

PRIOR = 0.05  # standard deviation of slopes around 1
ONE_ORIGIN = 0.05  # standard deviation of the slope at one origin around that of the other origins
BOUNDS = (0.5, 2.0)
SMALLEST = 1e-9  # of the mean prediction: predictions below this count as equal


def fit_slope(value: ArrayLike, y: ArrayLike) -> float:
    """The slope of log actual on log predicted value, shrunk towards 1; `value` predicted, `y` actual, (n,) each.

    The estimate maximises the Poisson quasi-likelihood given the total (the conditional likelihood of shares); its
    standard error is the sandwich estimate (White 1982). The slope is 1 where nothing was bought, or where all
    predictions are equal. Raises ValueError for unequal lengths.
    """
    predicted, actual = np.asarray(value, float), np.maximum(np.asarray(y, float), 0.0)
    if predicted.shape != actual.shape:
        raise ValueError(f"{len(predicted)} predicted values for {len(actual)} actual ones; give one per customer")
    if actual.sum() <= 0 or predicted.sum() <= 0:
        return 1.0
    x = np.log(np.maximum(predicted / predicted.mean(), SMALLEST))
    actual = actual / actual.sum()

    def shares(slope: float) -> Array:
        power = np.exp(slope * (x - x.max()))
        return np.asarray(power / power.sum())

    def surplus(slope: float) -> float:
        """Value-weighted mean of log prediction: that of the actual less that of the predicted shares."""
        return float((actual - shares(slope)) @ x)

    low, high = BOUNDS
    slope = low if surplus(low) <= 0 else high if surplus(high) >= 0 else brentq(surplus, low, high)
    share = shares(slope)
    centred = x - share @ x
    spread = float(share @ centred**2)
    if spread <= 0:
        return 1.0
    error = float(np.sqrt(((actual - share) ** 2) @ centred**2)) / spread
    return float(1 + (slope - 1) * PRIOR**2 / (PRIOR**2 + ONE_ORIGIN**2 + error**2))
