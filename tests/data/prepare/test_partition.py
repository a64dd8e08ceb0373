"""Rows by partition on disk: what the writer writes for a partition is what is read, in order."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.data.events import stable_hash
from clv.data.prepare import partition
from clv.data.prepare.accounting import REJECTS
from clv.data.prepare.check import check_sources
from clv.data.prepare.partition import (
    ORDERS,
    PartitionWriter,
    carried_columns,
    count_shared_orders,
    order_pairs,
    partition_of,
    read_partition,
    split_unit,
    write_rejects,
)
from tests.data.prepare.small_logs import spec_of, written


def test_the_rows_of_a_log_lie_in_the_partitions_of_their_customers_and_orders(tmp_path: Path) -> None:
    text = "id,t,x,order\na,2024-01-01,1,7\na,2024-01-01,2,7\nb,2024-01-02,3,7\nc,2024-01-03,4,\nd,no time,5,8\n"
    columns = "customer_id: id, event_time: t, amount: x, order_id: order"
    spec, work = spec_of(written(tmp_path / "log.csv", text), columns), tmp_path / "work" / "rows"
    (unit,) = check_sources(spec, "shop.yaml")
    counts = split_unit(unit, spec, "shop.yaml", work, num_partitions=3)["events"]
    assert (counts.read, counts.accepted, counts.rejected.total()) == (5, 4, 1)
    for part in range(3):
        rows = read_partition(work / "events", part)
        expected = [name for name in "aabc" if partition_of(stable_hash([name]), 3)[0] == part]
        assert rows["customer_id"].to_pylist() == expected
        assert {"order_id", "event_type", "amount_filled"} < set(rows.column_names) == set(carried_columns(spec))
        pairs = read_partition(work / "orders", part)
        assert (partition_of(pairs["order"].to_numpy(), 3) == part).all()
    pairs = pa.concat_tables([read_partition(work / "orders", part) for part in range(3)])
    # The two lines of a's order are one pair, and a row without an order is none.
    assert pairs.to_pylist() == [
        {"order": stable_hash(["7"])[0], "customer": customer} for customer in stable_hash(["a", "b"]).tolist()
    ]
    assert not (work / "items").exists()
    (rejects,) = (work.parent / "rejects").glob("*.parquet")
    assert pq.read_table(rejects)["row"].to_pylist() == [4]


def test_items_in_events_are_split_only_where_there_is_no_item_table(tmp_path: Path) -> None:
    log = written(tmp_path / "log.csv", "id,t,x,item,title\na,2024-01-01,1,i1,Mug\nb,2024-01-01,1,i1,Mug\n")
    table = written(tmp_path / "items.csv", "item\ni1\ni2\n")
    columns = "customer_id: id, event_time: t, amount: x, item_id: item, item_text: title"
    given: dict[str, Any] = {"items": {"path": str(table), "columns": {"item_id": "item"}}}
    for name, more, count in (("events", {}, 1), ("table", given, 2)):
        spec, work = spec_of(log, columns, **more), tmp_path / name / "rows"
        for unit in check_sources(spec, "shop.yaml"):
            split_unit(unit, spec, "shop.yaml", work, num_partitions=2)
        rows = pa.concat_tables([read_partition(work / "items", part) for part in range(2)])
        assert len(rows) == count
        assert set(rows["item_id"].to_pylist()) == {"i1", "i2"} if count == 2 else {"i1"}


def test_equal_neighbours_of_orders_and_customers_are_kept_once() -> None:
    rows = pa.table({"order_id": ["1", "1", "2", "2", None, "1"]})
    one, two = stable_hash(["1", "2"]).tolist()
    pairs = order_pairs(rows, np.array([7, 7, 7, 8, 8, 7]))
    assert pairs.schema == ORDERS
    assert pairs["order"].to_pylist() == [one, two, two, one]
    assert pairs["customer"].to_pylist() == [7, 7, 8, 7]


def test_rejects_of_an_earlier_run_are_deleted_where_none_are_left(tmp_path: Path) -> None:
    row = {"table": "events", "reason": "no time"}
    write_rejects([pa.Table.from_pylist([row], schema=REJECTS)], tmp_path / "rows", "read-00000")
    path = tmp_path / "rejects" / "part-read-00000.parquet"
    assert pq.read_table(path)["reason"].to_pylist() == ["no time"]
    write_rejects([], tmp_path / "rows", "read-00000")
    assert not path.exists()


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
