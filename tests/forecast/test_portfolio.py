import numpy as np
import pytest
from scipy.special import ndtri

from clv.forecast import distributions, portfolio
from clv.forecast.distributions import LEVELS, Prediction, Quantiles, hurdle_lognormal

World = tuple[Prediction, np.ndarray]


def world(n: int, seed: int = 0, factor_error: float = 0.0) -> World:
    """Customers who do what the prediction says, times one level that all share."""
    rng = np.random.default_rng(seed)
    p, mu, sigma = rng.beta(0.8, 2, n), rng.normal(3, 0.8, n), np.full(n, 0.9)
    level = np.exp(factor_error * rng.normal() - factor_error**2 / 2)
    y = np.where(rng.random(n) < p, np.exp(mu + sigma * rng.normal(size=n)), 0.0) * level
    mean = p * np.exp(mu + sigma**2 / 2)
    quantiles = hurdle_lognormal(p, mu, sigma)
    return Prediction(value=mean, p_purchase=p, quantiles=quantiles, factor_error=factor_error), y


def band(prediction: Prediction) -> np.ndarray:
    """(3,) of all customers together."""
    assert prediction.quantiles is not None
    drawn = portfolio.draw_totals(prediction.quantiles.quantile(portfolio.DRAW_LEVELS)[:, None, :])
    mean = [[prediction.value.sum()]]
    return portfolio.total_quantiles(drawn, mean, [len(prediction)], factor_error=[prediction.factor_error])[0, 0]


def test_the_interval_of_a_sum_of_normals_has_the_closed_form() -> None:
    n, sd = 400, 3.0
    values = 50 + sd * ndtri(portfolio.DRAW_LEVELS)
    found = portfolio.total_quantiles(portfolio.draw_totals(np.tile(values, (n, 1, 1))), [[50.0 * n]], [n])[0, 0]
    z = np.array([-1.2816, 0, 1.2816])
    np.testing.assert_allclose((found - 50 * n) / (np.sqrt(n) * sd), z, atol=0.12)


@pytest.mark.parametrize("size", [1, 10, 100, 1000])
@pytest.mark.parametrize("factor_error", [0.0, 0.3])
def test_intervals_cover_sums_of_any_size(size: int, factor_error: float) -> None:
    """Each world has one level, so many are needed; a customer alone is judged by quantiles that know it already."""
    if size == 1 and factor_error:
        pytest.skip("covered by the customer's own quantiles")
    below, above = [], []
    for seed in range(60):
        prediction, y = world(max(size, 200), seed, factor_error)
        group = portfolio.random_groups(len(y), size)
        low, high = portfolio.group_intervals(prediction, group)
        real = np.bincount(group, weights=y)
        below.append(np.mean(real < low))
        above.append(np.mean(real > high))
    few = factor_error or size == 1000  # 60 groups, or 60 levels
    assert np.mean(above) == pytest.approx(0.1, abs=0.06 if few else 0.03)
    if size > 1:  # no sum of one customer lies below a tenth that is zero
        assert np.mean(below) == pytest.approx(0.1, abs=0.06 if few else 0.03)


def test_a_group_of_one_keeps_the_quantiles_of_the_customer() -> None:
    prediction, _ = world(50, factor_error=0.3)
    assert prediction.quantiles is not None
    own = prediction.quantiles.quantile(distributions.INTERVAL_LEVELS)
    for i in range(50):
        one = prediction.take(np.array([i]))
        np.testing.assert_allclose(band(one), own[i], rtol=0.08, atol=0.3)


def test_the_spread_of_customers_averages_out_and_the_factor_error_does_not() -> None:
    known, _ = world(4000)
    unsure, _ = world(4000, factor_error=0.2)
    relative = [(high - low) / middle for low, middle, high in (band(known), band(unsure))]
    assert known.quantiles is not None
    closed = 2 * 1.2816 * np.sqrt(known.quantiles.variance().sum()) / known.value.sum()
    assert relative[0] == pytest.approx(closed, rel=0.15)
    assert relative[1] == pytest.approx(2 * 1.2816 * np.hypot(0.2, closed / 2.56), rel=0.1)


def test_totals_do_not_fall_with_the_horizon() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.gamma(1.0, 10.0, (300, 3, portfolio.NUM_DRAWS)), axis=2).cumsum(axis=1)
    drawn = portfolio.draw_totals(values)
    assert (np.diff(drawn, axis=1) >= 0).all()
    found = portfolio.total_quantiles(
        drawn, values.mean(2).sum(0)[None], [300], factor_error=[0.4, 0.1, 0.3], spread=[2.0, 1.0, 0.5]
    )
    assert (np.diff(found, axis=1) >= 0).all()


def test_every_customer_but_the_remainder_is_in_one_group() -> None:
    group = portfolio.random_groups(1234, 100)
    assert np.bincount(group[group >= 0]).tolist() == [100] * 12
    assert (group < 0).sum() == 34
    assert portfolio.random_groups(7, 100).tolist() == [0] * 7


def test_sums_that_vary_more_than_predicted_get_a_larger_spread() -> None:
    prediction, y = world(4000, 1)
    honest = portfolio.fit_sum_spread(y, prediction)
    assert honest == pytest.approx(1.0, abs=0.35)
    assert prediction.quantiles is not None
    narrow = Quantiles(
        LEVELS, prediction.value[:, None] + (prediction.quantiles.values - prediction.value[:, None]) / 3
    )
    assert portfolio.fit_sum_spread(y, Prediction(value=prediction.value, quantiles=narrow)) > 3


def test_no_customers_give_zero_totals_and_no_distributions_no_interval() -> None:
    assert portfolio.draw_totals(np.zeros((0, 2, portfolio.NUM_DRAWS))).shape == (1, 2, portfolio.NUM_DRAWS)
    plain = Prediction(value=np.ones(300))
    assert np.isnan(portfolio.group_coverage(np.ones(300), plain))
    assert portfolio.fit_sum_spread(np.ones(300), plain) == 1.0
    with pytest.raises(ValueError, match="the interval of a sum needs the distribution of each"):
        portfolio.group_intervals(plain, np.zeros(300, np.int64))
