"""Paired bootstrap over customers: every model sees the same draws, so differences have honest intervals.

A draw is a vector of counts w (n,). With the customers of a model sorted once, its weighted mid-ranks are one
cumulative sum, and nGini, Spearman and AUC are weighted sums of those ranks; errors, CRPS and PIT are linear in w,
one matrix product for all models. No draw sorts anything, and no library offers that: for 5,000 customers and 200
draws, `sklearn.metrics.roc_auc_score` alone, once a draw, takes nine times as long as all metrics here together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from clv.evaluate import probabilistic
from clv.evaluate.metrics import METRICS, NEGLIGIBLE, score_of
from clv.forecast import distributions
from clv.forecast.distributions import Array, Prediction

CHUNK = 25


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A bootstrap estimate: the value on the data itself and the bounds of its 95 % interval."""

    estimate: float
    low: float
    high: float


class _Order:
    """Customers sorted ascending by one score, ties grouped: turns counts into weighted mid-ranks and curves."""

    def __init__(self, score: Array) -> None:
        self.order = np.argsort(score, kind="stable")
        ranked = score[self.order]
        first = np.r_[True, ranked[1:] != ranked[:-1]]
        self.end = np.r_[np.flatnonzero(first)[1:], len(score)]
        self.group = np.cumsum(first) - 1
        self.tied = len(self.end) < len(score)

    def ends(self, sorted_weights: Array) -> Array:
        """(C, n) weights in this order -> (C, groups + 1) cumulative sums at group ends, from 0."""
        total = np.cumsum(sorted_weights, axis=1)
        out = np.zeros((len(total), len(self.end) + 1))
        out[:, 1:] = total[:, self.end - 1]
        return out

    def midranks(self, sorted_weights: Array, ends: Array) -> Array:
        """(C, n) weighted mid-ranks in this order."""
        if not self.tied:
            return ends[:, 1:] - sorted_weights / 2
        return ((ends[:, 1:] + ends[:, :-1]) / 2)[:, self.group]


def _draws(n: int, draws: int, seed: int) -> Iterator[Array]:
    """Counts (C, n) of resampled customers; the first row of all is the data itself."""
    rng = np.random.default_rng(seed)
    yield np.ones((1, n))
    for start in range(0, draws, CHUNK):
        rows = min(CHUNK, draws - start)
        flat = rng.integers(0, n, size=(rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(flat.ravel(), minlength=rows * n).reshape(rows, n).astype(float)


def _curve(at: Array, ends: Array, sums: Array) -> Array:
    """Rows of np.interp: sums (C, G) over customer counts ends (C, G), read at counts at (C, m)."""
    return np.stack([np.interp(a, e, s) for a, e, s in zip(at, ends, sums, strict=True)])


def _divide(a: Array, b: Array) -> Array:
    out: Array = np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=np.asarray(b) > 0)
    return out


class _Model:
    def __init__(self, y: Array, prediction: Prediction, seed: int) -> None:
        self.value = prediction.value
        self.by_value = _Order(prediction.value)
        score = score_of(prediction)
        self.by_score = self.by_value if score is prediction.value else _Order(score)
        error = np.abs(self.value - y)
        self.linear = [error, error**2, self.value]
        if prediction.quantiles is not None:
            u = distributions.pit(y, prediction.quantiles, seed)
            inside = ((u >= 0.1) & (u <= 0.9)).astype(float)
            self.linear += [probabilistic.crps(y, prediction.quantiles), inside]

    def ranked(self, w: Array, y: Array, hit: Array, total: Array, rank_y: Array, best: Array) -> dict[str, Array]:
        """Metrics that depend on the order, for a chunk of draws w (C, n); total (C,) and rank_y (C, n) are of y."""
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
        said = np.diff(_curve(edges, ends, o.ends(ws * self.value[o.order])))
        out["top_decile_capture"] = _divide(real[:, -1], total)
        spent = real > NEGLIGIBLE * total[:, None] / 10
        out["decile_mape"] = _divide(np.abs(said - real), np.where(spent, real, np.nan)).mean(axis=1)
        if self.by_score is not o:
            o = self.by_score
            ws = w[:, o.order]
            rank = o.midranks(ws, o.ends(ws))
        positives = (ws * hit[o.order]).sum(axis=1)
        above = np.einsum("cn,cn,n->c", ws, rank, hit[o.order]) - positives**2 / 2
        out["auc"] = _divide(above, positives * (count - positives))
        return out

    def averaged(self, sums: Array, total: Array, count: Array) -> dict[str, Array]:
        """Metrics that are ratios of sums over customers; sums (C, k) of self.linear."""
        out = {
            "mae_over_mean": _divide(sums[:, 0], total),
            "rmse_over_mean": _divide(np.sqrt(sums[:, 1] / count), total / count),
            "bias": _divide(sums[:, 2], total),
        }
        if len(self.linear) > 3:
            out |= {"crps": sums[:, 3] / count, "pit80": sums[:, 4] / count}
        return out


def bootstrap(
    y: ArrayLike,
    orders: ArrayLike,
    predictions: Mapping[str, Prediction],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, dict[str, Array]]:
    """model -> metric -> (draws + 1,) replicates; element 0 is the metric on the data. NaN where undefined.

    The metrics are those of `metrics.evaluate`; models without distributions lack crps and pit80. Differences of two
    models' replicates are paired. 24,000 customers x 1000 draws cost about a second a model.
    """
    real, hit = np.asarray(y, float), (np.asarray(orders, float) > 0).astype(float)
    for name, p in predictions.items():
        if len(p) != len(real):
            raise ValueError(f"model {name!r} predicts {len(p)} customers, realised are {len(real)}")
    if not len(real):
        return {name: {m: np.full(draws + 1, np.nan) for m in METRICS[:8]} for name in predictions}
    models = {name: _Model(real, p, seed) for name, p in predictions.items()}
    truth = _Order(real)
    back = np.argsort(truth.order)
    linear = np.stack([column for m in models.values() for column in m.linear], axis=1) if models else np.zeros((0, 0))
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
    """Percentile interval of replicates as `bootstrap` gives them; undefined draws are left out."""
    drawn = replicates[1:][np.isfinite(replicates[1:])]
    if not len(drawn) or not np.isfinite(replicates[0]):
        return Interval(estimate=float(replicates[0]), low=float("nan"), high=float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate=float(replicates[0]), low=float(low), high=float(high))
