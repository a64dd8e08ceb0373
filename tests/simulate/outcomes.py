"""What happened in a simulated shop after an origin, beside what was expected."""

from __future__ import annotations

import pandas as pd

from clv.simulate.log import Simulation

ORIGIN, HORIZON = "2024-06-01", 180


def purchases(shop: Simulation) -> pd.DataFrame:
    table = shop.events.to_pandas()
    table = table[table["event_type"] == "purchase"]
    table["day"] = (table["event_time"] - pd.Timestamp(ORIGIN, tz="UTC")).dt.total_seconds() / 86_400
    return table


def outcome(shop: Simulation, horizon: int = HORIZON) -> pd.DataFrame:
    """What happened in [ORIGIN, + horizon) beside what was expected, one row per customer known before."""
    bought = purchases(shop)
    inside = bought[(bought["day"] >= 0) & (bought["day"] < horizon)].groupby("customer_id")
    table = shop.truth.expected(ORIGIN, horizon).set_index("customer_id")
    table["orders_real"] = inside["order_id"].nunique().reindex(table.index).fillna(0)
    table["value_real"] = inside["amount"].sum().reindex(table.index).fillna(0)
    return table
