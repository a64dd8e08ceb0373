import numpy as np
import pytest
from scipy import stats

from clv.forecast.distributions import Prediction, Quantiles, hurdle_lognormal, pit


@pytest.fixture
def hurdle(rng: np.random.Generator) -> tuple[np.ndarray, Quantiles]:
    """(y, true distribution) of customers of whom seven in ten buy nothing."""
    n = 3000
    p, mu = rng.beta(1, 2.5, n), rng.normal(3, 0.7, n)
    y = np.where(rng.random(n) < p, np.exp(mu + 0.8 * rng.normal(size=n)), 0.0)
    return y, hurdle_lognormal(p, mu, np.full(n, 0.8))


def test_quantiles_between_levels_are_linear_and_start_at_the_mass_at_zero() -> None:
    q = Quantiles([0.2, 0.6, 0.8], [[0.0, 10.0, 30.0]], p_zero=[0.4])
    assert q.quantile([0.3, 0.4, 0.5, 0.7, 0.99])[0] == pytest.approx([0, 0, 5, 20, 30])
    assert q.weights() == pytest.approx([0.4, 0.3, 0.3])
    assert q.mean() == pytest.approx([12.0])
    assert q.variance() == pytest.approx([0.3 * 100 + 0.3 * 900 - 144])
    assert q.take(np.array([0])).p_zero == pytest.approx([0.4])


def test_pit_of_the_true_distribution_is_uniform_despite_the_zeros(
    hurdle: tuple[np.ndarray, Quantiles],
) -> None:
    y, quantiles = hurdle
    u = pit(y, quantiles, seed=1)
    assert stats.kstest(u, "uniform").pvalue > 0.01


def test_pit_is_seeded_and_stays_inside_the_unit_interval(hurdle: tuple[np.ndarray, Quantiles]) -> None:
    y, quantiles = hurdle
    assert np.array_equal(pit(y, quantiles, 3), pit(y, quantiles, 3))
    for values in (y, y * 1000, np.zeros_like(y), -y):
        u = pit(values, quantiles)
        assert u.min() >= 0
        assert u.max() <= 1


def test_quantiles_of_the_hurdle_equal_scipy() -> None:
    q = hurdle_lognormal([0.4], [2.0], [0.5])
    assert q.quantile(0.5)[0, 0] == 0
    assert q.quantile(0.9)[0, 0] == pytest.approx(stats.lognorm.ppf(0.75, 0.5, scale=np.exp(2.0)))
    assert q.mean()[0] == pytest.approx(0.4 * np.exp(2.125), rel=0.01)
    assert q.p_zero[0] == pytest.approx(0.6)


def test_a_probability_of_zero_or_one_is_fine() -> None:
    q = hurdle_lognormal([0.0, 1.0], [2.0, 2.0], [0.5, 0.5])
    assert np.all(q.values[0] == 0)
    assert np.all(q.values[1] > 0)
    assert pit([0.0, np.exp(2.0)], q)[1] == pytest.approx(0.5, abs=0.01)


def test_malformed_distributions_are_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        Quantiles([0.5, 0.2], [[1.0, 2.0]])
    with pytest.raises(ValueError, match="row 1"):
        Quantiles([0.2, 0.5], [[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ValueError, match="rows of quantiles"):
        Prediction(value=np.ones(2), quantiles=Quantiles([0.5], [[1.0]]))
    with pytest.raises(ValueError, match="1 of 2 are not"):
        Prediction(value=np.array([1.0, np.inf]))
