"""Rewrite the row files of pass 1: into fewer files, for another number of partitions, or without some customers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clv.data.events import stable_hash
from clv.data.prepare import partition
from clv.data.workdir import link

# The column whose hash gives the partition of a row, by name of the folder; `orders` already holds hashes.
_KEYS = {"events": "customer_id", "items": "item_id", "orders": "order"}


def row_folders(rows: Path) -> list[Path]:
    """Returns the folders under `rows` that hold row files, sorted by name."""
    return sorted(path for path in rows.iterdir() if path.is_dir() and next(path.glob("*.arrow"), None) is not None)


def key_hashes(table: pa.Table, folder: str) -> NDArray[np.int64]:
    """Returns the hash of each row from which `partition_of` computes its partition; `folder` is the folder's name."""
    column = table[_KEYS.get(folder, "customer_id")]
    return np.asarray(column.to_numpy() if pa.types.is_int64(column.type) else stable_hash(column))


def rows_by_partition(path: Path) -> list[int]:
    """Returns the number of rows of each partition in a row file."""
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    return [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]


def file_groups(folder: Path) -> Iterator[tuple[list[Path], int]]:
    """Yields groups of neighbouring row files with about FLUSH_ROWS rows together, and the number of their rows."""
    chosen: list[Path] = []
    total = 0
    for path in sorted(folder.glob("*.arrow")):
        rows = sum(rows_by_partition(path))
        if chosen and total + rows > partition.FLUSH_ROWS:
            yield chosen, total
            chosen, total = [], 0
        chosen.append(path)
        total += rows
    if chosen:
        yield chosen, total


def merge_files(files: Sequence[Path], target: Path, num_partitions: int) -> int:
    """Writes the rows of several files as one of `num_partitions`, in their order; returns the number of rows."""
    table = pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in files])
    part = partition.partition_of(key_hashes(table, target.parent.name), num_partitions)
    partition.write_partitions(table, part, num_partitions, target)
    return len(table)


def drop_customers(path: Path, target: Path, customers: NDArray[np.int64], partitions: set[int]) -> int:
    """Writes a row file as `target` without `customers` (hashes, all in `partitions`); returns the rows removed."""
    if path.parent.name == "items":
        link(path, target)
        return 0
    by_order = path.parent.name == "orders"
    kept: list[pa.RecordBatch] = []
    removed = 0
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        if batch.num_rows and (by_order or number in partitions):
            hashes = batch["customer"].to_numpy() if by_order else stable_hash(batch["customer_id"])
            keep = ~np.isin(hashes, customers)
            removed += int((~keep).sum())
            batch = batch.filter(pa.array(keep))
        kept.append(batch)
    if removed:
        part = np.repeat(np.arange(len(kept)), [batch.num_rows for batch in kept])
        partition.write_partitions(pa.Table.from_batches(kept), part, len(kept), target)
    else:
        link(path, target)
    return removed
