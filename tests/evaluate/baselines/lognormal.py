"""Parameters of hurdle lognormal distributions, read back from their two highest quantiles."""

import numpy as np
from scipy.stats import norm

from clv.forecast.distributions import LEVELS, Array, Quantiles


def spread_and_mean(quantiles: Quantiles, rows: Array) -> tuple[Array, Array]:
    """(sigma, mean) of the distributions of `rows`, whose purchase is more likely than the second highest level."""
    p = 1 - quantiles.p_zero[rows, None]
    z = norm.ppf((LEVELS[-2:] - (1 - p)) / p)
    high = np.log(quantiles.values[rows, -2:])
    sigma = (np.diff(high) / np.diff(z))[:, 0]
    return sigma, p[:, 0] * np.exp(high[:, -1] - sigma * z[:, -1] + sigma**2 / 2)
