"""quality.html: data quality of a prepared log on one page, with row accounting, charts by month and indicators."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from clv.data.events import TYPES
from clv.data.prepare.profile import Stats, top_share
from clv.data.spec.models import DatasetSpec

TEMPLATE = Path(__file__).with_name("quality.html.j2")


def page(spec: DatasetSpec, manifest: dict[str, Any], stats: Stats) -> str:
    """Returns the page as HTML that needs no other file and no network."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = format
    best_tenth = top_share(stats, 0.1)
    months = [("Active customers per month", stats["active_by_month"]), ("Orders per month", stats["orders_by_month"])]
    if spec.value != "none":
        months.append((f"Purchases per month, {spec.currency}", stats["amount_by_month"]))
    months.append(("Customers first seen in the month", stats["first_seen_by_month"]))
    names = {str(code): name for name, code in TYPES.items()}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        spec=spec,
        manifest=manifest,
        stats=stats,
        best_tenth=None if math.isnan(best_tenth) else best_tenth,
        months=months,
        by_orders={orders: count for orders, count in stats["customers_by_orders"].items() if count},
        kinds={names.get(code, f"free type {code}"): count for code, count in stats["tokens_by_type"].items()},
    )
