"""Baselines by regression: ridge regression of log(1 + value), and logistic regression of the purchase."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import expit

from clv.evaluate.baselines.inputs import Context, NotRun, labels, log_features
from clv.forecast.distributions import Array, Prediction

RIDGE = 1.0


def linear(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """Ridge regression of log(1 + value), back-transformed by the smearing factor of the training rows (Duan 1983)."""
    value, _ = labels(train, horizon)
    if not len(value):
        raise NotRun("no fully observed training rows")
    x, x_test, ridge = _design(train, test)
    weights = np.linalg.solve(x.T @ x + np.diag(ridge), x.T @ np.log1p(value))
    # Exponentiated extrapolation has no limit: predictions are capped at the value that one in a thousand exceeds.
    most = float(np.log1p(np.quantile(value, 0.999)))
    fitted, forecast = (np.clip(m @ weights, 0.0, most) for m in (x, x_test))
    raw = np.expm1(fitted)
    # The smearing factor is a ratio of sums: with many zeros a few outliers determine the mean of exp(residual).
    smear = float(value.sum() / raw.sum()) if raw.sum() > 0 else 0.0
    return Prediction(value=smear * np.expm1(forecast))


def logistic(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """Logistic regression of the purchase; value is its probability times past spend per horizon, scaled on buyers."""
    value, bought = labels(train, horizon)
    if bought.sum() in (0, len(bought)):
        raise NotRun("all training customers, or none, bought in the horizon")
    x, x_test, ridge = _design(train, test)

    def loss(w: Array) -> tuple[float, Array]:
        z = x @ w
        nll = float(np.sum(np.logaddexp(0.0, z) - bought * z) + 0.5 * ridge @ w**2)
        return nll, x.T @ (expit(z) - bought) + ridge * w

    start = np.r_[np.log(bought.mean() / (1 - bought.mean())), np.zeros(x.shape[1] - 1)]
    weights = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    p = expit(x_test @ weights)
    buyers = bought > 0
    pace, pace_test = _pace(train, horizon), _pace(test, horizon)
    factor = float(value[buyers].sum() / max(float(pace[buyers].sum()), 1e-12))
    return Prediction(value=p * pace_test * factor, p_purchase=p)


def _design(train: pd.DataFrame, test: pd.DataFrame) -> tuple[Array, Array, Array]:
    """Training and test matrix with an intercept first, and the ridge penalty of each column, 0 for the intercept."""
    x, x_test = (np.insert(matrix, 0, 1.0, axis=1) for matrix in log_features(train, test))
    return x, x_test, np.insert(np.full(x.shape[1] - 1, RIDGE), 0, 0.0)


def _pace(frame: pd.DataFrame, horizon: int) -> Array:
    """(n,) past spend per horizon, at least the mean spend of one purchase day, currency."""
    days = np.minimum(frame["frequency"].to_numpy(float) + 1, np.maximum(frame["T"].to_numpy(float) / horizon, 1.0))
    return np.asarray(np.maximum(np.nan_to_num(frame["value_past"].to_numpy(float)), 0.0) / days, float)
