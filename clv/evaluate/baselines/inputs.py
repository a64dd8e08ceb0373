"""Inputs of the baselines: training and test customers, feature matrices, labels, and shared BTYD models."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from clv.btyd.models import BTYDModel, Kind
from clv.data.features import feature_names
from clv.forecast.distributions import Array


class NotRun(Exception):
    """Raised by a baseline that cannot run on the data; its text is the reason that the report shows."""


@dataclass(kw_only=True)
class Context:
    """State shared by the baselines of one run.

    `threads` are those of LightGBM; more than free cores make it many times slower, since its threads wait by spinning.
    `log_start_day` (local days since 1970) is the first day of data; without it the first purchase of the oldest
    customer is used. `btyd_models` are fitted once per kind and origin.
    """

    threads: int = 1
    log_start_day: int | None = None
    btyd_models: dict[tuple[str, int], BTYDModel] = field(default_factory=dict)

    def log_days(self, test: pd.DataFrame) -> int:
        """Days of log before the origin of `test`."""
        if self.log_start_day is not None:
            return max(int(test["origin_day"].iloc[0]) - self.log_start_day, 1)
        return max(int(np.ceil(test["T"].max())), 1)

    def expect(self, kind: Kind, frame: pd.DataFrame, horizon: int) -> pd.DataFrame:
        """BTYD forecasts (days, p_purchase, orders, value) of each row, by a model fitted on all rows of its origin."""
        parts = []
        for origin, rows in frame.groupby("origin_day", sort=False):
            key = (kind, int(str(origin)))
            if key not in self.btyd_models:
                self.btyd_models[key] = BTYDModel.fit(rows, kind=kind)
            parts.append(self.btyd_models[key].predict(rows, horizon))
        together: pd.DataFrame = pd.concat(parts).loc[frame.index]
        return together


def population(frame: pd.DataFrame, horizon: int | None = None) -> pd.DataFrame:
    """Rows with a purchase before the origin and, if a horizon (days) is given, with an observed label; index 0..n-1.

    Raises ValueError where the frame has no label of that horizon.
    """
    rows = frame["has_purchase"].to_numpy(bool)
    if horizon is not None:
        if f"value_{horizon}" not in frame:
            have = [c[6:] for c in map(str, frame) if c.startswith("value_") and c != "value_past"]
            raise ValueError(f"no label value_{horizon} in the training frame; it has horizons {have}")
        rows = rows & frame[f"observed_{horizon}"].to_numpy(bool)
    return frame.loc[rows].reset_index(drop=True)


def features(train: pd.DataFrame, test: pd.DataFrame, without: tuple[str, ...] = ()) -> tuple[Array, Array]:
    """Feature matrices (n_train, F) and (n_test, F) of the f_ columns both frames have; NaN where undefined."""
    names = [n for n in feature_names(train) if n in test and n not in without]
    if not names:
        raise NotRun("the sample frames hold no feature columns (f_...)")
    return train[names].to_numpy(float), test[names].to_numpy(float)


def log_features(train: pd.DataFrame, test: pd.DataFrame) -> tuple[Array, Array]:
    """Features of linear models and networks: sign(x) log(1 + |x|), standardised on the training rows.

    Undefined features become 0, with an indicator column for those that are undefined in training.
    """
    a, b = (np.sign(x) * np.log1p(np.abs(x)) for x in features(train, test))
    holes = np.isnan(a).any(axis=0)
    known = np.where(np.isnan(a).all(axis=0), 0.0, a)
    centre, spread = np.nanmean(known, axis=0), np.nanstd(known, axis=0)
    spread[spread < 1e-9] = np.inf  # constant columns become 0

    def scaled(x: Array) -> Array:
        # Limited to five standard deviations, so that a linear model does not extrapolate far at a newer origin.
        filled = np.clip(np.nan_to_num((x - centre) / spread), -5, 5)
        return np.hstack([filled, np.isnan(x[:, holes])])

    return scaled(a), scaled(b)


def labels(train: pd.DataFrame, horizon: int) -> tuple[Array, Array]:
    """(value, bought) of the training rows, both (n,): shop currency (returns floored at zero), and 0/1."""
    value = np.maximum(train[f"value_{horizon}"].to_numpy(float), 0.0)
    return value, (train[f"orders_{horizon}"].to_numpy(float) > 0).astype(float)
