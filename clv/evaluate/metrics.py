"""Point metrics of value and purchase. y actual and y_hat predicted value in [o, o + H), both (n,).

AUC, average precision, Spearman and the churn report are those of scikit-learn and scipy. The metrics of value rest on
mid-ranks and on the concentration curve, where customers with the same prediction share their group's mean, so that
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

METRICS = (
    "ngini",
    "spearman",
    "auc",
    "mae_over_mean",
    "rmse_over_mean",
    "bias",
    "decile_mape",
    "top_decile_capture",
    "crps",
    "pit80",
)
# Distance from `bias` 1 and from `pit80` .8 counts; of the others more, or less, is better.
BETTER: Mapping[str, str] = {
    **dict.fromkeys(("ngini", "spearman", "auc", "top_decile_capture"), "higher"),
    **dict.fromkeys(("mae_over_mean", "rmse_over_mean", "decile_mape", "crps"), "lower"),
    "bias": "one",
    "pit80": "0.8",
}
# A total, or that of a tenth of the customers, below this share of what its size should be is zero but for rounding or
# for sales that returns cancel: a ratio to it would measure nothing but its own denominator.
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
        raise ValueError(f"realised has shape {a.shape}, predicted {b.shape}; give one number per customer in each")
    if not (np.all(np.isfinite(a)) and np.all(np.isfinite(b))):
        bad = int(np.sum(~np.isfinite(a) | ~np.isfinite(b)))
        raise ValueError(f"{bad} of {len(a)} customers have a realised or predicted value that is not finite")
    return a, b


def midranks(x: ArrayLike) -> Array:
    """(n,) average ranks from 0.5 to n - 0.5: how many are smaller, plus half of those equal (itself included)."""
    values = np.asarray(x, float)
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    end = np.cumsum(size)
    return np.asarray((end - size / 2)[group], float)


def _gini(y: Array, rank: Array) -> float:
    return 2 * _ratio(float(y @ rank), len(y) * _total(y)) - 1


def ngini(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Normalised Gini G(y_hat) / G(y), G = 2 mean(cumulative share of y, best first, half-step corrected) - 1.

    1 for the perfect order, 0 on average for a random or constant one, -1 reversed. NaN where nobody or everybody
    has the same value.
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
    """Area under the ROC curve, ties count half (`sklearn.metrics.roc_auc_score`); NaN with one class only."""
    from sklearn.metrics import roc_auc_score

    hit, s = _pair(np.asarray(event, bool), score)
    return float(roc_auc_score(hit, s)) if 0 < hit.sum() < len(hit) else float("nan")


def average_precision(event: ArrayLike, score: ArrayLike) -> float:
    """Mean precision over the recalled events (`sklearn.metrics.average_precision_score`); NaN without events."""
    from sklearn.metrics import average_precision_score

    hit, s = _pair(np.asarray(event, bool), score)
    return float(average_precision_score(hit, s)) if hit.any() else float("nan")


def calibration_error(event: ArrayLike, p: ArrayLike, bins: int = 10) -> float:
    """Mean over equal groups by p of |mean p - share of events| (ECE, Naeini et al. 2015); NaN without customers.

    `sklearn.calibration.calibration_curve` has no such mean: its quantile bins lose their sizes, and equal
    probabilities leave some of them empty.
    """
    hit, said = _pair(np.asarray(event, bool), p)
    real, mean = deciles(hit, said, min(bins, max(len(hit), 1)))
    return float(np.abs(real - mean).mean()) if len(hit) else float("nan")


def bias(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Sum of predicted over sum of realised; 1 is right, 1.3 is 30 % too much."""
    a, b = _pair(y, y_hat)
    return _ratio(float(b.sum()), _total(a))


def bias_by(y: ArrayLike, y_hat: ArrayLike, cohort: ArrayLike) -> dict[str, dict[str, float]]:
    """Per cohort label, ascending: customers, realised and predicted sums (currency), bias."""
    a, b = _pair(y, y_hat)
    labels, group = np.unique(np.asarray(cohort), return_inverse=True)
    count, real, said = (np.bincount(group, weights=w, minlength=len(labels)) for w in (np.ones_like(a), a, b))
    return {
        str(label): {
            "customers": float(count[i]),
            "realised": float(real[i]),
            "predicted": float(said[i]),
            "bias": bias(a[group == i], b[group == i]),
        }
        for i, label in enumerate(labels)
    }


def concentration(y: ArrayLike, y_hat: ArrayLike, fractions: ArrayLike) -> Array:
    """Sum of y among the first `fractions` of customers by y_hat descending, currency; ties and odd n interpolate."""
    a, b = _pair(y, y_hat)
    _, group, size = np.unique(-b, return_inverse=True, return_counts=True)
    total = np.bincount(group, weights=a, minlength=len(size))
    ends, sums = np.cumsum(np.r_[0, size]), np.cumsum(np.r_[0.0, total])
    return np.asarray(np.interp(np.asarray(fractions, float) * len(a), ends, sums), float)


