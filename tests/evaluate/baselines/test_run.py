import numpy as np
import pandas as pd
import pytest

from clv.evaluate import metrics
from clv.evaluate.baselines import run
from clv.evaluate.baselines.inputs import Context
from tests.evaluate.baselines.frames import H


def test_every_baseline_recovers_the_signal(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    train, test = data
    found = run.run_baselines(train, test, H, seed=1, context=Context(threads=1))
    assert tuple(found) == tuple(run.BASELINES)
    y, orders = test[f"value_{H}"].to_numpy(), test[f"orders_{H}"].to_numpy()
    for name, prediction in found.items():
        assert not isinstance(prediction, dict), (name, prediction)
        scores = metrics.evaluate(y, orders, prediction)
        weak = name == "seasonal_naive"
        assert scores["ngini"] > (0.2 if weak else 0.55), (name, scores)
        assert scores["auc"] > (0.55 if weak else 0.7), (name, scores)
        assert 0.2 < scores["bias"] < 3, (name, scores)
        if prediction.quantiles is not None:
            assert 0.6 < scores["pit80"] < 0.97, (name, scores)
    with_distribution = {n for n, p in found.items() if not isinstance(p, dict) and p.quantiles is not None}
    assert {"lgbm_hurdle", "ziln_mlp"} <= with_distribution


def test_baselines_are_deterministic_and_do_not_use_the_labels_of_the_test_origin(
    data: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    train, test = data
    blind = test.assign(**dict.fromkeys((f"value_{H}", f"orders_{H}", f"days_{H}"), 1000000000.0))
    first = run.run_baselines(train, test, H, seed=1, context=Context(threads=1))
    second = run.run_baselines(train, blind, H, seed=1, context=Context(threads=1))
    for name, prediction in first.items():
        other = second[name]
        assert not isinstance(prediction, dict)
        assert not isinstance(other, dict)
        assert np.array_equal(prediction.value, other.value), name


def test_baselines_that_cannot_run_return_their_reason(data: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    train, test = data
    empty = train.assign(**{f"value_{H}": 0.0, f"orders_{H}": 0.0})
    for name, found in run.run_baselines(empty, test, H, context=Context(threads=1)).items():
        assert isinstance(found, dict) or np.isfinite(found.value).all(), name
    nobody = run.run_baselines(train, test.assign(has_purchase=False), H, names=["linear"])
    assert nobody == {"linear": {"not_run": "no customer has a purchase before the origin"}}
    with pytest.raises(ValueError, match="mixes 4 origins"):
        run.run_baselines(train, train, H)
    with pytest.raises(ValueError, match=r"unknown baselines \['xgb'\]"):
        run.run_baselines(train, test, H, names=["xgb"])
