"""Forecasts of the network: forward passes over samples, and the curves and value mixture that the heads give."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr
from torch import nn

from clv.btyd.seasonal_btyd import Curves
from clv.forecast.distributions import Array
from clv.models.heads import Outputs
from clv.models.inputs.batch import Samples

BISECTIONS = 45


@dataclass(frozen=True)
class Forecast:
    """Forecast of S rows at H horizons: cumulative curves (S, H), and the distribution of value given a purchase.

    hazard is -log P(no purchase), repeats are expected orders beyond the first, value is expected spend in shop
    currency. Value given a purchase follows a mixture of K lognormals with log_weight, location and sigma (S, H, K), of
    the log value in shop currency. z (S, Z) is the customer's embedding.
    """

    hazard: Array
    repeats: Array
    value: Array
    log_weight: Array
    location: Array
    sigma: Array
    z: NDArray[np.float32]

    @property
    def p_purchase(self) -> Array:
        """(S, H) probability of at least one purchase."""
        return -np.expm1(-self.hazard)

    @property
    def orders(self) -> Array:
        """(S, H) expected orders."""
        return self.p_purchase + self.repeats

    def blend_with_btyd(self, btyd: Curves, purchase: float | Array, value: float | Array) -> Forecast:
        """The weighted mean of this forecast and the BTYD curves; the value mixture moves to the new mean.

        `purchase` is the weight of this forecast in hazard and repeats, `value` its weight in value.
        """
        hazard = purchase * self.hazard + (1 - purchase) * btyd.hazard
        repeats = purchase * self.repeats + (1 - purchase) * btyd.repeats
        return replace(self, repeats=repeats).rescale(hazard, value * self.value + (1 - value) * btyd.value)

    def extend_with_btyd(self, btyd: Curves, num_observed: int) -> Forecast:
        """This forecast at the first `num_observed` horizons, and beyond them the increments of the BTYD curves.

        The network had no training label for the longer horizons. Hazard, orders and value of each row therefore grow
        from the last observed horizon by the increments of `btyd`, so that the probability of a first purchase after
        that horizon is the BTYD model's. Value given a purchase keeps the shape of the last observed horizon. Orders
        grow by more only where they would otherwise fall below p_purchase.
        """
        last = np.minimum(np.arange(self.hazard.shape[1]), num_observed - 1)
        held = replace(self, **{f.name: getattr(self, f.name)[:, last] for f in fields(self) if f.name != "z"})
        hazard, orders, value = (c - c[:, last] for c in (btyd.hazard, btyd.orders, btyd.value))
        after = held.rescale(held.hazard + hazard, held.value + value)
        # Orders are p_purchase + repeats; repeats never fall.
        repeats = held.repeats + (orders - (after.p_purchase - held.p_purchase))
        return replace(after, repeats=np.maximum.accumulate(repeats, axis=1))

    def rescale(self, hazard: Array, value: Array) -> Forecast:
        """The same shape of value given a purchase, with another hazard and another expected value, (S, H) each."""
        before = np.log(self.value) - np.log(self.p_purchase)
        after = np.log(value) - np.log(-np.expm1(-hazard))
        return replace(self, hazard=hazard, value=value, location=self.location + (after - before)[..., None])

    def quantile(self, level: Array) -> Array:
        """(S, H, Q) smallest v with P(V <= v) >= level, shop currency; level is (S, H, Q) or broadcasts to it."""
        p = self.p_purchase[..., None]
        level = np.broadcast_to(level, (*self.hazard.shape, np.shape(level)[-1]))
        inner = (level - (1 - p)) / p
        out = np.zeros(level.shape)
        row, horizon, _ = where = np.nonzero(inner > 0)
        target = np.minimum(inner[where], 1 - 1e-9)
        weight, location = np.exp(self.log_weight[row, horizon]), self.location[row, horizon]
        sigma = self.sigma[row, horizon]
        low, high = (location - 7 * sigma).min(-1), (location + 7 * sigma).max(-1)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = (weight * ndtr((middle[:, None] - location) / sigma)).sum(-1) < target
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        out[where] = np.exp((low + high) / 2)
        return out


@torch.inference_mode()
def forecast_samples(
    model: nn.Module, samples: Samples, value_scale: float, *, batch_size: int = 512, device: str | torch.device = "cpu"
) -> Forecast:
    """Forecast of every sample, in the order of the samples; `value_scale` is the currency per unit of value."""
    model.eval()
    found: list[tuple[NDArray[np.int64], Outputs]] = [
        (rows, model(samples.batch(rows).to(device))) for rows in samples.batches_by_length(batch_size)
    ]
    order = np.argsort(np.concatenate([rows for rows, _ in found])) if found else np.zeros(0, np.int64)

    def collect(name: str) -> Array:
        parts = [getattr(out, name).float().cpu().numpy() for _, out in found]
        return np.concatenate(parts)[order].astype(np.float64)

    return Forecast(
        hazard=collect("hazard"),
        repeats=collect("repeats"),
        value=collect("value") * value_scale,
        log_weight=collect("log_weight"),
        location=collect("location") + np.log(value_scale),
        sigma=collect("sigma"),
        z=collect("z").astype(np.float32),
    )
