"""The words of card and report: which differences are significant, which coverage is off, whether the data suffice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clv.evaluate.bootstrap import Interval, interval
from clv.evaluate.metrics import BETTER
from clv.forecast.distributions import Array

# Ranking, size of errors and level: a baseline must be judged on all, MAE alone rewards predicting the median.
CORE = ("ngini", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape")
# Metric: its name, what a gain and a loss are called, and the format of their size.
WORDS = {
    "ngini": ("ranking (nGini)", "higher", "lower", "{:.3f}"),
    "auc": ("who buys again (AUC)", "higher", "lower", "{:.3f}"),
    "mae_over_mean": ("typical error (MAE)", "smaller", "larger", "{:.1%} of the mean spend"),
    "rmse_over_mean": ("error on big spenders (RMSE)", "smaller", "larger", "{:.1%} of the mean spend"),
    "bias": ("total (predicted ÷ actual)", "closer to 1", "farther from 1", "{:.3f}"),
    "decile_mape": ("error of the mean by tenth (decile MAPE)", "smaller", "larger", "{:.3f}"),
}
NOMINAL = 0.8  # of all intervals that card and report judge
SURE_ERRORS = 1.96  # standard errors of a share that chance explains in 19 of 20 cases
LABELS = {
    "clv": "This model",
    "btyd": "BG/NBD with seasonal level (the BTYD model)",
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
ADVICE = {"btyd": "BG/NBD with its seasonal level", "bgnbd_gg": "BG/NBD", "mbgnbd_gg": "MBG/NBD"}
SIMPLE = ("bgnbd_gg", "mbgnbd_gg", "btyd")  # where the model is no better than these, they are the better choice
MIN_REPEAT_BUYERS = 50
SEASON_DAYS = 365 + 180  # a season is learned from the same season a year before, with half a year of log before it

Replicates = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """Ours against one baseline: metrics with a significant gain or loss, and a sentence with the size of each.

    `outcome` is "better" (gains alone), "worse" (losses alone), "mixed" (both) or "even" (neither).
    """

    baseline: str
    gains: tuple[str, ...]
    losses: tuple[str, ...]
    sentence: str
    outcome: str
    lead: Interval  # gain in nGini, or in AUC where nothing has a price

    @property
    def balance(self) -> int:
        """Number of significant gains less that of losses."""
        return len(self.gains) - len(self.losses)


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


def compare(baseline: str, pairs: Sequence[tuple[Replicates, Replicates]]) -> MetricComparison:
    """Judge the replicates of two models, (ours, theirs) per origin, as `bootstrap.bootstrap` gives them."""
    found = {m: gain(m, pairs) for m in CORE if all(m in ours and m in theirs for ours, theirs in pairs)}
    # Of a metric that resampling itself worsens, the interval may lie on the other side of zero than the estimate.
    gains = tuple(m for m, g in found.items() if min(g.low, g.estimate) > 0)
    losses = tuple(m for m, g in found.items() if max(g.high, g.estimate) < 0)
    outcome = ("mixed" if losses else "better") if gains else ("worse" if losses else "even")
    lead = found["ngini"] if np.isfinite(found["ngini"].estimate) else found["auc"]
    sentence = _sentence(baseline, {m: g for m, g in found.items() if np.isfinite(g.low)}, gains, losses)
    return MetricComparison(
        baseline=baseline, gains=gains, losses=losses, sentence=sentence, outcome=outcome, lead=lead
    )


def _sentence(baseline: str, found: Mapping[str, Interval], gains: Sequence[str], losses: Sequence[str]) -> str:
    """Winner and measures follow from the significant differences alone; each is named with its size."""
    name, num, ends = label(baseline), len(gains) + len(losses), "on every measure that differs significantly"
    if not found:
        return f"{name}: no comparison possible, every measure is undefined."
    better, worse = ("; ".join(_difference(m, found[m]) for m in some) for some in (gains, losses))
    if not num:
        first = _difference(*next(iter(found.items())))
        return f"This model and {name} differ significantly on none of {len(found)} measures: {first}."
    if not losses:
        return f"This model beats {name} {ends} ({num} of {len(found)}): {better}."
    advice = f"; use {ADVICE.get(baseline, name)} here" if len(losses) > len(gains) else ""
    if not gains:
        return f"This model loses to {name} {ends} ({num} of {len(found)}): {worse}{advice}."
    return (
        f"This model beats {name} on {len(gains)} of {len(found)} measures and loses to it on {len(losses)}: "
        f"it wins with {better}; it loses with {worse}{advice}."
    )


def _difference(metric: str, ahead: Interval) -> str:
    """Name, direction, size and interval of a difference in one metric, seen from this model."""
    name, gained, lost, form = WORDS[metric]
    sign = 1 if ahead.estimate >= 0 else -1
    low, high = sorted((sign * ahead.low, sign * ahead.high))
    number = "{:.1%}" if "%" in form else "{:.3f}"
    size = form.format(sign * ahead.estimate)
    bounds = f"95 % interval {number.format(low)} to {number.format(high)}"
    return f"{name} {gained if sign > 0 else lost} by {size} ({bounds})"


def recommendation(comparisons: Sequence[MetricComparison]) -> str:
    """What to use, in one sentence."""
    if not comparisons:
        return "No other model ran, so there is nothing to compare with."
    least = min(comparisons, key=lambda c: c.balance)
    if least.balance < 0:
        name, num = ADVICE.get(least.baseline, label(least.baseline)), len(least.losses)
        return (
            f"Use {name} here: significantly better than this model on {num} measure{'s' if num > 1 else ''}, "
            f"worse on {len(least.gains) or 'none'}."
        )
    by_name = {c.baseline: c for c in comparisons}
    for baseline in SIMPLE:
        if baseline in by_name and not by_name[baseline].gains:
            return f"Use {ADVICE[baseline]} here: this model is significantly better than it on no measure, and it is simpler."
    better = sum(c.balance > 0 for c in comparisons)
    if not better:
        return f"This model is on balance neither better nor worse than any of {len(comparisons)} alternatives."
    return f"Use this model: on balance better than {better} of {len(comparisons)} alternatives, worse than none."


def coverage(share: float, count: float) -> str:
    """What an observed `share` of `count` cases inside their 80 % intervals means, given the error of so many cases."""
    error = SURE_ERRORS * np.sqrt(NOMINAL * (1 - NOMINAL) / count)
    verdict = "within the sampling error"
    if abs(share - NOMINAL) > error:
        verdict = "over-coverage, too wide" if share > NOMINAL else "under-coverage, too narrow"
    return f"expected {NOMINAL:.0%} ± {error:.1%}: {verdict}"


def coverages(found: Mapping[str, float | None]) -> str:
    """How many customers, near-certain buyers and sums the 80 % intervals cover, and whether that is as it should be.

    `found` holds the numbers of one model in `Findings.uncertainty`. Customers are judged by the randomised PIT: most
    of them buy nothing, and a plain interval covers them all.
    """
    parts = [
        f"{share:.0%} of {count:,.0f} {cases} ({coverage(share, count)})"
        for share, count, cases in (
            (found["pit80"], found["customers"], "customers by the randomised PIT"),
            (found["sure_coverage"], found["sure_customers"], "near-certain buyers"),
            (found["sums_coverage"], found["sums_groups"], "sums of 100 customers"),
        )
        if share is not None and count
    ]
    if not parts:
        return "Too few customers to judge the coverage of the 80 % intervals."
    text = f"The 80 % intervals cover {'; '.join(parts)}."
    if found["sums_coverage"] is not None:
        text += " All sums share the error of one seasonal factor: at one date they are covered or missed together."
    return text


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
