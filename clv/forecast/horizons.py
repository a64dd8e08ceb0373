"""Horizons that were not learned: read between learned ones, and carried on beyond the last."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from clv.btyd.seasonal import Curves, SeasonalBTYD
from clv.forecast.adjustment import Outlook
from clv.forecast.network import Forecast

Floats = NDArray[np.float64]

TAIL_YEARS = 10  # beyond the longest learned horizon, in `clv_mean`


TAIL_YEARS_WITHOUT_DROPOUT = 3  # where the log does not show that customers leave, ten years of staying are a fiction


def tail_years(btyd: SeasonalBTYD) -> int:
    """Years beyond the longest learned horizon that `clv_mean` counts; fewer where the BTYD model's dropout is unproven."""
    return TAIL_YEARS if btyd.warning is None else TAIL_YEARS_WITHOUT_DROPOUT


def at_horizons(
    outlook: Outlook, learned: tuple[int, ...], wanted: tuple[int, ...], plain: Curves
) -> tuple[Outlook, NDArray[np.bool_]]:
    """The outlook at other horizons `wanted` (ascending), and which of them are extrapolated.

    `plain`: the BTYD model's curves, without level, at all learned and wanted horizons, ascending. Between learned horizons
    hazard, orders and value grow in the proportion of these curves. Beyond the longest learned horizon they grow by the
    increments of these curves times a ratio: the forecast over `plain` at the longest horizon if a training origin has
    fully observed for it, else the seasonally adjusted BTYD curve over `plain`, so that no untrained ratio is carried on. All
    is non-decreasing in the horizon, whatever else is asked for.
    """
    f, known, days = outlook.forecast, np.array(learned), np.array(wanted)
    asked = np.union1d(known, days)
    at_known, at_days = np.searchsorted(asked, known), np.searchsorted(asked, days)
    right = np.searchsorted(known, days)
    near, beyond = np.minimum(right, len(known) - 1), right == len(known)
    even = (days - np.append(0, known)[near]) / np.diff(known, prepend=0)[near]

    def share(btyd_model: Floats) -> Floats:
        """(S, W) how much of the increment to the next learned horizon has come."""
        padded = np.concatenate([np.zeros((len(btyd_model), 1)), btyd_model[:, at_known]], 1)
        low, step = padded[:, near], padded[:, near + 1] - padded[:, near]
        grown = (btyd_model[:, at_days] - low) / np.maximum(step, 1e-12)
        return np.clip(np.where(step > 1e-12, grown, even), 0, 1)

    def read(name: str, own: Forecast | Curves, ahead: Forecast | Curves) -> Floats:
        """(S, W) a curve of `own`, carried on beyond the learned horizons in the proportion of `ahead` to `plain`."""
        model, btyd_model = getattr(own, name), getattr(plain, name)
        padded = np.concatenate([np.zeros((len(model), 1)), model], 1)
        between = padded[:, near] + share(btyd_model) * (padded[:, near + 1] - padded[:, near])
        last = btyd_model[:, at_known[-1:]]
        ratio = np.clip(getattr(ahead, name)[:, -1:] / np.maximum(last, 1e-12), 0.02, 50.0)
        return np.where(beyond, model[:, -1:] + ratio * np.maximum(btyd_model[:, at_days] - last, 0), between)

    ahead = f if outlook.matured == len(known) else outlook.base
    hazard = np.maximum(read("hazard", f, ahead), 1e-12)
    value = np.maximum(read("value", f, ahead), 1e-12)
    orders = np.maximum(read("orders", f, ahead), -np.expm1(-hazard))
    base = Curves(*(read(c.name, outlook.base, outlook.base) for c in fields(Curves)))
    spent = f.value / f.p_purchase  # (S, L) by a buyer
    here = value / -np.expm1(-hazard) / spent[:, near]
    before = np.minimum(spent[:, np.maximum(near - 1, 0)] / spent[:, near], 1.0)
    size = np.where(near == 0, np.minimum(here, 1.0), before ** (1 - share(plain.value)))
    size = np.where(beyond, np.maximum(here, 1.0), size)
    moved = replace(
        f,
        repeats=orders + np.expm1(-hazard),
        hazard=hazard,
        value=value,
        log_weight=f.log_weight[:, near],
        location=f.location[:, near] + np.log(size)[..., None],
        sigma=f.sigma[:, near],
    )
    factor_error = np.interp(days, known, outlook.factor_error)
    remap, spread = outlook.remap[:, near], outlook.sum_spread[near]
    return Outlook(moved, base, remap, factor_error, spread, outlook.matured, outlook, right), beyond
