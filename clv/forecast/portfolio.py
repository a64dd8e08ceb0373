"""Distribution of the total value of a group of customers (a portfolio), and the fit of its spread.

Given the seasonal factor, customers vary independently, so that their spread averages out in a sum; the error of the
factor is common to all and does not. Totals are drawn by Latin hypercube sampling: each customer contributes each of
NUM_DRAWS equally likely values once, in a random order that is the same at all horizons. So no total falls with the
horizon, and a group of one customer keeps the customer's quantiles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from clv.forecast.distributions import INTERVAL_LEVELS, Array, Prediction

NUM_DRAWS = 512
DRAW_LEVELS: Array = (np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
GROUP = 100  # customers in each random group on which intervals of sums are fitted and evaluated
PRIOR_GROUPS = 10.0  # weight, in groups, of the prior that sums vary as predicted
_FACTOR_NODES: Array = ndtri((np.arange(25) + 0.5) / 25)
_CHUNK = 1_000


def draw_totals(values: Array, seed: int = 0, group: ArrayLike | None = None) -> Array:
    """(G, H, NUM_DRAWS) draws of the totals of G groups, currency, from customers' values (n, H, NUM_DRAWS).

    `values` ascend along the last axis. `group` (n,) numbers the groups from 0; without it all customers are one group.
    """
    number = None if group is None else np.asarray(group, np.int64)
    out = np.zeros((1 if number is None else int(number.max(initial=-1)) + 1, *values.shape[1:]))
    rng = np.random.default_rng(seed)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        order = rng.permuted(np.tile(np.arange(NUM_DRAWS), (len(part), 1)), axis=1)
        shuffled = np.take_along_axis(part, order[:, None, :], axis=2)
        if number is None:
            out[0] += shuffled.sum(axis=0)
        else:
            np.add.at(out, number[start : start + _CHUNK], shuffled)
    return out


def total_quantiles(
    draws: Array,
    mean: ArrayLike,
    customers: ArrayLike,
    *,
    factor_error: ArrayLike = 0.0,
    spread: ArrayLike = 1.0,
    levels: Array = INTERVAL_LEVELS,
) -> Array:
    """(G, H, levels) quantiles of the totals of G groups, non-decreasing in the horizon.

    `draws` (G, H, NUM_DRAWS) are draws of the totals, `mean` (G, H) the expected totals, `customers` (G,) the sizes of
    the groups. `factor_error` (H,) is the standard deviation of the log of the seasonal factor, `spread` (H,) the
    actual over the predicted variance of sums. A group of one keeps the customer's calibrated distribution, which
    includes the error of the factor already; the weight of the two corrections grows with the size of the group.
    """
    weight = (1 - 1 / np.maximum(np.asarray(customers, float), 1))[:, None]  # (G, 1)
    centre = draws.mean(axis=2)
    ratio = np.divide(np.asarray(mean, float), centre, out=np.ones_like(centre), where=centre > 0)
    factor = ratio**weight
    scale = np.sqrt(np.asarray(spread, float)) ** weight
    centred = (factor * centre)[..., None]
    sums = np.maximum(centred + scale[..., None] * (factor[..., None] * draws - centred), 0.0)
    error = (np.asarray(factor_error, float) * np.sqrt(weight))[..., None]  # (G, H, 1)
    common = np.exp(error * _FACTOR_NODES - error**2 / 2)  # (G, H, nodes)
    mixed = (sums[..., None] * common[:, :, None, :]).reshape(*centre.shape, -1)
    return np.maximum.accumulate(np.moveaxis(np.quantile(mixed, levels, axis=2), 0, 2), axis=1)


def random_groups(num_customers: int, size: int = GROUP, seed: int = 0) -> NDArray[np.int64]:
    """(num_customers,) number of each customer's random group of `size`, -1 for the remainder.

    Fewer customers than `size` are one group.
    """
    size = min(size, num_customers)
    order = np.random.default_rng(seed).permutation(num_customers)
    number = order // max(size, 1)
    return np.where(number < num_customers // max(size, 1), number, -1)


def group_intervals(prediction: Prediction, group: ArrayLike, seed: int = 0) -> tuple[Array, Array]:
    """(low, high), each (groups,): the 80 % interval of each group's total; customers in group -1 are left out.

    Raises ValueError for a prediction without a distribution.
    """
    if prediction.quantiles is None:
        raise ValueError(
            "the interval of a sum needs the distribution of each customer: this prediction has no quantiles"
        )
    number = np.asarray(group, np.int64)
    rows = number >= 0
    if not rows.any():
        return np.zeros(0), np.zeros(0)
    drawn = draw_totals(prediction.quantiles.take(rows).quantile(DRAW_LEVELS)[:, None, :], seed, number[rows])
    count = np.bincount(number[rows])
    mean = np.bincount(number[rows], weights=prediction.value[rows])[:, None]
    found = total_quantiles(drawn, mean, count, factor_error=[prediction.factor_error], spread=[prediction.sum_spread])
    return found[:, 0, 0], found[:, 0, -1]


def group_coverage(y: ArrayLike, prediction: Prediction, size: int = GROUP, seed: int = 0, rounds: int = 10) -> float:
    """Coverage of the 80 % interval of sums: share of random groups of `size` whose actual total lies in it.

    It is the mean over `rounds` random partitions, since one has few groups; NaN where there are no distributions or
    fewer customers than `size`.
    """
    real = np.asarray(y, float)
    if prediction.quantiles is None or len(real) < size:
        return float("nan")
    hits = []
    for i in range(rounds):
        group = random_groups(len(real), size, seed + i)
        low, high = group_intervals(prediction, group, seed + i)
        total = np.bincount(group[group >= 0], weights=real[group >= 0])
        hits.append(np.mean((total >= low) & (total <= high)))
    return float(np.mean(hits))


def fit_sum_spread(y: ArrayLike, prediction: Prediction, seed: int = 0) -> float:
    """Factor on the variance of sums with which the 80 % interval covers 80 % of random groups, given the actual total.

    It is shrunk to 1, the more the fewer groups the customers make. A ratio of squared residuals would depend on the
    largest customer alone.
    """
    real = np.asarray(y, float)
    size = min(GROUP, len(real) // 10)
    if prediction.quantiles is None or size < 5 or real.sum() <= 0 or prediction.value.sum() <= 0:
        return 1.0
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.choice(len(real), size, replace=False) for _ in range(200)])
    group = np.repeat(np.arange(200), size)
    factor = real.sum() / prediction.value.sum()
    drawn = factor * draw_totals(prediction.quantiles.quantile(DRAW_LEVELS)[rows][:, None, :], seed, group)
    mean = factor * prediction.value[rows].reshape(200, size).sum(axis=1)[:, None]
    total, count = real[rows].reshape(200, size).sum(axis=1), np.full(200, size)
    low, high = np.log(0.05), np.log(20.0)
    for _ in range(20):
        middle = (low + high) / 2
        interval = total_quantiles(drawn, mean, count, spread=[np.exp(middle)])[:, 0]
        enough = np.mean((total >= interval[:, 0]) & (total <= interval[:, -1])) >= 0.8
        low, high = (low, middle) if enough else (middle, high)
    groups = len(real) / size
    return float(np.exp(high * groups / (groups + PRIOR_GROUPS)))
