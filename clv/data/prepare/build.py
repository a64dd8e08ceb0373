"""Pass 2 of prepare: the lines of a partition become a shard of histories. No Ray here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from clv.data import attributes, histories
from clv.data.events import EVENTS
from clv.data.prepare import items, mapping, partition, profile
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.partition import LINES
from clv.data.prepare.publish import ITEMS_BUILT, file_sha256
from clv.data.spec.models import DatasetSpec


def build_partition(spec: DatasetSpec, paths: list[str], out: Path, number: int) -> dict[str, Any]:
    """One partition's lines become a shard, its items a piece of the item table; returns what `finish` sums up.

    `paths[i]` is the file of unit i. Doing it again replaces every file by an equal one.
    """
    work = out / LINES
    events, rejects, accounting = partition.cleaned(
        partition.gather(work / "events", number, carried_schema(spec)), spec, paths
    )
    tables, side = [rejects], {"events": accounting.to_json()}
    given, more, customer_accounting = _attributes(spec, work, number)
    tables += more
    part: dict[str, Any] = {"partition": number, "customers": 0}
    if len(events):
        table = attributes.filled(spec, histories.build(events, spec.clock, given))
        lines = profile.measure(table)
        if lines["lines"] != len(events):
            raise RuntimeError(f"partition {number}: {len(events)} events became {lines['lines']} lines of histories")
        path = shard_path(out, number)
        partition.write_parquet(table, path)
        part |= {"file": f"shards/{path.name}", "customers": len(table), "sha256": file_sha256(path), "stats": lines}
        part["types"] = sorted(set(events["event_type"].unique().to_pylist()))
        if given is not None:
            without = len(given) - int(np.isin(given["customer_id"].to_numpy(), table["customer_id"].to_numpy()).sum())
            customer_accounting.notices["customers of the customer table without an event"] += without
    if given is not None:
        side["customers"] = customer_accounting.to_json()
    seen = partition.gather(work / "items", number, items.SEEN)
    if spec.items:
        found, item_rejects, item_accounting = items.from_table(seen)
        tables.append(item_rejects)
        side["items"] = item_accounting.to_json()
    else:
        found = items.from_events(seen)
    partition.write_parquet(found, work / ITEMS_BUILT / f"part-{number:05d}.parquet")
    partition.write_rejects(tables, work, f"customer-{number:05d}")
    pairs = partition.gather(work / "orders", number, partition.ORDERS)
    return part | {"accounting": side, "items": len(found), "shared_orders": partition.shared_orders(pairs)}


def shard_path(out: Path, number: int) -> Path:
    """File of a partition that has customers."""
    return out / "shards" / f"part-{number:05d}.parquet"


def carried_schema(spec: DatasetSpec) -> pa.Schema:
    known = pa.schema([*EVENTS, *mapping.EXTRAS, partition.UNIT])
    return pa.schema([known.field(name) for name in partition.carried(spec)])


def _attributes(spec: DatasetSpec, work: Path, number: int) -> tuple[pa.Table | None, list[pa.Table], RowAccounting]:
    """attr_* of this partition's customers, joined over the customer tables."""
    joined: pa.Table | None = None
    rejects: list[pa.Table] = []
    accounting = RowAccounting()
    for position, source in enumerate(spec.customers):
        rows = partition.gather(work / f"customers-{position}", number, attributes.schema(source))
        kept, rejected, more = items.first_of(rows, "customer_id", "customers")
        accounting.add(more)
        rejects.append(rejected)
        joined = kept if joined is None else joined.join(kept, "customer_id", join_type="full outer", use_threads=False)
    return joined, rejects, accounting
