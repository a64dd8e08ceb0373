"""Random forecasts and assembled rows, for the tests of adjustment, horizons and score tables."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from clv.btyd.seasonal_btyd import Curves
from clv.forecast.adjustment import AdjustedForecast, Adjustment, adjust
from clv.forecast.network import Forecast

HORIZONS = (30, 90, 180)
NUM_BUYERS = 15  # of 20 rows; the last five are visitors


def random_curves(seed: int, horizons: tuple[int, ...] = HORIZONS) -> Curves:
    """BTYD curves of 20 rows that grow with the square root of the horizon."""
    rng = np.random.default_rng(seed)
    hazard = rng.uniform(0.02, 0.2, (20, 1)) * np.sqrt(horizons)
    return Curves(hazard, -np.expm1(-hazard) + 0.5 * hazard, hazard * rng.uniform(5, 50, (20, 1)))


def random_forecast(seed: int = 0) -> Forecast:
    """A forecast of 20 rows, two components, whose mixture has the mean of the value curve."""
    rng, curves = np.random.default_rng(seed), random_curves(seed + 1)
    shape = (*curves.hazard.shape, 2)
    weight = np.log(rng.dirichlet((2, 2), shape[:2]))
    sigma = rng.uniform(0.3, 0.8, shape)
    mean = np.log(curves.value / curves.p_purchase)[..., None]
    z = rng.normal(size=(20, 4)).astype(np.float32)
    return Forecast(curves.hazard, curves.repeats, curves.value, weight, mean - sigma**2 / 2, sigma, z)


def rows(factor_error: float = 0.0) -> SimpleNamespace:
    """What `adjust` reads of assembled rows."""
    buys = np.arange(20) < NUM_BUYERS
    table = pd.DataFrame({"has_purchase": buys, "T": np.arange(20) * 30.0, "frequency": np.arange(20) % 5})
    return SimpleNamespace(table=table, base=random_curves(7), factor_error=np.full(len(HORIZONS), factor_error))


def adjusted(seed: int = 0, factor_error: float = 0.1) -> AdjustedForecast:
    return adjust(random_forecast(seed), rows(factor_error), Adjustment.identity(len(HORIZONS)))
