"""Curve heads: a fresh head returns its start curves, horizons never contradict, the mixture's mean is the value."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor

from clv.models.heads import MAX_CORRECTION, MAX_SIGMA, MIN_SIGMA, CurveHead, Outputs, ensemble_mean, log_normal_density

B, H, Z = 40, 4, 8


def curves(seed: int = 0, low: float = 1e-3, high: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Cumulative hazard, repeats and value, (B, H)."""
    made = torch.rand(3, B, H, generator=torch.Generator().manual_seed(seed)) * (high - low) + low
    hazard, repeats, value = made.cumsum(2)
    return hazard, repeats, value


def random_head(scale: float = 3.0) -> CurveHead:
    """A curve head with large random weights."""
    heads = CurveHead(Z, H)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return heads


def z() -> Tensor:
    return torch.randn(B, Z, generator=torch.Generator().manual_seed(9))


def test_a_fresh_head_returns_its_start_curves() -> None:
    hazard, repeats, value = curves()
    out = CurveHead(Z, H)(z() * 100, hazard, repeats, value)
    torch.testing.assert_close(out.hazard, hazard, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.repeats, repeats, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.value, value, rtol=1e-6, atol=0)
    torch.testing.assert_close(out.p_purchase, 1 - torch.exp(-hazard), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(out.orders, 1 - torch.exp(-hazard) + repeats, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_horizons_never_contradict_each_other(seed: int) -> None:
    torch.manual_seed(seed)
    out = random_head()(z() * 10, *curves(seed))
    for curve in (out.hazard, out.repeats, out.value, out.p_purchase, out.orders):
        assert bool((curve.diff(dim=1) >= 0).all())
        assert bool((curve > 0).all())
    assert bool((out.p_purchase <= 1).all())
    assert bool((out.orders >= out.p_purchase).all())


def test_start_curves_of_zero_give_positive_curves() -> None:
    flat = torch.zeros(B, H)
    out = random_head()(z(), flat, flat, flat)
    for values in (out.hazard, out.repeats, out.value, out.location, out.sigma):
        assert bool(values.isfinite().all())
    assert bool((out.value > 0).all())


@pytest.mark.parametrize("components", [1, 3, 5])
def test_the_mean_of_the_mixture_times_p_purchase_is_the_value(components: int) -> None:
    heads = CurveHead(Z, H, components).double()
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    out = heads(z().double(), *(c.double() for c in curves()))
    mean = (out.log_weight.exp() * torch.exp(out.location + out.sigma**2 / 2)).sum(-1)
    torch.testing.assert_close(out.p_purchase * mean, out.value, rtol=1e-9, atol=0)


def test_the_density_is_that_of_a_mixture_of_normals() -> None:
    heads = random_head(1.0).double()
    out: Outputs = heads(z().double(), *(c.double() for c in curves()))
    at = torch.linspace(-3, 3, B * H, dtype=torch.float64).view(B, H)
    weight, location, sigma = (t.detach().numpy() for t in (out.log_weight.exp(), out.location, out.sigma))
    expected = np.log((weight * stats.norm.pdf(at.numpy()[..., None], location, sigma)).sum(-1))
    np.testing.assert_allclose(log_normal_density(at, out).detach().numpy(), expected, rtol=1e-9)

    def density(x: float) -> float:
        return float(log_normal_density(torch.full((B, H), x, dtype=torch.float64), out)[3, 1].exp().detach())

    assert integrate.quad(density, -40, 40, limit=200, points=[-5, 0, 5])[0] == pytest.approx(1, abs=1e-6)


def test_corrections_and_spreads_stay_in_their_bounds() -> None:
    hazard, repeats, value = curves()
    out = random_head(100.0)(z(), hazard, repeats, value)
    steps = torch.cat([out.hazard[:, :1], out.hazard.diff(dim=1)], 1)
    base = torch.cat([hazard[:, :1], hazard.diff(dim=1)], 1)
    assert (torch.log(steps / base)).abs().max() <= MAX_CORRECTION + 1e-3
    assert out.sigma.min() >= MIN_SIGMA
    assert out.sigma.max() <= MAX_SIGMA


def test_a_correction_of_one_horizon_moves_it_and_the_later_ones_only() -> None:
    heads, base = CurveHead(Z, H), curves()
    before = heads(z(), *base)
    with torch.no_grad():
        heads.corrections.bias[2 * H + 1] = 1.0
    after = heads(z(), *base)
    torch.testing.assert_close(after.value[:, 0], before.value[:, 0])
    assert bool((after.value[:, 1:] > before.value[:, 1:] * 1.0001).all())
    torch.testing.assert_close(after.hazard, before.hazard)
    torch.testing.assert_close(after.repeats, before.repeats)


def test_an_ensemble_has_the_mean_of_the_curves_and_the_mixture_of_the_values() -> None:
    first, second = (random_head(0.7).double()(z().double(), *(c.double() for c in curves(seed))) for seed in (1, 2))
    out = ensemble_mean([first, second])
    for name in ("hazard", "repeats", "value"):
        torch.testing.assert_close(getattr(out, name), (getattr(first, name) + getattr(second, name)) / 2)
    mean = (out.log_weight.exp() * torch.exp(out.location + out.sigma**2 / 2)).sum(-1)
    torch.testing.assert_close(out.p_purchase * mean, out.value, rtol=1e-9, atol=0)
    torch.testing.assert_close(out.log_weight.exp().sum(-1), torch.ones(B, H, dtype=torch.float64))
    assert out.ensemble == (first, second)


def test_an_ensemble_of_equal_heads_is_that_head() -> None:
    one = random_head(0.7).double()(z().double(), *(c.double() for c in curves()))
    out = ensemble_mean([one, one])
    at = torch.linspace(-3, 3, B * H, dtype=torch.float64).view(B, H)
    torch.testing.assert_close(log_normal_density(at, out), log_normal_density(at, one))
