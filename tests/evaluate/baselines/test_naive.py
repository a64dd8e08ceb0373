import pandas as pd
import pytest

from clv.evaluate.baselines.inputs import Context, NotRun
from clv.evaluate.baselines.naive import past_spend, seasonal_naive
from tests.evaluate.baselines.frames import H


def test_past_spend_scales_the_longest_window_that_the_log_covers() -> None:
    test = pd.DataFrame({"origin_day": [100, 100], "T": [60.0, 10.0]})
    test = test.assign(f_spend_7=[0.0, 7.0], f_spend_30=[60.0, 7.0], f_spend_365=[900.0, 7.0])
    assert past_spend(test, test, H, 0, Context()).value == pytest.approx([60 * 3, 7 * 3])
    week = past_spend(test, test, H, 0, Context(log_start_day=97))
    assert week.value == pytest.approx([0, 7 * 90 / 3])


def test_seasonal_naive_is_the_spend_of_the_window_a_year_before(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    train, test = data
    found = seasonal_naive(train, test, H, 0, Context(log_start_day=0))
    assert found.value == pytest.approx(test[f"f_spend_same_window_year_ago_{H}"])
    with pytest.raises(
        NotRun, match="the log covers 200 days before the origin; the window of a year before needs 365"
    ):
        seasonal_naive(train, test, H, 0, Context(log_start_day=400))
