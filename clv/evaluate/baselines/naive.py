"""Baselines without a model: past spend, and spend in the same window a year before."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clv.evaluate.baselines.inputs import Context, NotRun
from clv.forecast.distributions import Prediction


def past_spend(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """Spend of the longest past window (at most a year) that the log covers, scaled to the horizon."""
    windows = sorted(int(c[8:]) for c in map(str, test) if c.startswith("f_spend_") and c[8:].isdigit())
    if not windows:
        raise NotRun("the sample frame holds no past-window spend (f_spend_<days>)")
    log_days = context.log_days(test)
    covered = [w for w in windows if w <= log_days]
    window = covered[-1] if covered else windows[0]
    spend = np.nan_to_num(test[f"f_spend_{window}"].to_numpy(float))
    return Prediction(value=np.maximum(spend, 0.0) * horizon / min(window, log_days))


def seasonal_naive(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """Spend of the customer in the same window a year before."""
    column = f"f_spend_same_window_year_ago_{horizon}"
    if column not in test:
        raise NotRun(f"the sample frame has no column {column}")
    if context.log_days(test) < 365:
        raise NotRun(
            f"the log covers {context.log_days(test)} days before the origin; the window of a year before needs 365"
        )
    return Prediction(value=np.maximum(np.nan_to_num(test[column].to_numpy(float)), 0.0))
