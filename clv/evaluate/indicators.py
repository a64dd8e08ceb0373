"""Predicted indicators held against what came: conversion of visitors, repurchase, frequency and order value."""

from __future__ import annotations

import numpy as np
import pandas as pd

GROUPS = 10
SURE = 2.6  # standard errors: an honest prediction lies outside once in a hundred groups
COLUMNS = ("indicator", "group", "customers", "predicted", "realised", "standard_error", "honest")

# What the model says, what came, and whom it is said of.
INDICATORS = {
    "conversion": ("p_purchase", "bought", "visitor"),
    "repurchase": ("p_purchase", "bought", "buyer"),
    "frequency": ("orders_mean", "orders_real", "buyer"),
    "aov": ("aov", "aov_real", "bought again"),
}


def calibration(table: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """Rows COLUMNS: every indicator of all customers it is said of, and of tenths of them by prediction, or of `by`.

    `table` has a row per customer at one horizon: `p_purchase, orders_mean, value_mean` of the scores, `orders_real,
    value_real` of the horizon, `visitor` (no order before the origin). An order value is judged over those who bought:
    the predicted one is their expected spend per expected order. `honest`: whether predicted and realised differ by
    no more than chance explains, the spread of customers within the group being what came.
    """
    visitor = table["visitor"].to_numpy(bool)
    bought = table["orders_real"].to_numpy() > 0
    full = table.assign(bought=bought.astype(float))
    who = {"visitor": visitor, "buyer": ~visitor, "bought again": ~visitor & bought}
    parts = []
    for name, (said, actual, group) in INDICATORS.items():
        some = full[who[group]]
        if not len(some):
            continue
        for key, rows in (("all", some), *_groups(some, said, by)):
            parts.append({"indicator": name, "group": key, **_judge(rows, name, said, actual)})
    found = pd.DataFrame(parts, columns=[c for c in COLUMNS if c != "honest"])
    gap = (found["predicted"] - found["realised"]).abs()
    return found.assign(honest=gap <= SURE * found["standard_error"])[list(COLUMNS)]


def error(table: pd.DataFrame) -> pd.Series[float]:
    """Per indicator, the mean gap between predicted and realised over the groups, ÷ the realised mean of all.

    NaN where that mean is zero, such as the conversion of visitors of whom none bought.
    """
    groups = table[table["group"] != "all"]
    whole = table[table["group"] == "all"].set_index("indicator")["realised"]
    weighted = (groups["predicted"] - groups["realised"]).abs() * groups["customers"]
    total = weighted.groupby(groups["indicator"]).sum() / groups.groupby("indicator")["customers"].sum()
    return total / whole.where(whole > 0)


def _groups(rows: pd.DataFrame, said: str, by: str | None) -> list[tuple[str, pd.DataFrame]]:
    if by is not None:
        return [(str(key), group) for key, group in rows.groupby(by)]
    values = _order_value(rows) if said == "aov" else rows[said]
    place = values.rank(method="first").to_numpy()
    tenth = np.minimum(((place - 1) * GROUPS // len(rows)).astype(int), GROUPS - 1)
    return [(f"tenth {number + 1}", group) for number, group in rows.groupby(tenth)]


def _order_value(rows: pd.DataFrame) -> pd.Series[float]:
    """Predicted order value, currency; 0 where no order is expected."""
    return (rows["value_mean"] / rows["orders_mean"].where(rows["orders_mean"] > 0)).fillna(0.0)


def _judge(rows: pd.DataFrame, name: str, said: str, actual: str) -> dict[str, float]:
    count = len(rows)
    if name != "aov":
        real = rows[actual].to_numpy(float)
        # A chance can be known exactly; that of a count is taken from the customers of the group.
        p = rows[said].to_numpy(float)
        spread = (p * (1 - p)).mean() if actual == "bought" else real.var()
        error = np.sqrt(spread / count)
        return {"customers": count, "predicted": float(p.mean()), "realised": real.mean(), "standard_error": error}
    orders, value = rows["orders_real"].to_numpy(float), rows["value_real"].to_numpy(float)
    realised = value.sum() / orders.sum()
    expected = rows["orders_mean"].sum()
    predicted = rows["value_mean"].sum() / expected if expected > 0 else np.nan
    residual = value - realised * orders  # of a ratio of sums (delta method)
    error = np.sqrt(residual.var() / count) / orders.mean()
    return {"customers": count, "predicted": float(predicted), "realised": float(realised), "standard_error": error}
