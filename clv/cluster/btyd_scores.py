"""Scores of the BTYD model alone, without the network and without intervals: a cheap first pass over large datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clv import bundle as bundles
from clv.btyd.seasonal_btyd import SeasonalBTYD, apply_factor
from clv.data import features
from clv.data.clock import Clock
from clv.data.cutoff import cut
from clv.data.events import US
from clv.data.histories import TOKEN_FIELDS, Histories
from clv.forecast.horizons import tail_years
from clv.forecast.scores import SCORES

# The columns of a history that the BTYD model uses; no others are read.
COLUMNS = ("customer_id", "time", "known_at", "day", "type", "amount")


class BTYDPredictor:
    """`Predictor.predict` without the network: quantiles are null and value_mean equals btyd_value_mean."""

    def __init__(self, bundle: Path | str) -> None:
        b = bundles.load(bundle)
        facts = b.config["dataset_facts"]
        self.horizons = tuple(int(h) for h in facts["horizons"])
        self._value, self._discount = facts["value"], float(facts["discount_rate_annual"])
        self._clock = Clock(facts["timezone"])
        self._btyd = SeasonalBTYD.from_json(b.btyd)

    def predict(self, histories: pa.Table, origin: int, horizons: tuple[int, ...] | None = None) -> pa.Table:
        """Scores of all customers in `histories` (COLUMNS suffice) known at `origin` (us), by customer and horizon."""
        wanted = tuple(sorted(set(horizons or self.horizons)))
        past = cut(_with_empty_columns(histories), origin, wanted, self._clock, value=self._value)
        if len(past) == 0:
            return SCORES.empty_table()
        table = features.purchase_frame(past)
        day = int(self._clock.local_day(np.array([origin]))[0])
        last = self.horizons[-1]
        tail = tuple(last + 365 * year for year in range(1, tail_years(self._btyd) + 1))
        ends = tuple(sorted({*wanted, *self.horizons, *tail}))
        orders_factor, value_factor, _ = self._btyd.forecast_factor(day, ends)
        curves = apply_factor(self._btyd.curves(table, ends), orders_factor, value_factor)
        life = [ends.index(days) for days in (*self.horizons, *tail)]
        until = np.array(ends, float)[life]
        middle = (np.append(0.0, until[:-1]) + until) / 2
        factor = (1 + self._discount) ** (-middle / 365.0)
        clv = np.diff(curves.value[:, life], axis=1, prepend=0.0) @ factor
        columns_wanted = [ends.index(days) for days in wanted]
        p, orders, value = (getattr(curves, name)[:, columns_wanted] for name in ("p_purchase", "orders", "value"))
        count = len(table)
        ids = pa.array(table["customer_id"], pa.string()).take(pa.array(np.repeat(np.arange(count), len(wanted))))
        columns: dict[str, Any] = {
            "customer_id": ids,
            "origin": pa.array(np.full(len(ids), origin), pa.int64()).cast(SCORES.field("origin").type),
            "horizon_days": np.tile(np.array(wanted, np.int32), count),
            "p_purchase": p.ravel(),
            "churn_probability": 1 - p.ravel(),
            "orders_mean": orders.ravel(),
            "aov": (value / orders).ravel(),
            "value_mean": value.ravel(),
            "clv_mean": np.repeat(clv, len(wanted)),
            "btyd_value_mean": value.ravel(),
            "extrapolated": np.tile(np.array(wanted) > last, count),
        }
        nothing = pa.nulls(len(ids))
        arrays = [pa.array(columns.get(f.name, nothing)).cast(f.type) for f in SCORES]
        return pa.table(arrays, schema=SCORES)


def _with_empty_columns(table: pa.Table) -> Histories:
    """Histories whose other columns are empty."""
    columns = {name: table[name].combine_chunks() for name in COLUMNS}
    offsets = columns["time"].offsets  # combine_chunks makes them begin at 0
    count = len(columns["time"].flatten())
    for name, kind in TOKEN_FIELDS.items():
        if name not in columns:
            columns[name] = pa.ListArray.from_arrays(offsets, pa.nulls(count, kind).fill_null(0))
    empty = pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], pa.int64()))
    columns["items"] = pa.ListArray.from_arrays(offsets, empty)
    edges = pa.nulls(len(table), US)
    return Histories.from_table(pa.table(columns | {"first_time": edges, "last_time": edges}))