def deciles(y: ArrayLike, y_hat: ArrayLike, buckets: int = 10) -> tuple[Array, Array]:
    """Mean realised and mean predicted value (buckets,) of equal buckets of customers, highest prediction first."""
    edges = np.linspace(0, 1, buckets + 1)
    per = max(len(np.asarray(y)), 1) / buckets
    return np.diff(concentration(y, y_hat, edges)) / per, np.diff(concentration(y_hat, y_hat, edges)) / per


def decile_mape(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Mean over ten equal buckets of y_hat of |mean y_hat - mean y| / mean y.

    NaN where the customers of a bucket spent nothing, or a negligible part of their share of the total: a relative
    error has no value there, and without that bucket a model would be forgiven what it predicted for it.
    """
    a, b = _pair(y, y_hat)
    real, said = deciles(a, b)
    if not len(a) or not np.all(real > NEGLIGIBLE * _total(a) / len(a)):
        return float("nan")
    return float(np.mean(np.abs(said - real) / real))


def mae_over_mean(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Mean absolute error over mean y. Never rank models by it alone: predicting the median wins it."""
    a, b = _pair(y, y_hat)
    return _ratio(float(np.abs(a - b).sum()), _total(a))


def rmse_over_mean(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Root mean squared error over mean y."""
    a, b = _pair(y, y_hat)
    return _ratio(float(np.sqrt(((a - b) ** 2).mean())), _total(a) / len(a)) if len(a) else float("nan")


def top_decile_capture(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Share of all actual value that the tenth of customers with the highest prediction brought."""
    return _ratio(float(concentration(y, y_hat, [0.1])[0]), _total(np.asarray(y, float)))


def lift(y: ArrayLike, y_hat: ArrayLike, points: int = 101) -> tuple[Array, Array]:
    """(fractions, share of value captured by that fraction), both (points,): the lift or gains curve."""
    fractions = np.linspace(0, 1, points)
    return fractions, concentration(y, y_hat, fractions) / _total(np.asarray(y, float))


def churn_report(orders: ArrayLike, p_purchase: ArrayLike, threshold: float = 0.5) -> dict[str, dict[str, float]]:
    """Classification report of churn (no order in the horizon), predicted when 1 - p_purchase >= threshold.

    Per class "churned" and "stayed": precision, recall, f1, support; under "overall": accuracy, auc,
    average_precision (both of churn), share_churned, threshold. NaN where a class is empty.
    """
    from sklearn.metrics import precision_recall_fscore_support

    bought, p = _pair(np.asarray(orders, float) > 0, p_purchase)
    gone, called = bought == 0, 1 - p >= threshold
    scores: Any = [[np.nan] * 2] * 3 + [[0, 0]]  # scikit-learn refuses an empty table
    if len(p):
        scores = precision_recall_fscore_support(gone, called, labels=[True, False], zero_division=np.nan)
    columns = ("precision", "recall", "f1", "support")
    out = {
        name: {column: float(score[i]) for column, score in zip(columns, scores, strict=True)}
        for i, name in enumerate(("churned", "stayed"))
    }
    out["overall"] = {
        "accuracy": _ratio(float(np.sum(gone == called)), float(len(p))),
        "auc": auc(gone, 1 - p),
        "average_precision": average_precision(gone, 1 - p),
        "share_churned": _ratio(float(gone.sum()), float(len(p))),
        "threshold": threshold,
    }
    return out


def score_of(prediction: Prediction) -> NDArray[np.float64]:
    """What ranks customers by purchase: the probability, or the value of a model that has none."""
    return prediction.value if prediction.p_purchase is None else prediction.p_purchase


def evaluate(y: ArrayLike, orders: ArrayLike, prediction: Prediction, seed: int = 0) -> dict[str, float | None]:
    """The metrics of metrics.json for one model. crps is in shop currency; None = undefined or no distribution."""
    value = prediction.value
    out: dict[str, float] = {
        "ngini": ngini(y, value),
        "spearman": spearman(y, value),
        "auc": auc(np.asarray(orders, float) > 0, score_of(prediction)),
        "mae_over_mean": mae_over_mean(y, value),
        "rmse_over_mean": rmse_over_mean(y, value),
        "bias": bias(y, value),
        "decile_mape": decile_mape(y, value),
        "top_decile_capture": top_decile_capture(y, value),
        "crps": float("nan"),
        "pit80": float("nan"),
    }
    if prediction.quantiles is not None and len(value):
        out["crps"] = float(probabilistic.crps(y, prediction.quantiles).mean())
        out["pit80"] = probabilistic.pit80(distributions.pit(y, prediction.quantiles, seed))
    return {name: float(out[name]) if np.isfinite(out[name]) else None for name in METRICS}
