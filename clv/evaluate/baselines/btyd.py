"""Baselines BG/NBD and MBG/NBD with Gamma-Gamma spend, fitted on all buyers known at the test origin."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clv.btyd.gamma_gamma import GammaGamma
from clv.btyd.models import Kind
from clv.evaluate.baselines.inputs import Context
from clv.forecast.distributions import Array, Prediction, Quantiles, hurdle_lognormal


def _predict(kind: Kind, test: pd.DataFrame, horizon: int, context: Context) -> Prediction:
    forecast = context.expect(kind, test, horizon)
    p = np.clip(forecast["p_purchase"].to_numpy(float), 0.0, 1.0)
    value = np.maximum(forecast["value"].to_numpy(float), 0.0)
    spend = context.btyd_models[kind, int(test["origin_day"].iloc[0])].spend
    return Prediction(value=value, p_purchase=p, quantiles=_random_sum_quantiles(test, forecast, p, value, spend))


def _random_sum_quantiles(
    test: pd.DataFrame, forecast: pd.DataFrame, p: Array, value: Array, spend: GammaGamma | None
) -> Quantiles | None:
    """Zero with probability 1 - p, else a lognormal with the first two moments of a random sum of purchase days.

    Given a purchase, the number of days is taken as geometric with its mean. The value of one day is gamma-distributed
    with squared coefficient of variation 1 / p; the customer's mean is inverse gamma with shape p x + q and squared
    coefficient of variation 1 / (shape - 2) (Fader and Hardie 2013). None where the Gamma-Gamma model is not usable.
    """
    if spend is None or spend.fallback or not value.sum() > 0:
        return None
    days = np.maximum(forecast["days"].to_numpy(float) / np.maximum(p, 1e-12), 1.0)
    shape = spend.p * test["frequency"].to_numpy(float) + spend.q
    own = np.clip(1 / np.maximum(shape - 2, 1e-9), 0.0, 4.0)
    noise = (days * (days - 1) + days / spend.p) / days**2
    sigma = np.clip(np.sqrt(np.log1p((1 + own) * (1 + noise) - 1)), 0.05, 2.0)
    mean = np.maximum(value / np.maximum(p, 1e-12), 1e-9)
    return hurdle_lognormal(p, np.log(mean) - sigma**2 / 2, sigma)


def bgnbd_gg(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """BG/NBD (Fader, Hardie and Lee 2005) with Gamma-Gamma spend (Fader and Hardie 2013)."""
    return _predict("bgnbd", test, horizon, context)


def mbgnbd_gg(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """MBG/NBD (Batislam, Denizel and Filiztekin 2007) with Gamma-Gamma spend."""
    return _predict("mbgnbd", test, horizon, context)
