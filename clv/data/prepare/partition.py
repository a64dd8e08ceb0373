"""The two passes of prepare as plain functions on files: `split` a unit into partitions, `gather` one partition's rows.

Pass 1 writes one Arrow IPC file per million rows whose record batch i holds partition i, so that pass 2 reads just its
own bytes of each. No Ray here: `clv.cluster.preparing` runs these on a cluster, the tests in one process.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clv.data.events import EVENTS, stable_hash
from clv.data.prepare import cleaning, items, mapping
from clv.data.prepare.accounting import REJECTS, RowAccounting
from clv.data.prepare.erasure import Erased, blanked, leave_out
from clv.data.sources import reading
from clv.data.sources.reading import Unit
from clv.data.spec.models import DatasetSpec
from clv.data.workdir import replacing

LINES = "lines"  # the folder of what pass 1 wrote; kept, it lets a later job add events or erase customers
FLUSH_ROWS = 1_000_000
ORDERS = pa.schema([("order", pa.int64()), ("customer", pa.int64())])
UNIT = pa.field("unit", pa.int32())


def split(
    unit: Unit, spec: DatasetSpec, place: str, work: Path, num_partitions: int, erased: Erased | None = None
) -> dict[str, RowAccounting]:
    """Reads a unit, writes accepted rows by partition and rejects under `work`; returns the row accounting by table."""
    source = getattr(spec, unit.table)[unit.source]
    key = f"{unit.table}[{unit.source}]"
    writers = {name: Splitter(work / name, unit.number, num_partitions) for name in ("orders", "items", "events")}
    customers = Splitter(work / f"customers-{unit.source}", unit.number, num_partitions)
    prices = items.load_prices(work) if spec.cleaning.missing_amount == "item_price" else None
    wanted = carried(spec)
    accounting = RowAccounting()
    rejects: list[pa.Table] = []
    for block in reading.read(source, unit, place, key, mapping.needed(source, spec)):
        if unit.table == "events":
            taken = mapping.take(block, source, spec, unit.path, prices)
            events = taken.events
            if erased:
                events, left_out = leave_out(events, erased, taken.accounting, "events", unit.path)
                rejects.append(left_out)
            if UNIT.name in wanted:
                events = events.append_column(UNIT, pa.array(np.full(len(events), unit.number, np.int32)))
            customer = stable_hash(events["customer_id"])
            writers["events"].add(events.select(wanted), customer)
            orders = order_pairs(events, customer)
            writers["orders"].add(orders, orders["order"].to_numpy())
            if not spec.items and items.described(source):
                seen = items.seen_in_events(events)
                writers["items"].add(seen, stable_hash(seen["item_id"]))
        elif unit.table == "items":
            taken = items.take(block, source, unit.path)
            writers["items"].add(taken.events, stable_hash(taken.events["item_id"]))
        else:
            taken = items.take_customers(block, source, spec, unit.path)
            known = taken.events
            if erased:
                known, left_out = leave_out(known, erased, taken.accounting, "customers", unit.path)
                rejects.append(left_out)
            customers.add(known, stable_hash(known["customer_id"]))
        accounting.add(taken.accounting)
        rejects.append(blanked(taken.rejects, spec, erased.named) if erased else taken.rejects)
    for writer in (*writers.values(), customers):
        writer.close()
    write_rejects(rejects, work, f"read-{unit.number:05d}")
    accounting.check(f"pass 1 of {unit.path}")
    return {unit.table: accounting}


def carried(spec: DatasetSpec) -> list[str]:
    """Event columns that pass 1 hands to pass 2: those that some source fills, and what the customer rules need."""
    mapped = {
        name for source in spec.events for name, value in source.columns.model_dump().items() if value is not None
    }
    names = [name for name in EVENTS.names if name in mapped or name in ("event_type", "amount", "amount_filled")]
    rules = spec.cleaning
    if mapping.needs_row_hash(spec):
        names.append("row_hash")
    if rules.exact_duplicates == "drop" or rules.duplicated_orders == "drop":
        names += ["row", UNIT.name]
    return names


def order_pairs(events: pa.Table, customer: NDArray[np.int64]) -> pa.Table:
    """(order, customer) hashes of a block, runs of equal ones once, to count orders that several customers share."""
    order = stable_hash(events["order_id"])
    # Lines of an order mostly follow each other; what repeats elsewhere is dropped when the partition is whole.
    new = order != 0
    new[1:] &= (order[1:] != order[:-1]) | (customer[1:] != customer[:-1])
    return pa.table([order[new], customer[new]], schema=ORDERS)


def shared_orders(pairs: pa.Table) -> int:
    """Number of order ids that stand for more than one customer, exact within the partition of the order's hash."""
    order, customer = pairs["order"].to_numpy(), pairs["customer"].to_numpy()
    ranked = np.argsort(order)
    order, customer = order[ranked], customer[ranked]
    # Where an order has several customers, at least one pair of neighbours differs, however they stand.
    another = (order[1:] == order[:-1]) & (customer[1:] != customer[:-1])
    return len(np.unique(order[1:][another]))


