"""Conversion rates of visitors, by recency and number of their events.

Visitors are customers with events but without a purchase: the BTYD models have no purchases to extrapolate for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RECENCY_EDGES = (1.5, 3.5, 7.5, 30.5, 90.5)  # days since the last event
EVENTS_EDGES = (1.5, 4.5, 19.5)
PRIOR_VISITORS = 50.0  # weight, in visitors, of the mean of all cells in the rate of a cell


@dataclass(frozen=True)
class Conversion:
    """Hazard of a first purchase, orders and value (currency) per visitor, by recency x events and horizon (C, H)."""

    horizons: tuple[int, ...]
    hazard: Floats
    orders: Floats
    value: Floats

    @classmethod
    def fit(cls, table: pd.DataFrame, horizons: Sequence[int]) -> Self:
        """Fit on rows of sample frames without a purchase, of any origins; a row counts at its observed horizons."""
        horizons = tuple(horizons)
        shape = ((len(RECENCY_EDGES) + 1) * (len(EVENTS_EDGES) + 1), len(horizons))
        hazard, orders, value = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        cells = _cell(table) if len(table) else np.zeros(0, np.int64)
        for i, days in enumerate(horizons):
            is_observed = table[f"observed_{days}"].to_numpy(bool) if len(table) else np.zeros(0, bool)
            if not is_observed.any():
                continue
            count = np.bincount(cells[is_observed], minlength=shape[0])
            outcome = {
                "p": (table[f"orders_{days}"].to_numpy()[is_observed] > 0).astype(float),
                "orders": table[f"orders_{days}"].to_numpy()[is_observed],
                "value": table[f"value_{days}"].to_numpy()[is_observed],
            }
            rates = {}
            for name, values in outcome.items():
                total = np.bincount(cells[is_observed], weights=values, minlength=shape[0])
                rates[name] = (total + PRIOR_VISITORS * values.mean()) / (count + PRIOR_VISITORS)
            hazard[:, i] = -np.log1p(-np.clip(rates["p"], 0, 1 - 1e-9))
            orders[:, i], value[:, i] = rates["orders"], rates["value"]
        return cls(horizons, *(_fill_unobserved(a, horizons) for a in (hazard, orders, value)))

    def curves(self, table: pd.DataFrame, horizons: Sequence[int]) -> tuple[Floats, Floats, Floats]:
        """(hazard, orders, value), (S, H) each: linear between fitted horizons, in proportion beyond the last."""
        cells = _cell(table)
        known = np.array((0, *self.horizons), float)
        out = []
        for rates in (self.hazard, self.orders, self.value):
            padded = np.concatenate([np.zeros((len(rates), 1)), rates], axis=1)
            columns = []
            for days in horizons:
                right = int(np.clip(np.searchsorted(known, days), 1, len(known) - 1))
                share = (days - known[right - 1]) / (known[right] - known[right - 1])
                beyond = days > known[-1]
                line = padded[:, right - 1] + share * (padded[:, right] - padded[:, right - 1])
                columns.append(padded[:, -1] * days / known[-1] if beyond else line)
            out.append(np.stack(columns, axis=1)[cells])
        return out[0], out[1], out[2]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        arrays = {name: getattr(self, name).tolist() for name in ("hazard", "orders", "value")}
        return {"horizons": list(self.horizons)} | arrays

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(tuple(plain["horizons"]), *(np.array(plain[name]) for name in ("hazard", "orders", "value")))


def _cell(table: pd.DataFrame) -> NDArray[np.int64]:
    """(S,) index of the recency x events cell of each row."""
    recency = np.searchsorted(RECENCY_EDGES, table["f_event_recency"].to_numpy())
    events = np.searchsorted(EVENTS_EDGES, table["f_events"].to_numpy())
    return np.asarray(recency * (len(EVENTS_EDGES) + 1) + events)


def _fill_unobserved(rates: Floats, horizons: tuple[int, ...]) -> Floats:
    """Rates of a horizon that no origin observed: those of the last observed one, in proportion to the days."""
    out = rates.copy()
    for i in range(1, len(horizons)):
        if not out[:, i].any():
            out[:, i] = out[:, i - 1] * horizons[i] / horizons[i - 1]
    return out
