"""Verdict in words, for card and report: significant differences, recommendation, coverage, sufficiency of the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clv.evaluate.bootstrap import Interval, interval
from clv.evaluate.metrics import BETTER
from clv.forecast.distributions import Array

# Ranking, size of errors and totals: models are compared on all of them, since MAE alone rewards predicting the median.
CORE = ("ngini", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape")
# Metric: its name, the words for a gain and for a loss, and the format of their size.
WORDS = {
    "ngini": ("ranking (nGini)", "higher", "lower", "{:.3f}"),
    "auc": ("who buys again (AUC)", "higher", "lower", "{:.3f}"),
    "mae_over_mean": ("typical error (MAE)", "smaller", "larger", "{:.1%} of the mean spend"),
    "rmse_over_mean": ("error on big spenders (RMSE)", "smaller", "larger", "{:.1%} of the mean spend"),
    "bias": ("total (predicted / actual)", "closer to 1", "farther from 1", "{:.3f}"),
    "decile_mape": ("error of the mean by tenth (decile MAPE)", "smaller", "larger", "{:.3f}"),
}
NOMINAL = 0.8  # coverage that the intervals of card and report should have
MAX_ERRORS = 1.96  # standard errors of a share that chance explains in 19 of 20 cases
LABELS = {
    "clv": "This model",
    "btyd": "BG/NBD with seasonal factor (the BTYD model)",
    "past_spend": "Past spend",
    "bgnbd_gg": "BG/NBD + Gamma-Gamma",
    "mbgnbd_gg": "MBG/NBD + Gamma-Gamma",
    "lgbm_tweedie": "LightGBM Tweedie",
    "lgbm_l1": "LightGBM L1",
    "lgbm_hurdle": "LightGBM hurdle",
    "lgbm_btyd_offset": "LightGBM on BTYD",
    "ziln_mlp": "ZILN network",
    "linear": "Linear regression",
    "logistic": "Logistic regression",
    "seasonal_naive": "Same window last year",
    "conversion": "Conversion rate of similar visitors",
}
SHORT_LABELS = {"btyd": "BG/NBD with its seasonal factor", "bgnbd_gg": "BG/NBD", "mbgnbd_gg": "MBG/NBD"}
SIMPLE = ("bgnbd_gg", "mbgnbd_gg", "btyd")  # recommended where this model is not significantly better
MIN_REPEAT_BUYERS = 50
SEASON_DAYS = 365 + 180  # of log for a seasonal factor: a year, after half a year for the first BTYD model

Replicates = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class MetricComparison:
    """Comparison of our model with one baseline: significant gains and losses, in a sentence with their sizes.

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
        """Number of significant gains less number of significant losses."""
        return len(self.gains) - len(self.losses)


def distance(metric: str, replicates: Array) -> Array:
    """Replicates of a metric as a distance from its ideal, so that more is worse: bias from 1, pit80 from .8."""
    kind = BETTER[metric]
    if kind == "higher":
        return -replicates
    return replicates if kind == "lower" else np.abs(replicates - (1.0 if kind == "one" else 0.8))


def model_label(model: str) -> str:
    """Name of a model for people."""
    return LABELS.get(model, model)


def gain(metric: str, pairs: Sequence[tuple[Replicates, Replicates]]) -> Interval:
    """Gain of our model on a metric: mean over the origins of (ours, theirs), paired; positive is better."""
    ahead = [distance(metric, theirs[metric]) - distance(metric, ours[metric]) for ours, theirs in pairs]
    return interval(np.mean(ahead, axis=0))


def compare(baseline: str, pairs: Sequence[tuple[Replicates, Replicates]]) -> MetricComparison:
    """Compare two models by the replicates of `bootstrap.bootstrap`, (ours, theirs) per origin."""
    found = {m: gain(m, pairs) for m in CORE if all(m in ours and m in theirs for ours, theirs in pairs)}
    # Resampling itself worsens some metrics: their interval may lie on the other side of zero than the estimate.
    gains = tuple(m for m, g in found.items() if min(g.low, g.estimate) > 0)
    losses = tuple(m for m, g in found.items() if max(g.high, g.estimate) < 0)
    outcome = ("mixed" if losses else "better") if gains else ("worse" if losses else "even")
    lead = found["ngini"] if np.isfinite(found["ngini"].estimate) else found["auc"]
    sentence = _sentence(baseline, {m: g for m, g in found.items() if np.isfinite(g.low)}, gains, losses)
    return MetricComparison(
        baseline=baseline, gains=gains, losses=losses, sentence=sentence, outcome=outcome, lead=lead
    )


def _sentence(baseline: str, found: Mapping[str, Interval], gains: Sequence[str], losses: Sequence[str]) -> str:
    """Sentence with the winner by the significant differences, each with its size and interval."""
    name, num, ends = model_label(baseline), len(gains) + len(losses), "on every measure that differs significantly"
    if not found:
        return f"{name}: no comparison possible, every measure is undefined."
    better, worse = ("; ".join(_difference(m, found[m]) for m in some) for some in (gains, losses))
    if not num:
        first = _difference(*next(iter(found.items())))
        return f"This model and {name} differ significantly on none of {len(found)} measures: {first}."
    if not losses:
        return f"This model beats {name} {ends} ({num} of {len(found)}): {better}."
    advice = f"; use {SHORT_LABELS.get(baseline, name)} here" if len(losses) > len(gains) else ""
    if not gains:
        return f"This model loses to {name} {ends} ({num} of {len(found)}): {worse}{advice}."
    return (
        f"This model beats {name} on {len(gains)} of {len(found)} measures and loses to it on {len(losses)}: "
        f"it wins with {better}; it loses with {worse}{advice}."
    )


