"""Panel: actual outcomes and the predictions of all models at one origin and horizon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clv.forecast.distributions import Array, Prediction


@dataclass(frozen=True, kw_only=True)
class Visitors:
    """Customers known at the origin without a purchase before it; arrays (v,) over the same visitors.

    `predictions` holds our model and `conversion`, the rates of similar visitors in the past (`clv.btyd.conversion`).
    """

    y: Array
    orders: Array
    predictions: Mapping[str, Prediction]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Customers with a purchase before the origin; arrays (n,) over the same customers.

    `origin` is the text of a date, `y` the actual value (currency) and `orders` the actual orders in the horizon,
    `predictions` a Prediction per model or {"not_run": reason}, `cohort` the acquisition period, `cell` the age and
    frequency in words, `orders_past` the orders before the origin, `log_days` the days of data before it. The report
    leaves out the parts that are None.
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
        """The predictions of the models that ran."""
        return {name: p for name, p in self.predictions.items() if isinstance(p, Prediction)}

    def one_order(self) -> NDArray[np.bool_]:
        """(n,) whether the customer had exactly one order before the origin; all False where `orders_past` is None."""
        if self.orders_past is None:
            return np.zeros(len(self.y), bool)
        return np.asarray(self.orders_past, float) == 1
