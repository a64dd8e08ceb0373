import sys

import pandas as pd
import pytest

from clv.evaluate.baselines.inputs import Context, NotRun
from clv.evaluate.baselines.lightgbm import lgbm_hurdle, lgbm_tweedie
from tests.evaluate.baselines.frames import H


def test_a_missing_lightgbm_is_a_reason_and_not_a_crash(
    data: tuple[pd.DataFrame, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(NotRun, match="lightgbm is not installed; pip install lightgbm"):
        lgbm_tweedie(*data, H, 0, Context())


def test_the_hurdle_model_has_the_mean_of_its_distribution(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    found = lgbm_hurdle(*data, H, 0, Context())
    assert found.quantiles is not None
    assert found.p_purchase == pytest.approx(1 - found.quantiles.p_zero)
    assert found.quantiles.mean().sum() == pytest.approx(found.value.sum(), rel=0.05)
