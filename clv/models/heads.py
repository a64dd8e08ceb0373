"""Curve heads: purchase hazard, repeat orders and value by horizon, as corrections of given curves.

A head that has learned nothing returns the curves that it starts from. All curves are cumulative over increasing
horizons and built from positive increments, so no horizon contradicts another: hazard (p_purchase = 1 - exp(-hazard)),
repeats = E[(orders - 1)+], value. Expected orders = p_purchase + repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MIN_INCREMENT = 1e-6
MAX_CORRECTION = 2.5  # largest |log factor| on an increment of the BTYD model
MAX_DEPARTURE = 6.0  # the same on one of the population average, from which most customers lie further
MIN_SIGMA, MAX_SIGMA = 0.25, 1.6


@dataclass(frozen=True)
class Outputs:
    """Forecast of B customers at H horizons; K lognormals are the distribution of value given a purchase."""

    hazard: Tensor  # Shape: (B, H), -log P(no purchase)
    repeats: Tensor  # Shape: (B, H), E[(orders - 1)+]
    value: Tensor  # Shape: (B, H), in units of the value scale
    log_weight: Tensor  # Shape: (B, H, K), log weights of the mixture of log value given a purchase
    location: Tensor  # Shape: (B, H, K), its means
    sigma: Tensor  # Shape: (B, H, K), its standard deviations
    dispersion: Tensor  # Shape: (H,), of the negative binomial of orders beyond the first
    z: Tensor  # Shape: (B, Z), the customer's vector
    ensemble: tuple[Outputs, ...] = ()  # the outputs of which this one is the mean

    @property
    def p_purchase(self) -> Tensor:
        """(B, H) probability of at least one order."""
        return -torch.expm1(-self.hazard)

    @property
    def orders(self) -> Tensor:
        """(B, H) expected number of orders."""
        return self.p_purchase + self.repeats


class CurveHead(nn.Module):
    """Customer vectors (B, Z) and the cumulative curves to start from (B, H) -> Outputs."""

    def __init__(
        self, width: int, num_horizons: int, num_components: int = 3, max_correction: float = MAX_CORRECTION
    ) -> None:
        super().__init__()
        self.num_horizons, self.num_components, self.max_correction = num_horizons, num_components, max_correction
        self.corrections = nn.Linear(width, 3 * num_horizons)
        self.mixture = nn.Linear(width, 3 * num_components * num_horizons)
        self.log_dispersion = nn.Parameter(torch.zeros(num_horizons))
        nn.init.zeros_(self.corrections.weight)
        nn.init.zeros_(self.corrections.bias)
        nn.init.normal_(self.mixture.weight, std=0.01)
        with torch.no_grad():
            spread = torch.linspace(-1.0, 1.0, num_components)
            bias = torch.zeros(num_horizons, num_components, 3)
            bias[..., 1] = spread
            self.mixture.bias.copy_(bias.flatten())

    def forward(self, z: Tensor, base_hazard: Tensor, base_repeats: Tensor, base_value: Tensor) -> Outputs:
        shape = (len(z), 3, self.num_horizons)
        limit = self.max_correction
        factor = torch.exp(limit * torch.tanh(self.corrections(z).view(shape) / limit))  # Shape: (B, 3, H)
        hazard = (increments(base_hazard) * factor[:, 0]).cumsum(1)
        repeats = (increments(base_repeats) * factor[:, 1]).cumsum(1)
        value = (increments(base_value) * factor[:, 2]).cumsum(1)

        raw = self.mixture(z).view(len(z), self.num_horizons, self.num_components, 3)  # Shape: (B, H, K, 3)
        log_weight = torch.log_softmax(raw[..., 0], -1)
        sigma = MIN_SIGMA + (MAX_SIGMA - MIN_SIGMA) * torch.sigmoid(raw[..., 2])
        shift = 2.0 * torch.tanh(raw[..., 1] / 2.0)
        location = shift + _location_shift(hazard, value, log_weight, shift, sigma)
        return Outputs(hazard, repeats, value, log_weight, location, sigma, self.log_dispersion.exp(), z)


def ensemble_mean(outputs: Sequence[Outputs]) -> Outputs:
    """Mean of the curves; value given a purchase is the mixture of all mixtures, weighted by purchase probability."""
    hazard, repeats, value = (
        torch.stack([getattr(out, name) for out in outputs]).mean(0) for name in ("hazard", "repeats", "value")
    )
    purchase = torch.log_softmax(torch.stack([torch.log(out.p_purchase) for out in outputs], -1), -1)
    log_weight = torch.cat([out.log_weight + purchase[..., i : i + 1] for i, out in enumerate(outputs)], -1)
    location, sigma = (torch.cat([getattr(out, name) for out in outputs], -1) for name in ("location", "sigma"))
    # The mean hazard is not the hazard of the mean probability: the shift keeps the mixture's mean equal to the value.
    location = location + _location_shift(hazard, value, log_weight, location, sigma)
    dispersion = torch.stack([out.dispersion for out in outputs]).mean(0)
    return Outputs(hazard, repeats, value, log_weight, location, sigma, dispersion, outputs[0].z, tuple(outputs))


def _location_shift(hazard: Tensor, value: Tensor, log_weight: Tensor, location: Tensor, sigma: Tensor) -> Tensor:
    """(B, H, 1) what must be added to all locations, so that P(purchase) times the mixture's mean is the value."""
    given_purchase = torch.log(value / -torch.expm1(-hazard))
    log_mean = torch.logsumexp(log_weight + location + sigma.square() / 2, -1)
    return (given_purchase - log_mean).unsqueeze(-1)


def increments(cumulative: Tensor) -> Tensor:
    """(B, H) positive increments of cumulative curves (B, H)."""
    first = cumulative[:, :1]
    return torch.cat([first, cumulative[:, 1:] - cumulative[:, :-1]], 1).clamp(min=MIN_INCREMENT)


def log_normal_density(log_value: Tensor, out: Outputs) -> Tensor:
    """(B, H) log density of the mixture of normals of `out` at log values (B, H)."""
    score = (log_value.unsqueeze(-1) - out.location) / out.sigma
    log_density = out.log_weight - 0.5 * score.square() - torch.log(out.sigma) - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(log_density, -1)
