"""Adjustment of the network's forecast: blend with the BTYD model, slope, totals, calibration and uncertainty."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from clv.btyd.seasonal_btyd import Curves
from clv.forecast import portfolio
from clv.forecast.calibration import GRID, Calibration, age_frequency_cells, identity_calibration
from clv.forecast.distributions import LEVELS, Array, Prediction, Quantiles
from clv.forecast.network import Forecast
from clv.models.inputs.assemble import AssembledRows

_NODES = np.linspace(0, 1, 128)  # grid of a buyer's log value, from four sigmas below the mixture to four above


@dataclass(frozen=True)
class Adjustment:
    """The corrections learned at the held-out origin, one per learned horizon.

    blend_purchase, blend_value: weight of the network against the BTYD model.
    scale: factor on value (after value is raised to the power of `slope`, see `clv.forecast.slope`), and scale_repeats:
    factor on the orders beyond the first; both bring the totals of the customers to those of the BTYD model.
    calibration: of purchase probabilities and of the value distribution.
    num_observed: number of horizons, the shortest ones, that a training origin observed in full. Beyond them the
    network's weights are 0 and the increments of the BTYD model extend the curves (`Forecast.extend_with_btyd`), so
    that scale factors and the calibration of probabilities have no effect there.
    """

    blend_purchase: tuple[float, ...]
    blend_value: tuple[float, ...]
    scale: tuple[float, ...]
    scale_repeats: tuple[float, ...]
    calibration: tuple[Calibration, ...]
    num_observed: int
    slope: float = 1.0

    @classmethod
    def identity(cls, num_horizons: int, blend_weight: float = 1.0) -> Self:
        """An adjustment that only blends, with the same weight of the network at every horizon."""
        ones, weights = (1.0,) * num_horizons, (blend_weight,) * num_horizons
        return cls(weights, weights, ones, ones, (identity_calibration(),) * num_horizons, num_horizons)

    def limit_to_observed(self, num_observed: int) -> Self:
        """This adjustment with weight 0 on the network at all but the first `num_observed` horizons."""
        purchase, value = (
            (*weights[:num_observed], *(0.0,) * (len(weights) - num_observed))
            for weights in (self.blend_purchase, self.blend_value)
        )
        return replace(self, blend_purchase=purchase, blend_value=value, num_observed=num_observed)

    def to_json(self) -> dict[str, Any]:
        """The content of a bundle's calibration.json, plain JSON values."""
        tuples = {name: list(value) for name, value in vars(self).items() if isinstance(value, tuple)}
        return vars(self) | tuples | {"calibration": [c.to_json() for c in self.calibration]}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        tuples = {name: tuple(value) for name, value in plain.items() if isinstance(value, list)}
        return cls(**plain | tuples | {"calibration": tuple(map(Calibration.from_json, plain["calibration"]))})


