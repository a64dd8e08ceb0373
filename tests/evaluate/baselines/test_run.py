import sys

import numpy as np
import pandas as pd
import pytest

from clv.evaluate import metrics
from clv.evaluate.baselines import run
from clv.evaluate.baselines.inputs import Context, population

H = 90


def shop(origins: tuple[int, ...], seed: int = 0, n: int = 700) -> pd.DataFrame:
    """Sample frames of customers with their own rate and basket, some of whom left, at several origins."""
    rng = np.random.default_rng(seed)
    rate, basket = rng.gamma(0.8, 0.02, n), rng.lognormal(3, 0.7, n)
    life, born = rng.exponential(600, n), rng.uniform(0, 300, n)
    days = [np.sort(born[i] + np.r_[0.0, rng.uniform(0, 900, rng.poisson(rate[i] * 900))]) // 1 for i in range(n)]
    days = [np.unique(d[d <= born[i] + max(life[i], 1)]) for i, d in enumerate(days)]
    frames = []
    for origin in origins:
        rows = []
        for i, d in enumerate(days):
            past, future = d[d < origin], d[(d >= origin) & (d < origin + H)]
            value = basket[i] * np.ones(len(past))
            if not len(past):
                continue
            row = {
                "customer_id": str(i),
                "origin_day": origin,
                "frequency": len(past) - 1,
                "recency": past[-1] - past[0],
                "T": origin - past[0],
                "monetary": basket[i] if len(past) > 1 else 0.0,
                "has_purchase": True,
                "value_past": value.sum(),
                "orders_past": len(past),
                "f_recency": origin - past[-1],
                "f_tenure": origin - past[0],
                "f_orders": len(past),
                "f_spend": value.sum(),
                "f_aov": basket[i],
                "f_gap_mean": np.diff(past).mean() if len(past) > 1 else np.nan,
                f"f_spend_same_window_year_ago_{H}": value[(past >= origin - 365) & (past < origin - 365 + H)].sum(),
                f"value_{H}": basket[i] * len(future) * rng.lognormal(0, 0.2),
                f"orders_{H}": float(len(future)),
                f"days_{H}": float(len(future)),
                f"observed_{H}": True,
            }
            for w in (30, 90, 180, 365):
                row |= {f"f_orders_{w}": (past >= origin - w).sum(), f"f_spend_{w}": value[past >= origin - w].sum()}
            rows.append(row)
        frames.append(pd.DataFrame(rows))
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def data() -> tuple[pd.DataFrame, pd.DataFrame]:
    return shop(tuple(range(330, 511, 60))), shop((600,))


def test_every_baseline_of_the_contract_recovers_the_signal(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    train, test = data
    found = run.run_baselines(train, test, H, seed=1, context=Context(threads=1))
    assert tuple(found) == tuple(run.BASELINES)
    y, orders = test[f"value_{H}"].to_numpy(), test[f"orders_{H}"].to_numpy()
    for name, prediction in found.items():
        assert not isinstance(prediction, dict), (name, prediction)
        scores = metrics.evaluate(y, orders, prediction)
        weak = name == "seasonal_naive"
        assert scores["ngini"] > (0.2 if weak else 0.55), (name, scores)
        assert scores["auc"] > (0.55 if weak else 0.7), (name, scores)
        assert 0.2 < scores["bias"] < 3, (name, scores)
        if prediction.quantiles is not None:
            assert 0.6 < scores["pit80"] < 0.97, (name, scores)
    with_distribution = {n for n, p in found.items() if not isinstance(p, dict) and p.quantiles is not None}
    assert {"lgbm_hurdle", "ziln_mlp"} <= with_distribution


def test_baselines_are_deterministic_and_never_see_the_labels_of_the_test_origin(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train, test = data
    blind = test.assign(**dict.fromkeys((f"value_{H}", f"orders_{H}", f"days_{H}"), 1000000000.0))
    first = run.run_baselines(train, test, H, seed=1, context=Context(threads=1))
    second = run.run_baselines(train, blind, H, seed=1, context=Context(threads=1))
    for name, prediction in first.items():
        other = second[name]
        assert not isinstance(prediction, dict)
        assert not isinstance(other, dict)
        assert np.array_equal(prediction.value, other.value), name


def test_past_spend_scales_the_longest_window_the_log_covers() -> None:
    test = pd.DataFrame({"origin_day": [100, 100], "T": [60.0, 10.0], "has_purchase": [True, True]})
    test = test.assign(f_spend_7=[0.0, 7.0], f_spend_30=[60.0, 7.0], f_spend_365=[900.0, 7.0])
    found = run.run_baselines(test.assign(value_90=0.0, observed_90=True), test, H, names=["past_spend"])["past_spend"]
    assert not isinstance(found, dict)
    assert found.value == pytest.approx([60 * 3, 7 * 3])
    week = run.past_spend(test, test, H, 0, Context(log_start_day=97))
    assert week.value == pytest.approx([0, 7 * 90 / 3])


def test_rows_without_a_purchase_or_a_fully_observed_label_are_left_out(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train = data[0].assign(has_purchase=lambda d: d.index % 2 == 0, observed_90=lambda d: d.index % 3 == 0)
    assert len(population(train, H)) == sum(i % 6 == 0 for i in range(len(train)))
    with pytest.raises(ValueError, match=r"no label value_30 in the training frame; it has horizons \['90'\]"):
        population(train, 30)


def test_a_year_ago_needs_a_year_of_log(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    context = Context(log_start_day=400)
    found = run.run_baselines(*data, H, names=["seasonal_naive"], context=context)["seasonal_naive"]
    assert found == {"not_run": "the log reaches back 200 days, not the 365 that a year ago needs"}


def test_a_missing_lightgbm_is_a_reason_and_not_a_crash(
    data: tuple[pd.DataFrame, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    found = run.run_baselines(*data, H, names=["lgbm_tweedie"])["lgbm_tweedie"]
    assert isinstance(found, dict)
    assert "lightgbm is not installed" in found["not_run"]


def test_strange_shops_end_in_reasons(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    train, test = data
    empty = train.assign(**{f"value_{H}": 0.0, f"orders_{H}": 0.0})
    for name, found in run.run_baselines(empty, test, H, context=Context(threads=1)).items():
        assert isinstance(found, dict) or np.isfinite(found.value).all(), name
    nobody = run.run_baselines(train, test.assign(has_purchase=False), H, names=["linear"])
    assert nobody == {"linear": {"not_run": "no customer has a purchase before the origin"}}
    with pytest.raises(ValueError, match="mixes 4 origins"):
        run.run_baselines(train, train, H)
    with pytest.raises(ValueError, match=r"unknown baselines \['xgb'\]"):
        run.run_baselines(train, test, H, names=["xgb"])
