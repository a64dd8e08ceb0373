"""Indicators of a shop: conversion rate, repurchase rate, purchase frequency, average order value (AOV).

Conversion rate: sessions with a purchase per session. Repurchase rate: buyers with a second order, of all buyers.
Purchase frequency: orders per buyer and 30 days since the first order. AOV: value per order. All of them count events
before the origin.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from clv.data.cutoff import Cut
from clv.data.features import purchase_frame
from clv.data.sessions import STEPS, sessions

MONTH_DAYS = 30.0
VISITORS = "visitors"
SUMS = ("sessions", "sessions_viewed", "sessions_carted", "sessions_bought", "orders", "value", "days")


def customer_indicators(cut: Cut) -> pd.DataFrame:
    """Returns one row per row of `cut`, with NaN where a ratio has the denominator 0.

    Columns: customer_id; cohort (month of the first order, or "visitors"); SUMS, of which `days` counts from the first
    order; conversion_rate, repurchased, purchase_frequency, aov.
    """
    h, count = cut.histories, len(cut)
    row = np.repeat(np.arange(count), np.diff(cut.offsets))
    found = sessions(row, h.time[cut.index], h.type[cut.index])
    rfm = purchase_frame(cut)
    orders, days = rfm["orders_past"].to_numpy(np.int64), rfm["T"].to_numpy(np.int64)
    buyer, value = orders > 0, rfm["value_past"].to_numpy()
    months = (cut.origin_day - days).astype("datetime64[D]").astype("datetime64[M]")  # of the first orders
    table = pd.DataFrame(
        {
            "customer_id": rfm["customer_id"],
            "cohort": np.where(buyer, months.astype(str), VISITORS),
            "sessions": np.bincount(found.owner, minlength=count),
            **{f"sessions_{s}": np.bincount(found.owner[getattr(found, s)], minlength=count) for s in STEPS},
            "orders": orders,
            "value": value,
            "days": days,
        }
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        table["conversion_rate"] = table["sessions_bought"] / table["sessions"]
        table["repurchased"] = np.where(buyer, orders > 1, np.nan)
        table["purchase_frequency"] = np.where(buyer, orders / np.maximum(days, 1) * MONTH_DAYS, np.nan)
        table["aov"] = np.where(buyer, value / orders, np.nan)
    return table


def summary(table: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """Returns one row per group of `customer_indicators`, by the column `by`; without it, one row of all customers.

    Columns: customers, buyers, SUMS, buyer_share and the four indicators.
    """
    keys = table[by] if by else pd.Series(np.repeat("all customers", len(table)), table.index, name="group")
    groups = table.groupby(keys)
    out = groups[list(SUMS)].sum()
    out.insert(0, "customers", groups.size())
    out.insert(1, "buyers", (table["orders"] > 0).groupby(keys).sum())
    again = (table["orders"] > 1).groupby(keys).sum().astype(float)
    return out.assign(
        buyer_share=out["buyers"] / out["customers"],
        conversion_rate=_ratio(out["sessions_bought"], out["sessions"]),
        repurchase_rate=_ratio(again, out["buyers"]),
        purchase_frequency=_ratio(out["orders"] * MONTH_DAYS, out["days"]),
        aov=_ratio(out["value"], out["orders"]),
    )


def _ratio(over: pd.Series[float], under: pd.Series[float]) -> pd.Series[float]:
    return over / under.where(under > 0)
