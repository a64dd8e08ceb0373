"""Seasonal factor: forecasts the ratio of actual totals to those of the BTYD model from its errors at past origins.

log(actual / expected) of a window [o, o + h) is modelled as the window's mean of a yearly season, plus a slow drift,
plus noise. A season sums to zero over its year; what persists is drift. Season and drift are Gaussian processes around
0, so the forecast is a precision-weighted mean of the same season a year before, of the newest fully observed origins,
and of a factor of 1. Their standard deviations and the length scale of the season are not fixed: the forecast is
averaged over them, weighted by how well they explain the past (empirical Bayes). Where the log shows no season, none is
forecast.

A factor must be supported by purchases. Totals are compared after pseudo orders were added to both, and the sampling
error contains that of a count. A BTYD model that was fitted on few repeat purchases makes errors that a later one does
not: they are a third part of the ratio, which fades with the number of repeat purchases. What remains is shrunk by the
evidence for it, and bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve

from clv.btyd.likelihood import Floats

MIN_LOG_DAYS = 180  # of log before an origin, below which the errors of the BTYD model are not used
YEAR_DAYS = 365.2425
_SEASON_DAYS = (20.0, 40.0, 80.0)  # length scales of the season: from a peak of weeks to a cosine of the year
_HARMONICS = np.arange(1, 9)
_SHARES = np.exp(-((2 * np.pi * np.outer(_SEASON_DAYS, _HARMONICS) / YEAR_DAYS) ** 2) / 2)
_SHARES /= _SHARES.sum(1, keepdims=True)  # (L, 8) share of each harmonic in the variance of a day, for L length scales
_DRIFT_MEMORY_DAYS = 730.0
_SHARED = 0.9  # share of the variance that is common to all horizons; the rest is independent between horizons
_SEASON_SPREADS = (0.05, 0.1, 0.2, 0.4, 0.8)  # standard deviation of the log factor of a day
_DRIFT_SPREADS = (0.0, 0.05, 0.1, 0.2, 0.4)
_SEASON_PRIOR = (0.25, 0.8)  # median and standard deviation of the log, lognormal: most datasets have a season
_DRIFT_PRIOR = 0.2  # scale of the half-normal prior of the standard deviation of the drift
_ROW_ERROR = 0.07  # log error beyond the sampling error: promotions, weather, the fit of the BTYD model
_OVERCONFIDENCE = 1.1  # actual over stated error of the log factor, on 160 simulated datasets at ten origins each
_DOUBT = 0.2  # a forecast of z standard errors is multiplied by z² / (z² + this)
MAX_LOG_FACTOR = 0.8  # the total is multiplied by .45 to 2.2
MIN_REPEATS = 10  # repeat purchases known at the fit of the BTYD model, below which its error is not used
_PSEUDO_ORDERS = 10.0  # added to actual and expected orders
_INEXPERIENCE = 2.0  # log error of a BTYD model times the root of the repeat purchases that it was fitted on
_LARGEST_ERROR = 1.5  # log error of a total that consists of nothing


@dataclass(frozen=True)
class SeasonalFactorModel:
    """Errors of the BTYD model at K past origins and horizons, known on `known_day`; `forecast` gives later factors."""

    known_day: int
    known_repeats: float  # repeat purchases that the newest BTYD model was fitted on
    origin_day: Floats  # (K,) local days since 1970-01-01
    horizon_days: Floats  # (K,)
    log_ratio: Floats  # (K,) log(actual / expected)
    log_error: Floats  # (K,) its standard error
    repeats: Floats  # (K,) repeat purchases that the BTYD model of the origin was fitted on

    @classmethod
    def fit(cls, errors: pd.DataFrame, known_day: int, known_repeats: float) -> Self:
        """Keep the rows known on `known_day`: origin + horizon <= known_day, with at least 180 days and the horizon of
        log before, and MIN_REPEATS repeat purchases.

        `errors` has one row per origin and horizon: origin_day, horizon_days, expected and actual (sums over
        customers), log_error (see `log_error`), expected_orders, log_days (days of log before the origin), repeats
        (repeat purchases that its BTYD model was fitted on). Raises ValueError for missing columns.
        """
        missing = [name for name in ERRORS if name not in errors]
        if missing:
            raise ValueError(f"the table of BTYD model errors lacks {', '.join(missing)}: it needs {', '.join(ERRORS)}")
        table = errors[list(ERRORS)].astype(np.float64)
        known = table["origin_day"] + table["horizon_days"] <= known_day
        usable = (table["log_days"] >= table["horizon_days"].clip(lower=MIN_LOG_DAYS)) & (table["expected"] > 0)
        table = table[known & usable & (table["repeats"] >= MIN_REPEATS)].sort_values(["origin_day", "horizon_days"])
        orders, expected, actual = table["expected_orders"], table["expected"], table["actual"].clip(lower=0)
        pseudo = _PSEUDO_ORDERS * expected / orders
        sampling = table["log_error"].clip(upper=_LARGEST_ERROR) * actual / (actual + pseudo)
        return cls(
            int(known_day),
            float(known_repeats),
            table["origin_day"].to_numpy(),
            table["horizon_days"].to_numpy(),
            np.asarray(np.log((actual + pseudo) / (expected + pseudo))),
            np.asarray(np.sqrt(sampling**2 + 1 / (orders + _PSEUDO_ORDERS))),
            table["repeats"].to_numpy(),
        )

    def forecast(self, origin_day: ArrayLike, horizon_days: ArrayLike) -> tuple[Floats, Floats]:
        """(N,) factor on the BTYD model's total of [origin, origin + horizon), and (N,) the standard error of its log.

        Origins and horizons (days) are broadcast.
        """
        origin, horizon = np.broadcast_arrays(
            np.atleast_1d(np.asarray(origin_day, np.float64)), np.atleast_1d(np.asarray(horizon_days, np.float64))
        )
        mean, second = np.zeros(len(origin)), np.zeros(len(origin))
        past = (self.origin_day, self.horizon_days)
        drift = _drift_kernel(origin, horizon, *past)
        inexperience = _inexperience(self.known_repeats) * _inexperience(self.repeats)
        seasons, alone = _season_kernels(origin, horizon, *past), _season_variances(horizon)
        for share, (i, s, d), factor, weights in self._posterior:
            cross = s**2 * seasons[i] + d**2 * drift + inexperience
            value = cross @ weights
            variance = s**2 * alone[i] + d**2 + _inexperience(self.known_repeats) ** 2 + _ROW_ERROR**2
            if len(self.origin_day):
                variance = variance - np.einsum("ij,ji->i", cross, cho_solve(factor, cross.T))
            mean += share * value
            second += share * (np.maximum(variance, _ROW_ERROR**2) + value**2)
        error = np.sqrt(np.maximum(second - mean**2, _ROW_ERROR**2))
        mean *= mean**2 / (mean**2 + _DOUBT * error**2)
        return np.exp(np.clip(mean, -MAX_LOG_FACTOR, MAX_LOG_FACTOR)), _OVERCONFIDENCE * error

    @cached_property
    def _posterior(self) -> list[tuple[float, tuple[int, float, float], tuple[Floats, bool], Floats]]:
        """Hyperparameters with a weight above 1e-4: (weight, (index in _SEASON_DAYS, standard deviations of season and
        drift), Cholesky factor, K⁻¹ y)."""
        past = (self.origin_day, self.horizon_days)
        seasons, drift = _season_kernels(*past, *past), _drift_kernel(*past, *past)
        early = _inexperience(self.repeats)
        noise = _noise(*past, self.log_error) + np.outer(early, early)
        (median, spread), found, scores = _SEASON_PRIOR, [], []
        for i, s, d in product(range(len(_SEASON_DAYS)), _SEASON_SPREADS, _DRIFT_SPREADS):
            factor = cho_factor(s**2 * seasons[i] + d**2 * drift + noise, lower=True)
            weights = cho_solve(factor, self.log_ratio)
            log_det = 2 * np.log(np.diag(factor[0])).sum()
            prior = -((np.log(s / median) / spread) ** 2 + (d / _DRIFT_PRIOR) ** 2) / 2
            found.append(((i, s, d), factor, weights))
            scores.append(prior - (self.log_ratio @ weights + log_det) / 2)
        share = np.exp(np.array(scores) - max(scores))
        share /= share.sum()
        return [(float(w), *rest) for w, rest in zip(share, found, strict=True) if w > 1e-4]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {f.name: np.asarray(getattr(self, f.name)).tolist() for f in fields(self)}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`; ValueError for any other values."""
        names = [f.name for f in fields(cls)]
        if set(plain) != set(names):
            raise ValueError(f"this is no seasonal factor that to_json wrote: it has the keys {', '.join(names)}")
        columns = (np.array(plain[name], np.float64) for name in names[2:])
        return cls(int(plain["known_day"]), float(plain["known_repeats"]), *columns)


