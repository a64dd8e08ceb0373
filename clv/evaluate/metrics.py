"""Metrics of value and purchase forecasts; y is the actual and y_hat the predicted value in [o, o + H), (n,) each.

AUC, average precision, Spearman and the churn report are those of scikit-learn and scipy. The metrics of value use
mid-ranks and the concentration curve, in which customers with equal predictions share the mean of their group, so that
ties are exact. Undefined metrics are NaN, never an exception.

scikit-learn and scipy.stats are imported by the functions that call them: their import takes longer than that of the
whole package, and the registry and the server import this module without calling those functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clv.evaluate import probabilistic
from clv.forecast import distributions
from clv.forecast.distributions import Array, Prediction

# Whether a higher or a lower metric is better; `bias` should be 1 and `pit80` 0.8.
BETTER: Mapping[str, str] = {
    "ngini": "higher",
    "spearman": "higher",
    "auc": "higher",
    "mae_over_mean": "lower",
    "rmse_over_mean": "lower",
    "bias": "one",
    "decile_mape": "lower",
    "top_decile_capture": "higher",
    "crps": "lower",
    "pit80": "0.8",
}
METRICS = tuple(BETTER)
# A total, of all customers or of a tenth of them, counts as zero below this share of its expected size: it is then due
# to rounding or to sales that returns cancel, and a ratio to it would have no meaning.
NEGLIGIBLE = 1e-6


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b > 0 and np.isfinite(b) else float("nan")


def _total(y: Array) -> float:
    """Sum of actual values, NaN where positive and negative ones cancel each other."""
    total = float(y.sum())
    return total if total > NEGLIGIBLE * float(np.abs(y).sum()) else float("nan")


def _pair(y: ArrayLike, y_hat: ArrayLike) -> tuple[Array, Array]:
    a, b = np.asarray(y, float), np.asarray(y_hat, float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"actual has shape {a.shape}, predicted {b.shape}; give one number per customer in each")
    if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        bad = int(np.sum(~np.isfinite(a) | ~np.isfinite(b)))
        raise ValueError(f"{bad} of {len(a)} customers have a actual or predicted value that is not finite")
    return a, b


def midranks(x: ArrayLike) -> Array:
    """(n,) mid-ranks from 0.5 to n - 0.5: number of smaller values plus half that of equal ones, itself included."""
    values = np.asarray(x, float)
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    end = np.cumsum(size)
    return np.asarray((end - size / 2)[group], float)


def _gini(y: Array, rank: Array) -> float:
    return 2 * _ratio(float(y @ rank), len(y) * _total(y)) - 1


def ngini(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Normalised Gini G(y_hat) / G(y), G = 2 mean(cumulative share of y, best first, half-step corrected) - 1.

    It is 1 for the perfect order, 0 on average for a random or constant one, -1 for the reversed order, and NaN where
    all customers have the same value.
    """
    a, b = _pair(y, y_hat)
    best = _gini(a, midranks(a)) if len(a) else float("nan")
    return float(_gini(a, midranks(b)) / best) if best > 1e-12 else float("nan")


