"""The words of the report: is the model better than each peer, and is there enough data to say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clv.evaluate.bootstrap import Interval, interval
from clv.evaluate.metrics import BETTER
from clv.evaluate.prediction import Array

# Ranking, size of errors and level: a peer must be judged on all, MAE alone rewards predicting the median.
CORE = ("ngini", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape")
WORDS = {
    "ngini": "ranking (nGini)",
    "auc": "who buys again (AUC)",
    "mae_over_mean": "typical error (MAE)",
    "rmse_over_mean": "error on big spenders (RMSE)",
    "bias": "the total",
    "decile_mape": "level by group (decile MAPE)",
}
LABELS = {
    "clv": "This model",
    "past_spend": "Past spend",
    "bgnbd_gg": "BG/NBD + Gamma-Gamma",
    "mbgnbd_gg": "MBG/NBD + Gamma-Gamma",
    "lgbm_tweedie": "LightGBM Tweedie",
    "lgbm_l1": "LightGBM L1",
    "lgbm_hurdle": "LightGBM hurdle",
    "lgbm_btyd_offset": "LightGBM on BTYD",
    "ziln_mlp": "ZILN net",
    "linear": "Linear regression",
    "logistic": "Logistic regression",
    "seasonal_naive": "Same window last year",
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours against one peer: significant gains and losses by metric, a sentence, and what to use."""

    peer: str
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    sentence: str
    outcome: str  # "better" | "worse" | "even"


def distance(metric: str, replicates: Array) -> Array:
    """Replicates turned so that more is worse: bias becomes its distance from 1, pit80 from .8."""
    kind = BETTER[metric]
    if kind == "higher":
        return -replicates
    return replicates if kind == "lower" else np.abs(replicates - (1.0 if kind == "one" else 0.8))


def label(model: str) -> str:
    """A model's name for people."""
    return LABELS.get(model, model)


def gain(metric: str, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> Interval:
    """How much better ours is on a metric, paired over draws; positive = better."""
    return interval(distance(metric, theirs[metric]) - distance(metric, ours[metric]))


def compare(peer: str, ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> Comparison:
    """Judge the replicates of two models, as `bootstrap.bootstrap` gives them."""
    found = {m: gain(m, ours, theirs) for m in CORE if m in ours and m in theirs}
    gains = tuple(m for m, g in found.items() if g.low > 0)
    losses = tuple(m for m, g in found.items() if g.high < 0)
    outcome = "better" if len(gains) > len(losses) else "worse" if len(losses) > len(gains) else "even"
    g, name = found["ngini"], label(peer)
    if not np.isfinite(g.estimate):
        return Comparison(peer=peer, gains=(), losses=(), sentence=f"{name}: no comparison possible.", outcome="even")
    span = f"{g.estimate:+.3f} nGini (95 % interval {g.low:+.3f} to {g.high:+.3f})"
    if g.low > 0:
        rank = f"This model ranks customers better than {name}: {span}."
    elif g.high < 0:
        rank = f"{name} ranks customers better than this model: {span}."
    else:
        rank = f"This model and {name} rank customers equally well: {span}, too close to call."
    m = found["mae_over_mean"]
    money = (
        f" Its typical error is {abs(m.estimate):.1%} of the mean spend {'smaller' if m.estimate >= 0 else 'larger'}"
    )
    money += f" ({m.low:+.1%} to {m.high:+.1%} gained)." if np.isfinite(m.low) else "."
    rest = ""
    others = ([WORDS[x] for x in s if x not in ("ngini", "mae_over_mean")] for s in (gains, losses))
    for words, verb in zip(others, ("Also better at ", "Worse at "), strict=True):
        rest += f" {verb}{', '.join(words)}." if words else ""
    if outcome == "worse":
        rest += f" Use {name} here."
    return Comparison(peer=peer, gains=gains, losses=losses, sentence=rank + money + rest, outcome=outcome)


@dataclass(frozen=True, kw_only=True)
class Sufficiency:
    """Whether the data suffice to trust the comparison: "enough" | "limited" | "too little", with reasons."""

    level: str
    reasons: tuple[str, ...]


def sufficiency(orders: Array, horizon_days: int, log_days: int | None, ngini: Interval) -> Sufficiency:
    """Judge one origin from its buyers, its log before the origin (days) and the width of nGini's interval."""
    num, buyers = len(orders), int(np.sum(orders > 0))
    bad, weak = [], []
    if buyers < 50:
        bad.append(
            f"only {buyers} customers bought in the {horizon_days} days; from some 50 on models can be told apart"
        )
    elif buyers < 300:
        weak.append(f"{buyers} customers bought in the {horizon_days} days; small differences need some 300")
    if num - buyers < 50:
        weak.append(f"only {num - buyers} customers did not buy, so churn can hardly be judged")
    if log_days is not None and log_days < 2 * horizon_days:
        bad.append(f"the log before the origin has {log_days} days; training needs at least {2 * horizon_days}")
    elif log_days is not None and log_days < 365 + horizon_days:
        weak.append(f"the log before the origin has {log_days} days, so no season was seen twice")
    half = (ngini.high - ngini.low) / 2
    if np.isfinite(half) and half > 0.05:
        weak.append(f"the ranking quality is only known to ± {half:.2f}")
    if bad:
        return Sufficiency(level="too little", reasons=tuple(bad + weak))
    if weak:
        return Sufficiency(level="limited", reasons=tuple(weak))
    fine = f"{num:,} customers, {buyers:,} of them bought, ranking quality known to ± {half:.3f}"
    return Sufficiency(level="enough", reasons=(fine,))
