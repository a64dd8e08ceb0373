"""Draw simulated customers, with latent rates, spend, life changes and dropout, and from these their orders."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from clv.simulate.catalogue import PLAIN
from clv.simulate.settings import YEAR, ShopSettings
from clv.simulate.truth import Floats, Ints, Truth

NOTICE_DAYS = 60.0  # how long before a life change the baskets show it
INTEREST_DAYS = 45.0  # mean time until a visitor who has not bought loses interest
CONVERSION = (1.5, 90.0)  # Gamma shape and scale in days of a visitor's conversion rate
SEGMENTS = ("search", "shop", "friend")
# By segment: factors of the propensity of a coupon and of its effect.
_SENT = np.array([0.6, 1.0, 1.4])
_HELPS = np.array([1.4, 1.0, 0.6])


def draw(rng: np.random.Generator, shop: ShopSettings, n: int, first_number: int = 0) -> Truth:
    """Draws n customers with ids from `first_number` on."""
    lam = rng.gamma(shop.rate[0], 1 / shop.rate[1], n)
    first = np.sort(rng.uniform(0, shop.acquired_over * shop.num_days, n))
    leave = rng.beta(*shop.dropout, n) if shop.dropout else np.zeros(n)
    hazard = shop.changes_per_year / YEAR
    change = first + (rng.exponential(1 / hazard, n) if hazard > 0 else np.inf)
    factor = np.where(rng.random(n) < 0.6, 0.15, 2.5) if hazard > 0 else np.ones(n)
    p, q, v = shop.spend
    nu = rng.gamma(q, 1 / v, n)
    order_value = p / nu * (lam * shop.rate[1] / shop.rate[0]) ** shop.spend_follows_rate
    last = np.full(n, np.iinfo(np.int64).max)
    leaves = leave > 1e-12
    last[leaves] = rng.geometric(leave[leaves])
    favourite, convert, lost = np.full(n, -1), np.full(n, np.inf), np.full(n, np.inf)
    arrival = first
    if shop.tastes > 0:
        favourite = rng.integers(0, PLAIN, n)
        lean = np.linspace(-1, 1, PLAIN)[favourite] * shop.tastes
        lam, order_value = lam * np.exp(lean), order_value * np.exp(-lean / 2)
    if shop.visitors > 0:
        looks = rng.random(n) < shop.visitors
        convert = np.where(looks, rng.gamma(CONVERSION[0], 1 / CONVERSION[1], n), np.inf)
        lost = np.where(looks, arrival + rng.exponential(INTEREST_DAYS, n), np.inf)
        bought = arrival + rng.exponential(1, n) / convert
        first = np.where(looks, np.where(bought < lost, bought, np.inf), arrival)
        change, factor = np.where(looks, np.inf, change), np.where(looks, 1.0, factor)
    segment, treated = np.zeros(n, np.int64), np.zeros(n)
    if shop.coupons:
        # Segments depend on the purchase rate, so that treated and untreated customers differ before any treatment.
        rank = np.argsort(np.argsort(lam + rng.exponential(lam.mean(), n)))
        segment = rank * len(SEGMENTS) // n
        treated = np.minimum(shop.coupons[1] * _SENT[segment], 0.95)
    truth = Truth(
        customer_id=np.array([f"C{i:07d}" for i in range(first_number, first_number + n)], dtype=object),
        first=first,
        rate=lam,
        change=change,
        factor=factor,
        leave=leave,
        order_value=order_value,
        last_order=last,
        phase_offsets=np.zeros(n + 1, np.int64),
        phase_time=np.zeros(0),
        regularity=shop.regularity,
        change_per_day=hazard,
        notice_days=NOTICE_DAYS,
        season_time=shop.season_time(),
        start_day=shop.start_day,
        clock=shop.clock,
        arrival=arrival,
        convert=convert,
        lost=lost,
        loss_per_day=1 / INTEREST_DAYS,
        favourite=favourite,
        segment=segment,
        propensity=treated,
        uplift=shop.coupons[2] * _HELPS[segment] if shop.coupons else np.zeros(n),
        campaigns=shop.campaigns(),
    )
    until = truth.operational(float(shop.num_days))
    count = rng.poisson(until * shop.regularity)
    owner = np.repeat(np.arange(n), count)
    time = rng.random(len(owner)) * until[owner]
    time = time[np.lexsort((time, owner))]
    return replace(truth, phase_offsets=np.append(0, np.cumsum(count)), phase_time=time)


def orders(rng: np.random.Generator, shop: ShopSettings, truth: Truth) -> pd.DataFrame:
    """Returns one row per order, the first of each customer included: customer, day (float since start), value."""
    n, k = len(truth.first), truth.regularity
    owner = np.repeat(np.arange(n), np.diff(truth.phase_offsets))
    ordinal = np.arange(len(owner)) - truth.phase_offsets[owner] + 1
    buy = (ordinal % k == 0) & (ordinal // k <= truth.last_order[owner])
    owner, u = owner[buy], truth.phase_time[buy]
    day = calendar(truth, owner, u)
    actual = np.flatnonzero(truth.first < shop.num_days)
    customer = np.concatenate([actual, owner])
    day = np.minimum(np.concatenate([truth.first[actual], day]), shop.num_days - 1e-9)
    value = truth.order_value[customer] * rng.gamma(shop.spend[0], 1 / shop.spend[0], len(customer))
    table = pd.DataFrame({"customer": customer, "day": day, "value": value})
    return table.sort_values(["customer", "day"], ignore_index=True)


def calendar(truth: Truth, owner: Ints, u: Floats) -> Floats:
    """Returns the day at which customer owner[i] has operational time u[i]: the inverse of `Truth.operational`."""
    num_days = len(truth.season_time) - 1
    at_change = truth.operational(np.minimum(truth.change, num_days))[owner]
    rate = truth.rate[owner]
    s = truth.season_at(truth.first)[owner] + np.minimum(u, at_change) / rate
    s += np.maximum(u - at_change, 0) / (rate * truth.factor[owner])
    return np.asarray(np.interp(s, truth.season_time, np.arange(num_days + 1)))


def leaving_time(truth: Truth) -> Floats:
    """Returns the operational time at which each customer leaves, inf for those who stay to the end."""
    n = len(truth.first)
    hit = np.minimum(truth.last_order, 1 << 40) * truth.regularity - 1
    leaves = hit < np.diff(truth.phase_offsets)
    out = np.full(n, np.inf)
    out[leaves] = truth.phase_time[(truth.phase_offsets[:-1] + hit)[leaves]]
    return out
