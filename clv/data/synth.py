"""A seeded shop whose truth is known: events to test with, and what each customer was expected to do.

Every customer buys first at a random instant, then as a renewal process in *operational* time
    u(t) = λ [S(min(t, c)) − S(t₀) + f (S(t) − S(c))⁺],   S(t) = ∫ season · drift,
with rate λ ~ Gamma(r, α), gaps Erlang(k) of mean 1 in u, a life change at c (exponential, factor f), and leaves after
a repeat purchase with probability p ~ Beta(a, b). Spend per order is Gamma-Gamma, its level tied to λ. What RFM
cannot see and a sequence model can: gaps are regular (k), baskets from 60 days before c on come from other
categories according to f, and views come before purchases. With `exact_btyd=True` all that is off and
BG/NBD + Gamma-Gamma is the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from clv.data.clock import DAY_US, Clock
from clv.data.events import EVENTS
from clv.data.truth import Floats, Truth

_CATEGORIES = (
    "Home / Kitchen",
    "Home / Garden",
    "Gifts / Cards",
    "Gifts / Toys",
    "Clearance / Last chance",
    "Club / Refill",
)
_FADING, _GROWING = 4, 5  # categories that fading and growing customers turn to
_ITEMS_PER_CATEGORY = 40
_TURN = 0.8  # share of lines from the category of the change, once it is announced
_NOTICE_DAYS = 60.0
_SEASON_PEAK_DAY = 330  # of the year: late November


@dataclass(frozen=True)
class Simulation:
    """`events` in the schema EVENTS; `items` (item_id, text, category, price); `customers` (customer_id, channel)."""

    events: pa.Table
    items: pd.DataFrame
    customers: pd.DataFrame
    truth: Truth


def simulate(
    num_customers: int = 2_000,
    start: str = "2023-01-01",
    end: str = "2025-01-01",
    seed: int = 0,
    *,
    timezone: str = "UTC",
    rate: tuple[float, float] = (2.0, 60.0),
    dropout: tuple[float, float] | None = (0.8, 8.0),
    spend: tuple[float, float, float] = (5.0, 6.0, 30.0),
    spend_follows_rate: float = 0.4,
    season: float = 0.4,
    drift: float = 0.0,
    regularity: int = 4,
    changes_per_year: float = 1.5,
    views_per_purchase: float = 1.5,
    return_share: float = 0.0,
    acquired_over: float = 0.6,
    exact_btyd: bool = False,
) -> Simulation:
    """Simulate a shop from `start` to before `end` (local dates); equal arguments give equal tables.

    `rate` (r, α in days), `dropout` (a, b) or None, `spend` (p, q, v) are the parameters of BG/NBD and Gamma-Gamma;
    `spend_follows_rate` is the power of λ in the spend; `season` the amplitude of the log season (peak in November);
    `drift` the log growth of all rates per year; `regularity` the Erlang shape of gaps; `acquired_over` the share of
    the log, from its start, over which first purchases spread. `exact_btyd` switches the last seven off.
    """
    if exact_btyd:
        spend_follows_rate = season = drift = changes_per_year = views_per_purchase = return_share = 0.0
        regularity = 1
    if num_customers < 1 or regularity < 1 or spend[1] <= 1:
        raise ValueError(
            f"num_customers {num_customers}, regularity {regularity}, spend q {spend[1]}: need >= 1, >= 1 and > 1"
        )
    clock, rng = Clock(timezone), np.random.default_rng(seed)
    start_us, end_us = clock.parse(start), clock.parse(end)
    start_day = int(clock.day_of(start_us))
    num_days = int(clock.day_of(end_us)) - start_day
    if num_days < 2:
        raise ValueError(f"{start} to {end} are {num_days} days: simulate at least 2")
    season_time = _season_time(start_day, num_days, season, drift)
    truth = _customers(
        rng,
        num_customers,
        num_days,
        season_time,
        rate,
        dropout,
        spend,
        spend_follows_rate,
        changes_per_year,
        regularity,
        acquired_over,
        start_day,
        clock,
    )
    orders = _orders(rng, truth, num_days, spend[0])
    items = _items(rng)
    lines = _lines(rng, truth, orders, items)
    tables = [lines]
    if views_per_purchase > 0:
        tables.append(_views(rng, lines, views_per_purchase, num_customers, num_days))
    if return_share > 0:
        tables.append(_returns(rng, lines, return_share, num_days))
    events = _events(pd.concat(tables, ignore_index=True), truth, start_us)
    channel = rng.choice(["search", "shop", "friend"], num_customers)
    customers = pd.DataFrame({"customer_id": truth.customer_id, "channel": channel})
    return Simulation(events, items, customers, truth)


def _season_time(start_day: int, num_days: int, season: float, drift: float) -> Floats:
    """S at day 0..num_days: the cumulated season × drift, of mean about 1 a day."""
    day = start_day + np.arange(num_days) + 0.5
    angle = 2 * np.pi * (day - _SEASON_PEAK_DAY) / 365.2425
    # 1970-01-01 is day 0, so that day modulo the year is the day of the year
    level = np.exp(season * np.cos(angle) + drift * np.arange(num_days) / 365.2425)
    return np.append(0.0, np.cumsum(level / np.i0(season)))


def _customers(
    rng: np.random.Generator,
    n: int,
    num_days: int,
    season_time: Floats,
    rate: tuple[float, float],
    dropout: tuple[float, float] | None,
    spend: tuple[float, float, float],
    spend_follows_rate: float,
    changes_per_year: float,
    regularity: int,
    acquired_over: float,
    start_day: int,
    clock: Clock,
) -> Truth:
    lam = rng.gamma(rate[0], 1 / rate[1], n)
    first = np.sort(rng.uniform(0, acquired_over * num_days, n))
    leave = rng.beta(*dropout, n) if dropout else np.zeros(n)
    hazard = changes_per_year / 365.2425
    change = first + (rng.exponential(1 / hazard, n) if hazard > 0 else np.inf)
    factor = np.where(rng.random(n) < 0.6, 0.15, 2.5) if hazard > 0 else np.ones(n)
    p, q, v = spend
    nu = rng.gamma(q, 1 / v, n)
    order_value = p / nu * (lam * rate[1] / rate[0]) ** spend_follows_rate
    last = np.full(n, np.iinfo(np.int64).max)
    leaves = leave > 1e-12
    last[leaves] = rng.geometric(leave[leaves])
    ids = np.array([f"C{i:07d}" for i in range(n)], dtype=object)
    empty = np.zeros(n + 1, np.int64)
    truth = Truth(
        ids,
        first,
        lam,
        change,
        factor,
        leave,
        order_value,
        last,
        empty,
        np.zeros(0),
        regularity,
        hazard,
        _NOTICE_DAYS,
        season_time,
        start_day,
        clock,
    )
    until = truth.operational(float(num_days))
    count = rng.poisson(until * regularity)
    owner = np.repeat(np.arange(n), count)
    time = rng.random(len(owner)) * until[owner]
    time = time[np.lexsort((time, owner))]
    return replace(truth, phase_offsets=np.append(0, np.cumsum(count)), phase_time=time)


def _orders(rng: np.random.Generator, truth: Truth, num_days: int, p: float) -> pd.DataFrame:
    """One row per purchase: customer, day (float since start), value; the first purchase included."""
    n, k = len(truth.first), truth.regularity
    owner = np.repeat(np.arange(n), np.diff(truth.phase_offsets))
    ordinal = np.arange(len(owner)) - truth.phase_offsets[owner] + 1
    buy = (ordinal % k == 0) & (ordinal // k <= truth.last_order[owner])
    owner, u = owner[buy], truth.phase_time[buy]
    at_change = truth.operational(np.minimum(truth.change, num_days))[owner]
    level = truth.rate[owner]
    s = truth.season_at(truth.first)[owner] + np.minimum(u, at_change) / level
    s += np.maximum(u - at_change, 0) / (level * truth.factor[owner])
    day = np.interp(s, truth.season_time, np.arange(num_days + 1))
    customer = np.concatenate([np.arange(n), owner])
    day = np.minimum(np.concatenate([truth.first, day]), num_days - 1e-9)
    value = truth.order_value[customer] * rng.gamma(p, 1 / p, len(customer))
    orders = pd.DataFrame({"customer": customer, "day": day, "value": value})
    return orders.sort_values(["customer", "day"], ignore_index=True)


def _items(rng: np.random.Generator) -> pd.DataFrame:
    code = np.arange(len(_CATEGORIES) * _ITEMS_PER_CATEGORY)
    category = np.array(_CATEGORIES, dtype=object)[code // _ITEMS_PER_CATEGORY]
    colours = ("red", "blue", "green", "white", "paper", "glass", "wooden", "small")
    text = [
        f"{colours[i % 8]} {name.split(' / ')[1].lower()} article {i}" for i, name in zip(code, category, strict=True)
    ]
    price = np.round(rng.lognormal(1.5, 0.6, len(code)), 2)
    return pd.DataFrame({"item_id": [f"I{i:04d}" for i in code], "text": text, "category": category, "price": price})


def _lines(rng: np.random.Generator, truth: Truth, orders: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """Split each order into one to four lines; from shortly before a life change, most lines come from its category."""
    customer, day = orders["customer"].to_numpy(), orders["day"].to_numpy()
    count = 1 + rng.binomial(3, 0.4, len(orders))
    order = np.repeat(np.arange(len(orders)), count)
    part = rng.exponential(1.0, len(order))
    part /= np.bincount(order, part)[order]
    category = rng.integers(0, _FADING, len(order))
    turned = (day > truth.change[customer] - truth.notice_days)[order] & (rng.random(len(order)) < _TURN)
    towards = np.where(truth.factor[customer] < 1, _FADING, _GROWING)[order]
    category = np.where(turned, towards, category)
    return pd.DataFrame(
        {
            "customer": customer[order],
            "day": day[order],
            "event_type": "purchase",
            "order": order,
            "item": category * _ITEMS_PER_CATEGORY + rng.integers(0, _ITEMS_PER_CATEGORY, len(order)),
            "quantity": 1.0 + rng.poisson(0.5, len(order)),
            "amount": np.maximum(np.round(orders["value"].to_numpy()[order] * part, 2), 0.01),
        }
    )


def _views(rng: np.random.Generator, lines: pd.DataFrame, per_purchase: float, n: int, num_days: int) -> pd.DataFrame:
    """Views in the days before a purchase, some of them carts, and idle ones of visitors who buy nothing then."""
    times = rng.poisson(per_purchase, len(lines))
    seen = lines.loc[np.repeat(np.arange(len(lines)), times), ["customer", "day", "item"]].reset_index(drop=True)
    seen["day"] -= rng.exponential(2.0, len(seen))
    seen["event_type"] = np.where(rng.random(len(seen)) < 0.2, "cart", "view")
    idle = rng.poisson(1.0, n)
    owner = np.repeat(np.arange(n), idle)
    day = rng.uniform(0, num_days, len(owner))
    item = rng.integers(0, _FADING * _ITEMS_PER_CATEGORY, len(owner))
    views = pd.concat([seen, pd.DataFrame({"customer": owner, "day": day, "item": item, "event_type": "view"})])
    return views[views["day"] >= 0].assign(order=-1, quantity=1.0, amount=np.nan)


def _returns(rng: np.random.Generator, lines: pd.DataFrame, share: float, num_days: int) -> pd.DataFrame:
    """Single lines sent back about two weeks later."""
    back = lines[rng.random(len(lines)) < share].copy()
    back["day"] += 3 + rng.exponential(11.0, len(back))
    back["event_type"] = "return"
    back["amount"] = -back["amount"]
    return back[back["day"] < num_days]


def _events(table: pd.DataFrame, truth: Truth, start_us: int) -> pa.Table:
    """The table in EVENTS, ascending in time."""
    table = table.sort_values(["day", "customer", "event_type", "order", "item"], kind="stable", ignore_index=True)
    time = pa.array(start_us + np.floor(table["day"].to_numpy() * DAY_US).astype(np.int64)).cast(
        EVENTS.field("event_time").type
    )
    number = pa.array(np.arange(len(table))).cast(pa.string())
    order = table["order"].to_numpy()
    is_return = (table["event_type"] == "return").to_numpy()
    names = np.char.add(np.where(is_return, "R", "O"), order.astype(str))
    nothing = pa.nulls(len(table), pa.string())
    columns = {
        "event_id": pc.binary_join_element_wise("E", number, ""),
        "customer_id": pa.array(truth.customer_id[table["customer"].to_numpy()], pa.string()),
        "event_time": time,
        "known_at": time,
        "event_type": pa.array(table["event_type"].to_numpy(object), pa.string()),
        "order_id": pa.array(names.astype(object), pa.string(), mask=order < 0),
        "item_id": pa.array([f"I{i:04d}" for i in range(len(_CATEGORIES) * _ITEMS_PER_CATEGORY)]).take(
            pa.array(table["item"].to_numpy())
        ),
        "quantity": pa.array(table["quantity"].to_numpy(np.float64)),
        "amount": pa.array(table["amount"].to_numpy(np.float64), from_pandas=True),
        "amount_filled": pa.array(np.zeros(len(table), bool)),
        "text": nothing,
        "channel": nothing,
    }
    return pa.table(columns, schema=EVENTS)
