from types import SimpleNamespace

import numpy as np
import pytest

from clv.forecast.horizons import TAIL_YEARS, TAIL_YEARS_WITHOUT_DROPOUT, resample_horizons, tail_years
from tests.forecast.forecasts import HORIZONS, adjusted, random_curves

LEVELS = np.array([0.1, 0.5, 0.9])


def resampled(wanted: tuple[int, ...], num_observed: int = len(HORIZONS)):
    learned = adjusted()
    object.__setattr__(learned, "num_observed", num_observed)
    btyd = random_curves(7, tuple(sorted({*HORIZONS, *wanted})))
    return learned, *resample_horizons(learned, HORIZONS, wanted, btyd)


def test_learned_horizons_keep_their_curves_and_quantiles() -> None:
    learned, found, extrapolated = resampled((30, 60, 90, 180))
    at = [0, 2, 3]
    for name in ("hazard", "orders", "value"):
        np.testing.assert_allclose(getattr(found.forecast, name)[:, at], getattr(learned.forecast, name), rtol=1e-9)
    np.testing.assert_allclose(found.quantiles(LEVELS)[:, at], learned.quantiles(LEVELS), rtol=1e-6, atol=1e-9)
    assert not extrapolated.any()


def test_between_learned_horizons_curves_grow_in_the_proportion_of_the_btyd_model() -> None:
    learned, found, _ = resampled((60,))
    share = (np.sqrt(60) - np.sqrt(30)) / (np.sqrt(90) - np.sqrt(30))  # as the BTYD curves of this test grow
    value = learned.forecast.value
    np.testing.assert_allclose(found.forecast.value[:, 0], value[:, 0] + share * (value[:, 1] - value[:, 0]))
    assert found.factor_error == pytest.approx([0.1])


@pytest.mark.parametrize("num_observed", [3, 2])
def test_beyond_the_last_horizon_curves_grow_by_a_ratio_to_the_btyd_model(num_observed: int) -> None:
    learned, found, extrapolated = resampled((180, 365), num_observed)
    assert extrapolated.tolist() == [False, True]
    btyd = random_curves(7, (180, 365)).value
    ratio = (learned.forecast if num_observed == 3 else learned.btyd).value[:, -1] / btyd[:, 0]
    np.testing.assert_allclose(np.diff(found.forecast.value)[:, 0], ratio * np.diff(btyd)[:, 0], rtol=1e-9)


def test_a_horizon_does_not_depend_on_the_other_wanted_ones() -> None:
    alone, among = resampled((45,))[1], resampled((7, 45, 100, 400))[1]
    np.testing.assert_allclose(among.quantiles(LEVELS)[:, 1], alone.quantiles(LEVELS)[:, 0], rtol=1e-9)
    assert (np.diff(among.quantiles(LEVELS), axis=1) >= 0).all()


def test_lifetime_value_has_a_shorter_tail_without_dropout() -> None:
    assert tail_years(SimpleNamespace(warning=None)) == TAIL_YEARS
    assert tail_years(SimpleNamespace(warning="the purchases show no dropout")) == TAIL_YEARS_WITHOUT_DROPOUT
