"""Back-testing: actual outcomes at a past origin, averaged predictions, and the panel that evaluation takes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from clv.forecast.distributions import LEVELS, Prediction, Quantiles
from clv.train import backtest
from clv.train.fitting import Dataset


def test_outcomes_are_the_sums_of_the_log_after_the_origin(shop: Dataset, shop_histories: pa.Table) -> None:
    origin, end = shop.clock.parse("2024-02-01"), shop.clock.parse("2024-03-02")
    found = backtest.outcomes(shop, origin, 30)
    rows = shop_histories.to_pandas()
    events = rows[["customer_id", "time", "type", "amount"]].explode(["time", "type", "amount"])
    time = pd.to_datetime(events["time"], utc=True).dt.as_unit("us").astype("int64")
    bought = events[(events["type"] == 0) & (time < origin)]["customer_id"].unique()
    inside = events[(events["type"] == 0) & (time >= origin) & (time < end) & events["customer_id"].isin(bought)]
    expected = inside.groupby("customer_id")["amount"].sum()
    assert set(found.customer_id) == set(bought)
    assert found.value.sum() == pytest.approx(expected.sum())
    assert found.value.sum() > 0


def test_a_horizon_past_the_end_of_the_log_is_refused(shop: Dataset) -> None:
    with pytest.raises(ValueError, match=r"over 30 days needs the log until 2024-07-0\d.*choose earlier --origins"):
        backtest.outcomes(shop, shop.clock.parse("2024-06-05"), 30)


def test_several_seeds_are_averaged_in_the_panel(shop: Dataset) -> None:
    known = backtest.outcomes(shop, shop.clock.parse("2024-02-01"), 30)

    def fit(value: float, probability: float) -> backtest.ModelPredictions:
        def prediction(num: int) -> Prediction:
            table = Quantiles(LEVELS, np.full((num, len(LEVELS)), value), p_zero=np.full(num, 1 - probability))
            return Prediction(value=np.full(num, value), p_purchase=np.full(num, probability), quantiles=table)

        visitors = len(known.visitors[0])
        return backtest.ModelPredictions(prediction(len(known.value)), prediction(visitors), prediction(visitors))

    fits = [fit(10.0, 0.2), fit(30.0, 0.6)]
    panel = known.panel(fits, {"naive": {"not_run": "test"}})
    ours = panel.predictions["clv"]
    assert (set(ours.value), set(ours.p_purchase.round(12))) == ({20.0}, {0.4})
    # Quantiles below the mean probability of no purchase, 0.6, are 0; above both fits' own, 0.8, they are averaged.
    assert set(ours.quantiles.values[:, np.array(LEVELS) < 0.59].ravel()) == {0.0}
    assert set(ours.quantiles.values[:, np.array(LEVELS) > 0.81].ravel()) == {20.0}
    assert set(ours.quantiles.p_zero.round(12)) == {0.6}
    assert (panel.origin, panel.horizon_days, panel.log_days) == ("2024-02-01", 30, known.log_days)
    assert set(panel.predictions) == {"clv", "naive"}