def spearman(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Spearman rank correlation (`scipy.stats.spearmanr`); NaN where either side is constant."""
    from scipy.stats import spearmanr

    a, b = _pair(y, y_hat)
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def auc(event: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve, ties count half; NaN with one class only.

    It is the Mann-Whitney U statistic over the number of pairs: scipy computes it in half of the time that
    `sklearn.metrics.roc_auc_score` takes.
    """
    from scipy.stats import mannwhitneyu

    hit, s = _pair(np.asarray(event, bool), score)
    with_event, without = s[hit > 0], s[hit == 0]
    pairs = len(with_event) * len(without)
    return float(mannwhitneyu(with_event, without, method="asymptotic").statistic / pairs) if pairs else float("nan")


def average_precision(event: ArrayLike, score: ArrayLike) -> float:
    """Mean precision over the recalled events (`sklearn.metrics.average_precision_score`); NaN without events."""
    from sklearn.metrics import average_precision_score

    hit, s = _pair(np.asarray(event, bool), score)
    return float(average_precision_score(hit, s)) if hit.any() else float("nan")


def calibration_error(event: ArrayLike, p: ArrayLike, bins: int = 10) -> float:
    """Mean over equal groups by p of |mean p - share of events| (ECE, Naeini et al. 2015); NaN without customers.

    `sklearn.calibration.calibration_curve` cannot give this mean: it returns no bin sizes, and equal probabilities
    leave some of its quantile bins empty.
    """
    hit, chance = _pair(np.asarray(event, bool), p)
    real, mean = deciles(hit, chance, min(bins, max(len(hit), 1)))
    return float(np.abs(real - mean).mean()) if len(hit) else float("nan")


def bias(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Predicted / actual total: 1 is right, 1.3 is 30 % too much."""
    a, b = _pair(y, y_hat)
    return _ratio(float(b.sum()), _total(a))


def bias_by(y: ArrayLike, y_hat: ArrayLike, cohort: ArrayLike) -> dict[str, dict[str, float]]:
    """Per cohort label, ascending: customers, actual and predicted total (currency), and bias, predicted / actual."""
    a, b = _pair(y, y_hat)
    labels, group = np.unique(np.asarray(cohort), return_inverse=True)
    count, real, predicted = (np.bincount(group, w, len(labels)).tolist() for w in (np.ones_like(a), a, b))
    ratio = [bias(a[group == i], b[group == i]) for i in range(len(labels))]
    columns = ("customers", "actual", "predicted", "bias")
    rows = zip(count, real, predicted, ratio, strict=True)
    return {str(label): dict(zip(columns, row, strict=True)) for label, row in zip(labels, rows, strict=True)}


def concentration(y: ArrayLike, y_hat: ArrayLike, fractions: ArrayLike) -> Array:
    """Sum of y among the first `fractions` of customers by y_hat descending, currency; ties and odd n interpolate."""
    a, b = _pair(y, y_hat)
    _, group, size = np.unique(-b, return_inverse=True, return_counts=True)
    total = np.bincount(group, weights=a, minlength=len(size))
    ends, sums = np.cumsum(np.r_[0, size]), np.cumsum(np.r_[0.0, total])
    return np.asarray(np.interp(np.asarray(fractions, float) * len(a), ends, sums), float)


def deciles(y: ArrayLike, y_hat: ArrayLike, buckets: int = 10) -> tuple[Array, Array]:
    """Mean actual and mean predicted value (buckets,) of equal buckets of customers, highest prediction first."""
    edges = np.linspace(0, 1, buckets + 1)
    per = max(len(np.asarray(y)), 1) / buckets
    return np.diff(concentration(y, y_hat, edges)) / per, np.diff(concentration(y_hat, y_hat, edges)) / per


def decile_mape(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Mean over ten equal buckets of y_hat of |mean y_hat - mean y| / mean y.

    NaN where the customers of a bucket spent nothing, or a negligible part of their share of the total: the relative
    error is undefined there, and a mean over the other buckets would hide the error of this one.
    """
    a, b = _pair(y, y_hat)
    real, predicted = deciles(a, b)
    if not len(a) or not np.all(real > NEGLIGIBLE * _total(a) / len(a)):
        return float("nan")
    return float(np.mean(np.abs(predicted - real) / real))


def mae_over_mean(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Mean absolute error over mean y. Predicting the median minimises it, so it must not rank models alone."""
    a, b = _pair(y, y_hat)
    return _ratio(float(np.abs(a - b).sum()), _total(a))


def rmse_over_mean(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Root mean squared error over mean y."""
    a, b = _pair(y, y_hat)
    return _ratio(float(np.sqrt(((a - b) ** 2).mean())), _total(a) / len(a)) if len(a) else float("nan")


def top_decile_capture(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Share of the actual total that the tenth of customers with the highest prediction spent."""
    return _ratio(float(concentration(y, y_hat, [0.1])[0]), _total(np.asarray(y, float)))


def lift(y: ArrayLike, y_hat: ArrayLike, points: int = 101) -> tuple[Array, Array]:
    """Lift (gains) curve: fractions of customers, best first, and their shares of the actual total, (points,) each."""
    fractions = np.linspace(0, 1, points)
    return fractions, concentration(y, y_hat, fractions) / _total(np.asarray(y, float))


def churn_report(orders: ArrayLike, p_purchase: ArrayLike, threshold: float = 0.5) -> dict[str, dict[str, float]]:
    """Classification report of churn (no order in the horizon), predicted when 1 - p_purchase >= threshold.

    Per class "churned" and "stayed": precision, recall, f1, support; under "overall": accuracy, auc,
    average_precision (both of churn), share_churned, threshold. NaN where a class is empty.
    """
    from sklearn.metrics import precision_recall_fscore_support

    bought, p = _pair(np.asarray(orders, float) > 0, p_purchase)
    churned, called = bought == 0, 1 - p >= threshold
    scores: Any = [[np.nan] * 2] * 3 + [[0, 0]]  # scikit-learn refuses an empty table
    if len(p):
        scores = precision_recall_fscore_support(churned, called, labels=[True, False], zero_division=np.nan)
    columns = ("precision", "recall", "f1", "support")
    by_class = [dict(zip(columns, column, strict=True)) for column in np.array(scores, float).T.tolist()]
    overall = {
        "accuracy": _ratio(float(np.sum(churned == called)), float(len(p))),
        "auc": auc(churned, 1 - p),
        "average_precision": average_precision(churned, 1 - p),
        "share_churned": _ratio(float(churned.sum()), float(len(p))),
        "threshold": threshold,
    }
    return {"churned": by_class[0], "stayed": by_class[1], "overall": overall}


def purchase_score(prediction: Prediction) -> NDArray[np.float64]:
    """(n,) score that ranks customers by purchase: the probability, or the value of a model without one."""
    return prediction.value if prediction.p_purchase is None else prediction.p_purchase


def evaluate(y: ArrayLike, orders: ArrayLike, prediction: Prediction, seed: int = 0) -> dict[str, float | None]:
    """METRICS of one model, as in metrics.json; crps is in shop currency. None where undefined."""
    by_value = (ngini, spearman, mae_over_mean, rmse_over_mean, bias, decile_mape, top_decile_capture)
    found = {metric.__name__: metric(y, prediction.value) for metric in by_value}
    found["auc"] = auc(np.asarray(orders, float) > 0, purchase_score(prediction))
    if prediction.quantiles is not None and len(prediction):
        found["crps"] = float(probabilistic.crps(y, prediction.quantiles).mean())
        found["pit80"] = probabilistic.pit80(distributions.pit(y, prediction.quantiles, seed))
    return {name: found[name] if np.isfinite(found.get(name, np.nan)) else None for name in METRICS}
