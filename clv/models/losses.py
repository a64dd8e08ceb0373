"""Losses of the customer model: purchase, number of orders and value (mixture, ZILN, Tweedie, squared error).

`total` returns (sum, weight), not a mean: the training engine divides by the weight of the whole global batch, however
its rows are spread over the workers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clv.models.config import LossConfig
from clv.models.heads import Outputs, log_normal_density
from clv.models.inputs.batch import Targets

TWEEDIE_POWER = 1.5


def purchase_nll(hazard: Tensor, bought: Tensor) -> Tensor:
    """-log Bernoulli(bought > 0; 1 - exp(-hazard)), elementwise."""
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
    """-log density of log value given a purchase (a mixture of normals), elementwise; 0 where value is 0."""
    positive = value > 0
    log_value = torch.log(torch.where(positive, value, torch.ones_like(value)))
    return torch.where(positive, -log_normal_density(log_value, out), torch.zeros_like(value))


def tweedie_deviance(value: Tensor, mean: Tensor, power: float = TWEEDIE_POWER) -> Tensor:
    """Half the unit deviance of a Tweedie law with 1 < power < 2, less its constant (Jorgensen 1987), elementwise."""
    return mean.pow(2 - power) / (2 - power) - value * mean.pow(1 - power) / (1 - power)


def total(out: Outputs, targets: Targets, config: LossConfig, has_value: bool = True) -> tuple[Tensor, Tensor]:
    """(sum of the losses over fully observed customer-horizons, their number).

    The loss of an ensemble is the mean of its heads' losses, because each head must be good by itself. `has_value`
    False leaves out the loss of value, for logs without prices.
    """
    if out.ensemble:
        parts = [total(head, targets, config, has_value) for head in out.ensemble]
        return torch.stack([loss for loss, _ in parts]).mean(0), parts[0][1]
    observed = targets.observed > 0
    orders = torch.where(observed, targets.orders, torch.zeros_like(targets.orders))
    value = torch.where(observed, targets.value, torch.zeros_like(targets.value))
    loss = config.purchase_weight * purchase_nll(out.hazard, orders)
    loss = loss + config.orders_weight * orders_nll(orders, out.p_purchase, out.repeats, out.dispersion)
    if has_value:
        loss = loss + _value_loss(value, out, config, targets.unit)
    loss = torch.where(observed, loss, torch.zeros_like(loss))
    return loss.sum(), observed.sum().to(loss.dtype)


def _value_loss(value: Tensor, out: Outputs, config: LossConfig, unit: Tensor) -> Tensor:
    """(B, H) weighted loss of value; `unit` (H,) scales the errors of the mean, see `Targets`."""
    match config.name:
        case "mixture":
            density = config.value_weight * value_nll(value, out)
            return density + config.mean_weight * tweedie_deviance(value / unit, out.value / unit)
        case "ziln":
            return config.value_weight * value_nll(value, out)
        case "tweedie":
            return config.mean_weight * tweedie_deviance(value / unit, out.value / unit)
        case "mse":
            return config.mean_weight * ((value - out.value) / unit).square()
