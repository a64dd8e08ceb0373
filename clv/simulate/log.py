"""Draw the event table of a block of customers, with the coupons that were sent to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from clv.data.clock import DAY_US
from clv.data.events import EVENTS, US
from clv.simulate import activity, customers
from clv.simulate.catalogue import Catalogue
from clv.simulate.settings import ShopSettings
from clv.simulate.truth import Truth

BLOCK_CUSTOMERS = 20_000
CHANNELS = ("app", "web")


@dataclass(frozen=True)
class Simulation:
    """A shop, or a block of its customers.

    `events` in the schema EVENTS, ascending in time; `items` (item_id, text, category, price); `customers`
    (customer_id, channel); `treatments` in the schema COUPONS.
    """

    events: pa.Table
    items: pd.DataFrame
    customers: pd.DataFrame
    treatments: pa.Table
    truth: Truth


COUPONS = pa.schema(
    [
        ("customer_id", pa.string()),
        ("sent_at", US),
        ("propensity", pa.float64()),
        ("treated", pa.bool_()),
        ("effect", pa.float64()),
    ]
)


def num_blocks(shop: ShopSettings) -> int:
    """Returns the number of blocks of BLOCK_CUSTOMERS customers."""
    return -(-shop.num_customers // BLOCK_CUSTOMERS)


def catalogue(shop: ShopSettings) -> Catalogue:
    """Draws the items, which all blocks share."""
    return Catalogue.draw(np.random.default_rng([shop.seed, 0]), shop.num_items, shop.zipf)


def draw_block(shop: ShopSettings, number: int, items: Catalogue) -> Simulation:
    """Draws block `number`, whose customers and events do not depend on which other blocks were drawn before."""
    first = number * BLOCK_CUSTOMERS
    count = min(BLOCK_CUSTOMERS, shop.num_customers - first)
    return draw(np.random.default_rng([shop.seed, 1, number]), shop, count, items, first, f"E{number}-", f"{number}-")


def draw(
    rng: np.random.Generator,
    shop: ShopSettings,
    count: int,
    items: Catalogue | None = None,
    first_number: int = 0,
    event_prefix: str = "E",
    order_prefix: str = "",
) -> Simulation:
    """Draws `count` customers with their events; without `items` also a catalogue."""
    truth = customers.draw(rng, shop, count, first_number)
    orders = customers.orders(rng, shop, truth)
    coupons = activity.treatments(rng, shop, truth)
    if len(coupons):
        orders = pd.concat([orders, _coupon_orders(rng, shop, truth, coupons)], ignore_index=True)
    items = items or Catalogue.draw(rng, shop.num_items, shop.zipf)
    bought = activity.order_lines(rng, shop, truth, orders, items)
    parts = [bought]
    if shop.sessions > 0:
        parts.append(activity.sessions(rng, shop, truth, bought, items))
    elif shop.views_per_purchase > 0:
        parts.append(activity.views_before_purchases(rng, shop, bought, count, items))
    if shop.return_share > 0:
        parts.append(activity.returns(rng, shop, bought))
    if shop.review_share > 0:
        parts.append(activity.ratings(rng, shop, truth, bought))
    if shop.ads_per_month > 0:
        parts.append(activity.advertisements(rng, shop, truth, items))
    if len(coupons):
        sent = coupons[coupons["treated"].to_numpy(bool)]
        who, day, text = (
            sent["customer"].to_numpy(),
            sent["day"].to_numpy(),
            np.full(len(sent), len(activity.TEXTS) - 1),
        )
        parts.append(activity.rows(who, day, activity.kind_code("message"), text=text))
    channel = rng.choice(["search", "shop", "friend"], count)
    if shop.coupons:
        channel = np.array(customers.SEGMENTS)[truth.segment]
    events = _events(rng, pd.concat(parts, ignore_index=True), shop, truth, items, event_prefix, order_prefix)
    table = pd.DataFrame({"customer_id": truth.customer_id, "channel": channel})
    return Simulation(events, items.table, table, _coupons(coupons, shop, truth), truth)


def _coupon_orders(rng: np.random.Generator, shop: ShopSettings, truth: Truth, coupons: pd.DataFrame) -> pd.DataFrame:
    """Orders that coupons caused, hours later; they change neither dropout nor the timing of other orders."""
    used = coupons[coupons["extra"].to_numpy(bool)]
    who, day = used["customer"].to_numpy(), used["day"].to_numpy() + rng.uniform(0.01, 0.49, len(used))
    value = truth.order_value[who] * rng.gamma(shop.spend[0], 1 / shop.spend[0], len(who))
    return pd.DataFrame({"customer": who, "day": day, "value": value})


def _coupons(table: pd.DataFrame, shop: ShopSettings, truth: Truth) -> pa.Table:
    if not len(table):
        return COUPONS.empty_table()
    columns = {name: table[name].to_numpy() for name in ("propensity", "treated", "effect")}
    ids = pa.array(truth.customer_id[table["customer"].to_numpy()], pa.string())
    return pa.table({"customer_id": ids, "sent_at": _instants(shop, table["day"]), **columns}, schema=COUPONS)


def _instants(shop: ShopSettings, day: pd.Series[float]) -> pa.Array:
    return pa.array(shop.start_us + np.floor(day.to_numpy() * DAY_US).astype(np.int64)).cast(US)


def _events(
    rng: np.random.Generator,
    table: pd.DataFrame,
    shop: ShopSettings,
    truth: Truth,
    items: Catalogue,
    event: str,
    order: str,
) -> pa.Table:
    keys = ("item", "order", "kind", "customer", "day")
    table = table.take(np.lexsort([table[name].to_numpy() for name in keys]))
    count, time = len(table), _instants(shop, table["day"])
    known = time
    if shop.late_share > 0:
        wait = np.where(rng.random(count) < shop.late_share, rng.exponential(1.5, count) * DAY_US, 0).astype(np.int64)
        known = pa.array(time.cast(pa.int64()).to_numpy() + wait).cast(US)
    channel = pa.nulls(count, pa.string())
    if shop.sessions > 0:
        app = rng.random(len(truth.first)) < 0.4
        channel = _strings_by_code(CHANNELS, np.where(app, 0, 1)[table["customer"].to_numpy()])
    kind, number = table["kind"].to_numpy(), table["order"].to_numpy()
    sign = pa.array(np.where(kind == activity.kind_code("return"), "R", "O"))
    named = pc.binary_join_element_wise(sign, order, pa.array(number).cast(pa.string()), "")
    columns = {
        "event_id": pc.binary_join_element_wise(event, pa.array(np.arange(count)).cast(pa.string()), ""),
        "customer_id": _strings_by_code(truth.customer_id, table["customer"].to_numpy()),
        "event_time": time,
        "known_at": known,
        "event_type": _strings_by_code(activity.KINDS, kind),
        "order_id": pc.if_else(pa.array(number >= 0), named, pa.scalar(None, pa.string())),
        "item_id": _strings_by_code(items.ids, table["item"].to_numpy()),
        "quantity": pa.array(table["quantity"].to_numpy(np.float64)),
        "amount": pa.array(table["amount"].to_numpy(np.float64), from_pandas=True),
        "amount_filled": pa.array(np.zeros(count, bool)),
        "text": _strings_by_code(activity.TEXTS, table["text"].to_numpy()),
        "channel": channel,
    }
    return pa.table(columns, schema=EVENTS)


def _strings_by_code(strings: object, codes: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.Array:
    """Returns the string of each code, null for -1."""
    return pa.array(strings, pa.string()).take(pa.array(codes, mask=codes < 0))
