"""The models a back-test must beat, each refitted at the origin on the same samples as ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from clv.evaluate.peer_inputs import Context, NotRun, population
from clv.evaluate.peers_btyd import bgnbd_gg, mbgnbd_gg
from clv.evaluate.peers_lightgbm import lgbm_btyd_offset, lgbm_hurdle, lgbm_l1, lgbm_tweedie
from clv.evaluate.peers_linear import linear, logistic
from clv.evaluate.peers_ziln import ziln_mlp
from clv.evaluate.prediction import Prediction

Peer = Callable[[pd.DataFrame, pd.DataFrame, int, int, Context], Prediction]


def past_spend(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """Spend of the longest past window (at most a year) that the log covers, scaled to the horizon."""
    windows = sorted(int(c[8:]) for c in map(str, test) if c.startswith("f_spend_") and c[8:].isdigit())
    if not windows:
        raise NotRun("the sample frame holds no past-window spend (f_spend_<days>)")
    log_days = context.log_days(test)
    covered = [w for w in windows if w <= log_days]
    window = covered[-1] if covered else windows[0]
    spend = np.nan_to_num(test[f"f_spend_{window}"].to_numpy(float))
    return Prediction(value=np.maximum(spend, 0.0) * horizon / min(window, log_days))


def seasonal_naive(train: pd.DataFrame, test: pd.DataFrame, horizon: int, seed: int, context: Context) -> Prediction:
    """What the customer spent in the same window a year before."""
    column = f"f_spend_same_window_year_ago_{horizon}"
    if column not in test:
        raise NotRun(f"the sample frame has no column {column}")
    if context.log_days(test) < 365:
        raise NotRun(f"the log reaches back {context.log_days(test)} days, not the 365 that a year ago needs")
    return Prediction(value=np.maximum(np.nan_to_num(test[column].to_numpy(float)), 0.0))


PEERS: dict[str, Peer] = {
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


def run_peers(
    train: pd.DataFrame,
    test: pd.DataFrame,
    horizon: int,
    seed: int = 0,
    names: Iterable[str] = tuple(PEERS),
    context: Context | None = None,
) -> dict[str, Prediction | dict[str, str]]:
    """Every peer's prediction for `population(test)`, in its row order; {"not_run": reason} for one that could not run.

    train: sample frames of matured origins, stacked; rows without a matured label or a purchase are left out here.
    test: the frame at one origin; its labels are never looked at. horizon in days.
    """
    unknown = sorted(set(names) - set(PEERS))
    if unknown:
        raise ValueError(f"unknown peers {unknown}; choose from {list(PEERS)}")
    # Labels of the test origin are dropped, so that no peer can see them by mistake.
    hidden = [c for c in test if str(c).startswith(("value_", "orders_", "days_", "mature_")) and str(c)[-1].isdigit()]
    past, now = population(train, horizon), population(test.drop(columns=hidden))
    if now["origin_day"].nunique() > 1:
        raise ValueError(f"the test frame mixes {now['origin_day'].nunique()} origins; give one")
    shared = context or Context()
    out: dict[str, Prediction | dict[str, str]] = {}
    for name in names:
        if not len(now):
            out[name] = {"not_run": "no customer has a purchase before the origin"}
            continue
        try:
            out[name] = PEERS[name](past, now, horizon, seed, shared)
        except NotRun as reason:
            out[name] = {"not_run": str(reason)}
        except (ValueError, ArithmeticError, ImportError, RuntimeError, IndexError) as error:
            # A peer that breaks on a strange shop must not take the back-test with it, nor be silent.
            out[name] = {"not_run": f"{type(error).__name__}: {error}"}
    return out
