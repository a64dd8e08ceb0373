import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, logit

from clv.evaluate import probabilistic
from clv.forecast import calibration, distributions, portfolio
from clv.forecast.distributions import Prediction, Quantiles, hurdle_lognormal

World = tuple[Prediction, np.ndarray, np.ndarray, np.ndarray]


def world(n: int, seed: int) -> World:
    """(prediction, y, age, frequency) of a model that is right in total, too sure, and wrong about young customers."""
    rng = np.random.default_rng(seed)
    age, frequency = rng.uniform(0, 700, n), rng.poisson(1.5, n)
    p, mu = rng.beta(0.8, 2, n), rng.normal(3, 0.8, n)
    y = np.where(rng.random(n) < p, np.exp(mu + 0.9 * rng.normal(size=n)), 0.0)
    said = expit(1.5 * logit(p) - np.where(age < 90, 1.0, -0.7))
    per_buyer = np.exp(mu + 0.9**2 / 2)
    quantiles = hurdle_lognormal(said, np.log(per_buyer) - 0.5**2 / 2, np.full(n, 0.5))
    return Prediction(value=said * per_buyer, p_purchase=said, quantiles=quantiles), y, age, frequency


@pytest.fixture(scope="module")
def fitted() -> calibration.Calibration:
    prediction, y, age, frequency = world(6000, 0)
    return calibration.fit_calibration(prediction, y, y > 0, age, frequency, factor_error=0.05)


def test_intervals_of_held_out_customers_cover_as_stated(fitted: calibration.Calibration) -> None:
    prediction, y, age, frequency = world(6000, 1)
    after = fitted.apply(prediction, age, frequency)
    assert prediction.quantiles is not None
    assert after.quantiles is not None
    before_share = probabilistic.pit80(distributions.pit(y, prediction.quantiles))
    assert before_share < 0.77
    u = distributions.pit(y, after.quantiles)
    assert probabilistic.pit80(u) == pytest.approx(0.8, abs=0.02)
    assert np.abs(np.histogram(u, 10, (0, 1))[0] / len(u) - 0.1).max() < 0.02
    cells = probabilistic.by_cell(y, after.quantiles, calibration.age_frequency_cells(age, frequency))
    assert all(abs(c["pit80"] - 0.8) < 0.06 for c in cells.values() if c["customers"] > 300)
    assert probabilistic.crps(y, after.quantiles).mean() < probabilistic.crps(y, prediction.quantiles).mean()


def test_probabilities_are_calibrated_in_every_large_cell(fitted: calibration.Calibration) -> None:
    prediction, y, age, frequency = world(6000, 2)
    after = fitted.apply(prediction, age, frequency)
    assert prediction.p_purchase is not None
    assert after.p_purchase is not None
    number, off = calibration.age_frequency_cells(age, frequency), 0.0
    for cell in range(calibration.NUM_CELLS):
        rows = number == cell
        if rows.sum() < 400:
            continue  # the share of buyers of so few is itself uncertain by .05
        off = max(off, abs(prediction.p_purchase[rows].mean() - (y[rows] > 0).mean()))
        assert after.p_purchase[rows].mean() == pytest.approx((y[rows] > 0).mean(), abs=0.06)
    assert off > 0.1


@pytest.mark.parametrize(("odds", "spend"), [(1.0, 1.0), (0.4, 0.6), (2.0, 1.8)])
def test_calibration_keeps_the_predicted_totals(fitted: calibration.Calibration, odds: float, spend: float) -> None:
    """Where everybody buys more or less often, or for more or less, than predicted, only the level is off."""
    prediction, y, age, frequency = world(6000, 0)
    assert prediction.quantiles is not None
    rarer = replace(calibration.identity_calibration(), intercept=(-np.log(odds),) * calibration.NUM_CELLS)
    low = rarer.apply(prediction, age, frequency)
    said, q = low.p_purchase, low.quantiles
    assert said is not None
    assert q is not None
    value = said * prediction.value / prediction.p_purchase / spend
    low = Prediction(value=value, p_purchase=said, quantiles=Quantiles(q.levels, q.values / spend, q.p_zero))
    free = calibration.fit_calibration(low, y, y > 0, age, frequency, factor_error=0.05)
    after = free.apply(low, age, frequency)
    assert after.p_purchase is not None
    assert after.quantiles is not None
    np.testing.assert_array_equal(after.value, low.value)
    assert after.p_purchase.mean() == pytest.approx(said.mean(), rel=1e-6)
    assert after.quantiles.mean().sum() == pytest.approx(low.value.sum(), rel=0.02)
    assert free.slope == pytest.approx(fitted.slope, abs=0.05)
    assert np.abs(np.array(free.remap) - np.array(fitted.remap)).max() < 0.1
    assert (free.factor_error_scale > 2) == (spend != 1)


