"""Paired bootstrap over customers: all models are evaluated on the same draws, so differences have valid intervals.

A draw is a vector of counts w (n,). With the customers of a model sorted once, its weighted mid-ranks are one
cumulative sum, and nGini, Spearman and AUC are weighted sums of those ranks; errors, CRPS and PIT are linear in w, one
matrix product for all models. So no draw sorts, which no library offers: for 5,000 customers and 200 draws,
`sklearn.metrics.roc_auc_score` alone, once per draw, takes nine times as long as all metrics here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from clv.evaluate import probabilistic
from clv.evaluate.metrics import METRICS, NEGLIGIBLE, purchase_score
from clv.forecast import distributions
from clv.forecast.distributions import Array, Prediction

CHUNK = 25  # draws computed at once


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A bootstrap estimate: the value on the data itself and the bounds of its 95 % interval."""

    estimate: float
    low: float
    high: float


class _Ranking:
    """Customers sorted ascending by one score, ties grouped; gives weighted mid-ranks and cumulative sums of draws."""

    def __init__(self, score: Array) -> None:
        self.order = np.argsort(score, kind="stable")
        ranked = score[self.order]
        first = np.r_[True, ranked[1:] != ranked[:-1]]
        self.end = np.r_[np.flatnonzero(first)[1:], len(score)]
        self.group = np.cumsum(first) - 1
        self.tied = len(self.end) < len(score)

    def ends(self, sorted_weights: Array) -> Array:
        """(C, groups + 1) cumulative sums at the ends of the groups, from 0, of (C, n) weights in this order."""
        total = np.cumsum(sorted_weights, axis=1)
        out = np.zeros((len(total), len(self.end) + 1))
        out[:, 1:] = total[:, self.end - 1]
        return out

    def midranks(self, sorted_weights: Array, ends: Array) -> Array:
        """(C, n) weighted mid-ranks in this order, from (C, n) weights and their `ends`."""
        if not self.tied:
            return ends[:, 1:] - sorted_weights / 2
        return ((ends[:, 1:] + ends[:, :-1]) / 2)[:, self.group]


def _draws(n: int, draws: int, seed: int) -> Iterator[Array]:
    """Chunks of counts (C, n) of resampled customers; the first row of the first chunk is the data itself."""
    rng = np.random.default_rng(seed)
    yield np.ones((1, n))
    for start in range(0, draws, CHUNK):
        rows = min(CHUNK, draws - start)
        flat = rng.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(flat.ravel(), minlength=rows * n).reshape(rows, n).astype(float)


def _curve(at: Array, ends: Array, sums: Array) -> Array:
    """(C, m) np.interp of each row: sums (C, G) over customer counts `ends` (C, G), at the counts `at` (C, m)."""
    return np.stack([np.interp(a, e, s) for a, e, s in zip(at, ends, sums, strict=True)])


def _divide(a: Array, b: Array) -> Array:
    out: Array = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=np.asarray(b) > 0)
    return out


