"""Sums of customers: the distribution of a total, from each customer's own and from the level that all share.

Given the level, customers are independent and their spread averages away; the error of the level does not. Totals are
drawn by Latin hypercube: each customer contributes every one of NUM_DRAWS equally likely values once, in an order of
his own that is the same for all horizons, so no total falls with the horizon and one customer keeps his own quantiles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from clv.forecast.distributions import Array, Prediction

NUM_DRAWS = 512
DRAW_LEVELS: Array = (np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
BAND: Array = np.array([0.1, 0.5, 0.9])
GROUP = 100  # customers of the random groups that bands are fitted and judged on
PRIOR_GROUPS = 10.0  # so many groups weigh as much as "customers spread as they say"
_FACTOR_NODES: Array = ndtri((np.arange(25) + 0.5) / 25)
_CHUNK = 1_000


def totals(values: Array, seed: int = 0, group: ArrayLike | None = None) -> Array:
    """(groups, H, NUM_DRAWS) draws of the sums of customers' values (n, H, NUM_DRAWS), each row ascending; currency.

    `group` (n,) numbers the groups from 0; without it all customers are one.
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


def bands(
    draws: Array,
    mean: ArrayLike,
    customers: ArrayLike,
    *,
    factor_error: ArrayLike = 0.0,
    spread: ArrayLike = 1.0,
    levels: Array = BAND,
) -> Array:
    """(G, H, levels) quantiles of totals with draws (G, H, NUM_DRAWS), expected sum (G, H) and customers (G,).

    level_error (H,): log standard deviation of the level that all customers share. spread (H,): realised over
    predicted variance of sums. A customer alone keeps his own calibrated distribution, which holds the error of the
    level already: what is known of sums counts the more, the more customers there are. Non-decreasing in the horizon.
    """
    many = (1 - 1 / np.maximum(np.asarray(customers, float), 1))[:, None]  # (G, 1)
    centre = draws.mean(axis=2)
    ratio = np.divide(np.asarray(mean, float), centre, out=np.ones_like(centre), where=centre > 0)
    factor = ratio**many
    stretch = np.sqrt(np.asarray(spread, float)) ** many
    centred = (factor * centre)[..., None]
    sums = np.maximum(centred + stretch[..., None] * (factor[..., None] * draws - centred), 0.0)
    error = (np.asarray(factor_error, float) * np.sqrt(many))[..., None]  # (G, H, 1)
    level = np.exp(error * _FACTOR_NODES - error**2 / 2)  # (G, H, nodes)
    mixed = (sums[..., None] * level[:, :, None, :]).reshape(*centre.shape, -1)
    return np.maximum.accumulate(np.moveaxis(np.quantile(mixed, levels, axis=2), 0, 2), axis=1)


def random_groups(num_customers: int, size: int = GROUP, seed: int = 0) -> NDArray[np.int64]:
    """(num_customers,) number of a random group of `size`, -1 for the few left over; one group if there are fewer."""
    size = min(size, num_customers)
    order = np.random.default_rng(seed).permutation(num_customers)
    number = np.where(order // max(size, 1) < num_customers // max(size, 1), order // max(size, 1), -1)
    return np.asarray(number, np.int64)


def group_bands(prediction: Prediction, group: ArrayLike, seed: int = 0) -> tuple[Array, Array]:
    """(low, high), each (groups,): the 80 % band of each group's sum; customers in group -1 are left out.

    Raises ValueError for a prediction without a distribution.
    """
    if prediction.quantiles is None:
        raise ValueError("a sum of customers needs their distributions: this prediction has no quantiles")
    number = np.asarray(group, np.int64)
    rows = number >= 0
    if not rows.any():
        return np.zeros(0), np.zeros(0)
    drawn = totals(prediction.quantiles.take(rows).at(DRAW_LEVELS)[:, None, :], seed, number[rows])
    count = np.bincount(number[rows])
    mean = np.bincount(number[rows], weights=prediction.value[rows])[:, None]
    found = bands(drawn, mean, count, factor_error=[prediction.factor_error], spread=[prediction.sum_spread])
    return found[:, 0, 0], found[:, 0, -1]


def covered(y: ArrayLike, prediction: Prediction, size: int = GROUP, seed: int = 0, rounds: int = 10) -> float:
    """Share of random groups of `size` whose realised sum lies in its 80 % band; NaN without distributions or groups.

    `rounds` partitions of the customers are averaged: one alone has few groups.
    """
    real = np.asarray(y, float)
    if prediction.quantiles is None or len(real) < size:
        return float("nan")
    hits = []
    for i in range(rounds):
        group = random_groups(len(real), size, seed + i)
        low, high = group_bands(prediction, group, seed + i)
        total = np.bincount(group[group >= 0], weights=real[group >= 0])
        hits.append(np.mean((total >= low) & (total <= high)))
    return float(np.mean(hits))


def fit_spread(y: ArrayLike, prediction: Prediction, seed: int = 0) -> float:
    """The factor on the variance of sums with which 80 % of random groups fall into their bands, the level aside.

    Shrunk to 1 by how few groups the customers make. Squared residuals would do on paper; here one wholesaler would
    decide them.
    """
    real = np.asarray(y, float)
    size = min(GROUP, len(real) // 10)
    if prediction.quantiles is None or size < 5 or real.sum() <= 0 or prediction.value.sum() <= 0:
        return 1.0
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.choice(len(real), size, replace=False) for _ in range(200)])
    group = np.repeat(np.arange(200), size)
    level = real.sum() / prediction.value.sum()
    drawn = level * totals(prediction.quantiles.at(DRAW_LEVELS)[rows][:, None, :], seed, group)
    mean = level * prediction.value[rows].reshape(200, size).sum(axis=1)[:, None]
    total, count = real[rows].reshape(200, size).sum(axis=1), np.full(200, size)
    low, high = np.log(0.05), np.log(20.0)
    for _ in range(20):
        middle = (low + high) / 2
        band = bands(drawn, mean, count, spread=[np.exp(middle)])[:, 0]
        enough = np.mean((total >= band[:, 0]) & (total <= band[:, -1])) >= 0.8
        low, high = (low, middle) if enough else (middle, high)
    groups = len(real) / size
    return float(np.exp(high * groups / (groups + PRIOR_GROUPS)))
