"""Pass 2 of prepare: builds a shard of histories and a piece of the item table from the rows of one partition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clv.data import attributes, histories
from clv.data.events import EVENTS
from clv.data.hashing import file_sha256
from clv.data.prepare import intake, items, mapping, partition, profile
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.partition import ROWS
from clv.data.prepare.publish import ITEMS_BUILT
from clv.data.spec.models import DatasetSpec


def build_partition(spec: DatasetSpec, paths: list[str], out: Path, number: int) -> dict[str, Any]:
    """Builds partition `number` of the histories folder `out`; returns its counts, which `write_manifest` sums up.

    `paths[i]` is the file of unit i. A repeated call replaces every file by an equal one. Raises RuntimeError if a
    row was lost.
    """
    work = out / ROWS
    known = pa.schema([*EVENTS, *mapping.EXTRA_COLUMNS, intake.UNIT])
    carried = pa.schema([known.field(name) for name in partition.carried_columns(spec)])
    rows = partition.read_partition(work / "events", number, carried)
    cleaned = intake.apply_customer_rules(rows, spec, paths)
    events = intake.to_event_schema(cleaned.rows)
    rejects, accounting = [cleaned.rejects], {"events": cleaned.accounting.to_json()}
    given, customer_rejects, customer_accounting = _attributes(spec, work, number)
    rejects += customer_rejects
    part: dict[str, Any] = {"partition": number, "customers": 0}
    if len(events):
        table = attributes.fill_missing(spec, histories.build(events, spec.clock, given))
        stats = profile.measure(table)
        if stats["lines"] != len(events):
            raise RuntimeError(f"partition {number}: {len(events)} events became {stats['lines']} lines of histories")
        path = shard_path(out, number)
        partition.write_parquet(table, path)
        part |= {"file": f"shards/{path.name}", "customers": len(table), "sha256": file_sha256(path), "stats": stats}
        part["types"] = sorted(set(events["event_type"].unique().to_pylist()))
        if given is not None:
            without = len(given) - int(np.isin(given["customer_id"].to_numpy(), table["customer_id"].to_numpy()).sum())
            customer_accounting.notices["customers of the customer table without an event"] += without
    if given is not None:
        accounting["customers"] = customer_accounting.to_json()
    described = partition.read_partition(work / "items", number, items.ITEM_ROWS)
    if spec.items:
        first = items.keep_first(described, "item_id", "items")
        rejects.append(first.rejects)
        accounting["items"] = first.accounting.to_json()
        catalogue = items.to_items_schema(first.rows)
    else:
        catalogue = items.most_frequent_descriptions(described)
    partition.write_parquet(catalogue, work / ITEMS_BUILT / f"part-{number:05d}.parquet")
    partition.write_rejects(rejects, work, f"customer-{number:05d}")
    pairs = partition.read_partition(work / "orders", number, partition.ORDERS)
    return part | {
        "row_accounting": accounting,
        "items": len(catalogue),
        "shared_orders": partition.count_shared_orders(pairs),
    }


def shard_path(out: Path, number: int) -> Path:
    """Returns the path of the shard of partition `number`, which is absent where the partition has no customer."""
    return out / "shards" / f"part-{number:05d}.parquet"


def _attributes(spec: DatasetSpec, work: Path, number: int) -> tuple[pa.Table | None, list[pa.Table], RowAccounting]:
    """Returns (attr_* columns of the partition's customers joined over all customer tables, rejects, accounting)."""
    joined: pa.Table | None = None
    rejects: list[pa.Table] = []
    accounting = RowAccounting()
    for position, source in enumerate(spec.customers):
        rows = partition.read_partition(work / f"customers-{position}", number, attributes.schema(source))
        first = items.keep_first(rows, "customer_id", "customers")
        accounting.add(first.accounting)
        rejects.append(first.rejects)
        if joined is None:
            joined = first.rows
        else:
            joined = joined.join(first.rows, "customer_id", join_type="full outer", use_threads=False)
    return joined, rejects, accounting
