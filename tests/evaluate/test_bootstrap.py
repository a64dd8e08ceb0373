import time

import numpy as np
import pytest

from clv.evaluate import bootstrap, metrics
from clv.forecast.distributions import Prediction, hurdle_lognormal


@pytest.fixture
def shop(rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Prediction]]:
    """(y, predictions): a sharp model with a distribution, and a blunt one with many ties."""
    n = 1500
    p, mu = rng.beta(1, 2, n), rng.normal(3, 0.8, n)
    y = np.where(rng.random(n) < p, np.exp(mu + 0.5 * rng.normal(size=n)), 0.0)
    value = p * np.exp(mu + 0.125)
    sharp = Prediction(value=value, p_purchase=p, quantiles=hurdle_lognormal(p, mu, np.full(n, 0.5)))
    return y, {"sharp": sharp, "blunt": Prediction(value=np.round(value / 15) * 15)}


def resampled(n: int, draws: int, seed: int) -> list[np.ndarray]:
    """Rows of the customers of each draw, the data itself first."""
    return [np.repeat(np.arange(n), row.astype(int)) for chunk in bootstrap._draws(n, draws, seed) for row in chunk]


def difference(
    metric: str, y: np.ndarray, a: Prediction, b: Prediction, draws: int, seed: int = 0
) -> bootstrap.Interval:
    found = bootstrap.bootstrap(y, y > 0, {"a": a, "b": b}, draws, seed)
    return bootstrap.interval(found["a"][metric] - found["b"][metric])


def test_every_replicate_equals_the_metric_of_the_resampled_customers(
    shop: tuple[np.ndarray, dict[str, Prediction]],
) -> None:
    y, predictions = shop
    found = bootstrap.bootstrap(y, y > 0, predictions, draws=4, seed=3)
    for number, rows in enumerate(resampled(len(y), 4, 3)):
        for name, prediction in predictions.items():
            wanted = metrics.evaluate(y[rows], y[rows] > 0, prediction.take(rows), seed=3)
            for metric, values in found[name].items():
                if metric == "pit80" and number > 0:
                    continue  # its random numbers belong to customers, not to draws
                assert values[number] == pytest.approx(wanted[metric], rel=1e-9), (metric, name, number)


def test_the_interval_of_a_difference_is_that_of_resampled_customers(
    shop: tuple[np.ndarray, dict[str, Prediction]],
) -> None:
    y, p = shop
    fast = difference("ngini", y, p["sharp"], p["blunt"], draws=60, seed=1)
    gaps = [
        metrics.ngini(y[rows], p["sharp"].value[rows]) - metrics.ngini(y[rows], p["blunt"].value[rows])
        for rows in resampled(len(y), 60, 1)
    ]
    assert fast.estimate == pytest.approx(gaps[0])
    assert (fast.low, fast.high) == pytest.approx(tuple(np.quantile(gaps[1:], [0.025, 0.975])))
    assert fast.low > 0


def test_a_model_against_itself_differs_by_nothing(shop: tuple[np.ndarray, dict[str, Prediction]]) -> None:
    y, p = shop
    same = difference("mae_over_mean", y, p["blunt"], p["blunt"], draws=50)
    assert (same.low, same.estimate, same.high) == (0, 0, 0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says(rng: np.random.Generator) -> None:
    covered = 0
    for seed in range(60):
        y = rng.gamma(2.0, 10.0, 400)
        # The mean of Gamma(2, 10) is 20: predictions of 22 and 20 have a bias of 1.1 and 1.
        above, exact = Prediction(value=np.full(400, 22.0)), Prediction(value=np.full(400, 20.0))
        found = difference("bias", y, above, exact, draws=200, seed=seed)
        covered += found.low <= 0.1 <= found.high
    assert 50 <= covered <= 60


def test_shops_without_buyers_or_customers_give_nan_and_no_warning() -> None:
    found = bootstrap.bootstrap(np.zeros(5), np.zeros(5), {"a": Prediction(value=np.ones(5))}, draws=10)
    assert np.isnan(found["a"]["ngini"]).all()
    nobody = bootstrap.bootstrap(np.zeros(0), np.zeros(0), {"a": Prediction(value=np.zeros(0))}, draws=10)
    assert np.isnan(bootstrap.interval(nobody["a"]["bias"]).low)


def test_draws_in_which_a_tenth_of_the_customers_spent_nothing_have_no_decile_mape() -> None:
    value = np.arange(100.0, 0.0, -1.0)
    y = np.where(np.arange(100) // 10 == 4, 0.0, value)
    y[40] = 1.0  # one purchase carries the fifth tenth, which many draws leave out
    drawn = bootstrap.bootstrap(y, y > 0, {"a": Prediction(value=value)}, draws=100)["a"]["decile_mape"]
    assert np.isfinite(drawn[0])
    assert 10 < np.isnan(drawn).sum() < 90
    assert np.nanmax(drawn) < 1e4
    y[40] = 0.0  # rounding leaves 1e-14 of the purchase before it in the fifth tenth
    assert np.isnan(bootstrap.bootstrap(y, y > 0, {"a": Prediction(value=value)}, draws=0)["a"]["decile_mape"][0])


def test_predictions_of_other_customers_are_refused(shop: tuple[np.ndarray, dict[str, Prediction]]) -> None:
    y, _ = shop
    with pytest.raises(ValueError, match="predicts 3 customers"):
        bootstrap.bootstrap(y, y > 0, {"short": Prediction(value=np.ones(3))}, draws=5)


def test_ten_models_of_a_middling_shop_take_seconds(rng: np.random.Generator) -> None:
    y = np.where(rng.random(5000) < 0.3, rng.gamma(1.0, 50.0, 5000), 0.0)
    models = {str(i): Prediction(value=rng.gamma(1.0, 10.0, 5000)) for i in range(10)}
    start = time.process_time()
    bootstrap.bootstrap(y, y > 0, models, draws=200)
    assert time.process_time() - start < 10
