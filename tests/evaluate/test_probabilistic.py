import numpy as np
import pytest

from clv.evaluate import probabilistic
from clv.forecast import distributions
from clv.forecast.distributions import LEVELS, Quantiles, hurdle_lognormal


@pytest.fixture
def hurdle(rng: np.random.Generator) -> tuple[np.ndarray, Quantiles, np.ndarray]:
    """(y, true distribution, draws (n, 4000)) of customers of whom seven in ten buy nothing."""
    n = 3000
    p, mu = rng.beta(1, 2.5, n), rng.normal(3, 0.7, n)
    draws = np.where(rng.random((n, 401)) < p[:, None], np.exp(mu[:, None] + 0.8 * rng.normal(size=(n, 401))), 0.0)
    return draws[:, 0], hurdle_lognormal(p, mu, np.full(n, 0.8)), draws[:, 1:]


def test_crps_equals_the_monte_carlo_formula(hurdle: tuple[np.ndarray, Quantiles, np.ndarray]) -> None:
    y, quantiles, draws = hurdle
    # E|X - y| - E|X - X'| / 2 (Gneiting and Raftery 2007, eq. 21)
    wanted = np.abs(draws - y[:, None]).mean(axis=1) - np.abs(draws[:, :200] - draws[:, 200:]).mean(axis=1) / 2
    assert probabilistic.crps(y, quantiles).mean() == pytest.approx(wanted.mean(), rel=0.02)


def test_crps_of_a_point_forecast_is_its_absolute_error() -> None:
    point = Quantiles(LEVELS, np.full((3, len(LEVELS)), 5.0))
    assert probabilistic.crps([0.0, 5.0, 9.0], point) == pytest.approx([5.0, 0.0, 4.0], rel=1e-3)


def test_crps_is_lowest_for_the_true_distribution(hurdle: tuple[np.ndarray, Quantiles, np.ndarray]) -> None:
    y, quantiles, _ = hurdle
    right = probabilistic.crps(y, quantiles).mean()
    assert right < probabilistic.crps(y, Quantiles(LEVELS, quantiles.values * 1.5)).mean()
    assert right < probabilistic.crps(y, Quantiles(LEVELS, quantiles.values * 0.5)).mean()


def test_pinball_by_hand() -> None:
    assert probabilistic.pinball([10.0, 2.0], [4.0, 4.0], 0.9) == pytest.approx([5.4, 0.2])


def test_pit_coverage_is_low_for_narrow_and_high_for_wide_distributions(rng: np.random.Generator) -> None:
    n = 2000
    y = np.exp(rng.normal(3, 1.0, n))
    shares = [
        probabilistic.pit80(distributions.pit(y, hurdle_lognormal(np.ones(n), np.full(n, 3.0), np.full(n, s))))
        for s in (0.4, 1.0, 2.0)
    ]
    assert shares[0] < 0.5 < 0.77 < shares[1] < 0.83 < 0.95 < shares[2]


def test_the_pit_covers_as_stated_where_a_plain_interval_covers_too_many(
    hurdle: tuple[np.ndarray, Quantiles, np.ndarray],
) -> None:
    y, quantiles, _ = hurdle
    assert probabilistic.pit80(distributions.pit(y, quantiles, seed=1)) == pytest.approx(0.8, abs=0.03)
    assert probabilistic.coverage_and_width(y, quantiles)[0] > 0.9


def test_cells_report_their_own_coverage(hurdle: tuple[np.ndarray, Quantiles, np.ndarray]) -> None:
    y, quantiles, _ = hurdle
    cell = np.where(np.arange(len(y)) % 2 == 0, "even", "odd")
    found = probabilistic.by_cell(y, quantiles, cell)
    assert found["even"]["customers"] == 1500
    assert found["odd"]["pit80"] == pytest.approx(0.8, abs=0.04)
