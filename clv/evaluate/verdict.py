"""The words of card and report: is the model better than each peer, and is there enough data to say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    "anchor": "BG/NBD with seasonal level (the anchor)",
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
    "conversion": "Conversion rate of like visitors",
}
ADVICE = {"anchor": "BG/NBD with its seasonal level", "bgnbd_gg": "BG/NBD", "mbgnbd_gg": "MBG/NBD"}
SIMPLE = ("bgnbd_gg", "mbgnbd_gg", "anchor")  # where the model is no better than these, they are the better choice
MIN_REPEAT_BUYERS = 50
SEASON_DAYS = 365 + 180  # a season is learned from the same season a year before, with half a year of log before it

Replicates = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours against one peer: significant gains and losses by metric, a sentence, and what to use."""

    peer: str
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    sentence: str
    outcome: str  # "better" | "worse" | "even"
    lead: Interval  # gain in nGini, or in AUC where nothing has a price


def distance(metric: str, replicates: Array) -> Array:
    """Replicates turned so that more is worse: bias becomes its distance from 1, pit80 from .8."""
    kind = BETTER[metric]
    if kind == "higher":
        return -replicates
    return replicates if kind == "lower" else np.abs(replicates - (1.0 if kind == "one" else 0.8))


def label(model: str) -> str:
    """A model's name for people."""
    return LABELS.get(model, model)


def gain(metric: str, pairs: Sequence[tuple[Replicates, Replicates]]) -> Interval:
    """How much better ours is on a metric, mean over (ours, theirs) of several origins, paired; positive = better."""
    ahead = [distance(metric, theirs[metric]) - distance(metric, ours[metric]) for ours, theirs in pairs]
    return interval(np.mean(ahead, axis=0))


def compare(peer: str, pairs: Sequence[tuple[Replicates, Replicates]]) -> Comparison:
    """Judge the replicates of two models, (ours, theirs) per origin, as `bootstrap.bootstrap` gives them."""
    found = {m: gain(m, pairs) for m in CORE if all(m in ours and m in theirs for ours, theirs in pairs)}
    gains = tuple(m for m, g in found.items() if g.low > 0)
    losses = tuple(m for m, g in found.items() if g.high < 0)
    outcome = "better" if len(gains) > len(losses) else "worse" if len(losses) > len(gains) else "even"
    name, rank, measure, error = label(peer), found["ngini"], "ranking {:+.3f} nGini", found["mae_over_mean"]
    if not np.isfinite(rank.estimate):
        rank, measure = found["auc"], "who buys again {:+.3f} AUC"
    if not np.isfinite(rank.estimate):
        sentence = f"{name}: no comparison possible."
        return Comparison(peer=peer, gains=(), losses=(), sentence=sentence, outcome="even", lead=rank)
    start = {
        "better": f"This model beats {name} here",
        "worse": f"{name} beats this model here",
        "even": f"This model and {name} are even here",
    }[outcome]
    facts = measure.format(rank.estimate) + f" (95 % interval {rank.low:+.3f} to {rank.high:+.3f})"
    if np.isfinite(error.low):
        size = "smaller" if error.estimate >= 0 else "larger"
        facts += (
            f", typical error {abs(error.estimate):.1%} of the mean spend {size} "
            f"({error.low:+.1%} to {error.high:+.1%} gained)"
        )
    for found_in, verb in ((gains, "better"), (losses, "worse")):
        facts += f"; {verb} at {', '.join(WORDS[m] for m in found_in)}" if found_in else ""
    if not gains and not losses:
        facts += "; too close to call on every measure"
    advice = f"; use {ADVICE.get(peer, name)} here" if outcome == "worse" else ""
    sentence = f"{start}: {facts}{advice}."
    return Comparison(peer=peer, gains=gains, losses=losses, sentence=sentence, outcome=outcome, lead=rank)


def recommendation(comparisons: Sequence[Comparison]) -> str:
    """What to use, in one sentence."""
    worse = [c for c in comparisons if c.outcome == "worse"]
    if not comparisons:
        return "No other model ran, so there is nothing to compare with."
    if worse:
        best = max(worse, key=lambda c: len(c.losses) - len(c.gains))
        name = ADVICE.get(best.peer, label(best.peer))
        return f"Use {name} here: significantly better than this model on more measures than worse."
    by_name = {c.peer: c for c in comparisons}
    for peer in SIMPLE:
        if peer in by_name and not by_name[peer].gains:
            return (
                f"Use {ADVICE[peer]} here: this model is significantly better than it on no measure, and it is simpler."
            )
    better = sum(c.outcome == "better" for c in comparisons)
    return f"Use this model: on balance better than {better} of {len(comparisons)} alternatives, worse than none."


@dataclass(frozen=True, kw_only=True)
class Sufficiency:
    """Whether the data suffice to trust the comparison: "enough" | "limited" | "too little", with reasons."""

    level: str
    reasons: tuple[str, ...]


def sufficiency(
    orders: Array, horizon_days: int, log_days: int | None, ngini: Interval, repeat_buyers: int | None = None
) -> Sufficiency:
    """Judge one origin: who bought in the horizon and who had bought twice before it (`repeat_buyers`), the length of
    the log before it against the horizon and the season, and the width of nGini's interval."""
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
    if repeat_buyers is not None and repeat_buyers < MIN_REPEAT_BUYERS:
        bad.append(
            f"only {repeat_buyers} customers had ordered more than once before the origin; a rhythm of purchases is "
            f"learned from some {MIN_REPEAT_BUYERS}"
        )
    if log_days is not None and log_days < 2 * horizon_days:
        bad.append(f"the log before the origin has {log_days} days; training needs at least {2 * horizon_days}")
    elif log_days is not None and log_days < SEASON_DAYS:
        weak.append(
            f"no season was seen: the log before the origin has {log_days} days, a season needs {SEASON_DAYS}, so the "
            "total may be off by what the season does"
        )
    half = (ngini.high - ngini.low) / 2
    if np.isfinite(half) and half > 0.05:
        weak.append(f"the ranking quality is only known to ± {half:.2f}")
    if bad:
        return Sufficiency(level="too little", reasons=tuple(bad + weak))
    if weak:
        return Sufficiency(level="limited", reasons=tuple(weak))
    fine = [f"{num:,} customers, {buyers:,} of them bought, ranking quality known to ± {half:.3f}"]
    if log_days is not None:
        fine.append(
            f"{log_days:,} days of log, {log_days / horizon_days:.0f} times the horizon, the season seen before"
        )
    return Sufficiency(level="enough", reasons=tuple(fine))