def partition_of(hashes: NDArray[np.int64], num_partitions: int) -> NDArray[np.int64]:
    """Partition 0..P-1 of each hash."""
    return (hashes.view(np.uint64) % np.uint64(num_partitions)).astype(np.int64)


class Splitter:
    """Buffers rows and writes them as IPC files whose record batch i is partition i."""

    def __init__(self, folder: Path, unit: int, num_partitions: int) -> None:
        self.folder, self.unit, self.num_partitions = folder, unit, num_partitions
        self.tables: list[pa.Table] = []
        self.parts: list[NDArray[np.int64]] = []
        self.rows = self.files = 0

    def add(self, table: pa.Table, hashes: NDArray[np.int64]) -> None:
        if len(table):
            self.tables.append(table)
            self.parts.append(partition_of(hashes, self.num_partitions))
            self.rows += len(table)
        if self.rows >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            table = pa.concat_tables(self.tables).combine_chunks()
            write_partitions(
                table,
                np.concatenate(self.parts),
                self.num_partitions,
                self.folder / f"u{self.unit:06d}-{self.files:06d}.arrow",
            )
            self.tables, self.parts, self.rows, self.files = [], [], 0, self.files + 1

    def close(self) -> None:
        self.flush()


def write_partitions(table: pa.Table, part: NDArray[np.int64], num_partitions: int, path: Path) -> None:
    """An IPC file whose record batch i holds the rows of partition i, in their order; written aside and renamed."""
    part = part.astype(np.uint16 if num_partitions < 65_536 else np.uint32)
    order = np.argsort(part, kind="stable")
    table = table.take(pa.array(order)).combine_chunks()
    bounds = np.searchsorted(part[order], np.arange(num_partitions + 1)).tolist()
    lz4 = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with (
        replacing(path) as aside,
        pa.OSFile(str(aside), "wb") as file,
        pa.ipc.new_file(file, table.schema, options=lz4) as writer,
    ):
        for low, high in pairwise(bounds):
            batches = table.slice(low, high - low).to_batches()
            writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema))


def gather(folder: Path, partition: int, schema: pa.Schema | None = None) -> pa.Table:
    """All rows of a partition, in the order of units and rows; an empty table of `schema` where there are none."""
    batches = []
    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as file:
            batches.append(pa.ipc.open_file(file).get_batch(partition))
    if not batches:
        return (schema or pa.schema([])).empty_table()
    return pa.Table.from_batches(batches)


def whole_events(table: pa.Table) -> pa.Table:
    """Events of schema EVENTS from the carried columns: absent ones are null, known_at is the event's time."""
    count = len(table)
    columns: list[Any] = []
    for field in EVENTS:
        if field.name in table.column_names:
            columns.append(table[field.name])
        elif field.name == "known_at":
            columns.append(table["event_time"])
        elif field.name == "quantity":
            columns.append(pa.array(np.ones(count)))
        else:
            columns.append(pa.nulls(count, field.type))
    return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in EVENTS]))


def cleaned(table: pa.Table, spec: DatasetSpec, paths: list[str]) -> tuple[pa.Table, pa.Table, RowAccounting]:
    """(events of EVENTS, rejects, row accounting) of whole customers after the rules that need them whole."""
    accounting = RowAccounting(read=len(table))
    rules = spec.cleaning
    if rules.exact_duplicates == "keep" and rules.duplicated_orders == "keep":
        accounting.accepted = len(table)
        return whole_events(table), REJECTS.empty_table(), accounting
    table = table.combine_chunks()
    full = whole_events(table)
    extras = [name for name in ("row_hash",) if name in table.column_names]
    for name in extras:
        full = full.append_column(name, table[name])
    verdict = cleaning.customer_rules(full, spec)
    accounting.rejected = verdict.counts()
    source = pa.array(paths, pa.string()).take(table["unit"].combine_chunks())
    source = source.combine_chunks() if isinstance(source, pa.ChunkedArray) else source
    row = table["row"].combine_chunks()
    row = pa.concat_arrays(row.chunks) if isinstance(row, pa.ChunkedArray) else row
    rejects = verdict.rejects(full.select(EVENTS.names), "events", "customer", source, row)
    events = full.select(EVENTS.names).filter(pa.array(verdict.accepted))
    accounting.accepted = len(events)
    accounting.check("customer rules")
    return events, rejects, accounting


def write_rejects(tables: list[pa.Table], work: Path, name: str) -> None:
    """rejects/part-NAME.parquet, which is absent if there is nothing to write."""
    rows = pa.concat_tables([REJECTS.empty_table(), *tables])
    path = work.parent / "rejects" / f"part-{name}.parquet"
    if len(rows):
        write_parquet(rows, path)
    else:
        path.unlink(missing_ok=True)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes aside and renames, so that a reader or a retried task never meets half a file."""
    # Dictionaries pay for words only: for times, amounts and hashes they cost three times the CPU and save a fifth.
    words = [field.name for field in table.schema if pa.types.is_string(field.type) and field.name != "customer_id"]
    with replacing(path) as aside:
        pq.write_table(table, aside, compression="zstd", compression_level=1, use_dictionary=words or False)
