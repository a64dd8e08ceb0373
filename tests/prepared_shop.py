"""A simulated shop, prepared into shards on disk without Ray."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clv.cluster import preparing, work_units
from clv.data.spec.models import DatasetSpec
from clv.simulate.small import simulate

SPEC = """
name: simulated
timezone: {timezone}
currency: EUR
events:
  path: {folder}/events.parquet
  columns: {{customer_id: customer_id, event_time: event_time, order_id: order_id, item_id: item_id, amount: amount}}
  event_type: {{column: event_type, map: {{purchase: purchase, view: view, cart: cart}}}}
horizons_days: [30, 90]
"""


def prepared_shop(folder: Path, partitions: int, *shop: Any, seed: int, timezone: str = "UTC") -> Path:
    """Histories of the shop that `simulate(*shop)` makes, in `folder`."""
    pq.write_table(simulate(*shop, seed=seed, timezone=timezone).events, folder / "events.parquet")
    spec, out = DatasetSpec.parse(SPEC.format(folder=folder, timezone=timezone), "simulated"), folder / "histories"
    preparing.prepare(spec, "simulated", out, run=work_units.run_here, partitions=partitions)
    return out
