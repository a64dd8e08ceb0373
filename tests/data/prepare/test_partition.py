"""Rows by partition on disk: what the writer writes for a partition is what is read, in order."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clv.data.prepare import partition
from clv.data.prepare.partition import PartitionWriter, count_shared_orders, partition_of, read_partition


def test_order_ids_shared_by_customers_are_counted_exactly() -> None:
    pairs = pa.table({"order": [1, 1, 2, 2, 3, 3, 3], "customer": [7, 8, 7, 7, 7, 8, 9]})
    assert count_shared_orders(pairs) == 2
    assert count_shared_orders(pairs.slice(0, 0)) == 0


def test_a_partition_is_read_back_from_all_files_in_the_order_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "FLUSH_ROWS", 40)
    hashes = np.random.default_rng(0).integers(-(2**62), 2**62, 100)
    writer = PartitionWriter(tmp_path, 3, num_partitions=4)
    for start in range(0, 100, 10):
        number = np.arange(start, start + 10)
        writer.add(pa.table({"number": number}), hashes[number])
    writer.flush()
    assert len(list(tmp_path.glob("u000003-*.arrow"))) == 3
    for part in range(4):
        expected = np.flatnonzero(partition_of(hashes, 4) == part)
        assert read_partition(tmp_path, part)["number"].to_pylist() == expected.tolist()


def test_a_partition_without_files_is_an_empty_table_of_the_schema(tmp_path: Path) -> None:
    schema = pa.schema([("number", pa.int64())])
    assert read_partition(tmp_path, 0, schema).equals(schema.empty_table())
