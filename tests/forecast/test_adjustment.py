import json
from dataclasses import replace

import numpy as np
import pytest

from clv.forecast.adjustment import Adjustment, adjust
from clv.forecast.portfolio import DRAW_LEVELS
from tests.forecast.forecasts import HORIZONS, NUM_BUYERS, adjusted, random_forecast, rows

CURVES = ("hazard", "orders", "value")


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_the_identity_gives_the_network_or_the_btyd_model(weight: float) -> None:
    raw, given = random_forecast(), rows()
    found = adjust(raw, given, Adjustment.identity(len(HORIZONS), blend_weight=weight)).forecast
    for name in CURVES:
        expected = getattr(raw if weight else given.base, name)
        np.testing.assert_allclose(getattr(found, name), expected, rtol=1e-9, err_msg=name)


def test_factors_and_slope_change_the_value_and_orders_of_buyers_alone() -> None:
    raw, given = random_forecast(), rows()
    plain = Adjustment.identity(len(HORIZONS))
    more = replace(plain, scale=(2.0, 2.0, 2.0), scale_repeats=(3.0, 3.0, 3.0), slope=1.1)
    found = adjust(raw, given, more).forecast
    buyers, visitors = slice(0, NUM_BUYERS), slice(NUM_BUYERS, None)
    np.testing.assert_allclose(found.value[buyers], 2 * raw.value[buyers] ** 1.1)
    np.testing.assert_allclose(found.repeats[buyers], 3 * raw.repeats[buyers])
    np.testing.assert_allclose(found.p_purchase, raw.p_purchase)
    np.testing.assert_allclose(found.value[visitors], raw.value[visitors])
    np.testing.assert_allclose(found.repeats[visitors], raw.repeats[visitors])


def test_the_error_of_the_seasonal_factor_widens_the_distribution_around_the_same_mean() -> None:
    narrow, wide = adjusted(factor_error=0.0), adjusted(factor_error=0.5)
    levels = (np.arange(4000) + 0.5) / 4000
    means = [found.quantiles(levels).mean(axis=2) for found in (narrow, wide)]
    np.testing.assert_allclose(means[0], means[1], rtol=0.04)
    assert (wide.quantiles(np.array([0.99])) > narrow.quantiles(np.array([0.99]))).all()
    assert wide.factor_error.tolist() == [0.5] * len(HORIZONS)


def test_beyond_the_observed_horizons_the_network_has_no_weight() -> None:
    limited = Adjustment.identity(len(HORIZONS)).limit_to_observed(2)
    assert limited.blend_purchase == limited.blend_value == (1.0, 1.0, 0.0)
    raw, given = random_forecast(), rows()
    found = adjust(raw, given, limited).forecast
    np.testing.assert_allclose(found.value[:, :2], raw.value[:, :2], rtol=1e-9)
    growth = np.diff(given.base.value)[:, -1]
    np.testing.assert_allclose(np.diff(found.value)[:, -1], growth, rtol=1e-9)


def test_equally_likely_values_are_the_quantiles_within_a_percent() -> None:
    found = adjusted()
    np.testing.assert_allclose(found.equally_likely_values(), found.quantiles(DRAW_LEVELS), rtol=0.01, atol=1e-9)


def test_a_slice_has_the_quantiles_of_its_rows() -> None:
    found, levels = adjusted(), np.array([0.1, 0.5, 0.9])
    np.testing.assert_array_equal(found.take(slice(3, 9)).quantiles(levels), found.quantiles(levels)[3:9])


def test_an_adjustment_survives_json() -> None:
    some = replace(Adjustment.identity(2, 0.25), scale=(1.1, 1 / 3), slope=1.05).limit_to_observed(1)
    assert Adjustment.from_json(json.loads(json.dumps(some.to_json()))) == some
