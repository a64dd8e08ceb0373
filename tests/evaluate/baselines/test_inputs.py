import numpy as np
import pandas as pd
import pytest

from clv.evaluate.baselines.inputs import Context, NotRun, features, labels, log_features, population
from tests.evaluate.baselines.frames import H


def test_rows_without_a_purchase_or_without_an_observed_label_are_left_out(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train = data[0].assign(has_purchase=lambda d: d.index % 2 == 0, observed_90=lambda d: d.index % 3 == 0)
    assert len(population(train, H)) == sum(i % 6 == 0 for i in range(len(train)))
    with pytest.raises(ValueError, match=r"no label value_30 in the training frame; it has horizons \['90'\]"):
        population(train, 30)


def test_log_features_are_standardised_on_the_training_rows_and_flag_undefined_ones(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train, test = log_features(*data)
    names = list(features(*data)[0].T)
    assert train.shape[1] == test.shape[1] == len(names) + 1  # f_gap_mean is undefined for customers with one purchase
    assert np.abs(log_features(data[0], data[1].assign(f_spend=1e30))[1]).max() == 5
    assert np.isin(train[:, -1], (0, 1)).all()
    assert train[:, -1].sum() == data[0]["f_gap_mean"].isna().sum() > 0
    with pytest.raises(NotRun, match="the sample frames hold no feature columns"):
        features(data[0][["T"]], data[1])


def test_labels_are_floored_at_zero() -> None:
    value, bought = labels(pd.DataFrame({f"value_{H}": [-5.0, 7.0], f"orders_{H}": [1.0, 0.0]}), H)
    assert value.tolist() == [0, 7]
    assert bought.tolist() == [1, 0]


def test_a_btyd_model_is_fitted_once_per_kind_and_origin(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    context = Context(log_start_day=100)
    expected = context.expect("bgnbd", data[0], H)
    assert set(context.btyd_models) == {("bgnbd", day) for day in data[0]["origin_day"].unique()}
    fitted = dict(context.btyd_models)
    pd.testing.assert_frame_equal(context.expect("bgnbd", data[0], H), expected)
    assert all(context.btyd_models[key] is fitted[key] for key in fitted)
    assert context.log_days(data[1]) == 500