ERRORS = (
    *("origin_day", "horizon_days", "expected", "actual", "log_error"),
    *("expected_orders", "log_days", "repeats"),
)


def log_error(expected: ArrayLike, actual: ArrayLike) -> float:
    """Standard error of log(Σ actual / Σ expected) over customers, (N,) each; inf where a total is not positive.

    It is that of a ratio estimate, from the residuals actual − ratio · expected (Cochran 1977, eq. 6.4).
    """
    y, e = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if y.sum() <= 0 or e.sum() <= 0:
        return float("inf")
    return float(np.sqrt(((y - e * (y.sum() / e.sum())) ** 2).sum()) / y.sum())


def _season_kernels(origin: Floats, horizon: Floats, other: Floats, other_horizon: Floats) -> Floats:
    """Covariance (L, N, M) of the window means of a yearly season whose day has variance 1, by length scale.

    The kernel is a Gaussian of `_SEASON_DAYS` wrapped around the year, less its mean, as a sum over harmonics; the mean
    of harmonic k over h days is sinc(k h / year) times its value at mid-window.
    """
    lag = (origin + horizon / 2)[:, None] - (other + other_horizon / 2)[None, :]
    k = _HARMONICS[:, None, None]
    kept = np.sinc(k * horizon[:, None] / YEAR_DAYS) * np.sinc(k * other_horizon / YEAR_DAYS)
    swing = kept * np.cos(2 * np.pi * k * lag / YEAR_DAYS)
    return np.tensordot(_SHARES, swing, 1) * _between_horizons(horizon, other_horizon)


