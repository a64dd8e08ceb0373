"""The baselines of a back-test, each refitted at the origin on the same samples as our model."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd

from clv.evaluate.baselines.btyd import bgnbd_gg, mbgnbd_gg
from clv.evaluate.baselines.inputs import Context, NotRun, population
from clv.evaluate.baselines.lightgbm import lgbm_btyd_offset, lgbm_hurdle, lgbm_l1, lgbm_tweedie
from clv.evaluate.baselines.linear import linear, logistic
from clv.evaluate.baselines.naive import past_spend, seasonal_naive
from clv.evaluate.baselines.ziln import ziln_mlp
from clv.forecast.distributions import Prediction

Baseline = Callable[[pd.DataFrame, pd.DataFrame, int, int, Context], Prediction]

BASELINES: dict[str, Baseline] = {
    "past_spend": past_spend,
    "bgnbd_gg": bgnbd_gg,
    "mbgnbd_gg": mbgnbd_gg,
    "lgbm_tweedie": lgbm_tweedie,
    "lgbm_l1": lgbm_l1,
    "lgbm_hurdle": lgbm_hurdle,
    "lgbm_btyd_offset": lgbm_btyd_offset,
    "ziln_mlp": ziln_mlp,
    "linear": linear,
    "logistic": logistic,
    "seasonal_naive": seasonal_naive,
}


def run_baselines(
    train: pd.DataFrame,
    test: pd.DataFrame,
    horizon: int,
    seed: int = 0,
    names: Iterable[str] = tuple(BASELINES),
    context: Context | None = None,
) -> dict[str, Prediction | dict[str, str]]:
    """Prediction of each baseline for the rows of `population(test)`, or {"not_run": reason} where it could not run.

    `train` holds sample frames of fully observed origins, stacked; rows without an observed label or without a purchase
    are left out. `test` is the frame at one origin, whose labels are not used. `horizon` is in days. Raises ValueError
    for an unknown baseline, and for a test frame of several origins.
    """
    unknown = sorted(set(names) - set(BASELINES))
    if unknown:
        raise ValueError(f"unknown baselines {unknown}; choose from {list(BASELINES)}")
    # Without the labels of the test origin no baseline can use them by mistake.
    hidden = test.filter(regex=r"^(value|orders|days|observed)_.*\d$").columns
    past, now = population(train, horizon), population(test.drop(columns=hidden))
    if now["origin_day"].nunique() > 1:
        raise ValueError(f"the test frame mixes {now['origin_day'].nunique()} origins; give one")
    if now.empty:
        return {name: {"not_run": "no customer has a purchase before the origin"} for name in names}
    shared = context or Context()
    out: dict[str, Prediction | dict[str, str]] = {}
    for name in names:
        try:
            out[name] = BASELINES[name](past, now, horizon, seed, shared)
        except NotRun as reason:
            out[name] = {"not_run": str(reason)}
        except (ValueError, ArithmeticError, ImportError, RuntimeError, IndexError) as error:
            # A baseline that fails on unusual data must not end the back-test; the report shows its error.
            out[name] = {"not_run": f"{type(error).__name__}: {error}"}
    return out
