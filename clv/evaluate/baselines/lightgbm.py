"""Baselines by gradient-boosted trees (LightGBM) on the features of the sample frame, with fixed sensible settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from clv.evaluate.baselines.inputs import Context, NotRun, features, labels
from clv.forecast.distributions import Array, Prediction, hurdle_lognormal

NUM_TREES = 300
NUM_MEDIAN_FITS = 3
MAX_SIGMA = 2.0
# The BTYD expectation includes tenure and totals; trees would use these features to distinguish the origins.
TENURE_AND_TOTALS = ("f_tenure", "f_orders", "f_spend", "f_events")


def _boost(x: Array, y: Array, objective: str, seed: int, context: Context, init_score: Array | None = None) -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise NotRun("lightgbm is not installed; pip install lightgbm") from error
    if len(y) < 2 or not np.any(y != y[0]):
        raise NotRun("the training labels do not vary")
    settings = {
        "objective": objective,
        "num_leaves": 15,
        "learning_rate": 0.03,
        "min_data_in_leaf": min(50, max(len(y) // 20, 1)),
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "feature_fraction": 0.6,
        "seed": seed,
        "num_threads": context.threads,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    data = lightgbm.Dataset(x, y, init_score=init_score, params={"verbosity": -1})
    return lightgbm.train(settings, data, NUM_TREES)


def lgbm_tweedie(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """Tweedie deviance with power 1.5, LightGBM's default."""
    x, x_test = features(train, test)
    model = _boost(x, labels(train, horizon)[0], "tweedie", seed, context)
    return Prediction(value=np.asarray(model.predict(x_test), float))


def lgbm_l1(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """Absolute error: minimises MAE by predicting the median, so that totals are too low.

    Where most medians are zero, a single fit ranks customers almost at random; the prediction is the mean of several.
    """
    x, x_test = features(train, test)
    value = labels(train, horizon)[0]
    fits = [_boost(x, value, "regression_l1", seed + i, context).predict(x_test) for i in range(NUM_MEDIAN_FITS)]
    return Prediction(value=np.mean(np.maximum(fits, 0.0), axis=0))


def lgbm_hurdle(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """A classifier of the purchase times a lognormal regression among buyers, mean p exp(mu + sigma^2 / 2)."""
    value, bought = labels(train, horizon)
    x, x_test = features(train, test)
    p = np.clip(np.asarray(_boost(x, bought, "binary", seed, context).predict(x_test), float), 0, 1)
    paid = value > 0
    logs = np.log(value[paid])
    model = _boost(x[paid], logs, "regression", seed, context)
    sigma = min(float(np.std(logs - model.predict(x[paid]))), MAX_SIGMA)
    mu = np.clip(np.asarray(model.predict(x_test), float), logs.min(), logs.max())
    quantiles = hurdle_lognormal(p, mu, np.full(len(mu), sigma))
    return Prediction(value=p * np.exp(mu + sigma**2 / 2), p_purchase=p, quantiles=quantiles)


def lgbm_btyd_offset(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """Tweedie trees that start from the log of the BG/NBD + Gamma-Gamma expectation of each row's own origin."""
    value, _ = labels(train, horizon)
    expected = context.expect("bgnbd", train, horizon)["value"].to_numpy(float)
    expected_test = context.expect("bgnbd", test, horizon)["value"].to_numpy(float)
    floor = max(1e-3 * float(expected.mean()), 1e-9)
    offset, offset_test = (np.log(np.maximum(e, floor)) for e in (expected, expected_test))
    x, x_test = features(train, test, without=TENURE_AND_TOTALS)
    model = _boost(x, value, "tweedie", seed, context, offset)
    raw = np.asarray(model.predict(x_test, raw_score=True), float)
    return Prediction(value=np.exp(np.minimum(raw + offset_test, np.log(max(float(value.max()), floor)))))
