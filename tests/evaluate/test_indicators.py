from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from clv.evaluate.indicators import calibration_table, relative_error


def customers(n: int = 40_000, seed: int = 0) -> pd.DataFrame:
    """Customers whose scores are the truth: purchase probability p, Poisson further orders, different prices."""
    rng = np.random.default_rng(seed)
    p, more, price = rng.beta(1, 3, n), rng.gamma(1, 0.5, n), rng.lognormal(3, 0.5, n)
    bought = rng.random(n) < p
    orders = np.where(bought, 1 + rng.poisson(more), 0)
    value = price * rng.gamma(4 * np.maximum(orders, 1e-9), 1 / 4) * bought
    return pd.DataFrame(
        {
            "p_purchase": p, "orders_mean": p * (1 + more), "value_mean": p * (1 + more) * price,
            "orders_real": orders.astype(float), "value_real": value, "visitor": np.arange(n) % 4 == 0,
            "cohort": np.where(np.arange(n) % 2, "2024-01", "2024-02"),
        }
    )  # fmt: skip


def test_predictions_that_are_the_truth_are_honest_in_every_group() -> None:
    for by in (None, "cohort"):
        found = calibration_table(customers(), by)
        # The predicted order value weighs customers by their probability, the actual one by their orders.
        chances = found[found["indicator"] != "aov"]
        assert chances["honest"].mean() > 0.95
        assert chances.loc[chances["group"] == "all", "honest"].all()
    assert (relative_error(calibration_table(customers())) < 0.08).all()


@pytest.mark.parametrize(
    ("column", "indicators"),
    [("p_purchase", {"conversion", "repurchase"}), ("orders_mean", {"frequency", "aov"}), ("value_mean", {"aov"})],
)
def test_a_prediction_that_is_a_tenth_too_high_is_caught(column: str, indicators: set[str]) -> None:
    table = customers()
    found = calibration_table(table.assign(**{column: np.minimum(table[column] * 1.1, 1e9)}))
    whole = found[found["group"] == "all"].set_index("indicator")["honest"]
    assert not whole[list(indicators)].any()
    assert whole[[name for name in whole.index if name not in indicators]].all()


def test_indicators_and_standard_errors_by_hand() -> None:
    table = pd.DataFrame(
        {
            "p_purchase": [0.2, 0.4, 0.9], "orders_mean": [0.2, 0.5, 2.0], "value_mean": [2.0, 10.0, 60.0],
            "orders_real": [0.0, 1.0, 3.0], "value_real": [0.0, 30.0, 60.0], "visitor": [True, False, False],
        }
    )  # fmt: skip
    found = calibration_table(table)
    whole = found[found["group"] == "all"].set_index("indicator")
    assert whole["customers"].to_dict() == {"conversion": 1, "repurchase": 2, "frequency": 2, "aov": 2}
    assert whole.loc["conversion", ["predicted", "actual"]].tolist() == [0.2, 0.0]
    assert whole.loc["repurchase", ["predicted", "actual"]].tolist() == [0.65, 1.0]
    assert whole.loc["frequency", ["predicted", "actual"]].tolist() == [1.25, 2.0]
    assert whole.loc["aov", ["predicted", "actual"]].tolist() == [28.0, 22.5]
    assert whole.loc["conversion", "standard_error"] == pytest.approx(0.4)


def test_zero_orders_give_no_infinite_indicator() -> None:
    """No visitor bought, and some buyers had no expected order."""
    table = customers(200)
    table.loc[table["visitor"], ["orders_real", "value_real"]] = 0.0
    bought = table.index[~table["visitor"] & (table["orders_real"] > 0)]
    table.loc[bought[:3], "orders_mean"] = 0.0
    found = calibration_table(table)
    assert np.isfinite(found[["predicted", "actual", "standard_error"]].to_numpy()).all()
    assert set(found.loc[found["indicator"] == "aov", "group"]) == {"all", *(f"tenth {i}" for i in range(1, 11))}
    gaps = relative_error(found)
    assert np.isnan(gaps["conversion"])
    assert np.isfinite(gaps.drop("conversion")).all()


def test_without_visitors_there_is_no_conversion() -> None:
    found = calibration_table(customers(200).assign(visitor=False))
    assert set(found["indicator"]) == {"repurchase", "frequency", "aov"}
