"""Losses. Each returns (sum, weight): the engine divides by the weight of the whole global batch, whoever holds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clv.models.heads import Outputs, log_normal_density
from clv.models.inputs.batch import Targets

LossName = Literal["mixture", "ziln", "tweedie", "mse"]
TWEEDIE_POWER = 1.5


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """`name` is the loss of value: `mixture` adds the mean's own Tweedie deviance to the density, `ziln` does not."""

    name: LossName = "mixture"
    purchase_weight: float = 1.0
    orders_weight: float = 0.3
    value_weight: float = 0.5
    mean_weight: float = 1.0


def purchase_nll(hazard: Tensor, bought: Tensor) -> Tensor:
    """-log Bernoulli(bought; 1 - exp(-hazard)), elementwise."""
    return torch.where(bought > 0, -torch.log(-torch.expm1(-hazard)), hazard)


def orders_nll(orders: Tensor, p_purchase: Tensor, repeats: Tensor, dispersion: Tensor) -> Tensor:
    """-log P(N | N >= 1), elementwise; 0 where N = 0. N - 1 given N >= 1 is NegBin(mean repeats / p, dispersion).

    The shifted law, unlike the zero-truncated one, has the wanted mean in closed form, and P(N >= 1) stays p.
    """
    extra = (orders - 1).clamp(min=0)
    mean = repeats / p_purchase
    k = dispersion.expand_as(mean)
    log_pmf = (
        torch.lgamma(extra + k)
        - torch.lgamma(k)
        - torch.lgamma(extra + 1)
        + k * torch.log(k / (k + mean))
        + extra * torch.log(mean / (k + mean))
    )
    return torch.where(orders > 0, -log_pmf, torch.zeros_like(log_pmf))


def value_nll(value: Tensor, out: Outputs) -> Tensor:
    """-log density of value given a purchase (mixture of lognormals, in log value), elementwise; 0 where value is 0."""
    positive = value > 0
    log_value = torch.log(torch.where(positive, value, torch.ones_like(value)))
    return torch.where(positive, -log_normal_density(log_value, out), torch.zeros_like(value))


def tweedie_deviance(value: Tensor, mean: Tensor, power: float = TWEEDIE_POWER) -> Tensor:
    """Half the unit deviance of a Tweedie law with 1 < power < 2, less its constant (Joergensen 1987), elementwise."""
    return mean.pow(2 - power) / (2 - power) - value * mean.pow(1 - power) / (1 - power)


def total(out: Outputs, targets: Targets, config: LossConfig, has_value: bool = True) -> tuple[Tensor, Tensor]:
    """(sum over fully observed customer-horizons, their number); of a mean of members, the mean of their losses: each must be
    good by itself."""
    if out.members:
        parts = [total(member, targets, config, has_value) for member in out.members]
        return torch.stack([part for part, _ in parts]).mean(0), parts[0][1]
    observed = targets.observed > 0
    orders = torch.where(observed, targets.orders, torch.zeros_like(targets.orders))
    value = torch.where(observed, targets.value, torch.zeros_like(targets.value))
    loss = config.purchase_weight * purchase_nll(out.hazard, orders)
    loss = loss + config.orders_weight * orders_nll(orders, out.p_purchase, out.repeats, out.dispersion)
    if has_value:
        value_loss = _VALUE[config.name]
        loss = loss + value_loss(value, out, config, targets.unit)
    loss = torch.where(observed, loss, torch.zeros_like(loss))
    return loss.sum(), observed.sum().to(loss.dtype)


def _density_and_mean(value: Tensor, out: Outputs, config: LossConfig, unit: Tensor) -> Tensor:
    return config.value_weight * value_nll(value, out) + config.mean_weight * tweedie_deviance(
        value / unit, out.value / unit
    )


def _tweedie(value: Tensor, out: Outputs, config: LossConfig, unit: Tensor) -> Tensor:
    return config.mean_weight * tweedie_deviance(value / unit, out.value / unit)


def _squared(value: Tensor, out: Outputs, config: LossConfig, unit: Tensor) -> Tensor:
    return config.mean_weight * ((value - out.value) / unit).square()


_VALUE: dict[LossName, Callable[[Tensor, Outputs, LossConfig, Tensor], Tensor]] = {
    "mixture": _density_and_mean,
    "ziln": lambda value, out, config, unit: config.value_weight * value_nll(value, out),
    "tweedie": _tweedie,
    "mse": _squared,
}
