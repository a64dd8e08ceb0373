"""Line files written anew: fewer and larger ones, or for another number of partitions, or without some customers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clv.data.events import stable_hash
from clv.data.prepare import partition
from clv.data.workdir import link

# The column whose hash tells the partition of a row, by the folder's name; `orders` holds hashes already.
_KEYS = {"events": "customer_id", "items": "item_id", "orders": "order"}


def folders(lines: Path) -> list[Path]:
    """Folders of line files under `lines`."""
    return sorted(path for path in lines.iterdir() if path.is_dir() and next(path.glob("*.arrow"), None) is not None)


def key_hashes(table: pa.Table, folder: str) -> NDArray[np.int64]:
    """What `partition_of` takes, for rows of the folder."""
    column = table[_KEYS.get(folder, "customer_id")]
    return np.asarray(column.to_numpy() if pa.types.is_int64(column.type) else stable_hash(column))


def batch_rows(path: Path) -> list[int]:
    """Rows of each partition in a line file."""
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        return [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]


def groups(folder: Path) -> Iterator[tuple[list[Path], int]]:
    """Neighbouring line files of about FLUSH_ROWS together, and their rows."""
    chosen: list[Path] = []
    total = 0
    for path in sorted(folder.glob("*.arrow")):
        rows = sum(batch_rows(path))
        if chosen and total + rows > partition.FLUSH_ROWS:
            yield chosen, total
            chosen, total = [], 0
        chosen.append(path)
        total += rows
    if chosen:
        yield chosen, total


def merge(files: Sequence[Path], target: Path, num_partitions: int) -> int:
    """One line file of `num_partitions` from several; rows of one key keep their order. Returns the rows."""
    tables = [_whole(path) for path in files]
    table = pa.concat_tables(tables)
    part = partition.partition_of(key_hashes(table, target.parent.name), num_partitions)
    partition.write_partitions(table, part, num_partitions, target)
    return len(table)


def without(path: Path, target: Path, customers: NDArray[np.int64], partitions: set[int]) -> int:
    """A line file as `target`, without the customers (hashes, all of these partitions); returns the rows that went."""
    if path.parent.name == "items":
        link(path, target)
        return 0
    by_order = path.parent.name == "orders"
    kept: list[pa.RecordBatch] = []
    gone = 0
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            if batch.num_rows and (by_order or number in partitions):
                hashes = batch["customer"].to_numpy() if by_order else stable_hash(batch["customer_id"])
                keep = ~np.isin(hashes, customers)
                gone += int((~keep).sum())
                batch = batch.filter(pa.array(keep))
            kept.append(batch)
    if gone:
        part = np.repeat(np.arange(len(kept)), [batch.num_rows for batch in kept])
        partition.write_partitions(pa.Table.from_batches(kept), part, len(kept), target)
    else:
        link(path, target)
    return gone


def _whole(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()
