"""Adjusts a raw forecast: blend weights, spread, totals and calibration, in this order."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr

from clv.btyd.seasonal import Curves
from clv.forecast import portfolio
from clv.forecast.calibration import GRID, Calibration, cells, identity
from clv.forecast.distributions import LEVELS, Prediction, Quantiles
from clv.forecast.network import Forecast

Floats = NDArray[np.float64]

_NODES = np.linspace(0, 1, 128)  # of a buyer's log value, from four sigmas below his mixture to four above


@dataclass(frozen=True)
class Adjustment:
    """What the held-out origin taught, per learned horizon: the weight of the model against the BTYD model, the factors
    that bring its totals (of value, raised to the power of `slope`; of orders, by those beyond the first) to the
    level, and the calibration of probabilities and bands.

    At horizons after the first `matured` no training origin has fully observed: the model's weights are 0 there, and the BTYD
    model's increments carry the curves on from the last fully observed horizon (`Forecast.carried`), so that factors and
    calibration of probabilities have no use there.
    """

    blend_purchase: tuple[float, ...]
    blend_value: tuple[float, ...]
    scale: tuple[float, ...]
    scale_repeats: tuple[float, ...]
    calibration: tuple[Calibration, ...]
    matured: int
    slope: float = 1.0  # see `clv.forecast.slope`

    @classmethod
    def none(cls, num_horizons: int, blend_weight: float = 1.0) -> Self:
        ones = (1.0,) * num_horizons
        return cls(
            (blend_weight,) * num_horizons,
            (blend_weight,) * num_horizons,
            ones,
            ones,
            (identity(),) * num_horizons,
            num_horizons,
        )

    def limited(self, matured: int) -> Self:
        """The same with weight 0 on the model at all but the first `matured` horizons."""
        purchase, value = (
            (*blend_weight[:matured], *(0.0,) * (len(blend_weight) - matured))
            for blend_weight in (self.blend_purchase, self.blend_value)
        )
        return replace(self, blend_purchase=purchase, blend_value=value, matured=matured)

    def to_json(self) -> dict[str, Any]:
        return {
            "blend_purchase": list(self.blend_purchase),
            "blend_value": list(self.blend_value),
            "scale": list(self.scale),
            "scale_repeats": list(self.scale_repeats),
            "calibration": [json.loads(c.to_json()) for c in self.calibration],
            "matured": self.matured,
            "slope": self.slope,
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        return cls(
            tuple(plain["blend_purchase"]),
            tuple(plain["blend_value"]),
            tuple(plain["scale"]),
            tuple(plain["scale_repeats"]),
            tuple(Calibration.from_json(json.dumps(c)) for c in plain["calibration"]),
            int(plain["matured"]),
            float(plain["slope"]),
        )


@dataclass(frozen=True)
class Outlook:
    """Adjusted forecast of S rows at the learned horizons, and what is needed to read any horizon off it."""

    forecast: Forecast
    base: Curves
    remap: Floats  # (S, H, GRID): the level to read for a wanted level of a buyer's value
    factor_error: Floats  # (H,) log standard deviation of the level that all customers share
    sum_spread: Floats  # (H,) realised over predicted variance of sums of customers
    matured: int  # learned horizons, the shortest ones, at which the model was trained (see `Adjustment`)
    learned: Outlook | None = None  # at the learned horizons, where this one is read off it
    right: NDArray[np.int64] | None = None  # (H,) index of the learned horizon at or after each; their number beyond

    def quantiles(self, levels: Floats) -> Floats:
        """(S, H, Q) in shop currency, non-decreasing in level and in horizon."""
        p = self.forecast.p_purchase[..., None]
        inner, read = self._read(levels)
        values = self.forecast.quantile(np.where(inner > 0, 1 - p + p * read, 0.0))
        values = np.maximum.accumulate(values, axis=2)
        return self._between(values, None if self.learned is None else self.learned.quantiles(levels))

    def _between(self, values: Floats, learned: Floats | None) -> Floats:
        """Values (S, H, Q) made non-decreasing in the horizon, and held between those of the learned horizons around
        each: what is said of a horizon must not depend on which others are asked for."""
        if learned is not None and self.right is not None:
            edge = np.zeros((len(values), 1, values.shape[2]))
            around = np.concatenate([edge, learned, edge + np.inf], axis=1)
            values = np.clip(values, around[:, self.right], around[:, self.right + 1])
        return np.maximum.accumulate(values, axis=1)

    def _read(self, levels: Floats) -> tuple[Floats, Floats]:
        """For wanted levels, (S, H, Q) each: the level among the customer's purchases, and where the mixture has it."""
        p = self.forecast.p_purchase[..., None]
        inner = (levels - (1 - p)) / p
        place = np.clip(inner, 0, 1) * (len(GRID) - 1)
        left = np.minimum(place.astype(np.int64), len(GRID) - 2)
        low = np.take_along_axis(self.remap, left, 2)
        high = np.take_along_axis(self.remap, left + 1, 2)
        return inner, np.clip(low + (place - left) * (high - low), 1e-4, 1 - 1e-4)

    def equally_likely(self) -> Floats:
        """(S, H, NUM_DRAWS) equally likely values of each customer, ascending: `quantiles` by a table, good to 1 %."""
        f = self.forecast
        low, high = (f.location - 4 * f.sigma).min(-1), (f.location + 4 * f.sigma).max(-1)
        log_value = low[..., None] + (high - low)[..., None] * _NODES
        below = np.zeros(log_value.shape)
        for k in range(f.sigma.shape[-1]):
            below += np.exp(f.log_weight[..., k, None]) * ndtr(
                (log_value - f.location[..., k, None]) / f.sigma[..., k, None]
            )
        inner, read = self._read(portfolio.DRAW_LEVELS)
        # One ascending curve of all rows: each stands 2 above the one before.
        step = 2.0 * np.arange(low.size).reshape(*low.shape, 1)
        found = np.interp((read + step).ravel(), (below + step).ravel(), log_value.ravel()).reshape(read.shape)
        values = np.where(inner > 0, np.exp(found), 0.0)
        return self._between(values, None if self.learned is None else self.learned.equally_likely())

    def take(self, rows: slice) -> Outlook:
        """The outlook of some rows."""
        forecast = replace(self.forecast, **{f.name: getattr(self.forecast, f.name)[rows] for f in fields(Forecast)})
        base = replace(self.base, **{f.name: getattr(self.base, f.name)[rows] for f in fields(Curves)})
        learned = None if self.learned is None else self.learned.take(rows)
        return replace(self, forecast=forecast, base=base, remap=self.remap[rows], learned=learned)

    def prediction(self, horizon: int) -> Prediction:
        """The outlook at the learned horizon of that index, as the metrics take it."""
        p = self.forecast.p_purchase[:, horizon]
        values = self.quantiles(LEVELS)[:, horizon]
        return Prediction(
            value=self.forecast.value[:, horizon],
            p_purchase=p,
            quantiles=Quantiles(LEVELS, values, p_zero=1 - p),
            factor_error=float(self.factor_error[horizon]),
            sum_spread=float(self.sum_spread[horizon]),
        )