class _ModelTerms:
    """Terms of one model's metrics that do not depend on the draw."""

    def __init__(self, y: Array, prediction: Prediction, seed: int) -> None:
        self.value = prediction.value
        self.by_value = _Ranking(prediction.value)
        score = purchase_score(prediction)
        self.by_score = self.by_value if score is prediction.value else _Ranking(score)
        error = np.abs(self.value - y)
        self.linear = [error, error**2, self.value]
        if prediction.quantiles is not None:
            u = distributions.pit(y, prediction.quantiles, seed)
            inside = ((u >= 0.1) & (u <= 0.9)).astype(float)
            self.linear += [probabilistic.crps(y, prediction.quantiles), inside]

    def ranked(self, w: Array, y: Array, hit: Array, total: Array, rank_y: Array, best: Array) -> dict[str, Array]:
        """Metrics that depend on the order, for draws w (C, n); total (C,) and rank_y (C, n) are those of y."""
        count = w.sum(axis=1)
        o = self.by_value
        ws = w[:, o.order]
        ends = o.ends(ws)
        rank = o.midranks(ws, ends)
        wy = ws * y[o.order]
        out = {"ngini": _divide(_divide(2 * np.einsum("cn,cn->c", wy, rank), count * total) - 1, best)}
        # Spearman: both mid-ranks have mean count / 2.
        da, db = rank - count[:, None] / 2, rank_y[:, o.order] - count[:, None] / 2
        wa = ws * da
        norm = np.einsum("cn,cn->c", wa, da) * np.einsum("cn,cn,cn->c", ws, db, db)
        out["spearman"] = _divide(np.einsum("cn,cn->c", wa, db), np.sqrt(norm))
        edges = count[:, None] * np.linspace(0, 1, 11)
        real = np.diff(_curve(edges, ends, o.ends(wy)))
        predicted = np.diff(_curve(edges, ends, o.ends(ws * self.value[o.order])))
        out["top_decile_capture"] = _divide(real[:, -1], total)
        spent = real > NEGLIGIBLE * total[:, None] / 10
        out["decile_mape"] = _divide(np.abs(predicted - real), np.where(spent, real, np.nan)).mean(axis=1)
        if self.by_score is not o:
            o = self.by_score
            ws = w[:, o.order]
            rank = o.midranks(ws, o.ends(ws))
        positives = (ws * hit[o.order]).sum(axis=1)
        above = np.einsum("cn,cn,n->c", ws, rank, hit[o.order]) - positives**2 / 2
        out["auc"] = _divide(above, positives * (count - positives))
        return out

    def averaged(self, sums: Array, total: Array, count: Array) -> dict[str, Array]:
        """Metrics that are ratios of sums over customers; sums (C, k) are those of self.linear."""
        out = {
            "mae_over_mean": _divide(sums[:, 0], total),
            "rmse_over_mean": _divide(np.sqrt(sums[:, 1] / count), total / count),
            "bias": _divide(sums[:, 2], total),
        }
        if len(self.linear) > 3:
            out |= {"crps": sums[:, 3] / count, "pit80": sums[:, 4] / count}
        return out


def bootstrap(
    y: ArrayLike, orders: ArrayLike, predictions: Mapping[str, Prediction], draws: int = 1000, seed: int = 0
) -> dict[str, dict[str, Array]]:
    """model -> metric -> (draws + 1,) replicates; element 0 is the metric on the data, NaN where undefined.

    `y` (n,) is the actual value, `orders` (n,) the actual orders. The metrics are those of `metrics.evaluate`; models
    without distributions lack crps and pit80. Differences of two models' replicates are paired. 24,000 customers and
    1,000 draws take about a second per model. Raises ValueError for predictions of another number of customers.
    """
    real, hit = np.asarray(y, float), (np.asarray(orders, float) > 0).astype(float)
    for name, p in predictions.items():
        if len(p) != len(real):
            raise ValueError(f"model {name!r} predicts {len(p)} customers, the actual values are of {len(real)}")
    if not (len(real) and predictions):
        return {name: {m: np.full(draws + 1, np.nan) for m in METRICS[:8]} for name in predictions}
    models = {name: _ModelTerms(real, p, seed) for name, p in predictions.items()}
    truth = _Ranking(real)
    back = np.argsort(truth.order)
    linear = np.stack([column for m in models.values() for column in m.linear], axis=1)
    parts: dict[str, dict[str, list[Array]]] = {name: {} for name in models}
    for w in _draws(len(real), draws, seed):
        ws = w[:, truth.order]
        rank = truth.midranks(ws, truth.ends(ws))
        count, total = w.sum(axis=1), w @ real
        total[total <= NEGLIGIBLE * (w @ np.abs(real))] = np.nan
        best = _divide(2 * np.einsum("cn,cn,n->c", ws, rank, real[truth.order]), count * total) - 1
        best[best < 1e-12] = 0
        rank_y, sums, start = rank[:, back], w @ linear, 0
        for name, model in models.items():
            found = model.ranked(w, real, hit, total, rank_y, best)
            found |= model.averaged(sums[:, start : start + len(model.linear)], total, count)
            start += len(model.linear)
            for metric, values in found.items():
                parts[name].setdefault(metric, []).append(values)
    return {name: {m: np.concatenate(v) for m, v in found.items()} for name, found in parts.items()}


def interval(replicates: Array, level: float = 0.95) -> Interval:
    """Percentile interval of the replicates that `bootstrap` returns; undefined draws are left out."""
    drawn = replicates[1:][np.isfinite(replicates[1:])]
    if not len(drawn) or not np.isfinite(replicates[0]):
        return Interval(estimate=float(replicates[0]), low=float("nan"), high=float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate=float(replicates[0]), low=float(low), high=float(high))
