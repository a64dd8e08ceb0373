"""Simulated activity around orders: baskets, browsing sessions, returns, ratings, advertisements and coupons.

Every function returns rows with the columns ROWS; `kind` is an index into KINDS, days are floats since the start.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from clv.simulate.catalogue import FADING, GROWING, PLAIN, Catalogue
from clv.simulate.customers import calendar, leaving_time
from clv.simulate.settings import ShopSettings
from clv.simulate.truth import Floats, Ints, Truth

KINDS = ("cart", "click", "impression", "message", "purchase", "rating", "return", "review", "view")
ROWS = ("customer", "day", "kind", "order", "item", "quantity", "amount", "text")
TEXTS = ("arrived broken and late", "not what I hoped for", "does what it should", "lovely, will buy again", "a coupon")
_TURN = 0.8  # share of order lines from the category of a life change, once it is announced
_MINUTE = 1 / 1440
_STROLL = 0.03  # sessions of a customer who has left, relative to before
_VISIT_DAYS = 6.0  # mean days between sessions of a visitor who has not bought yet


def kind_code(kind: str) -> int:
    """Returns the index of an event type in KINDS."""
    return KINDS.index(kind)


def rows(customer: Ints, day: Floats, kind: Ints | int, **columns: Ints | Floats) -> pd.DataFrame:
    """Builds rows with the columns ROWS; by default ids are missing (-1), the amount is NaN and the quantity 1."""
    count = len(customer)
    defaults = {"order": np.full(count, -1), "item": np.full(count, -1), "quantity": np.ones(count)}
    defaults |= {"amount": np.full(count, np.nan), "text": np.full(count, -1)}
    given = {"customer": customer, "day": day, "kind": np.broadcast_to(np.asarray(kind, np.int8), count)}
    table = pd.DataFrame(given | defaults | columns)
    return table[list(ROWS)]


def order_lines(
    rng: np.random.Generator, shop: ShopSettings, truth: Truth, orders: pd.DataFrame, catalogue: Catalogue
) -> pd.DataFrame:
    """Splits each order into one to four lines; from shortly before a life change on, most are of its category."""
    customer, day = orders["customer"].to_numpy(), orders["day"].to_numpy()
    count = 1 + rng.binomial(3, 0.4, len(orders))
    order = np.repeat(np.arange(len(orders)), count)
    part = rng.exponential(1.0, len(order))
    part /= np.bincount(order, part)[order]
    category = rng.integers(0, FADING, len(order))
    if shop.tastes > 0:
        category = np.where(rng.random(len(order)) < 2 / 3, truth.favourite[customer[order]], category)
    turned = (day > truth.change[customer] - truth.notice_days)[order] & (rng.random(len(order)) < _TURN)
    towards = np.where(truth.factor[customer] < 1, FADING, GROWING)[order]
    category = np.where(turned, towards, category)
    return rows(
        customer[order],
        day[order],
        kind_code("purchase"),
        order=order,
        item=catalogue.pick(rng, category),
        quantity=np.asarray(1.0 + rng.poisson(0.5, len(order)), np.float64),
        amount=np.maximum(np.round(orders["value"].to_numpy()[order] * part, 2), 0.01),
    )


def views_before_purchases(
    rng: np.random.Generator, shop: ShopSettings, bought: pd.DataFrame, num_customers: int, catalogue: Catalogue
) -> pd.DataFrame:
    """Views and carts of items in the days before their purchase, and views that precede no purchase."""
    times = rng.poisson(shop.views_per_purchase, len(bought))
    seen = bought.loc[np.repeat(np.arange(len(bought)), times), ["customer", "day", "item"]].reset_index(drop=True)
    day = seen["day"].to_numpy() - rng.exponential(2.0, len(seen))
    kind = np.where(rng.random(len(seen)) < 0.2, kind_code("cart"), kind_code("view"))
    idle = rng.poisson(1.0, num_customers)
    owner = np.repeat(np.arange(num_customers), idle)
    idle_day = rng.uniform(0, shop.num_days, len(owner))
    item = rng.integers(0, PLAIN * catalogue.per_category, len(owner))
    found = pd.concat(
        [rows(seen["customer"].to_numpy(), day, kind, item=seen["item"].to_numpy()),
         rows(owner, idle_day, kind_code("view"), item=item)]
    )  # fmt: skip
    return found[found["day"] >= 0]


def sessions(
    rng: np.random.Generator, shop: ShopSettings, truth: Truth, bought: pd.DataFrame, catalogue: Catalogue
) -> pd.DataFrame:
    """Browsing sessions of views and carts, at a rate that follows each customer's rate of purchases.

    Each order ends a session in which its items were viewed and put into the cart; every seventh other session ends
    with an item in the cart. Customers who have left have few sessions; visitors have them until they buy or lose
    interest.
    """
    n, end = len(truth.first), float(shop.num_days)
    until = truth.operational(end)
    stayed = np.minimum(leaving_time(truth), until)
    mean = shop.sessions * (stayed + _STROLL * (until - stayed))
    count = rng.poisson(mean)
    owner = np.repeat(np.arange(n), count)
    within = rng.random(len(owner)) * mean[owner] / shop.sessions
    beyond = np.maximum(within - stayed[owner], 0) / _STROLL
    day = calendar(truth, owner, np.minimum(within, stayed[owner]) + beyond)
    looking = np.maximum(np.minimum(np.minimum(truth.first, truth.lost), end) - truth.arrival, 0)
    visits = np.where(looking > 0, rng.poisson(looking / _VISIT_DAYS) + 1, 0)
    visitor = np.repeat(np.arange(n), visits)
    visit = truth.arrival[visitor] + rng.random(len(visitor)) * looking[visitor]
    visit[np.append(0, np.cumsum(visits))[:-1][visits > 0]] = truth.arrival[visits > 0]
    owner, day = np.concatenate([owner, visitor]), np.concatenate([day, visit])

    seen = 1 + rng.poisson(2.0, len(owner))
    who = np.repeat(owner, seen)
    step = np.arange(len(who)) - np.repeat(np.cumsum(seen) - seen, seen)
    when = np.repeat(day, seen) + (step + rng.random(len(who))) * _MINUTE
    item = catalogue.by_taste(rng, truth.favourite[who])
    kept = np.flatnonzero((step == np.repeat(seen, seen) - 1) & (rng.random(len(who)) < 1 / 7))
    parts = [
        rows(who, when, kind_code("view"), item=item),
        rows(who[kept], when[kept] + _MINUTE / 2, kind_code("cart"), item=item[kept]),
    ]
    buyer, line_day, line_item = (bought[name].to_numpy() for name in ("customer", "day", "item"))
    before = (2 + 8 * rng.random(len(bought))) * _MINUTE
    parts += [
        rows(buyer, line_day - before, kind_code("view"), item=line_item),
        rows(buyer, line_day - before / 2, kind_code("cart"), item=line_item),
    ]
    found = pd.concat(parts)
    return found[(found["day"] >= 0) & (found["day"] < end)]


def returns(rng: np.random.Generator, shop: ShopSettings, bought: pd.DataFrame) -> pd.DataFrame:
    """Single order lines that are sent back about two weeks later."""
    back = bought[rng.random(len(bought)) < shop.return_share].copy()
    back["day"] += 3 + rng.exponential(11.0, len(back))
    back["kind"] = np.int8(kind_code("return"))
    back["amount"] = -back["amount"]
    return back[back["day"] < shop.num_days]


def ratings(rng: np.random.Generator, shop: ShopSettings, truth: Truth, bought: pd.DataFrame) -> pd.DataFrame:
    """Ratings days after a purchase; the stars (quantity) are fewer where customers leave easily; some with text."""
    rated = bought[rng.random(len(bought)) < shop.review_share]
    who = rated["customer"].to_numpy()
    content = 1.2 - 3 * truth.leave[who] + rng.normal(0, 0.8, len(who))
    stars = np.clip(np.round(3 + content), 1, 5)
    day, item = rated["day"].to_numpy() + 1 + rng.exponential(9.0, len(rated)), rated["item"].to_numpy()
    words = rng.random(len(rated)) < 1 / 3
    text = np.minimum(np.searchsorted([2, 3, 4], stars[words], side="right"), 3)
    found = pd.concat(
        [rows(who, day, kind_code("rating"), item=item, quantity=stars),
         rows(who[words], day[words] + _MINUTE, kind_code("review"), item=item[words], text=text)]
    )  # fmt: skip
    return found[found["day"] < shop.num_days]


def advertisements(rng: np.random.Generator, shop: ShopSettings, truth: Truth, catalogue: Catalogue) -> pd.DataFrame:
    """Impressions at random times after the arrival; clicks mostly by customers who have not left."""
    span = shop.num_days - truth.arrival
    count = rng.poisson(shop.ads_per_month * span / 30)
    who = np.repeat(np.arange(len(span)), count)
    day = truth.arrival[who] + rng.random(len(who)) * span[who]
    item = catalogue.by_taste(rng, truth.favourite[who])
    here = is_active(truth, who, day)
    clicks = rng.random(len(who)) < np.where(here, 0.08, 0.01)
    return pd.concat(
        [rows(who, day, kind_code("impression"), item=item),
         rows(who[clicks], day[clicks] + _MINUTE / 6, kind_code("click"), item=item[clicks])]
    )  # fmt: skip


def treatments(rng: np.random.Generator, shop: ShopSettings, truth: Truth) -> pd.DataFrame:
    """Returns the customers of each campaign, who have all bought before, one row each.

    Columns: day, propensity, treated, effect (expected number of extra orders that a coupon causes; 0 for customers who
    have left), extra (whether it caused one).
    """
    found = []
    for day in truth.campaigns:
        who = np.flatnonzero(truth.first < day)
        treated = rng.random(len(who)) < truth.propensity[who]
        effect = np.where(is_active(truth, who, np.full(len(who), day)), truth.uplift[who], 0.0)
        extra = treated & (rng.random(len(who)) < effect)
        columns = {"customer": who, "day": day, "propensity": truth.propensity[who]}
        found.append(pd.DataFrame(columns | {"treated": treated, "effect": effect, "extra": extra}))
    names = ["customer", "day", "propensity", "treated", "effect", "extra"]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=names)


def is_active(truth: Truth, who: Ints, day: Floats) -> Ints:
    """Whether customer who[i] is active at day[i]: visitors until they lose interest, buyers until they leave."""
    spent = np.zeros(len(who))
    for part in np.array_split(np.arange(len(who)), max(1, len(who) // 200_000)):
        spent[part] = truth.operational(day[part], who[part])
    buyer = truth.first[who] <= day
    return np.where(buyer, spent < leaving_time(truth)[who], day < truth.lost[who])
