"""Pass 2: the rows of a partition become a shard, its part of the item table, and counts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clv.data.hashing import file_sha256
from clv.data.prepare import build, partition
from clv.data.prepare.check import check_sources
from tests.data.prepare.small_logs import spec_of, written

TEXT = "id,t,x,o,d\na,2020-01-02,1,7,mug\na,2020-01-02,2,7,jar\nb,2020-01-01,5,8,mug\n"
COLUMNS = "customer_id: id, event_time: t, amount: x, order_id: o, item_id: d, item_text: d"


def test_a_partition_becomes_a_shard_and_a_second_call_writes_the_same_bytes(tmp_path: Path) -> None:
    spec = spec_of(written(tmp_path / "log.csv", TEXT), COLUMNS)
    out = tmp_path / "out"
    (unit,) = check_sources(spec, "shop.yaml")
    partition.split_unit(unit, spec, "shop.yaml", out / partition.ROWS, 1)
    part = build.build_partition(spec, [unit.path], out, 0)
    shard = build.shard_path(out, 0)
    table = pq.read_table(shard)
    assert table["customer_id"].to_pylist() == ["a", "b"]
    assert table["amount"].to_pylist() == [[3.0], [5.0]]
    assert part["sha256"] == file_sha256(shard)
    assert (part["customers"], part["items"], part["shared_orders"], part["types"]) == (2, 2, 0, ["purchase"])
    assert part["row_accounting"]["events"]["accepted"] == 3
    assert build.build_partition(spec, [unit.path], out, 0) == part


def test_a_partition_without_customers_has_no_shard(tmp_path: Path) -> None:
    spec = spec_of(written(tmp_path / "log.csv", TEXT), COLUMNS)
    part = build.build_partition(spec, [], tmp_path / "out", 5)
    assert (part["customers"], part["items"]) == (0, 0)
    assert "file" not in part
    assert not build.shard_path(tmp_path / "out", 5).exists()
    assert pa.types.is_string(pq.read_schema(tmp_path / "out" / "rows" / "items-built" / "part-00005.parquet")[0].type)
