"""Heads: corrections to given curves, so that one that has learned nothing returns them.

Everything is cumulative over increasing horizons and built from positive increments, so no horizon contradicts another:
hazard (p_purchase = 1 - exp(-hazard)), repeats = E[(orders - 1)+], value. Orders = p_purchase + repeats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SMALLEST = 1e-6
MAX_CORRECTION = 2.5  # |log factor| that a head may put on an increment of the BTYD model
MAX_DEPARTURE = 6.0  # and on one of the population average, who is far from most
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
    members: tuple[Outputs, ...] = ()  # of a mean: what it is the mean of

    @property
    def p_purchase(self) -> Tensor:
        return -torch.expm1(-self.hazard)

    @property
    def orders(self) -> Tensor:
        return self.p_purchase + self.repeats


class Heads(nn.Module):
    """(B, Z) pooled vector and cumulative curves to start from (B, H) -> Outputs."""

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
        most = self.max_correction
        factor = torch.exp(most * torch.tanh(self.corrections(z).view(shape) / most))
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


def mean_of(members: Sequence[Outputs]) -> Outputs:
    """Mean curves; value given a purchase is the mixture of the members', weighted by their purchase probabilities."""
    first = members[0]
    hazard, repeats, value = (
        torch.stack([getattr(m, name) for m in members]).mean(0) for name in ("hazard", "repeats", "value")
    )
    bought = torch.log_softmax(torch.stack([torch.log(m.p_purchase) for m in members], -1), -1)
    log_weight = torch.cat([m.log_weight + bought[..., i : i + 1] for i, m in enumerate(members)], -1)
    location, sigma = (torch.cat([getattr(m, name) for m in members], -1) for name in ("location", "sigma"))
    # Probabilities are means of hazards, not of themselves: the mixture is moved so that its mean stays true.
    given_purchase = torch.log(value / -torch.expm1(-hazard))
    location = location + (given_purchase - torch.logsumexp(log_weight + location + sigma.square() / 2, -1)).unsqueeze(
        -1
    )
    dispersion = torch.stack([m.dispersion for m in members]).mean(0)
    return Outputs(hazard, repeats, value, log_weight, location, sigma, dispersion, first.z, tuple(members))


def increments(cumulative: Tensor) -> Tensor:
    """(B, H) cumulative -> positive increments."""
    first = cumulative[:, :1]
    return torch.cat([first, cumulative[:, 1:] - cumulative[:, :-1]], 1).clamp(min=SMALLEST)


def log_normal_density(log_value: Tensor, out: Outputs) -> Tensor:
    """(B, H) log density, at log value, of the mixture of normals."""
    score = (log_value.unsqueeze(-1) - out.location) / out.sigma
    parts = out.log_weight - 0.5 * score.square() - torch.log(out.sigma) - 0.5 * math.log(2 * math.pi)
    return torch.logsumexp(parts, -1)
