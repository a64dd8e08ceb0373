"""The slope of actual on predicted value: found where it is sure, 1 where it is not."""

from __future__ import annotations

import numpy as np
import pytest

from clv.forecast.slope import ONE_ORIGIN, PRIOR, fit_slope

MOST = PRIOR**2 / (PRIOR**2 + ONE_ORIGIN**2)  # of a slope that is known without error


def world(num: int, seed: int = 0, shape: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """What customers are expected to bring, and what they brought."""
    rng = np.random.default_rng(seed)
    expected = np.exp(rng.normal(3, 1, num))
    return expected, expected * rng.gamma(shape, 1 / shape, num)


@pytest.mark.parametrize("power", [0.8, 0.95, 1.2])
def test_half_of_a_wrong_slope_is_corrected(power: float) -> None:
    expected, y = world(200_000)
    assert fit_slope(7 * expected**power, y) == pytest.approx(1 + (1 / power - 1) * MOST, abs=0.01)


def test_right_values_keep_slope_one() -> None:
    slopes = [fit_slope(*world(2_000, seed, 0.1)) for seed in range(20)]
    assert np.mean(slopes) == pytest.approx(1, abs=0.01)
    assert np.ptp(slopes) < 0.08


def test_few_customers_change_the_slope_less() -> None:
    expected, y = world(200_000)
    many, few = fit_slope(expected**0.8, y), fit_slope(expected[:100] ** 0.8, y[:100])
    assert abs(few - 1) < 0.8 * abs(many - 1)


@pytest.mark.parametrize(
    ("value", "y"),
    [([], []), ([1.0, 2.0], [0.0, 0.0]), ([0.0, 0.0], [1.0, 2.0]), ([3.0, 3.0], [1.0, 2.0])],
)
def test_the_slope_is_one_where_the_data_do_not_determine_it(value: list[float], y: list[float]) -> None:
    assert fit_slope(np.array(value), np.array(y)) == 1.0


def test_predictions_of_zero_and_a_single_buyer_give_a_slope() -> None:
    assert 0.5 <= fit_slope(np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.0, 5.0])) <= 2.0


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 predicted values for 1 actual"):
        fit_slope(np.ones(2), np.ones(1))
