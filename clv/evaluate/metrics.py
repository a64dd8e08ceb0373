"""Point metrics of value and purchase, pure numpy. y realised and y_hat predicted value in [o, o + H), both (n,).

Everything rests on two objects that treat ties exactly: weighted mid-ranks and the concentration curve, where
customers with the same prediction share their group's mean. Undefined metrics are NaN, never an exception.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clv.evaluate import probabilistic
from clv.evaluate.prediction import Array, Prediction

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


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b > 0 and np.isfinite(b) else float("nan")


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
    return 2 * _ratio(float(y @ rank), len(y) * float(y.sum())) - 1


def ngini(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Normalised Gini G(y_hat) / G(y), G = 2 mean(cumulative share of y, best first, half-step corrected) - 1.

    1 for the perfect order, 0 on average for a random or constant one, -1 reversed. NaN where nobody or everybody
    has the same value.
    """
    a, b = _pair(y, y_hat)
    best = _gini(a, midranks(a)) if len(a) else float("nan")
    return float(_gini(a, midranks(b)) / best) if best > 1e-12 else float("nan")


def spearman(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Pearson correlation of average ranks; NaN where either side is constant."""
    a, b = _pair(y, y_hat)
    if len(a) < 2:
        return float("nan")
    ra, rb = midranks(a) - len(a) / 2, midranks(b) - len(b) / 2
    return _ratio(float(ra @ rb), float(np.sqrt((ra @ ra) * (rb @ rb))))


def spearman_buyers(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Spearman among customers with a realised value above zero."""
    a, b = _pair(y, y_hat)
    return spearman(a[a > 0], b[a > 0])


def auc(event: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve (Mann-Whitney, ties count half); NaN with one class only."""
    hit, s = _pair(np.asarray(event, bool), score)
    positives = float(hit.sum())
    return _ratio(float(hit @ midranks(s)) - positives**2 / 2, positives * (len(hit) - positives))


def average_precision(event: ArrayLike, score: ArrayLike) -> float:
    """Mean precision over the recalled events, sum (R_k - R_{k-1}) P_k over distinct scores; NaN without events."""
    hit, s = _pair(np.asarray(event, bool), score)
    _, group = np.unique(-s, return_inverse=True)
    found = np.cumsum(np.bincount(group, weights=hit)) if len(hit) else np.zeros(0)
    seen = np.cumsum(np.bincount(group)) if len(hit) else np.ones(0)
    return _ratio(float(np.diff(found, prepend=0.0) @ (found / seen)), float(hit.sum()))


def calibration_error(event: ArrayLike, p: ArrayLike, bins: int = 10) -> float:
    """Mean over equal groups by p of |mean p - share of events| (ECE, Naeini et al. 2015); NaN without customers."""
    hit, said = _pair(np.asarray(event, bool), p)
    real, mean = deciles(hit, said, min(bins, max(len(hit), 1)))
    return float(np.abs(real - mean).mean()) if len(hit) else float("nan")


def bias(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Sum of predicted over sum of realised; 1 is right, 1.3 is 30 % too much."""
    a, b = _pair(y, y_hat)
    return _ratio(float(b.sum()), float(a.sum()))


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
            "bias": _ratio(float(said[i]), float(real[i])),
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
    """Mean over ten equal buckets of y_hat of |mean y_hat - mean y| / mean y; empty-handed buckets are left out."""
    real, said = deciles(y, y_hat)
    some = real > 0
    return float(np.mean(np.abs(said[some] - real[some]) / real[some])) if some.any() else float("nan")


def mae_over_mean(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Mean absolute error over mean y. Never rank models by it alone: predicting the median wins it."""
    a, b = _pair(y, y_hat)
    return _ratio(float(np.abs(a - b).sum()), float(a.sum()))


def rmse_over_mean(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Root mean squared error over mean y."""
    a, b = _pair(y, y_hat)
    return _ratio(float(np.sqrt(((a - b) ** 2).mean())), float(a.mean())) if len(a) else float("nan")


def top_decile_capture(y: ArrayLike, y_hat: ArrayLike) -> float:
    """Share of all realised value that the tenth of customers with the highest prediction brought."""
    return _ratio(float(concentration(y, y_hat, [0.1])[0]), float(np.sum(y)))


def lift(y: ArrayLike, y_hat: ArrayLike, points: int = 101) -> tuple[Array, Array]:
    """(fractions, share of value captured by that fraction), both (points,): the lift or gains curve."""
    fractions = np.linspace(0, 1, points)
    total = float(np.sum(y))
    curve = concentration(y, y_hat, fractions)
    return fractions, curve / total if total > 0 else np.full(points, np.nan)


def churn_report(orders: ArrayLike, p_purchase: ArrayLike, threshold: float = 0.5) -> dict[str, dict[str, float]]:
    """Classification report of churn (no order in the horizon), called when 1 - p_purchase >= threshold.

    Per class "churned" and "stayed": precision, recall, f1, support; under "overall": accuracy, auc,
    average_precision (both of churn), share_churned, threshold.
    """
    bought, p = _pair(np.asarray(orders, float) > 0, p_purchase)
    gone, called = bought == 0, 1 - p >= threshold
    out: dict[str, dict[str, float]] = {}
    for name, truth, guess in (("churned", gone, called), ("stayed", ~gone, ~called)):
        both = float(np.sum(truth & guess))
        precision, recall = _ratio(both, float(guess.sum())), _ratio(both, float(truth.sum()))
        f1 = _ratio(2 * both, float(guess.sum() + truth.sum()))
        out[name] = {"precision": precision, "recall": recall, "f1": f1, "support": float(truth.sum())}
    out["overall"] = {
        "accuracy": _ratio(float(np.sum(gone == called)), float(len(p))),
        "auc": auc(gone, 1 - p),
        "average_precision": average_precision(gone, 1 - p),
        "share_churned": _ratio(float(gone.sum()), float(len(p))),
        "threshold": threshold,
    }
    return out


def accuracy(orders: ArrayLike, p_purchase: ArrayLike, threshold: float = 0.5) -> float:
    """Share of customers whose churn is called right at the threshold."""
    return churn_report(orders, p_purchase, threshold)["overall"]["accuracy"]


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
        out["pit80"] = probabilistic.pit80(probabilistic.pit(y, prediction.quantiles, seed))
    return {name: float(out[name]) if np.isfinite(out[name]) else None for name in METRICS}
