import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logit

from clv.evaluate import calibrate, metrics, probabilistic, sums
from clv.evaluate.prediction import Prediction, hurdle_lognormal

World = tuple[Prediction, np.ndarray, np.ndarray, np.ndarray]


def world(n: int, seed: int) -> World:
    """(prediction, y, age, frequency) of a model that is too sure, too low and wrong about young customers."""
    rng = np.random.default_rng(seed)
    age, frequency = rng.uniform(0, 700, n), rng.poisson(1.5, n)
    p, mu = rng.beta(0.8, 2, n), rng.normal(3, 0.8, n)
    y = np.where(rng.random(n) < p, np.exp(mu + 0.9 * rng.normal(size=n)), 0.0)
    said = np.clip(p ** np.where(age < 90, 2.0, 1.2), 1e-9, 1 - 1e-9)
    quantiles = hurdle_lognormal(said, mu - 0.3, np.full(n, 0.5))
    return Prediction(value=said * np.exp(mu - 0.3), p_purchase=said, quantiles=quantiles), y, age, frequency


@pytest.fixture(scope="module")
def fitted() -> calibrate.Calibration:
    prediction, y, age, frequency = world(6000, 0)
    return calibrate.fit_calibration(prediction, y, y > 0, age, frequency, level_error=0.05)


def test_held_out_bands_become_honest(fitted: calibrate.Calibration) -> None:
    prediction, y, age, frequency = world(6000, 1)
    after = fitted.apply(prediction, age, frequency)
    assert prediction.quantiles is not None
    assert after.quantiles is not None
    before_share = probabilistic.pit80(probabilistic.pit(y, prediction.quantiles))
    assert before_share < 0.75
    u = probabilistic.pit(y, after.quantiles)
    assert probabilistic.pit80(u) == pytest.approx(0.8, abs=0.02)
    assert np.abs(np.histogram(u, 10, (0, 1))[0] / len(u) - 0.1).max() < 0.02
    cells = probabilistic.by_cell(y, after.quantiles, calibrate.cells(age, frequency))
    assert all(abs(c["pit80"] - 0.8) < 0.06 for c in cells.values() if c["customers"] > 300)
    assert probabilistic.crps(y, after.quantiles).mean() < probabilistic.crps(y, prediction.quantiles).mean()


def test_probabilities_and_the_total_come_right_in_every_large_cell(fitted: calibrate.Calibration) -> None:
    prediction, y, age, frequency = world(6000, 2)
    after = fitted.apply(prediction, age, frequency)
    assert after.p_purchase is not None
    number = calibrate.cells(age, frequency)
    for cell in range(calibrate.NUM_CELLS):
        rows = number == cell
        if rows.sum() < 400:
            continue  # the share of buyers of so few is itself uncertain by .05
        assert after.p_purchase[rows].mean() == pytest.approx((y[rows] > 0).mean(), abs=0.06)
    assert metrics.bias(y, prediction.value) < 0.7
    assert metrics.bias(y, after.value) == pytest.approx(1, abs=0.12)


def test_without_totals_as_many_buy_as_predicted_for_as_much_and_what_sets_customers_apart_stays(
    fitted: calibrate.Calibration,
) -> None:
    prediction, y, age, frequency = world(6000, 0)
    free = calibrate.fit_calibration(prediction, y, y > 0, age, frequency, level_error=0.05, totals=False)
    after, full = free.apply(prediction, age, frequency), fitted.apply(prediction, age, frequency)
    for p in (prediction, after, full):
        assert p.p_purchase is not None
        assert p.quantiles is not None
    assert full.p_purchase.mean() > 1.2 * prediction.p_purchase.mean()  # else there would be nothing to leave out
    assert after.p_purchase.mean() == pytest.approx(prediction.p_purchase.mean(), rel=1e-6)
    moved = logit(full.p_purchase) - logit(after.p_purchase)
    np.testing.assert_allclose(moved, moved[0], rtol=1e-6)
    np.testing.assert_array_equal(after.value, prediction.value)
    assert full.quantiles.mean().sum() > 1.5 * prediction.value.sum()
    assert after.quantiles.mean().sum() == pytest.approx(prediction.value.sum(), rel=0.1)
    # A year in which everybody spends less changes the level, and nothing here but how far it is believed.
    lean = calibrate.fit_calibration(prediction, 0.6 * y, y > 0, age, frequency, level_error=0.05, totals=False)
    np.testing.assert_allclose(lean.remap, free.remap, atol=1e-9)
    assert lean.intercept == free.intercept
    assert lean.level_stretch < free.level_stretch
    certain = replace(prediction, p_purchase=np.zeros(6000))
    calibrate.fit_calibration(certain, y, y > 0, age, frequency, totals=False)


