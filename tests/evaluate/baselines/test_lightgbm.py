import sys

import numpy as np
import pandas as pd
import pytest

from clv.evaluate.baselines import lightgbm
from clv.evaluate.baselines.inputs import Context, NotRun
from clv.evaluate.baselines.lightgbm import lgbm_hurdle, lgbm_tweedie
from tests.evaluate.baselines.frames import H
from tests.evaluate.baselines.lognormal import spread_and_mean


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
    likely = found.p_purchase > 0.1
    assert spread_and_mean(found.quantiles, likely)[1] == pytest.approx(found.value[likely])


class Constant:
    """Takes the place of a fitted model: it predicts `raw` for every row."""

    def __init__(self, raw: float) -> None:
        self.raw = raw

    def predict(self, x: np.ndarray, raw_score: bool = False) -> np.ndarray:
        return np.full(len(x), self.raw)


@pytest.mark.parametrize("factor", [1.0, 1.5])
def test_trees_multiply_the_btyd_expectation(
    factor: float, data: tuple[pd.DataFrame, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = data
    starts = []

    def boost(x, y, objective, seed, context, offset):
        starts.append(offset)
        return Constant(np.log(factor))

    monkeypatch.setattr(lightgbm, "_boost", boost)
    context = Context()
    found = lightgbm.lgbm_btyd_offset(train, test, H, 0, context)
    expected, start = (context.expect("bgnbd", frame, H)["value"].to_numpy() for frame in (test, train))
    floor = 1e-3 * start.mean()
    most = train[f"value_{H}"].max()
    assert found.value == pytest.approx(np.minimum(factor * np.maximum(expected, floor), most))
    assert np.exp(starts[0]) == pytest.approx(np.maximum(start, floor))


def test_the_median_model_is_the_mean_of_fits_with_seeds_of_their_own(
    data: tuple[pd.DataFrame, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        lightgbm, "_boost", lambda x, y, objective, seed, context: Constant({7: -6.0, 8: 3, 9: 9}[seed])
    )
    assert set(lightgbm.lgbm_l1(*data, H, 7, Context()).value) == {4.0}


def test_labels_that_do_not_vary_are_a_reason_not_to_run() -> None:
    x = np.arange(4.0)[:, None]
    for y in ([1.0], [2.0] * 4):
        with pytest.raises(NotRun, match="the training labels do not vary"):
            lightgbm._boost(x[: len(y)], np.array(y), "regression", 0, Context())
    lightgbm._boost(x[:2], np.array([0.0, 1.0]), "regression", 0, Context())
