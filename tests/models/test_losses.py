"""Losses against scipy, finite at the edges, additive over workers, independent of labels that are not observed."""

from dataclasses import fields, replace
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from clv.models import losses
from clv.models.config import LossConfig, LossName
from clv.models.heads import CurveHead, Outputs, ensemble_mean
from clv.models.inputs.batch import Targets
from clv.models.losses import orders_nll, purchase_nll, tweedie_deviance, value_nll

B, H = 30, 3
NAMES: tuple[LossName, ...] = get_args(LossName)


def outputs(dtype: torch.dtype = torch.float64, rows: int = B) -> Outputs:
    torch.manual_seed(2)
    heads = CurveHead(6, H).to(dtype)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    base = (torch.rand(3, rows, H, dtype=dtype) + 0.02).cumsum(2)
    with torch.no_grad():
        return heads(torch.randn(rows, 6, dtype=dtype), base[0], base[1], base[2])  # type: ignore[no-any-return]


def targets(dtype: torch.dtype = torch.float64, observed_share: float = 1.0) -> Targets:
    rng = np.random.default_rng(3)
    orders = np.cumsum(rng.poisson(0.7, (B, H)), axis=1)
    value = np.where(orders > 0, rng.lognormal(0, 1, (B, H)) * orders, 0.0)
    observed = rng.random((B, H)) < observed_share
    return Targets(*(torch.tensor(a, dtype=dtype) for a in (value, orders, observed)))


def part(thing: Outputs | Targets, rows: slice) -> Outputs | Targets:
    """Some rows; dispersion and unit have no rows."""
    values = {f.name: getattr(thing, f.name) for f in fields(thing) if f.name != "ensemble"}
    return replace(thing, **{name: v if name in ("dispersion", "unit") else v[rows] for name, v in values.items()})


def test_purchase_nll_is_bernoulli() -> None:
    hazard = torch.logspace(-5, 1.2, 40, dtype=torch.float64)
    for bought in (0.0, 1.0, 3.0):
        expected = -stats.bernoulli.logpmf(int(bought > 0), -np.expm1(-hazard.numpy()))
        np.testing.assert_allclose(purchase_nll(hazard, torch.full_like(hazard, bought)), expected, rtol=1e-8)


def test_orders_nll_is_a_negative_binomial_beyond_the_first_order() -> None:
    rng = np.random.default_rng(0)
    orders, p = rng.integers(0, 9, 200), rng.uniform(0.05, 0.95, 200)
    repeats, k = rng.gamma(1, 1, 200), rng.gamma(2, 1, 200)
    got = orders_nll(*(torch.tensor(a, dtype=torch.float64) for a in (orders, p, repeats, k)))
    mean = repeats / p
    expected = np.where(orders > 0, -stats.nbinom.logpmf(orders - 1, k, k / (k + mean)), 0.0)
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-10)


def test_the_orders_of_the_law_have_the_stated_mean() -> None:
    p, repeats, k = (torch.tensor(x, dtype=torch.float64) for x in (0.4, 0.9, 0.7))
    count = torch.arange(1, 4000, dtype=torch.float64)
    given = torch.exp(-orders_nll(count, p.expand_as(count), repeats.expand_as(count), k))
    assert float(given.sum()) == pytest.approx(1, abs=1e-9)
    assert float(p * (count * given).sum()) == pytest.approx(0.4 + 0.9, abs=1e-8)


def test_value_nll_is_a_mixture_of_lognormals() -> None:
    out, value = outputs(), targets().value
    weight, location, sigma = (t.numpy() for t in (out.log_weight.exp(), out.location, out.sigma))
    v = np.maximum(value.numpy(), 1e-300)[..., None]
    density = (weight * stats.lognorm.pdf(v, s=sigma, scale=np.exp(location))).sum(-1)
    # The loss is in log value, whose density is that of the value times the value.
    expected = np.where(value > 0, -np.log(np.maximum(density * v[..., 0], 1e-300)), 0.0)
    np.testing.assert_allclose(value_nll(value, out), expected, rtol=1e-8)


def compound_poisson_gamma(y: float, mean: float, power: float) -> float:
    """log density (or mass at 0) of Tweedie's law with dispersion 1 (Jorgensen 1987), summed term by term."""
    rate = mean ** (2 - power) / (2 - power)
    if y == 0:
        return -rate
    count = np.arange(1, 200)
    shape, scale = (2 - power) / (power - 1), (power - 1) * mean ** (power - 1)
    terms = stats.poisson.logpmf(count, rate) + stats.gamma.logpdf(y, shape * count, scale=scale)
    return float(np.logaddexp.reduce(terms))


@pytest.mark.parametrize("power", [1.3, 1.5, 1.8])
@pytest.mark.parametrize("y", [0.0, 0.4, 3.0])
def test_tweedie_deviance_differs_as_the_log_likelihood_does(y: float, power: float) -> None:
    means = [0.3, 1.0, 2.5]
    loss = [float(tweedie_deviance(torch.tensor(y).double(), torch.tensor(m).double(), power)) for m in means]
    likelihood = [compound_poisson_gamma(y, m, power) for m in means]
    np.testing.assert_allclose(np.diff(loss), -np.diff(likelihood), rtol=1e-6)


