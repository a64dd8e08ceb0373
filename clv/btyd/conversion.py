"""Conversion rates of visitors, by recency and number of their events.

Visitors are customers with events but without a purchase: the BTYD models have no purchases to extrapolate for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.btyd.likelihood import Floats

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
        num_cells = (len(RECENCY_EDGES) + 1) * (len(EVENTS_EDGES) + 1)
        rates = np.zeros((3, num_cells, len(horizons)))
        for i, days in enumerate(horizons):
            rows = table[table[f"observed_{days}"].to_numpy(bool)]
            if rows.empty:
                continue
            cells, orders = _cell(rows), rows[f"orders_{days}"].to_numpy()
            count = np.bincount(cells, minlength=num_cells)
            for rate, values in zip(rates, (orders > 0, orders, rows[f"value_{days}"].to_numpy()), strict=True):
                total = np.bincount(cells, weights=values, minlength=num_cells)
                rate[:, i] = (total + PRIOR_VISITORS * values.mean()) / (count + PRIOR_VISITORS)
            rates[0, :, i] = -np.log1p(-np.clip(rates[0, :, i], 0, 1 - 1e-9))
        # A horizon that no origin observed has the rates of the one before, in proportion to the days.
        for i, rate in product(range(1, len(horizons)), rates):
            if not rate[:, i].any():
                rate[:, i] = rate[:, i - 1] * horizons[i] / horizons[i - 1]
        return cls(horizons, *rates)

    def curves(self, table: pd.DataFrame, horizons: Sequence[int]) -> tuple[Floats, Floats, Floats]:
        """(hazard, orders, value), (S, H) each: linear between fitted horizons, in proportion beyond the last."""
        cells, days = _cell(table), np.asarray(horizons)
        known = np.array((0, *self.horizons), float)
        right = np.clip(np.searchsorted(known, days), 1, len(known) - 1)
        share = (days - known[right - 1]) / (known[right] - known[right - 1])

        def read(rates: Floats) -> Floats:
            padded = np.pad(rates, ((0, 0), (1, 0)))
            line = padded[:, right - 1] + share * (padded[:, right] - padded[:, right - 1])
            return np.where(days > known[-1], padded[:, -1:] * days / known[-1], line)[cells]

        return read(self.hazard), read(self.orders), read(self.value)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {name: np.asarray(value).tolist() for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(tuple(plain["horizons"]), *(np.array(plain[name]) for name in ("hazard", "orders", "value")))


def _cell(table: pd.DataFrame) -> NDArray[np.int64]:
    """(S,) index of the recency x events cell of each row."""
    recency = np.searchsorted(RECENCY_EDGES, table["f_event_recency"].to_numpy())
    events = np.searchsorted(EVENTS_EDGES, table["f_events"].to_numpy())
    return np.asarray(recency * (len(EVENTS_EDGES) + 1) + events)
