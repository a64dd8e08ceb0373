import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clv.evaluate import metrics
from clv.forecast.distributions import Prediction, hurdle_lognormal

small = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=2, max_size=30)


def naive_gini(y: np.ndarray, y_hat: np.ndarray) -> float:
    """Average over many random orders of ties, cumulated one customer at a time."""
    rng = np.random.default_rng(0)
    values = []
    for _ in range(4000):
        order = np.lexsort((rng.random(len(y)), -y_hat))
        share = (np.cumsum(y[order]) - y[order] / 2) / y.sum()
        values.append(2 * share.mean() - 1)
    return float(np.mean(values))


def naive_auc(event: np.ndarray, score: np.ndarray) -> float:
    gaps = score[event][:, None] - score[~event][None, :]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def test_gini_of_three_customers_by_hand() -> None:
    # Order 2, 1, 0 of y = (0, 1, 3): shares 3/4, 1, 1 less half of the own: 3/8, 7/8, 1 -> G = 2 * 2.25 / 3 - 1 = 1/2.
    y = np.array([0.0, 1.0, 3.0])
    assert metrics.ngini(y, y) == pytest.approx(1.0)
    # Best prediction for the middle one: order 1, 2, 0, shares 1/8, 5/8, 1 -> G = 1/6, over 1/2.
    assert metrics.ngini(y, [0, 2, 1]) == pytest.approx((2 * 1.75 / 3 - 1) / 0.5)


def test_perfect_reversed_and_constant_orders_have_ngini_one_minus_one_and_zero(rng: np.random.Generator) -> None:
    y = rng.gamma(1.0, 10.0, 200)
    assert metrics.ngini(y, y**2) == pytest.approx(1)
    assert metrics.ngini(y, -y) == pytest.approx(-1)
    assert metrics.ngini(y, np.ones(200)) == pytest.approx(0)


def test_ties_take_the_mean_over_their_orders() -> None:
    y = np.array([0.0, 5, 1, 0, 9, 2, 0, 3])
    y_hat = np.array([1.0, 1, 1, 0, 2, 2, 0, 1])
    assert metrics.ngini(y, y_hat) == pytest.approx(naive_gini(y, y_hat) / naive_gini(y, y), abs=0.01)


@given(small)
@settings(max_examples=80, deadline=None)
def test_ngini_does_not_depend_on_row_order_or_scale(rows: list[tuple[int, int]]) -> None:
    y, y_hat = np.array(rows, float).T
    shuffled = np.random.default_rng(1).permutation(len(y))
    first = metrics.ngini(y, y_hat)
    second = metrics.ngini(3 * y[shuffled], np.exp(y_hat[shuffled]))
    assert np.isnan(first) == np.isnan(second)
    assert np.isnan(first) or (first == pytest.approx(second) and -1 - 1e-9 <= first <= 1 + 1e-9)


@given(small)
@settings(max_examples=80, deadline=None)
def test_auc_equals_counting_pairs(rows: list[tuple[int, int]]) -> None:
    event, score = np.array([r[0] > 2 for r in rows]), np.array([float(r[1]) for r in rows])
    if event.all() or not event.any():
        assert np.isnan(metrics.auc(event, score))
    else:
        assert metrics.auc(event, score) == pytest.approx(naive_auc(event, score))


def test_spearman_is_the_correlation_of_average_ranks(rng: np.random.Generator) -> None:
    y, y_hat = rng.poisson(1.0, 300).astype(float), rng.integers(0, 20, 300).astype(float)
    ranks, ranks_hat = metrics.midranks(y), metrics.midranks(y_hat)
    assert metrics.spearman(y, y_hat) == pytest.approx(np.corrcoef(ranks, ranks_hat)[0, 1])
    assert np.isnan(metrics.spearman(y, np.ones(300)))


