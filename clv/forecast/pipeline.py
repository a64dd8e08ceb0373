"""The one path from customers' histories to their adjusted forecast, shared by back-tests and the predictor."""

from __future__ import annotations

from torch import nn

from clv.data.histories import Histories
from clv.forecast.adjustment import AdjustedForecast, Adjustment, adjust
from clv.forecast.network import forecast_samples
from clv.models.inputs.assemble import AssembledRows, Assembler


def forecast_customers(
    model: nn.Module,
    assembler: Assembler,
    adjustment: Adjustment,
    histories: Histories,
    origin: int,
    device: str = "cpu",
) -> tuple[AssembledRows, AdjustedForecast] | None:
    """Rows of all customers with an event before the origin (us), and their adjusted forecast at the learned horizons.

    None where there is no such customer.
    """
    if len(histories) == 0:
        return None
    rows = assembler.assemble(histories, origin)
    if len(rows.table) == 0:
        return None
    raw = forecast_samples(model, rows.samples, assembler.value_scale, device=device)
    return rows, adjust(raw, rows, adjustment)
