"""Write a simulated shop as files: the log with its spec, and beside it truth, treatments and planted defects."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clv.data.events import US
from clv.data.hashing import file_sha256
from clv.data.spec.models import DatasetSpec
from clv.data.workdir import atomic_write, write_json, write_text
from clv.simulate import activity, defects, log, texts
from clv.simulate.settings import ShopSettings

LOG = logging.getLogger(__name__)

TRUTH = pa.schema(
    [
        ("customer_id", pa.string()),
        ("origin", US),
        ("horizon_days", pa.int32()),
        ("orders", pa.float64()),
        ("value", pa.float64()),
    ]
)


@dataclass(frozen=True)
class SimulationPlan:
    """What to write: a shop, its truth at `origins` (local dates) over `horizons_days`, the number of rows with each
    kind of defect per block, and the format of the events."""

    shop: ShopSettings
    origins: tuple[str, ...]
    horizons_days: tuple[int, ...]
    defects: int = 0
    form: Literal["parquet", "csv", "jsonl"] = "parquet"

    def check(self) -> None:
        """Raises ValueError for an origin and horizon outside the log."""
        for origin in self.origins:
            day = self.shop.day_of(self.shop.clock.parse(origin))
            if day <= 0 or day + max(self.horizons_days) > self.shop.num_days:
                raise ValueError(
                    f"the truth at {origin} over {max(self.horizons_days)} days leaves the log from {self.shop.start} "
                    f"to {self.shop.end}; choose another --origins or shorter --horizons-days"
                )


def write_block(plan: SimulationPlan, folder: Path, number: int) -> dict[str, Any]:
    """Writes the files of a block of customers; returns the counts of rows by type and of planted rows by reason."""
    shop = plan.shop
    block = log.draw_block(shop, number, log.catalogue(shop))
    by_type = {entry["values"]: entry["counts"] for entry in block.events["event_type"].value_counts().to_pylist()}
    good = block.events.drop_columns("amount_filled").cast(_nullable(block.events.schema))
    rng = np.random.default_rng([shop.seed, 2, number])
    events, planted = defects.plant(rng, shop, good, plan.defects)
    truth = pa.concat_tables([TRUTH.empty_table(), *_truth(block, plan)])
    tables = {"customers": pa.Table.from_pandas(block.customers, preserve_index=False)}
    tables |= {"truth": truth, "treatments": block.treatments}
    rows = len(events)
    if plan.form == "parquet":
        tables["events"] = events
    else:
        bought = good.filter(pc.equal(good["event_type"], "purchase"))
        content, broken = texts.render(rng, events, bought, plan.form, plan.defects)
        planted.update(broken)
        rows += broken.total()
        with atomic_write(folder / "events" / f"part-{number:05d}.{plan.form}") as staged:
            staged.write_bytes(content)
    for name, table in tables.items():
        with atomic_write(folder / name / f"part-{number:05d}.parquet") as staged:
            pq.write_table(table, staged, compression="zstd")
    amount = pc.sum(block.events["amount"].filter(pc.equal(block.events["event_type"], "purchase"))).as_py()
    return {
        "block": number,
        "customers": len(block.customers),
        "rows": rows,
        "by_type": by_type,
        "purchases": amount or 0.0,
        "planted": dict(planted),
    }


def write_shop(
    plan: SimulationPlan,
    folder: Path,
    blocks: Iterable[dict[str, Any]],
    published: Path,
) -> dict[str, Any]:
    """Writes items, spec.yaml and manifest.json once all `blocks` (results of `write_block`) are done.

    `published` is the final path of `folder`, which the spec names. Returns the manifest.
    """
    count = log.num_blocks(plan.shop)
    done = []
    for block in blocks:
        done.append(block)
        LOG.info(f"block {len(done)}/{count}: {sum(b['rows'] for b in done):,} events")
    items, planted_items = log.catalogue(plan.shop).table, Counter[str]()
    if plan.defects:
        items, planted_items = defects.plant_items(items)
    with atomic_write(folder / "items.parquet") as staged:
        pq.write_table(pa.Table.from_pandas(items, preserve_index=False), staged, compression="zstd")
    write_text(folder / "spec.yaml", dataset_spec(plan, published).to_yaml())
    planted, by_type = Counter[str](), Counter[str]()
    for block in done:
        planted.update(block["planted"])
        by_type.update(block["by_type"])
    done.sort(key=lambda block: int(block["block"]))
    manifest = {
        "shop": asdict(plan.shop),
        "origins": list(plan.origins),
        "horizons_days": list(plan.horizons_days),
        "customers": sum(block["customers"] for block in done),
        "rows": sum(block["rows"] for block in done),
        "rows_by_type": dict(sorted(by_type.items())),  # without the planted ones
        "purchases": sum(block["purchases"] for block in done),
        "planted": {"events": dict(sorted(planted.items())), "items": dict(sorted(planted_items.items()))},
        "files": {str(path.relative_to(folder)): file_sha256(path) for path in sorted(_tables(folder))},
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


def dataset_spec(plan: SimulationPlan, folder: Path) -> DatasetSpec:
    """Returns the spec of the log in `folder`, with a cleaning rule for every kind of planted defect."""
    shop = plan.shop
    columns = ("customer_id", "event_time", "known_at", "event_id", "order_id", "item_id", "quantity", "amount", "text")
    return DatasetSpec.model_validate(
        {
            "name": "simulated",
            "description": f"A simulated shop, {shop.num_customers:,} customers, seed {shop.seed}",
            "timezone": shop.timezone,
            "currency": "EUR",
            "events": {
                "path": str(folder / "events" / f"*.{plan.form}"),
                "columns": {name: name for name in (*columns, "channel")},
                "event_type": {"column": "event_type", "map": {kind: kind for kind in activity.KINDS}},
            },
            "items": {
                "path": str(folder / "items.parquet"),
                "columns": {name: name for name in ("item_id", "text", "category", "price")},
            },
            "customers": {
                "path": str(folder / "customers" / "*.parquet"),
                "columns": {"customer_id": "customer_id"},
                "attributes": {"acquired_by": {"column": "channel", "constant": True}},
            },
            "cleaning": {
                "exact_duplicates": "drop",
                "duplicated_orders": "drop",
                "ignore_items": [defects.IGNORED_ITEM],
                "ignore_orders": [defects.IGNORED_ORDERS],
                "bounds": {
                    "event_time": {"min": shop.start, "below": shop.end},
                    "quantity": {"above": 0},
                    "amount": {"max": defects.MAX_AMOUNT},
                },
            },
            "horizons_days": list(plan.horizons_days),
        }
    )


def _tables(folder: Path) -> Iterable[Path]:
    return (path for form in ("parquet", "csv", "jsonl") for path in folder.rglob(f"*.{form}"))


def _truth(block: log.Simulation, plan: SimulationPlan) -> Iterable[pa.Table]:
    for origin in plan.origins:
        for days in plan.horizons_days:
            table: pd.DataFrame = block.truth.expected(origin, days)
            instant = pa.scalar(plan.shop.clock.parse(origin), pa.int64()).cast(US)
            columns = {
                "origin": pa.repeat(instant, len(table)),
                "horizon_days": pa.repeat(pa.scalar(days, pa.int32()), len(table)),
            }
            ids = pa.array(table["customer_id"], pa.string())
            numbers = {name: table[name].to_numpy() for name in ("orders", "value")}
            yield pa.table({"customer_id": ids, **columns, **numbers}, schema=TRUTH)


def _nullable(schema: pa.Schema) -> pa.Schema:
    """Makes all columns nullable, since defective rows lack values."""
    return pa.schema([field.with_nullable(True) for field in schema if field.name != "amount_filled"])