def test_order_is_kept_quantiles_stay_monotone_and_zero_mass_fits_the_probability(
    fitted: calibration.Calibration,
) -> None:
    prediction, _, age, frequency = world(1000, 3)
    after = fitted.apply(prediction, age, frequency)
    assert after.quantiles is not None
    assert after.p_purchase is not None
    assert np.array_equal(after.value, prediction.value)
    assert np.all(np.diff(after.quantiles.values, axis=1) >= 0)
    assert after.quantiles.p_zero == pytest.approx(1 - after.p_purchase)
    assert np.all(np.diff(np.array(fitted.remap), axis=1) >= 0)


@pytest.mark.parametrize("size", [25, 100, 300])
def test_intervals_of_sums_cover_held_out_groups(fitted: calibration.Calibration, size: int) -> None:
    shares = []
    for seed in (4, 14):
        prediction, y, age, frequency = world(6000, seed)
        after = replace(fitted.apply(prediction, age, frequency), sum_spread=fitted.sum_spread)
        shares.append(portfolio.group_coverage(y, after, size, rounds=4))
    assert 0.72 <= np.mean(shares) <= 0.9


@pytest.mark.parametrize(("miss", "low", "high"), [(1.0, 1.0, 1.0), (1.25, 1.2, 2.0), (0.5, 2.5, 3.0)])
def test_a_factor_that_misses_by_more_than_its_error_gets_a_larger_error(miss: float, low: float, high: float) -> None:
    prediction, y, age, frequency = world(6000, 0)
    off = replace(prediction, value=prediction.value * (y.sum() / prediction.value.sum()) / miss)
    fit = calibration.fit_calibration(off, y, y > 0, age, frequency, factor_error=0.05)
    assert low <= fit.factor_error_scale <= high


def test_few_customers_hardly_change_the_predictions() -> None:
    prediction, y, age, frequency = world(8, 5)
    little = calibration.fit_calibration(prediction, y, y > 0, age, frequency)
    assert np.abs(np.array(little.remap) - calibration.GRID).max() < 0.15
    assert abs(little.slope - 1) < 0.5


def test_no_customers_and_no_buyers_give_a_usable_calibration() -> None:
    prediction, _, age, frequency = world(50, 6)
    none = np.zeros(0)
    assert (
        calibration.fit_calibration(Prediction(value=none), none, none, none, none)
        == calibration.identity_calibration()
    )
    zeros = np.zeros(50)
    after = calibration.fit_calibration(prediction, zeros, zeros, age, frequency).apply(prediction, age, frequency)
    assert np.isfinite(after.value).all()


def test_identity_changes_nothing() -> None:
    prediction, _, age, frequency = world(200, 7)
    after = calibration.identity_calibration().apply(prediction, age, frequency)
    assert after.quantiles is not None
    assert prediction.quantiles is not None
    assert np.array_equal(after.value, prediction.value)
    assert after.p_purchase == pytest.approx(prediction.p_purchase)
    assert after.quantiles.values == pytest.approx(prediction.quantiles.values, rel=1e-6, abs=1e-6)


def test_json_keeps_every_number_and_other_formats_are_refused(fitted: calibration.Calibration) -> None:
    content = json.loads(json.dumps(fitted.to_json()))
    assert content == fitted.to_json()
    assert calibration.Calibration.from_json(content) == fitted
    with pytest.raises(ValueError, match="99"):
        calibration.Calibration.from_json(content | {"format": 99})
