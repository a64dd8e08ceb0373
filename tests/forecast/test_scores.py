import numpy as np
import pandas as pd

from clv.forecast.scores import SCORES, score_table
from tests.forecast.forecasts import HORIZONS, adjusted

ORIGIN = 1_700_000_000_000_000


def test_a_score_table_has_one_row_per_customer_and_horizon() -> None:
    forecast, ids = adjusted(), pd.Series([f"c{i}" for i in range(20)])
    extrapolated, lifetime = np.array([False, False, True]), np.arange(20.0)
    table = score_table(ids, ORIGIN, HORIZONS, forecast, lifetime, extrapolated)
    assert table.schema == SCORES
    found = table.to_pandas()
    assert found["customer_id"].tolist() == np.repeat(ids, 3).tolist()
    assert found["horizon_days"].tolist() == [*HORIZONS] * 20
    assert found["extrapolated"].tolist() == extrapolated.tolist() * 20
    assert found["clv_mean"].tolist() == np.repeat(lifetime, 3).tolist()
    np.testing.assert_array_equal(found["value_mean"], forecast.forecast.value.ravel())
    np.testing.assert_array_equal(found["btyd_value_mean"], forecast.btyd.value.ravel())
    np.testing.assert_allclose(found["churn_probability"] + found["p_purchase"], 1)
    np.testing.assert_allclose(found["aov"] * found["orders_mean"], found["value_mean"])
    assert (found["value_p10"] <= found["value_median"]).all()
    assert (found["value_median"] <= found["value_p90"]).all()
    assert (found["value_p10"] < found["value_p90"]).any()


def test_ranks_and_deciles_are_by_value_within_each_horizon() -> None:
    forecast, ids = adjusted(), pd.Series([f"c{i}" for i in range(20)])
    found = score_table(ids, ORIGIN, HORIZONS, forecast, np.zeros(20), np.zeros(3, bool)).to_pandas()
    for _, rows in found.groupby("horizon_days"):
        ordered = rows.sort_values("value_mean", ascending=False)
        assert ordered["value_rank"].tolist() == list(range(1, 21))
        assert ordered["value_decile"].tolist() == np.repeat(np.arange(1, 11), 2).tolist()