def _season_variances(horizon: Floats) -> Floats:
    """(L, N) variance of the window means of the season."""
    return np.asarray(_SHARES @ np.sinc(_HARMONICS[:, None] * horizon / YEAR_DAYS) ** 2)


def _drift_kernel(origin: Floats, horizon: Floats, other: Floats, other_horizon: Floats) -> Floats:
    lag = (origin + horizon / 2)[:, None] - (other + other_horizon / 2)[None, :]
    return np.asarray(np.exp(-np.abs(lag) / _DRIFT_MEMORY_DAYS) * _between_horizons(horizon, other_horizon))


def _inexperience(repeats: ArrayLike) -> Floats:
    """Standard deviation of the log error of a BTYD model that was fitted on so many repeat purchases."""
    return np.asarray(_INEXPERIENCE / np.sqrt(np.asarray(repeats, np.float64) + 1))


def _between_horizons(horizon: Floats, other: Floats) -> Floats:
    """Correlation of errors at two horizons: a shared part, and a part that fades with the difference of log horizons.

    The error of a long window is not the sum of those of short ones, since the BTYD model is refitted in between.
    """
    difference = np.log(horizon)[:, None] - np.log(other)[None, :]
    return np.asarray(_SHARED + (1 - _SHARED) * np.exp(-((difference / 0.3) ** 2) / 2))


def _noise(origin: Floats, horizon: Floats, error: Floats) -> Floats:
    """Sampling covariance of the log ratios: overlapping windows count the same purchases, so they are correlated."""
    end = origin + horizon
    overlap = np.minimum(end[:, None], end[None, :]) - np.maximum(origin[:, None], origin[None, :])
    shared = np.clip(overlap, 0, None) / np.sqrt(horizon[:, None] * horizon[None, :])
    return np.asarray(shared * np.outer(error, error) + np.eye(len(origin)) * _ROW_ERROR**2)