def test_the_tweedie_loss_is_smallest_at_the_mean() -> None:
    value = torch.tensor([0.0, 0.0, 0.0, 1.0, 7.0], dtype=torch.float64)
    grid = torch.linspace(0.5, 3, 501, dtype=torch.float64)
    loss = tweedie_deviance(value[None, :], grid[:, None]).sum(1)
    assert float(grid[loss.argmin()]) == pytest.approx(1.6, abs=0.01)


EXTREMES = [1e-6, 1e-3, 1.0, 30.0, 1e4]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("expected", EXTREMES)
@pytest.mark.parametrize("happened", [0.0, 1e-4, 1.0, 1e5])
def test_losses_and_gradients_are_finite_at_the_edges(name: LossName, expected: float, happened: float) -> None:
    heads = CurveHead(4, H)
    base = torch.full((5, H), expected).cumsum(1)
    z = torch.randn(5, 4) * 50
    orders = torch.full((5, H), float(np.ceil(happened)))
    wanted = Targets(torch.full((5, H), happened), orders, torch.ones(5, H))
    loss, _ = losses.total(heads(z, base, base, base), wanted, LossConfig(name=name))
    loss.backward()
    assert bool(loss.isfinite())
    for parameter, tensor in heads.named_parameters():
        assert tensor.grad is None or bool(tensor.grad.isfinite().all()), parameter


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_an_ensemble_is_the_mean_of_its_heads_losses(name: LossName) -> None:
    one, wanted, config = outputs(), targets(observed_share=0.7), LossConfig(name=name)
    other = replace(one, value=one.value * 2, hazard=one.hazard / 2)
    single = [losses.total(out, wanted, config) for out in (one, other)]
    together = losses.total(ensemble_mean([one, other]), wanted, config)
    assert float(together[0]) == pytest.approx((float(single[0][0]) + float(single[1][0])) / 2)
    assert float(together[1]) == float(single[0][1])


@pytest.mark.parametrize("name", NAMES)
def test_sum_and_weight_add_up_over_the_parts_of_a_batch(name: LossName) -> None:
    out, wanted, config = outputs(), targets(observed_share=0.7), LossConfig(name=name)
    whole = losses.total(out, wanted, config)
    pieces = [
        losses.total(part(out, rows), part(wanted, rows), config)  # type: ignore[arg-type]
        for rows in (slice(0, 4), slice(4, 21), slice(21, B))
    ]
    for i in range(2):
        assert sum(float(p[i]) for p in pieces) == pytest.approx(float(whole[i]), rel=1e-12)
    assert float(whole[1]) == float(wanted.observed.sum())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), -5.0, 1e30])
def test_a_label_that_is_not_fully_observed_never_enters(name: LossName, nonsense: float) -> None:
    out, wanted, config = outputs(), targets(observed_share=0.6), LossConfig(name=name)

    def result(labels: Targets) -> tuple[Tensor, Tensor]:
        named = [f.name for f in fields(out) if f.name != "ensemble"]
        leaves = {name: getattr(out, name).detach().requires_grad_() for name in named}
        loss, weight = losses.total(Outputs(**leaves), labels, config)
        loss.backward()
        grads = [leaf.grad for name, leaf in leaves.items() if leaf.grad is not None and name != "dispersion"]
        assert len(grads) >= 2
        assert not any(bool(grad[labels.observed == 0].any()) for grad in grads)
        return torch.stack([loss, weight]).detach(), torch.cat([grad.flatten() for grad in grads])

    absent = wanted.observed == 0
    spoiled = Targets(
        wanted.value.masked_fill(absent, nonsense), wanted.orders.masked_fill(absent, nonsense), wanted.observed
    )
    for clean, dirty in zip(result(wanted), result(spoiled), strict=True):
        assert torch.equal(clean, dirty)


def test_a_batch_without_a_fully_observed_label_weighs_nothing() -> None:
    loss, weight = losses.total(outputs(), targets(observed_share=0.0), LossConfig())
    assert (float(loss), float(weight)) == (0.0, 0.0)


def test_without_prices_there_is_no_loss_of_value() -> None:
    out, wanted = outputs(), targets()
    loss, _ = losses.total(out, wanted, LossConfig(), has_value=False)
    again, _ = losses.total(out, replace(wanted, value=wanted.value * 0 + 7), LossConfig(), has_value=False)
    parts = purchase_nll(out.hazard, wanted.orders) + 0.3 * orders_nll(
        wanted.orders, out.p_purchase, out.repeats, out.dispersion
    )
    assert float(loss) == float(again) == pytest.approx(float(parts.sum()), rel=1e-12)


def test_the_mixture_is_density_and_mean_and_ziln_the_density_alone() -> None:
    out, wanted = outputs(), targets()
    weights = {"purchase_weight": 0.0, "orders_weight": 0.0}
    found = {n: float(losses.total(out, wanted, LossConfig(name=n, **weights))[0]) for n in NAMES}  # type: ignore[arg-type]
    density = float(value_nll(wanted.value, out).sum())
    mean = float(tweedie_deviance(wanted.value, out.value).sum())
    assert found["ziln"] == pytest.approx(0.5 * density)
    assert found["tweedie"] == pytest.approx(mean)
    assert found["mixture"] == pytest.approx(0.5 * density + mean)
    assert found["mse"] == pytest.approx(float((wanted.value - out.value).square().sum()))
