"""Forecasts: quantiles invert the distribution, and a row's numbers do not depend on its neighbours."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats

from clv.btyd.seasonal_btyd import Curves
from clv.data.histories import ranges
from clv.forecast.network import Forecast, forecast_samples
from clv.models.config import BackboneConfig, ModelConfig
from clv.models.inputs.batch import Samples
from clv.models.inputs.tokens import TokenArrays
from clv.models.model import CustomerModel

S, H, K = 25, 2, 3


@pytest.fixture
def drawn(rng: np.random.Generator) -> Forecast:
    """A forecast with random parameters, consistent as heads make them."""
    hazard = np.cumsum(rng.uniform(0.05, 1.0, (S, H)), axis=1)
    weight = rng.dirichlet(np.ones(K), (S, H))
    location, sigma = rng.normal(3, 1, (S, H, K)), rng.uniform(0.3, 1.5, (S, H, K))
    mean = (weight * np.exp(location + sigma**2 / 2)).sum(-1)
    value = mean * -np.expm1(-hazard)
    return Forecast(hazard, hazard / 2, value, np.log(weight), location, sigma, np.zeros((S, 2), np.float32))


def permuted(samples: Samples, rows: np.ndarray) -> Samples:
    t = samples.tokens
    index = ranges(t.offsets[rows], t.offsets[rows + 1])
    start, stop = t.item_offsets[index], t.item_offsets[index + 1]
    tokens = TokenArrays(
        np.append(0, np.cumsum(t.offsets[rows + 1] - t.offsets[rows])),
        t.scalars[index],
        t.codes[index],
        np.append(0, np.cumsum(stop - start)),
        t.item[ranges(start, stop)],
    )
    others = {f.name: getattr(samples, f.name)[rows] for f in fields(samples) if f.name not in ("tokens", "unit")}
    return Samples(tokens=tokens, unit=samples.unit, **others)


@pytest.fixture(scope="module")
def model(shop) -> CustomerModel:
    torch.manual_seed(8)
    config = ModelConfig(
        backbone=BackboneConfig(width=16, num_layers=2, num_heads=2, intermediate=32, max_tokens=12), hidden=16
    )
    made = CustomerModel(config, shop.space, 2)
    # A fresh model returns its starts whatever it is given: heads and sequence start silent.
    for heads in made.heads.values():
        torch.nn.init.normal_(heads.corrections.weight, std=0.5)
    torch.nn.init.normal_(made.pool[-1].weight, std=0.5)
    return made


def mixture_mean(forecast: Forecast) -> np.ndarray:
    """(S, H) expected value by the lognormal mixture."""
    given_purchase = (np.exp(forecast.log_weight + forecast.location + forecast.sigma**2 / 2)).sum(axis=-1)
    return given_purchase * forecast.p_purchase


def test_quantiles_invert_the_hurdle_mixture_of_lognormals(drawn: Forecast) -> None:
    level = np.linspace(0.02, 0.995, 30)
    value = drawn.quantile(level)
    assert value.shape == (S, H, 30)
    p, weight, scale = drawn.p_purchase, np.exp(drawn.log_weight), np.exp(drawn.location)
    for i, q in enumerate(level):
        below = (weight * stats.lognorm.cdf(value[..., i, None], s=drawn.sigma, scale=scale)).sum(-1)
        back = 1 - p + p * below
        np.testing.assert_allclose(back, np.maximum(q, 1 - p), atol=1e-7)
        np.testing.assert_array_equal(value[..., i] == 0, q <= 1 - p)
    assert (np.diff(value, axis=-1) >= 0).all()


def test_the_mean_of_the_quantiles_is_the_value(drawn: Forecast) -> None:
    tame = replace(drawn, sigma=np.full_like(drawn.sigma, 0.4))
    mean = mixture_mean(tame)
    level = (np.arange(4000) + 0.5) / 4000
    np.testing.assert_allclose(tame.quantile(level).mean(-1), mean, rtol=2e-3)


def test_levels_may_differ_by_row(drawn: Forecast, rng: np.random.Generator) -> None:
    level = rng.uniform(0.01, 0.99, (S, H, 4))
    together = drawn.quantile(level)
    for row in (0, 7, 24):
        one = drawn.quantile(level[row, 1])
        np.testing.assert_allclose(together[row, 1], one[row, 1], rtol=1e-9)


def test_rescaling_keeps_the_shape_and_has_the_new_mean(drawn: Forecast) -> None:
    rescaled = drawn.rescale(drawn.hazard * 0.5, drawn.value * 3)
    np.testing.assert_allclose(mixture_mean(rescaled), drawn.value * 3, rtol=1e-9)
    np.testing.assert_array_equal(rescaled.sigma, drawn.sigma)
    np.testing.assert_allclose(np.diff(rescaled.location, axis=-1), np.diff(drawn.location, axis=-1), atol=1e-12)


def test_a_blend_weight_of_one_gives_the_network_and_of_zero_the_btyd_model(
    drawn: Forecast, rng: np.random.Generator
) -> None:
    hazard = np.cumsum(rng.uniform(0.05, 1, (S, H)), axis=1)
    btyd = Curves(hazard, -np.expm1(-hazard) + np.cumsum(rng.uniform(0.1, 1, (S, H)), axis=1), hazard * 40)
    model, btyd_model = drawn.blend_with_btyd(btyd, 1.0, 1.0), drawn.blend_with_btyd(btyd, 0.0, 0.0)
    for name in ("hazard", "repeats", "value", "location"):
        np.testing.assert_allclose(getattr(model, name), getattr(drawn, name), rtol=1e-9, atol=1e-12)
    for name in ("hazard", "repeats", "value", "p_purchase", "orders"):
        np.testing.assert_allclose(getattr(btyd_model, name), getattr(btyd, name), rtol=1e-9)
    half = drawn.blend_with_btyd(btyd, 0.5, 0.25)
    np.testing.assert_allclose(half.hazard, (drawn.hazard + btyd.hazard) / 2)
    np.testing.assert_allclose(half.value, 0.25 * drawn.value + 0.75 * btyd.value)


def test_beyond_the_observed_horizons_a_forecast_grows_by_the_increments_of_the_btyd_model(
    drawn: Forecast, rng: np.random.Generator
) -> None:
    hazard = np.cumsum(rng.uniform(0.05, 1, (S, 3)), axis=1)
    btyd = Curves(hazard, 1.5 * hazard, hazard * 40)
    three = {name: getattr(drawn, name)[:, [0, 1, 1]] for name in ("hazard", "repeats", "value", "log_weight", "sigma")}
    model = replace(drawn, location=drawn.location[:, [0, 1, 1]], **three)
    for num_observed in (1, 2):
        extended = model.extend_with_btyd(btyd, num_observed)
        for name in ("hazard", "repeats", "value", "log_weight", "location", "sigma"):
            assert np.array_equal(getattr(extended, name)[:, :num_observed], getattr(model, name)[:, :num_observed]), (
                name
            )
        for name in ("hazard", "orders", "value"):
            ours, theirs = (np.diff(getattr(curves, name))[:, num_observed - 1 :] for curves in (extended, btyd))
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(mixture_mean(extended), extended.value)
        assert np.array_equal(extended.sigma[:, -1], model.sigma[:, num_observed - 1])


def test_extended_orders_are_never_fewer_than_the_probability_of_a_purchase() -> None:
    """The network expects hardly a purchase where the BTYD model expects one for certain and hardly any after it."""
    one = np.ones((1, 2, 1))
    model = Forecast(np.array([[0.01, 0.02]]), np.zeros((1, 2)), np.ones((1, 2)), 0 * one, one, one, np.zeros((1, 1)))
    hazard = np.array([[5.0, 8.0]])
    extended = model.extend_with_btyd(Curves(hazard, -np.expm1(-hazard), hazard), 1)
    assert extended.hazard[0, 1] == pytest.approx(3.01)
    assert (extended.orders >= extended.p_purchase).all()


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_a_forecast_does_not_depend_on_order_or_batch(shop, model: CustomerModel, batch_size: int) -> None:
    order = np.random.default_rng(4).permutation(len(shop.samples))
    expected = forecast_samples(model, shop.samples, 30.0, batch_size=64)
    got = forecast_samples(model, permuted(shop.samples, order), 30.0, batch_size=batch_size)
    for f in fields(Forecast):
        ours, theirs = getattr(got, f.name), getattr(expected, f.name)[order]
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=f.name)


def test_a_forecast_depends_on_tokens_items_and_features(shop, model: CustomerModel) -> None:
    t = shop.samples.tokens
    before = forecast_samples(model, shop.samples, 1.0).value
    changes = {
        "amounts": replace(shop.samples, tokens=replace(t, scalars=t.scalars + np.eye(9, dtype=np.float32)[0])),
        "items": replace(shop.samples, tokens=replace(t, item=np.roll(t.item, 1))),
        "features": replace(shop.samples, wide=shop.samples.wide + 0.5),
    }
    for name, changed in changes.items():
        assert np.abs(forecast_samples(model, changed, 1.0).value / before - 1).max() > 1e-3, name


def test_a_forecast_is_in_currency(shop, model: CustomerModel) -> None:
    one, hundred = forecast_samples(model, shop.samples, 1.0), forecast_samples(model, shop.samples, 100.0)
    np.testing.assert_allclose(hundred.value, 100 * one.value, rtol=1e-9)
    np.testing.assert_allclose(hundred.location, one.location + np.log(100), rtol=1e-9)
    np.testing.assert_allclose(hundred.hazard, one.hazard)
    mean = mixture_mean(hundred)
    np.testing.assert_allclose(mean, hundred.value, rtol=1e-4)


def test_fresh_models_forecast_the_mean_of_the_btyd_model_and_the_population_average(shop) -> None:
    config = ModelConfig(backbone=BackboneConfig(width=8, num_layers=1, num_heads=1, intermediate=8), hidden=8)
    fresh = forecast_samples(CustomerModel(config, shop.space, 2), shop.samples, 30.0)
    hazard, repeats, value = np.moveaxis(shop.samples.population_average, 1, 0)
    np.testing.assert_allclose(fresh.value, (shop.samples.base_value + value) / 2 * 30.0, rtol=1e-5)
    np.testing.assert_allclose(fresh.hazard, (shop.samples.base_hazard + hazard) / 2, rtol=1e-5)
    np.testing.assert_allclose(fresh.repeats, (shop.samples.base_repeats + repeats) / 2, rtol=1e-5)