@dataclass(frozen=True)
class AdjustedForecast:
    """Adjusted forecast of S rows at H horizons, with the distribution of each row's value and of sums of rows.

    `forecast` holds the adjusted curves, `btyd` the curves of the BTYD model with the seasonal factor. Where the
    horizons are not the learned ones (`clv.forecast.horizons`), `learned` is the forecast at the learned horizons, and
    `next_learned` (H,) the index of the first learned horizon that is not shorter, or their number beyond the last.
    """

    forecast: Forecast
    btyd: Curves
    remap: Array  # (S, H, GRID): quantile level of the mixture at which to read each level of a buyer's value
    factor_error: Array  # (H,) standard deviation of the log of the seasonal factor, which all customers share
    sum_spread: Array  # (H,) actual over predicted variance of sums of customers
    num_observed: int  # of the learned horizons (see `Adjustment`)
    learned: AdjustedForecast | None = None
    next_learned: NDArray[np.int64] | None = None

    def quantiles(self, levels: Array) -> Array:
        """(S, H, Q) quantiles of value, shop currency, non-decreasing in the level and in the horizon."""
        p = self.forecast.p_purchase[..., None]
        inner, read = self._buyer_levels(levels)
        values = self.forecast.quantile(np.where(inner > 0, 1 - p + p * read, 0.0))
        values = np.maximum.accumulate(values, axis=2)
        return self._bound_by_learned(values, None if self.learned is None else self.learned.quantiles(levels))

    def _bound_by_learned(self, values: Array, learned: Array | None) -> Array:
        """Values (S, H, Q) made non-decreasing in the horizon, and clipped to those of the adjacent learned horizons.

        So the quantiles of one horizon do not depend on the other horizons of the request.
        """
        if learned is not None and self.next_learned is not None:
            edge = np.zeros((len(values), 1, values.shape[2]))
            around = np.concatenate([edge, learned, edge + np.inf], axis=1)
            values = np.clip(values, around[:, self.next_learned], around[:, self.next_learned + 1])
        return np.maximum.accumulate(values, axis=1)

    def _buyer_levels(self, levels: Array) -> tuple[Array, Array]:
        """(S, H, Q) level among the row's purchases of each quantile level, and the mixture's level after the remap."""
        p = self.forecast.p_purchase[..., None]
        inner = (levels - (1 - p)) / p
        position = np.clip(inner, 0, 1) * (len(GRID) - 1)
        left = np.minimum(position.astype(np.int64), len(GRID) - 2)
        low, high = (np.take_along_axis(self.remap, at, 2) for at in (left, left + 1))
        return inner, np.clip(low + (position - left) * (high - low), 1e-4, 1 - 1e-4)

    def equally_likely_values(self) -> Array:
        """(S, H, NUM_DRAWS) equally likely values of each row, ascending: `quantiles` read from a table, within 1 %."""
        f = self.forecast
        low, high = (f.location - 4 * f.sigma).min(-1), (f.location + 4 * f.sigma).max(-1)
        log_value = low[..., None] + (high - low)[..., None] * _NODES
        below = np.zeros(log_value.shape)
        for k in range(f.sigma.shape[-1]):
            z = (log_value - f.location[..., k, None]) / f.sigma[..., k, None]
            below += np.exp(f.log_weight[..., k, None]) * ndtr(z)
        inner, read = self._buyer_levels(portfolio.DRAW_LEVELS)
        # np.interp needs one ascending curve, so each row's curve is raised by 2 above the one before.
        step = 2.0 * np.arange(low.size).reshape(*low.shape, 1)
        found = np.interp((read + step).ravel(), (below + step).ravel(), log_value.ravel()).reshape(read.shape)
        values = np.where(inner > 0, np.exp(found), 0.0)
        learned = None if self.learned is None else self.learned.equally_likely_values()
        return self._bound_by_learned(values, learned)

    def take(self, rows: slice) -> AdjustedForecast:
        """The adjusted forecast of a slice of the rows."""
        forecast = Forecast(**{name: values[rows] for name, values in vars(self.forecast).items()})
        btyd = Curves(**{name: values[rows] for name, values in vars(self.btyd).items()})
        learned = None if self.learned is None else self.learned.take(rows)
        return replace(self, forecast=forecast, btyd=btyd, remap=self.remap[rows], learned=learned)

    def prediction(self, horizon: int) -> Prediction:
        """The predictions at the horizon of that index, in the form that the metrics take."""
        p = self.forecast.p_purchase[:, horizon]
        return Prediction(
            value=self.forecast.value[:, horizon],
            p_purchase=p,
            quantiles=Quantiles(LEVELS, self.quantiles(LEVELS)[:, horizon], p_zero=1 - p),
            factor_error=float(self.factor_error[horizon]),
            sum_spread=float(self.sum_spread[horizon]),
        )


def adjust(raw: Forecast, rows: AssembledRows, adjustment: Adjustment) -> AdjustedForecast:
    """Adjust the network's forecast `raw` of `rows`.

    At the observed horizons the forecast is blended with the BTYD model, and the value of buyers is raised to the power
    of the slope, scaled and calibrated; beyond them the BTYD model's increments extend the curves. The error of the
    seasonal factor widens the value distribution of every row.
    """
    table, btyd, factor_error = rows.table, rows.base, rows.factor_error
    buys = table["has_purchase"].to_numpy(bool)
    out = raw.blend_with_btyd(btyd, np.array(adjustment.blend_purchase), np.array(adjustment.blend_value))
    value = np.where(buys[:, None], out.value**adjustment.slope * np.array(adjustment.scale), out.value)
    repeats = out.repeats * np.where(buys[:, None], np.array(adjustment.scale_repeats), 1.0)
    cell = age_frequency_cells(table["T"].to_numpy(), table["frequency"].to_numpy())
    p = out.p_purchase
    for i, calibration in enumerate(adjustment.calibration):
        p[:, i] = np.where(buys, calibration.probability(p[:, i], cell), p[:, i])
    hazard = np.maximum.accumulate(-np.log1p(-np.clip(p, 1e-12, 1 - 1e-12)), axis=1)
    out = replace(
        out.rescale(hazard, np.maximum.accumulate(value, axis=1)), repeats=np.maximum.accumulate(repeats, axis=1)
    ).extend_with_btyd(btyd, adjustment.num_observed)
    wide = np.sqrt(out.sigma**2 + (factor_error**2)[:, None])
    out = replace(out, sigma=wide, location=out.location + (out.sigma**2 - wide**2) / 2)
    remap = np.stack([np.asarray(c.remap)[cell] for c in adjustment.calibration], axis=1)
    error_scale, sum_spread = (
        np.array([getattr(c, name) for c in adjustment.calibration]) for name in ("factor_error_scale", "sum_spread")
    )
    return AdjustedForecast(out, btyd, remap, factor_error * error_scale, sum_spread, adjustment.num_observed)
