"""From a model to numbers: forward passes in order of length, and the distribution of value that the heads describe."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logsumexp, ndtr
from torch import nn

from clv.btyd.seasonal import Curves
from clv.models.heads import Outputs
from clv.models.inputs.batch import Samples

Floats = NDArray[np.float64]
BISECTIONS = 45


@dataclass(frozen=True)
class Forecast:
    """Per row and horizon, (S, H): cumulative curves, and (S, H, K) the lognormal mixture of value given a purchase.

    Value is in shop currency, log value too. `z` (S, Z) is the customer's embedding.
    """

    hazard: Floats
    repeats: Floats
    value: Floats
    log_weight: Floats
    location: Floats
    sigma: Floats
    z: NDArray[np.float32]

    @property
    def p_purchase(self) -> Floats:
        return -np.expm1(-self.hazard)

    @property
    def orders(self) -> Floats:
        return self.p_purchase + self.repeats

    def blended(self, base: Curves, purchase: float | Floats, value: float | Floats) -> Forecast:
        """Mean of this forecast and the BTYD model's, with the given weights on this one; the mixture follows its mean."""
        hazard = purchase * self.hazard + (1 - purchase) * base.hazard
        repeats = purchase * self.repeats + (1 - purchase) * base.repeats
        return replace(self, repeats=repeats).moved(hazard, value * self.value + (1 - value) * base.value)

    def carried(self, base: Curves, matured: int) -> Forecast:
        """This forecast at the first `matured` horizons; beyond them the increments of `base` carry its curves on.

        No training label has taught the network those horizons. Each row's hazard, orders and value therefore grow
        from the last fully observed horizon by what `base` adds from there: the chance of a first purchase after that horizon
        is the BTYD model's. Value given a purchase keeps the shape of the last fully observed horizon. Orders grow by more
        only where they would otherwise fall below what p_purchase implies.
        """
        last = np.minimum(np.arange(self.hazard.shape[1]), matured - 1)
        held = replace(self, **{f.name: getattr(self, f.name)[:, last] for f in fields(self) if f.name != "z"})
        hazard, orders, value = (c - c[:, last] for c in (base.hazard, base.orders, base.value))
        after = held.moved(held.hazard + hazard, held.value + value)
        # Orders are p_purchase + repeats; repeats never fall.
        repeats = held.repeats + (orders - (after.p_purchase - held.p_purchase))
        return replace(after, repeats=np.maximum.accumulate(repeats, axis=1))

    def moved(self, hazard: Floats, value: Floats) -> Forecast:
        """The same shape around another hazard and mean."""
        before = np.log(self.value) - np.log(self.p_purchase)
        after = np.log(value) - np.log(-np.expm1(-hazard))
        return replace(self, hazard=hazard, value=value, location=self.location + (after - before)[..., None])

    def cdf(self, value: Floats) -> Floats:
        """P(V <= value), value (S, H) in shop currency; at 0 it is the probability of no purchase."""
        p = self.p_purchase
        with np.errstate(divide="ignore"):
            log_value = np.log(np.maximum(value, 0))[..., None]
        below = (np.exp(self.log_weight) * ndtr((log_value - self.location) / self.sigma)).sum(-1)
        return np.asarray(1 - p + p * np.where(value > 0, below, 0.0))

    def quantile(self, level: Floats) -> Floats:
        """Smallest v with P(V <= v) >= level; level (S, H, Q) or broadcastable to it. Shop currency, (S, H, Q)."""
        p = self.p_purchase[..., None]
        level = np.broadcast_to(level, (*self.hazard.shape, np.shape(level)[-1]))
        inner = (level - (1 - p)) / p
        out = np.zeros(level.shape)
        row, horizon, _ = where = np.nonzero(inner > 0)
        if len(row) == 0:
            return out
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

    def log_mean_given_purchase(self) -> Floats:
        return np.asarray(logsumexp(self.log_weight + self.location + self.sigma**2 / 2, axis=-1))


@torch.inference_mode()
def forecast(
    model: nn.Module, samples: Samples, value_scale: float, *, batch_size: int = 512, device: str | torch.device = "cpu"
) -> Forecast:
    """Forecast of every row, in the order of the rows."""
    model.eval()
    found: list[tuple[NDArray[np.int64], Outputs]] = []
    for rows in samples.in_order_of_length(batch_size):
        found.append((rows, model(samples.batch(rows).to(device))))
    order = np.argsort(np.concatenate([rows for rows, _ in found])) if found else np.zeros(0, np.int64)

    def collect(name: str) -> NDArray[np.float64]:
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