def _difference(metric: str, ahead: Interval) -> str:
    """Name, direction, size and interval of the difference of this model from a baseline in one metric."""
    name, gained, lost, form = WORDS[metric]
    sign = 1 if ahead.estimate >= 0 else -1
    low, high = sorted((sign * ahead.low, sign * ahead.high))
    number = "{:.1%}" if "%" in form else "{:.3f}"
    size = form.format(sign * ahead.estimate)
    bounds = f"95 % interval {number.format(low)} to {number.format(high)}"
    return f"{name} {gained if sign > 0 else lost} by {size} ({bounds})"


def recommendation(comparisons: Sequence[MetricComparison]) -> str:
    """Recommendation of a model, in one sentence."""
    if not comparisons:
        return "No other model ran, so this model cannot be compared."
    least = min(comparisons, key=lambda c: c.balance)
    if least.balance < 0:
        name, num = SHORT_LABELS.get(least.baseline, model_label(least.baseline)), len(least.losses)
        return (
            f"Use {name} here: it is significantly better than this model on {num} measure{'s' if num > 1 else ''} and "
            f"worse on {len(least.gains) or 'none'}."
        )
    by_name = {c.baseline: c for c in comparisons}
    for baseline in SIMPLE:
        if baseline in by_name and not by_name[baseline].gains:
            name = SHORT_LABELS[baseline]
            return f"Use {name} here: it is simpler, and this model is significantly better on no measure."
    better = sum(c.balance > 0 for c in comparisons)
    if not better:
        return f"On balance this model is neither better nor worse than any of {len(comparisons)} alternatives."
    return (
        f"Use this model: on balance it is better than {better} of {len(comparisons)} alternatives and worse than none."
    )


def coverage_verdict(share: float, count: float) -> str:
    """Verdict on the share of `count` cases inside their 80 % intervals, given the sampling error of so many cases."""
    error = MAX_ERRORS * np.sqrt(NOMINAL * (1 - NOMINAL) / count)
    verdict = "within the sampling error"
    if abs(share - NOMINAL) > error:
        verdict = "over-coverage, too wide" if share > NOMINAL else "under-coverage, too narrow"
    return f"expected {NOMINAL:.0%} ± {error:.1%}: {verdict}"


def coverage_sentence(found: Mapping[str, float | None]) -> str:
    """Sentence with the coverage of the 80 % interval of customers, near-certain buyers and sums of customers.

    `found` holds the numbers of one model in `Findings.uncertainty`. Coverage of customers is that of the randomised
    PIT, since most customers buy nothing and a plain interval covers all of these.
    """
    parts = [
        f"{share:.0%} of {count:,.0f} {cases} ({coverage_verdict(share, count)})"
        for share, count, cases in (
            (found["pit80"], found["customers"], "customers by the randomised PIT"),
            (found["near_certain_coverage"], found["near_certain_customers"], "near-certain buyers"),
            (found["sums_coverage"], found["sums_groups"], "sums of 100 customers"),
        )
        if share is not None and count
    ]
    if not parts:
        return "There are too few customers to measure the coverage of the 80 % interval."
    text = f"Coverage of the 80 % interval: {'; '.join(parts)}."
    if found["sums_coverage"] is not None:
        text += " All sums share the error of the seasonal factor: at one date most of them are covered, or few."
    return text


@dataclass(frozen=True, kw_only=True)
class Sufficiency:
    """Whether the data suffice for the comparison, "enough", "limited" or "too little", with the reasons for people."""

    grade: str
    reasons: tuple[str, ...]


def sufficiency(
    orders: Array, horizon_days: int, log_days: int | None, ngini: Interval, repeat_buyers: int | None = None
) -> Sufficiency:
    """Sufficiency of the data at one origin.

    It follows from the buyers in the horizon, the repeat buyers before the origin, the length of the log against the
    horizon and the season, and the width of the interval of nGini.
    """
    num, buyers = len(orders), int(np.sum(orders > 0))
    bad, weak = [], []
    if buyers < 50:
        bad.append(f"only {buyers} customers bought in the {horizon_days} days; a comparison of models needs about 50")
    elif buyers < 300:
        weak.append(f"{buyers} customers bought in the {horizon_days} days; small differences need about 300")
    if num - buyers < 50:
        weak.append(f"only {num - buyers} customers did not buy, too few to evaluate churn")
    if repeat_buyers is not None and repeat_buyers < MIN_REPEAT_BUYERS:
        bad.append(
            f"only {repeat_buyers} customers had ordered more than once before the origin; the purchase "
            f"rate of customers needs about {MIN_REPEAT_BUYERS}"
        )
    if log_days is not None and log_days < 2 * horizon_days:
        bad.append(f"the log before the origin has {log_days} days; training needs at least {2 * horizon_days}")
    elif log_days is not None and log_days < SEASON_DAYS:
        weak.append(
            f"the log before the origin has {log_days} days, a seasonal factor needs {SEASON_DAYS}: the predicted "
            "total does not include the season"
        )
    half = (ngini.high - ngini.low) / 2
    if np.isfinite(half) and half > 0.05:
        weak.append(f"the ranking (nGini) is only known to ± {half:.2f}")
    if bad:
        return Sufficiency(grade="too little", reasons=tuple(bad + weak))
    if weak:
        return Sufficiency(grade="limited", reasons=tuple(weak))
    fine = [f"{num:,} customers, {buyers:,} of them bought, ranking (nGini) known to ± {half:.3f}"]
    if log_days is not None:
        fine.append(
            f"{log_days:,} days of log, {log_days / horizon_days:.0f} times the horizon, enough for a seasonal factor"
        )
    return Sufficiency(grade="enough", reasons=tuple(fine))
