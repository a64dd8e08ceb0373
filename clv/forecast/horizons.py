"""Forecasts at other horizons than the learned ones: interpolation between them, and extrapolation beyond the last."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from clv.btyd.seasonal_btyd import Curves, SeasonalBTYD
from clv.forecast.adjustment import AdjustedForecast
from clv.forecast.distributions import Array
from clv.forecast.network import Forecast

TAIL_YEARS = 10  # years beyond the longest learned horizon that `clv_mean` counts
TAIL_YEARS_WITHOUT_DROPOUT = 3  # where the log shows no dropout, ten more years of every customer are not credible


def tail_years(btyd: SeasonalBTYD) -> int:
    """Years beyond the longest learned horizon that `clv_mean` counts; fewer where the BTYD model shows no dropout."""
    return TAIL_YEARS if btyd.warning is None else TAIL_YEARS_WITHOUT_DROPOUT


def resample_horizons(
    adjusted: AdjustedForecast, learned: tuple[int, ...], wanted: tuple[int, ...], btyd: Curves
) -> tuple[AdjustedForecast, NDArray[np.bool_]]:
    """The adjusted forecast at the horizons `wanted`, and (W,) which of them are extrapolated.

    `learned` and `wanted` are days, ascending. `btyd`: the BTYD model's curves without the seasonal factor, at all
    learned and wanted horizons, ascending. Between learned horizons hazard, orders and value grow in the proportion of
    these curves. Beyond the longest learned horizon they grow by the increments of these curves times a ratio to
    `btyd` at the longest horizon: that of the forecast if a training origin observed this horizon in full, else that of
    the seasonally adjusted BTYD curve, because the network's ratio is then untrained. All curves are non-decreasing in
    the horizon, and do not depend on the other wanted horizons.
    """
    f, known, days = adjusted.forecast, np.array(learned), np.array(wanted)
    every = np.union1d(known, days)
    at_known, at_days = np.searchsorted(every, known), np.searchsorted(every, days)
    right = np.searchsorted(known, days)
    near, beyond = np.minimum(right, len(known) - 1), right == len(known)
    even = (days - np.append(0, known)[near]) / np.diff(known, prepend=0)[near]

    def share(curve: Array) -> Array:
        """(S, W) share of the increment to the next learned horizon that `curve` reaches at the wanted horizon."""
        padded = np.concatenate([np.zeros((len(curve), 1)), curve[:, at_known]], 1)
        low, step = padded[:, near], padded[:, near + 1] - padded[:, near]
        grown = (curve[:, at_days] - low) / np.maximum(step, 1e-12)
        return np.clip(np.where(step > 1e-12, grown, even), 0, 1)

    def read(name: str, own: Forecast | Curves, ahead: Forecast | Curves) -> Array:
        """(S, W) curve `name` of `own`; beyond the learned horizons in the proportion of `ahead` to `btyd`."""
        curve, btyd_curve = getattr(own, name), getattr(btyd, name)
        padded = np.concatenate([np.zeros((len(curve), 1)), curve], 1)
        between = padded[:, near] + share(btyd_curve) * (padded[:, near + 1] - padded[:, near])
        last = btyd_curve[:, at_known[-1:]]
        ratio = np.clip(getattr(ahead, name)[:, -1:] / np.maximum(last, 1e-12), 0.02, 50.0)
        return np.where(beyond, curve[:, -1:] + ratio * np.maximum(btyd_curve[:, at_days] - last, 0), between)

    ahead = f if adjusted.num_observed == len(known) else adjusted.btyd
    hazard = np.maximum(read("hazard", f, ahead), 1e-12)
    value = np.maximum(read("value", f, ahead), 1e-12)
    orders = np.maximum(read("orders", f, ahead), -np.expm1(-hazard))
    seasonal_btyd = Curves(*(read(c.name, adjusted.btyd, adjusted.btyd) for c in fields(Curves)))
    spend = f.value / f.p_purchase  # (S, L) expected value given a purchase
    here = value / -np.expm1(-hazard) / spend[:, near]
    before = np.minimum(spend[:, np.maximum(near - 1, 0)] / spend[:, near], 1.0)
    size = np.where(near == 0, np.minimum(here, 1.0), before ** (1 - share(btyd.value)))
    size = np.where(beyond, np.maximum(here, 1.0), size)
    resampled = replace(
        f,
        repeats=orders + np.expm1(-hazard),
        hazard=hazard,
        value=value,
        log_weight=f.log_weight[:, near],
        location=f.location[:, near] + np.log(size)[..., None],
        sigma=f.sigma[:, near],
    )
    out = AdjustedForecast(
        forecast=resampled,
        btyd=seasonal_btyd,
        remap=adjusted.remap[:, near],
        factor_error=np.interp(days, known, adjusted.factor_error),
        sum_spread=adjusted.sum_spread[near],
        num_observed=adjusted.num_observed,
        learned=adjusted,
        next_learned=right,
    )
    return out, beyond
