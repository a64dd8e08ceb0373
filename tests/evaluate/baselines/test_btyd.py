from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from clv.btyd.gamma_gamma import GammaGamma
from clv.btyd.models import BTYDModel
from clv.evaluate.baselines.btyd import bgnbd_gg, mbgnbd_gg
from clv.evaluate.baselines.inputs import Context
from clv.forecast.distributions import LEVELS
from tests.evaluate.baselines.frames import TEST_ORIGIN, H


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
    assert found.quantiles.mean().sum() == pytest.approx(found.value.sum(), rel=0.1)


def test_the_spread_of_a_buyers_value_is_that_of_simulated_sums_of_purchase_days(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    _, test = data
    spend = GammaGamma(p=2.0, q=6.0, v=40.0, observed_mean=16.0, log_likelihood=0.0, stderr={}, num_rows=500.0)
    btyd_model = replace(BTYDModel.fit(test), spend=spend)
    found = bgnbd_gg(test.iloc[:0], test, H, 0, Context(btyd_models={("bgnbd", TEST_ORIGIN): btyd_model}))
    assert found.quantiles is not None
    likely = found.p_purchase > 0.1
    p = found.p_purchase[likely, None]
    z = norm.ppf((LEVELS[-2:] - (1 - p)) / p)
    sigma = (np.diff(np.log(found.quantiles.values[likely, -2:])) / np.diff(z))[:, 0]
    mean_days = np.maximum(btyd_model.predict(test[likely], H)["days"].to_numpy() / p[:, 0], 1.0)
    rng = np.random.default_rng(0)
    for x, row in zip(*np.unique(test["frequency"][likely], return_index=True), strict=True):
        days = rng.geometric(1 / mean_days[row], 200_000)
        total = rng.gamma(spend.p * days) / rng.gamma(spend.p * x + spend.q, size=200_000)
        assert sigma[row] == pytest.approx(np.sqrt(np.log1p(total.var() / total.mean() ** 2)), rel=0.02)
