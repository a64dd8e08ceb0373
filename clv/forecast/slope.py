"""How far apart values should lie: what customers brought against what was said, on the log scale.

A forecast held back (by early stopping, by a share of the BTYD model) gives too little to the best customers and too much
to the rest: realised value then goes with the slope-th power of the predicted one, slope > 1. The order of customers
stays. One origin's season may favour the largest too, so what one origin says is believed by half at most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from clv.forecast.distributions import Array

PRIOR = 0.05  # standard deviation of slopes around 1
ONE_ORIGIN = 0.05  # and of the slope at one origin around that of others
BOUNDS = (0.5, 2.0)
SMALLEST = 1e-9  # of the mean prediction: what is said to bring less is told apart no further


def fit_slope(value: ArrayLike, y: ArrayLike) -> float:
    """The slope of realised on predicted value, (n,) each in one currency, shrunk towards 1.

    Poisson quasi-likelihood with the total given (the conditional likelihood of shares), sandwich error (White 1982);
    1 where nothing was bought or all are predicted alike. Raises ValueError for unequal lengths.
    """
    said, real = np.asarray(value, float), np.maximum(np.asarray(y, float), 0.0)
    if said.shape != real.shape:
        raise ValueError(f"{len(said)} predicted values for {len(real)} realised ones; give one per customer")
    if real.sum() <= 0 or said.sum() <= 0:
        return 1.0
    x = np.log(np.maximum(said / said.mean(), SMALLEST))
    real = real / real.sum()

    def shares(slope: float) -> Array:
        power = np.exp(slope * (x - x.max()))
        return np.asarray(power / power.sum())

    def surplus(slope: float) -> float:
        """Of realised over predicted mean log value, weighted by money; falls as the slope grows."""
        return float((real - shares(slope)) @ x)

    low, high = BOUNDS
    slope = low if surplus(low) <= 0 else high if surplus(high) >= 0 else brentq(surplus, low, high)
    share = shares(slope)
    apart = x - share @ x
    spread = float(share @ apart**2)
    if spread <= 0:
        return 1.0
    error = float(np.sqrt(((real - share) ** 2) @ apart**2)) / spread
    return float(1 + (slope - 1) * PRIOR**2 / (PRIOR**2 + ONE_ORIGIN**2 + error**2))
