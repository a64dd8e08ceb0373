from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from clv.btyd.gamma_gamma import GammaGamma
from clv.btyd.models import BTYDModel
from clv.evaluate.baselines.btyd import bgnbd_gg, mbgnbd_gg
from clv.evaluate.baselines.inputs import Context
from tests.evaluate.baselines.frames import TEST_ORIGIN, H
from tests.evaluate.baselines.lognormal import spread_and_mean


@pytest.mark.parametrize(("baseline", "kind"), [(bgnbd_gg, "bgnbd"), (mbgnbd_gg, "mbgnbd")])
def test_the_baseline_is_the_btyd_model_of_the_test_origin(
    baseline, kind: str, data: tuple[pd.DataFrame, pd.DataFrame]
) -> None:
    _, test = data
    found = baseline(test.iloc[:0], test, H, 0, Context())
    expected = BTYDModel.fit(test, kind=kind).predict(test, H)
    assert np.array_equal(found.value, expected["value"])
    assert np.array_equal(found.p_purchase, expected["p_purchase"])
    assert found.quantiles is not None
    likely = found.p_purchase > 0.1
    assert spread_and_mean(found.quantiles, likely)[1] == pytest.approx(found.value[likely])


def test_one_customer_without_a_usable_gamma_gamma_model_has_a_value_and_no_distribution(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    _, test = data
    btyd_model = BTYDModel.fit(test)
    assert btyd_model.spend is not None
    (one,) = np.flatnonzero(test["frequency"] == test["frequency"].max())[:1]
    for fallback in (False, True):
        spend = replace(btyd_model.spend, fallback=fallback)
        context = Context(btyd_models={("bgnbd", TEST_ORIGIN): replace(btyd_model, spend=spend)})
        found = bgnbd_gg(test.iloc[:0], test.iloc[[one]], H, 0, context)
        assert found.value[0] > 0
        assert (found.quantiles is None) == fallback


def test_the_spread_of_a_buyers_value_is_that_of_simulated_sums_of_purchase_days(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    _, test = data
    spend = GammaGamma(p=2.0, q=6.0, v=40.0, observed_mean=16.0, log_likelihood=0.0, stderr={}, num_rows=500.0)
    btyd_model = replace(BTYDModel.fit(test), spend=spend)
    found = bgnbd_gg(test.iloc[:0], test, H, 0, Context(btyd_models={("bgnbd", TEST_ORIGIN): btyd_model}))
    assert found.quantiles is not None
    likely = found.p_purchase > 0.1
    sigma, _ = spread_and_mean(found.quantiles, likely)
    mean_days = np.maximum(btyd_model.predict(test[likely], H)["days"].to_numpy() / found.p_purchase[likely], 1.0)
    rng = np.random.default_rng(0)
    for x, row in zip(*np.unique(test["frequency"][likely], return_index=True), strict=True):
        days = rng.geometric(1 / mean_days[row], 200_000)
        total = rng.gamma(spend.p * days) / rng.gamma(spend.p * x + spend.q, size=200_000)
        assert sigma[row] == pytest.approx(np.sqrt(np.log1p(total.var() / total.mean() ** 2)), rel=0.02)