def test_order_is_kept_quantiles_stay_monotone_and_zero_mass_fits_the_probability(
    fitted: calibrate.Calibration,
) -> None:
    prediction, _, age, frequency = world(1000, 3)
    after = fitted.apply(prediction, age, frequency)
    assert after.quantiles is not None
    assert after.p_purchase is not None
    assert np.array_equal(np.argsort(after.value), np.argsort(prediction.value))
    assert np.all(np.diff(after.quantiles.values, axis=1) >= 0)
    assert after.quantiles.p_zero == pytest.approx(1 - after.p_purchase)
    assert np.all(np.diff(np.array(fitted.remap), axis=1) >= 0)


@pytest.mark.parametrize("size", [25, 100, 300])
def test_bands_of_sums_cover_held_out_groups(fitted: calibrate.Calibration, size: int) -> None:
    shares = []
    for seed in (4, 14):
        prediction, y, age, frequency = world(6000, seed)
        after = replace(fitted.apply(prediction, age, frequency), sum_spread=fitted.sum_spread)
        shares.append(sums.covered(y, after, size, rounds=4))
    assert 0.72 <= np.mean(shares) <= 0.88


@pytest.mark.parametrize(("miss", "low", "high"), [(1.0, 1.0, 1.0), (1.25, 1.2, 2.0), (0.5, 2.5, 3.0)])
def test_a_level_that_misses_by_more_than_it_said_is_believed_less(miss: float, low: float, high: float) -> None:
    prediction, y, age, frequency = world(6000, 0)
    off = replace(prediction, value=prediction.value * (y.sum() / prediction.value.sum()) / miss)
    fit = calibrate.fit_calibration(off, y, y > 0, age, frequency, level_error=0.05)
    assert low <= fit.level_stretch <= high


def test_few_customers_hardly_move_the_model() -> None:
    prediction, y, age, frequency = world(8, 5)
    little = calibrate.fit_calibration(prediction, y, y > 0, age, frequency)
    assert np.abs(np.array(little.remap) - calibrate.GRID).max() < 0.15
    assert abs(little.slope - 1) < 0.5


def test_nobody_and_no_buyer_give_a_usable_calibration() -> None:
    prediction, _, age, frequency = world(50, 6)
    none = np.zeros(0)
    assert calibrate.fit_calibration(Prediction(value=none), none, none, none, none) == calibrate.identity()
    zeros = np.zeros(50)
    after = calibrate.fit_calibration(prediction, zeros, zeros, age, frequency).apply(prediction, age, frequency)
    assert np.isfinite(after.value).all()


def test_identity_changes_nothing() -> None:
    prediction, _, age, frequency = world(200, 7)
    after = calibrate.identity().apply(prediction, age, frequency)
    assert after.quantiles is not None
    assert prediction.quantiles is not None
    assert np.array_equal(after.value, prediction.value)
    assert after.p_purchase == pytest.approx(prediction.p_purchase)
    assert after.quantiles.values == pytest.approx(prediction.quantiles.values, rel=1e-6, abs=1e-6)


def test_json_keeps_every_number_and_other_formats_are_refused(fitted: calibrate.Calibration) -> None:
    assert calibrate.Calibration.from_json(fitted.to_json()) == fitted
    content = json.loads(fitted.to_json()) | {"format": 99}
    with pytest.raises(ValueError, match="99"):
        calibrate.Calibration.from_json(json.dumps(content))


def test_horizons_that_cross_are_made_monotone() -> None:
    near, _, _, _ = world(100, 8)
    far = Prediction(value=near.value[::-1].copy(), p_purchase=near.p_purchase, quantiles=near.quantiles)
    first, second = calibrate.monotone([near, far])
    assert first is near
    assert np.all(second.value >= first.value)
