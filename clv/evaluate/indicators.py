"""Calibration of indicators, predicted against actual: conversion, repurchase, frequency and average order value."""

from __future__ import annotations

import numpy as np
import pandas as pd

GROUPS = 10
MAX_ERRORS = 2.6  # standard errors: chance alone exceeds them in one of a hundred groups
COLUMNS = ("indicator", "group", "customers", "predicted", "actual", "standard_error", "honest")

# Indicator: the predicted column, the actual column, and the customers it applies to.
INDICATORS = {
    "conversion": ("p_purchase", "bought", "visitor"),
    "repurchase": ("p_purchase", "bought", "buyer"),
    "frequency": ("orders_mean", "orders_real", "buyer"),
    "aov": ("aov", "aov_real", "bought again"),
}


def calibration_table(table: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """COLUMNS: every indicator for all its customers, and for tenths of them by prediction or for the groups of `by`.

    `table` has one row per customer at one horizon: `p_purchase, orders_mean, value_mean` of the scores, `orders_real,
    value_real` in the horizon, `visitor` (no order before the origin). The order value is computed over customers who
    bought; its prediction is expected spend over expected orders. `honest` is whether predicted and actual differ by no
    more than chance explains, given the variance within the group.
    """
    visitor = table["visitor"].to_numpy(bool)
    bought = table["orders_real"].to_numpy() > 0
    full = table.assign(bought=bought.astype(float))
    who = {"visitor": visitor, "buyer": ~visitor, "bought again": ~visitor & bought}
    parts = []
    for name, (predicted, actual, group) in INDICATORS.items():
        some = full[who[group]]
        if some.empty:
            continue
        for key, rows in (("all", some), *_groups(some, predicted, by)):
            parts.append({"indicator": name, "group": key, **_compare(rows, name, predicted, actual)})
    found = pd.DataFrame(parts, columns=COLUMNS)
    found["honest"] = (found["predicted"] - found["actual"]).abs() <= MAX_ERRORS * found["standard_error"]
    return found


def relative_error(table: pd.DataFrame) -> pd.Series[float]:
    """Per indicator, the mean |predicted - actual| over the groups, over the actual mean of all customers.

    NaN where that mean is zero, as the conversion of visitors of whom none bought.
    """
    groups = table[table["group"] != "all"]
    whole = table[table["group"] == "all"].set_index("indicator")["actual"]
    weighted = (groups["predicted"] - groups["actual"]).abs() * groups["customers"]
    total = weighted.groupby(groups["indicator"]).sum() / groups.groupby("indicator")["customers"].sum()
    return total / whole.where(whole > 0)


def _groups(rows: pd.DataFrame, predicted: str, by: str | None) -> list[tuple[str, pd.DataFrame]]:
    if by is not None:
        return [(str(key), group) for key, group in rows.groupby(by)]
    if predicted == "aov":  # 0 where no order is expected
        values = (rows["value_mean"] / rows["orders_mean"].where(rows["orders_mean"] > 0)).fillna(0.0)
    else:
        values = rows[predicted]
    rank = values.rank(method="first").to_numpy()
    tenth = np.minimum(((rank - 1) * GROUPS // len(rows)).astype(int), GROUPS - 1)
    return [(f"tenth {number + 1}", group) for number, group in rows.groupby(tenth)]


def _compare(rows: pd.DataFrame, name: str, predicted: str, actual: str) -> dict[str, float]:
    """Predicted and actual indicator of a group, and the standard error of their difference."""
    count = len(rows)
    if name != "aov":
        real = rows[actual].to_numpy(float)
        # The variance of a purchase follows from its probability; that of a count is estimated in the group.
        p = rows[predicted].to_numpy(float)
        spread = (p * (1 - p)).mean() if actual == "bought" else real.var()
        error = np.sqrt(spread / count)
        return {"customers": count, "predicted": float(p.mean()), "actual": real.mean(), "standard_error": error}
    orders, value = rows["orders_real"].to_numpy(float), rows["value_real"].to_numpy(float)
    actual_value = value.sum() / orders.sum()
    expected = rows["orders_mean"].sum()
    order_value = rows["value_mean"].sum() / expected if expected > 0 else np.nan
    residual = value - actual_value * orders  # of a ratio of sums (delta method)
    error = np.sqrt(residual.var() / count) / orders.mean()
    return {"customers": count, "predicted": float(order_value), "actual": float(actual_value), "standard_error": error}
