"""Schemas of the score table and of the portfolio table, and the score table of an adjusted forecast."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from clv.forecast.adjustment import AdjustedForecast
from clv.forecast.distributions import INTERVAL_LEVELS, Array

SCORES = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("origin", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("horizon_days", pa.int32(), nullable=False),
        *((name, pa.float64()) for name in ("p_purchase", "churn_probability", "orders_mean", "aov", "value_mean")),
        *((name, pa.float64()) for name in ("value_median", "value_p10", "value_p90", "clv_mean", "btyd_value_mean")),
        ("extrapolated", pa.bool_()),
        ("value_rank", pa.int64()),
        ("value_decile", pa.int32()),
    ]
)

PORTFOLIO = pa.schema(
    [
        pa.field("horizon_days", pa.int32(), nullable=False),
        pa.field("customers", pa.int64(), nullable=False),
        *((name, pa.float64()) for name in ("value_mean", "value_p10", "value_median", "value_p90")),
    ]
)


def score_table(
    ids: pd.Series[str],
    origin: int,
    horizons: tuple[int, ...],
    adjusted: AdjustedForecast,
    clv: Array,
    extrapolated: NDArray[np.bool_],
) -> pa.Table:
    """SCORES: one row per customer and horizon, customers in the order of `ids`.

    `origin` is in us UTC, `adjusted` holds the forecast at `horizons` (days), `clv` (S,) the discounted lifetime
    value in shop currency, `extrapolated` (H,) marks horizons beyond the learned ones. Ranks and deciles are within the
    table, per horizon; rank 1 and decile 1 have the highest value.
    """
    f, num = adjusted.forecast, len(ids)
    p, orders, value = f.p_purchase, f.orders, f.value
    interval = adjusted.quantiles(INTERVAL_LEVELS)
    rank = 1 + np.argsort(np.argsort(-value, axis=0, kind="stable"), axis=0)
    columns: dict[str, Any] = {
        "customer_id": np.repeat(ids.to_numpy(object), len(horizons)),
        "origin": pa.array(np.full(num * len(horizons), origin), pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "horizon_days": np.tile(np.array(horizons, np.int32), num),
        "p_purchase": p.ravel(),
        "churn_probability": (1 - p).ravel(),
        "orders_mean": orders.ravel(),
        "aov": (value / orders).ravel(),
        "value_mean": value.ravel(),
        "value_median": interval[..., 1].ravel(),
        "value_p10": interval[..., 0].ravel(),
        "value_p90": interval[..., 2].ravel(),
        "clv_mean": np.repeat(clv, len(horizons)),
        "btyd_value_mean": adjusted.btyd.value.ravel(),
        "extrapolated": np.tile(extrapolated, num),
        "value_rank": rank.ravel(),
        "value_decile": (1 + (rank - 1) * 10 // max(num, 1)).astype(np.int32).ravel(),
    }
    return pa.table({f.name: pa.array(columns[f.name]).cast(f.type) for f in SCORES}, schema=SCORES)