def adjust(raw: Forecast, base: Curves, table: pd.DataFrame, factor_error: Floats, adjustment: Adjustment) -> Outlook:
    """Gate, spread, scale and calibrate at the fully observed horizons, and carry the curves on by the BTYD model's increments
    (those of `base`) beyond; the uncertainty of the level widens every customer's distribution."""
    blend_weight = np.array(adjustment.blend_purchase), np.array(adjustment.blend_value)
    buys = table["has_purchase"].to_numpy(bool)
    out = raw.blended(base, blend_weight[0], blend_weight[1])
    value = np.where(buys[:, None], out.value**adjustment.slope * np.array(adjustment.scale), out.value)
    repeats = out.repeats * np.where(buys[:, None], np.array(adjustment.scale_repeats), 1.0)
    cell = cells(table["T"].to_numpy(), table["frequency"].to_numpy())
    p = out.p_purchase
    for i, calibration in enumerate(adjustment.calibration):
        p[:, i] = np.where(buys, calibration.probability(p[:, i], cell), p[:, i])
    hazard = np.maximum.accumulate(-np.log1p(-np.clip(p, 1e-12, 1 - 1e-12)), axis=1)
    out = replace(
        out.moved(hazard, np.maximum.accumulate(value, axis=1)), repeats=np.maximum.accumulate(repeats, axis=1)
    ).carried(base, adjustment.matured)
    wide = np.sqrt(out.sigma**2 + (factor_error**2)[:, None])
    out = replace(out, sigma=wide, location=out.location + (out.sigma**2 - wide**2) / 2)
    remap = np.stack([np.asarray(c.remap)[cell] for c in adjustment.calibration], axis=1)
    stretch, spread = (
        np.array([getattr(c, n) for c in adjustment.calibration]) for n in ("factor_error_scale", "sum_spread")
    )
    return Outlook(out, base, remap, factor_error * stretch, spread, adjustment.matured)
