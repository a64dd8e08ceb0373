"""One origin and horizon of a judgement: what happened, and what every model had said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clv.forecast.distributions import Array, Prediction


@dataclass(frozen=True, kw_only=True)
class Visitors:
    """Customers known at the origin who had not bought before it, arrays (v,) over the same visitors.

    predictions: our model and `conversion`, the share of like visitors who bought in the past.
    """

    y: Array
    orders: Array
    predictions: Mapping[str, Prediction]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Everybody with a purchase before the origin, arrays (n,) over the same customers.

    `origin` is a date text, `predictions` a Prediction per model or {"not_run": reason}; `cohort` labels of the
    acquisition period, `cell` of age and frequency; `orders_past` orders before the origin; `log_days` the days of
    data before it. What is None is left out of the report.
    """

    origin: str
    horizon_days: int
    y: Array
    orders: Array
    predictions: Mapping[str, Prediction | Mapping[str, str]]
    cohort: Any = None
    cell: Any = None
    orders_past: Array | None = None
    log_days: int | None = None
    visitors: Visitors | None = None

    def models(self) -> dict[str, Prediction]:
        """The models that ran."""
        return {name: p for name, p in self.predictions.items() if isinstance(p, Prediction)}

    def once(self) -> NDArray[np.bool_]:
        """(n,) whether the customer had one order before the origin; nobody where that is unknown."""
        if self.orders_past is None:
            return np.zeros(len(self.y), bool)
        return np.asarray(self.orders_past, float) == 1
