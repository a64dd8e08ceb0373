"""Heads: corrections to the anchor, so that a model that has learned nothing returns the anchor.

Everything is cumulative over increasing horizons and built from positive increments, so no horizon contradicts another:
hazard (p_purchase = 1 - exp(-hazard)), repeats = E[(orders - 1)+], value. Orders = p_purchase + repeats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SMALLEST = 1e-6
MAX_CORRECTION = 2.5  # |log factor| that a head may put on an anchor increment
MIN_SIGMA, MAX_SIGMA = 0.25, 1.6


@dataclass(frozen=True)
class Outputs:
    """Per horizon, (B, H); the mixture (B, H, K) is the distribution of log value given a purchase."""

    hazard: Tensor
    repeats: Tensor
    value: Tensor
    log_weight: Tensor
    location: Tensor
    sigma: Tensor
    dispersion: Tensor  # (H,) of the negative binomial of orders beyond the first
    z: Tensor  # (B, Z) the customer's embedding

    @property
    def p_purchase(self) -> Tensor:
        return -torch.expm1(-self.hazard)

    @property
    def orders(self) -> Tensor:
        return self.p_purchase + self.repeats


class Heads(nn.Module):
    """(B, Z) pooled vector and the anchor's cumulative curves (B, H) -> Outputs."""

    def __init__(self, width: int, num_horizons: int, num_components: int = 3) -> None:
        super().__init__()
        self.num_horizons, self.num_components = num_horizons, num_components
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
        factor = torch.exp(MAX_CORRECTION * torch.tanh(self.corrections(z).view(shape) / MAX_CORRECTION))
        hazard = (increments(base_hazard) * factor[:, 0]).cumsum(1)
        repeats = (increments(base_repeats) * factor[:, 1]).cumsum(1)
        value = (increments(base_value) * factor[:, 2]).cumsum(1)

        raw = self.mixture(z).view(len(z), self.num_horizons, self.num_components, 3)
        log_weight = torch.log_softmax(raw[..., 0], -1)
        sigma = MIN_SIGMA + (MAX_SIGMA - MIN_SIGMA) * torch.sigmoid(raw[..., 2])
        shift = 2.0 * torch.tanh(raw[..., 1] / 2.0)
        # The components are placed so that P(purchase) times the mixture's mean is the value.
        given_purchase = torch.log(value / -torch.expm1(-hazard))
        log_mean = torch.logsumexp(log_weight + shift + sigma.square() / 2, -1)
        location = shift + (given_purchase - log_mean).unsqueeze(-1)
        return Outputs(hazard, repeats, value, log_weight, location, sigma, self.log_dispersion.exp(), z)


def increments(cumulative: Tensor) -> Tensor:
    """(B, H) cumulative -> positive increments."""
    first = cumulative[:, :1]
    return torch.cat([first, cumulative[:, 1:] - cumulative[:, :-1]], 1).clamp(min=SMALLEST)


def log_normal_density(log_value: Tensor, out: Outputs) -> Tensor:
    """(B, H) log density, at log value, of the mixture of normals."""
    score = (log_value.unsqueeze(-1) - out.location) / out.sigma
    parts = out.log_weight - 0.5 * score.square() - torch.log(out.sigma) - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(parts, -1)
