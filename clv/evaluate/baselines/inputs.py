"""What baselines see of sample frames, and what they share: population, feature matrices, BTYD models of each origin."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from clv.btyd.models import BTYDModel, Kind
from clv.data.features import feature_names
from clv.forecast.distributions import Array


class NotRun(Exception):
    """A baseline that does not apply here; its text is the reason shown to people."""


@dataclass(kw_only=True)
class Context:
    """Shared by the baselines of one run: threads of LightGBM, first day of the log, BTYD models already fitted.

    More threads than free cores make LightGBM many times slower: its threads wait for each other spinning.
    `log_start_day` (local days since 1970) is the first day of data; without it the oldest customer's first purchase.
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
        """BTYD model forecasts (days, p_purchase, orders, value) per row, fitted at each origin on who was known there."""
        parts = []
        for origin, rows in frame.groupby("origin_day", sort=False):
            key = (kind, int(str(origin)))
            if key not in self.btyd_models:
                self.btyd_models[key] = BTYDModel.fit(rows, kind=kind)
            forecast = self.btyd_models[key].predict(rows, horizon)
            parts.append(forecast.set_axis(rows.index, axis=0))
        together: pd.DataFrame = pd.concat(parts).loc[frame.index]
        return together


def population(frame: pd.DataFrame, horizon: int | None = None) -> pd.DataFrame:
    """Rows with a purchase before the origin, and if a horizon is given, with a fully observed label for it; index 0..n-1."""
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
    """Features for linear models and nets: sign(x) log(1 + |x|), then standardised on train; undefined is a flag."""
    a, b = (np.sign(x) * np.log1p(np.abs(x)) for x in features(train, test))
    holes = np.isnan(a).any(axis=0)
    centre = np.nanmean(np.where(np.isnan(a).all(axis=0), 0.0, a), axis=0)
    spread = np.nanstd(np.where(np.isnan(a).all(axis=0), 0.0, a), axis=0)
    spread[spread < 1e-9] = np.inf  # constant columns tell nothing
    out = []
    for x in (a, b):
        # Five standard deviations: a newer origin must not extrapolate a line without limit.
        filled = np.clip(np.nan_to_num((x - centre) / spread), -5, 5)
        out.append(np.hstack([filled, np.isnan(x[:, holes]).astype(float)]))
    return out[0], out[1]


def labels(train: pd.DataFrame, horizon: int) -> tuple[Array, Array]:
    """(value, bought) of the training rows, both (n,): shop currency (returns floored at zero), and 0/1."""
    value = np.maximum(train[f"value_{horizon}"].to_numpy(float), 0.0)
    return value, (train[f"orders_{horizon}"].to_numpy(float) > 0).astype(float)
