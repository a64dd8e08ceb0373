import numpy as np
import pandas as pd
import pytest

from clv.evaluate.baselines.inputs import Context, NotRun
from clv.evaluate.baselines.linear import linear, logistic
from tests.evaluate.baselines.frames import H


def test_predictions_on_the_training_rows_have_the_totals_of_their_labels(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train, _ = data
    value = linear(train, train, H, 0, Context()).value
    assert value.sum() == pytest.approx(train[f"value_{H}"].sum())
    p = logistic(train, train, H, 0, Context()).p_purchase
    assert p is not None
    assert p.mean() == pytest.approx((train[f"orders_{H}"] > 0).mean(), rel=1e-3)


def test_the_regression_never_predicts_more_than_nearly_all_training_customers_spent(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train, test = data
    far = test.assign(f_spend=1e12, f_orders=1e9, f_aov=1e9)
    near, most = linear(train, train, H, 0, Context()).value, np.quantile(train[f"value_{H}"], 0.999)
    smear = train[f"value_{H}"].sum() / near.sum()
    assert linear(train, far, H, 0, Context()).value.max() <= 10 * smear * most


def test_a_logistic_regression_needs_buyers_and_others(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    train, test = data
    with pytest.raises(NotRun, match="all training customers, or none, bought"):
        logistic(train.assign(**{f"orders_{H}": 1.0}), test, H, 0, Context())