def test_average_precision_by_hand() -> None:
    # Found at ranks 1 and 3: (1/1 + 2/3) / 2. Tied together: precision 1/2 at once.
    assert metrics.average_precision([1, 0, 1, 0], [4, 3, 2, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.average_precision([1, 0, 1, 0], [1, 1, 1, 1]) == pytest.approx(0.5)
    assert np.isnan(metrics.average_precision([0, 0], [1, 2]))


def test_levels_and_errors_by_hand() -> None:
    y, y_hat = np.array([0.0, 2.0, 4.0]), np.array([1.0, 2.0, 6.0])
    assert metrics.bias(y, y_hat) == pytest.approx(9 / 6)
    assert metrics.mae_over_mean(y, y_hat) == pytest.approx(3 / 6)
    assert metrics.rmse_over_mean(y, y_hat) == pytest.approx(np.sqrt(5 / 3) / 2)
    found = metrics.bias_by(y, y_hat, np.array(["a", "b", "b"]))
    assert found["b"] == {"customers": 2, "actual": 6, "predicted": 8, "bias": pytest.approx(8 / 6)}
    assert np.isnan(found["a"]["bias"])


def test_decile_mape_equals_splitting_a_sorted_array(rng: np.random.Generator) -> None:
    y, y_hat = rng.gamma(1.0, 5.0, 500), rng.gamma(1.0, 5.0, 500)
    parts = np.array_split(np.argsort(-y_hat), 10)
    wanted = np.mean([abs(y_hat[p].mean() - y[p].mean()) / y[p].mean() for p in parts])
    assert metrics.decile_mape(y, y_hat) == pytest.approx(wanted)
    assert metrics.decile_mape(y, y) == pytest.approx(0, abs=1e-9)
    assert metrics.decile_mape(y, np.full(500, 2 * y.mean())) == pytest.approx(1)


def test_decile_mape_is_undefined_where_a_tenth_of_the_customers_spent_nothing() -> None:
    """Rounding puts 4e-15 of the next purchase into the tenth before it: a ratio to that would be some 1e14."""
    value = np.arange(100.0, 0.0, -1.0)
    y = value.copy()
    y[20:30] = 0.0
    assert np.isnan(metrics.decile_mape(y, value))
    assert metrics.evaluate(y, y > 0, Prediction(value=value))["decile_mape"] is None
    y[20:30] = 1e-9  # negligible
    assert np.isnan(metrics.decile_mape(y, value))
    y[20:30] = value[20:30] / 2
    assert metrics.decile_mape(y, value) == pytest.approx(0.1)


def test_totals_that_returns_cancel_give_no_ratio() -> None:
    y, value = np.array([100.0, -99.99999, 0.0, 0.0]), np.ones(4)
    found = metrics.evaluate(y, y > 0, Prediction(value=value))
    ratios = ("ngini", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape", "top_decile_capture")
    assert [found[name] for name in ratios] == [None] * 6
    assert np.isnan(metrics.bias_by(y, value, np.array(["a", "a", "b", "b"]))["a"]["bias"])
    assert metrics.bias([100.0, -50.0], [30.0, 20.0]) == 1


def test_top_decile_of_a_perfect_order_holds_the_largest_tenth(rng: np.random.Generator) -> None:
    y = rng.gamma(0.3, 100.0, 1000)
    assert metrics.top_decile_capture(y, y) == pytest.approx(np.sort(y)[-100:].sum() / y.sum())
    assert metrics.top_decile_capture(y, np.zeros(1000)) == pytest.approx(0.1)
    fractions, share = metrics.lift(y, y)
    assert share[0] == 0
    assert share[-1] == pytest.approx(1)
    assert np.all(np.diff(share) >= -1e-12)
    assert np.all(share >= fractions - 1e-9)


def test_churn_report_by_hand() -> None:
    orders, p = np.array([0, 0, 0, 2, 1]), np.array([0.1, 0.4, 0.9, 0.8, 0.3])
    report = metrics.churn_report(orders, p)  # called gone: 1st, 2nd, 5th
    assert report["churned"] == pytest.approx({"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "support": 3})
    assert report["stayed"] == pytest.approx({"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2})
    assert report["overall"]["accuracy"] == pytest.approx(3 / 5)
    assert metrics.churn_report(orders, p, threshold=0.7)["overall"]["accuracy"] == pytest.approx(2 / 5)
    everybody = metrics.churn_report(np.ones(5), p)["churned"]
    assert everybody["support"] == everybody["precision"] == 0
    assert np.isnan(everybody["recall"])


@pytest.mark.parametrize(
    ("y", "y_hat"),
    [([], []), ([3.0], [2.0]), ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]), ([0.0, 0.0], [0.0, 0.0]), ([5.0, 5.0], [1.0, 1.0])],
)
def test_degenerate_shops_give_null_metrics_and_no_warning(y: list[float], y_hat: list[float]) -> None:
    real, value = np.array(y, float), np.array(y_hat, float)
    p = np.full(len(y), 0.5)
    quantiles = hurdle_lognormal(p, np.zeros(len(y)), np.ones(len(y)))
    found = metrics.evaluate(real, real > 0, Prediction(value=value, p_purchase=p, quantiles=quantiles))
    assert tuple(found) == metrics.METRICS
    assert found["ngini"] is None
    assert all(v is None or np.isfinite(v) for v in found.values())
    metrics.churn_report(real > 0, p)
    metrics.lift(real, value)


def test_models_without_distributions_have_null_crps_and_rank_buyers_by_value() -> None:
    y = np.array([0.0, 1.0, 2.0])
    found = metrics.evaluate(y, y > 0, Prediction(value=y))
    assert found["crps"] is None
    assert found["pit80"] is None
    assert found["auc"] == 1


def test_a_value_that_is_not_finite_is_refused_with_its_count() -> None:
    with pytest.raises(ValueError, match="1 of 2 customers"):
        metrics.ngini([1.0, np.nan], [1.0, 2.0])
    with pytest.raises(ValueError, match="shape"):
        metrics.auc([1, 0], [0.5])
