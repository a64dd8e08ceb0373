"""Partition rows by customer on disk: pass 1 of prepare writes them (`split_unit`), pass 2 reads (`read_partition`).

Pass 1 writes one Arrow IPC file per million rows, whose record batch i holds the rows of partition i, so that pass 2
reads only its own bytes of each file. These are plain functions on files; `clv.cluster.preparing` runs them on Ray.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clv.data.events import EVENTS, stable_hash
from clv.data.prepare import intake, items, mapping
from clv.data.prepare.accounting import REJECTS, RowAccounting
from clv.data.prepare.erasure import Erased
from clv.data.sources.reading import Unit
from clv.data.spec.models import DatasetSpec
from clv.data.workdir import atomic_write

ROWS = "rows"  # the folder that pass 1 writes; a histories folder that keeps it can be appended to and erased from
FLUSH_ROWS = 1_000_000
ORDERS = pa.schema([("order", pa.int64()), ("customer", pa.int64())])


def split_unit(
    unit: Unit, spec: DatasetSpec, spec_file: str, work: Path, num_partitions: int, erased: Erased | None = None
) -> dict[str, RowAccounting]:
    """Reads a unit, writes accepted rows by partition and rejects under `work`; returns the row accounting by table."""
    folders = {"orders": "orders", "items": "items", "events": "events", "customers": f"customers-{unit.source}"}
    writers = {name: PartitionWriter(work / folder, unit.number, num_partitions) for name, folder in folders.items()}
    prices = items.load_prices(work) if spec.cleaning.missing_amount == "item_price" else None
    carried = carried_columns(spec)
    accounting = RowAccounting()
    rejects: list[pa.Table] = []
    for block in intake.read_unit(unit, spec, spec_file, prices, erased):
        rows = block.rows
        if unit.table == "events":
            customer = stable_hash(rows["customer_id"])
            writers["events"].add(rows.select(carried), customer)
            orders = order_pairs(rows, customer)
            writers["orders"].add(orders, orders["order"].to_numpy())
            if not spec.items and items.describes_items(spec.events[unit.source]):
                described = items.items_in_events(rows)
                writers["items"].add(described, stable_hash(described["item_id"]))
        else:
            key = "item_id" if unit.table == "items" else "customer_id"
            writers[unit.table].add(rows, stable_hash(rows[key]))
        accounting.add(block.accounting)
        rejects.append(block.rejects)
    for writer in writers.values():
        writer.flush()
    write_rejects(rejects, work, f"read-{unit.number:05d}")
    accounting.check(f"pass 1 of {unit.path}")
    return {unit.table: accounting}


def carried_columns(spec: DatasetSpec) -> list[str]:
    """Returns the event columns that pass 1 writes: those that some source fills or that the customer rules need."""
    mapped = {name for source in spec.events for name in source.columns.model_dump(exclude_none=True)}
    names = [name for name in EVENTS.names if name in mapped or name in ("event_type", "amount", "amount_filled")]
    if mapping.needs_row_hash(spec):
        names.append("row_hash")
    if intake.has_customer_rules(spec):
        names += ["row", intake.UNIT.name]
    return names


def order_pairs(events: pa.Table, customer: NDArray[np.int64]) -> pa.Table:
    """Returns the (order, customer) hashes of a block of events; a run of equal pairs is kept once."""
    order = stable_hash(events["order_id"])
    # Rows of one order mostly follow each other. Other repeated pairs do not change the count of shared orders.
    new = order != 0
    new[1:] &= (order[1:] != order[:-1]) | (customer[1:] != customer[:-1])
    return pa.table([order[new], customer[new]], schema=ORDERS)


def count_shared_orders(pairs: pa.Table) -> int:
    """Counts order ids that more than one customer has, exactly, since `pairs` holds all pairs of its orders."""
    order, customer = pairs["order"].to_numpy(), pairs["customer"].to_numpy()
    by_order = np.argsort(order)
    order, customer = order[by_order], customer[by_order]
    # Where an order has several customers, at least one pair of neighbours differs in any sequence of its pairs.
    another = (order[1:] == order[:-1]) & (customer[1:] != customer[:-1])
    return len(np.unique(order[1:][another]))


def partition_of(hashes: NDArray[np.int64], num_partitions: int) -> NDArray[np.int64]:
    """Returns the partition, from 0 to num_partitions - 1, of each hash."""
    return (hashes.view(np.uint64) % np.uint64(num_partitions)).astype(np.int64)


class PartitionWriter:
    """Buffers rows of one unit and writes them as IPC files, whose record batch i holds the rows of partition i."""

    def __init__(self, folder: Path, unit: int, num_partitions: int) -> None:
        self.folder, self.unit, self.num_partitions = folder, unit, num_partitions
        self.tables: list[pa.Table] = []
        self.partitions: list[NDArray[np.int64]] = []
        self.rows = self.files = 0

    def add(self, table: pa.Table, hashes: NDArray[np.int64]) -> None:
        """Buffers the rows, each in the partition of its hash, and writes a file once there are FLUSH_ROWS."""
        if len(table):
            self.tables.append(table)
            self.partitions.append(partition_of(hashes, self.num_partitions))
            self.rows += len(table)
        if self.rows >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows that are buffered."""
        if self.rows:
            table = pa.concat_tables(self.tables).combine_chunks()
            write_partitions(
                table,
                np.concatenate(self.partitions),
                self.num_partitions,
                self.folder / f"u{self.unit:06d}-{self.files:06d}.arrow",
            )
            self.tables, self.partitions, self.rows, self.files = [], [], 0, self.files + 1


def write_partitions(table: pa.Table, part: NDArray[np.int64], num_partitions: int, path: Path) -> None:
    """Writes an IPC file whose record batch i holds the rows of partition i, in their order."""
    part = part.astype(np.uint16 if num_partitions < 65_536 else np.uint32)
    order = np.argsort(part, kind="stable")
    table = table.take(pa.array(order)).combine_chunks()
    bounds = np.searchsorted(part[order], np.arange(num_partitions + 1)).tolist()
    lz4 = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    with (
        atomic_write(path) as staged,
        pa.OSFile(str(staged), "wb") as file,
        pa.ipc.new_file(file, table.schema, options=lz4) as writer,
    ):
        for low, high in pairwise(bounds):
            batches = table.slice(low, high - low).to_batches()
            writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema))


def read_partition(folder: Path, partition: int, schema: pa.Schema | None = None) -> pa.Table:
    """Reads all rows of a partition in the order of units and rows; without files an empty table of `schema`."""
    paths = sorted(folder.glob("*.arrow"))
    batches = [pa.ipc.open_file(pa.memory_map(str(path))).get_batch(partition) for path in paths]
    return pa.Table.from_batches(batches) if batches else (schema or pa.schema([])).empty_table()


def write_rejects(tables: list[pa.Table], work: Path, name: str) -> None:
    """Writes rejects/part-NAME.parquet beside `work`; without rejected rows there is no such file."""
    rows = pa.concat_tables([REJECTS.empty_table(), *tables])
    path = work.parent / "rejects" / f"part-{name}.parquet"
    if len(rows):
        write_parquet(rows, path)
    else:
        path.unlink(missing_ok=True)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a Parquet file under another name and renames it, so that nobody reads an incomplete file."""
    # Dictionaries pay for text only: for times, amounts and hashes they cost three times the CPU and save a fifth.
    text = [field.name for field in table.schema if pa.types.is_string(field.type) and field.name != "customer_id"]
    with atomic_write(path) as staged:
        pq.write_table(table, staged, compression="zstd", compression_level=1, use_dictionary=text or False)
