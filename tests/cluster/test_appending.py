"""Appending files to a histories folder leaves what one prepare of all files would have written."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.cluster import appending, maintenance
from clv.cluster.preparing import prepare
from clv.cluster.work_units import run_here
from clv.data.prepare import partition
from clv.data.spec.models import DatasetSpec, SpecError
from tests.cluster.dirty_shop import content, held_back, inodes
from tests.log_lines import each_line

QUIET: dict[str, Any] = {"run": run_here}


# log-1 holds later orders, log-0 earlier ones (late events), log-2 copies of rows that are in log-0.
@pytest.mark.parametrize("late", ["log-1*", "log-0*", "log-2*", "log-[12]*"])
def test_an_append_equals_a_prepare_of_all_files(tmp_path: Path, shop: DatasetSpec, late: str) -> None:
    prepare(shop, "shop.yaml", tmp_path / "whole", partitions=5, **QUIET)
    back = held_back(tmp_path, late)
    prepare(shop, "shop.yaml", tmp_path / "out", partitions=5, **QUIET)
    assert content(tmp_path / "out") != content(tmp_path / "whole")
    back()
    appending.append(shop, "shop.yaml", tmp_path / "out", **QUIET)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    said: list[str] = []
    with each_line(said.append):
        appending.append(shop, "shop.yaml", tmp_path / "out", run=run_here)
    assert said == [f"shop: no new files; {tmp_path / 'out'} holds all 4 files"]


def test_an_append_to_the_folder_of_an_older_version_measures_its_shards_anew(
    tmp_path: Path, shop: DatasetSpec
) -> None:
    prepare(shop, "shop.yaml", tmp_path / "out", partitions=8, **QUIET)
    parts = tmp_path / "out" / "parts.json"
    build_record = json.loads(parts.read_text())
    for part in build_record["parts"]:
        for name in ("cohort_amount_by_month", "spend_counts", "sessions"):
            part.get("stats", {}).pop(name, None)
    parts.write_text(json.dumps(build_record))
    log = pq.read_table(tmp_path / "log-0.parquet")
    one = log.filter(pa.compute.equal(log["c"], "c5")).slice(0, 1)
    pq.write_table(one.set_column(5, "x", pa.array([77.0])), tmp_path / "log-3.parquet")
    appending.append(shop, "shop.yaml", tmp_path / "out", **QUIET)
    prepare(shop, "shop.yaml", tmp_path / "whole", partitions=8, **QUIET)
    stats = [json.loads((tmp_path / name / "stats.json").read_text()) for name in ("whole", "out")]
    assert stats[0] == stats[1]


def test_an_append_builds_only_the_shards_that_new_rows_fall_into(tmp_path: Path, shop: DatasetSpec) -> None:
    prepare(shop, "shop.yaml", tmp_path / "out", partitions=8, **QUIET)
    before = inodes(tmp_path / "out")
    log = pq.read_table(tmp_path / "log-0.parquet")
    one = log.filter(pa.compute.equal(log["c"], "c5")).slice(0, 1)
    pq.write_table(one.set_column(5, "x", pa.array([77.0])), tmp_path / "log-3.parquet")
    said: list[str] = []
    with each_line(said.append):
        appending.append(shop, "shop.yaml", tmp_path / "out", run=run_here)
    after = inodes(tmp_path / "out")
    changed = {name for name in after if after[name] != before[name]}
    customer = int(partition.partition_of(partition.stable_hash(["c5"]), 8)[0])
    # Items and orders have partitions of their own; a shard built again without a change in it is the same to the byte.
    assert f"part-{customer:05d}.parquet" in changed
    assert len(changed) <= 3
    assert any(line.startswith(f"{len(changed)} of 8 partitions changed") for line in said)


def test_an_append_is_refused_where_it_could_not_equal_a_prepare(tmp_path: Path, shop: DatasetSpec) -> None:
    out = tmp_path / "out"
    prepare(shop, "shop.yaml", out, partitions=2, **QUIET)
    other = shop.model_copy(update={"timezone": "Europe/Berlin"})
    with pytest.raises(SpecError, match="differs from the spec"):
        appending.append(other, "shop.yaml", out, **QUIET)
    log = tmp_path / "log-1.parquet"
    pq.write_table(pq.read_table(log).slice(1), log)
    with pytest.raises(SpecError, match=r"log-1\.parquet has changed since"):
        appending.append(shop, "shop.yaml", out, **QUIET)
    prepare(shop, "shop.yaml", out, overwrite=True, keep_rows=False, **QUIET)
    for refused in (
        lambda: appending.append(shop, "shop.yaml", out, **QUIET),
        lambda: maintenance.compact(out, **QUIET),
    ):
        with pytest.raises(SpecError, match="was prepared without its rows"):
            refused()


def test_a_table_of_customers_that_sorts_before_a_known_one_is_refused(tmp_path: Path, shop: DatasetSpec) -> None:
    (tmp_path / "customers.csv").rename(tmp_path / "customers-2.csv")
    source = shop.customers[0].model_copy(update={"path": f"{tmp_path}/customers*.csv"})
    spec = shop.model_copy(update={"customers": [source]})
    prepare(spec, "shop.yaml", tmp_path / "out", partitions=2, **QUIET)
    (tmp_path / "customers-1.csv").write_text("id,town,age\nc1,Rom,20\n")
    with pytest.raises(SpecError, match=r"customers-1\.csv stands before files that"):
        appending.append(spec, "shop.yaml", tmp_path / "out", **QUIET)
    (tmp_path / "customers-1.csv").rename(tmp_path / "customers-3.csv")
    appending.append(spec, "shop.yaml", tmp_path / "out", **QUIET)
    prepare(spec, "shop.yaml", tmp_path / "whole", partitions=2, **QUIET)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_an_append_keeps_erased_customers_out_but_not_what_they_do_later(tmp_path: Path, shop: DatasetSpec) -> None:
    out = tmp_path / "out"
    prepare(shop, "shop.yaml", out, partitions=2, **QUIET)
    maintenance.erase(out, ["c4"], **QUIET)
    again = pa.table({"c": ["c4", "c4", "c4"], "t": [1_600_000_001, 1_600_000_002, 4_000_000_000], "o": ["x", "y", "z"],
                      "i": ["1", "1", "1"], "q": [1, 1, 1], "x": [5.0, -1.0, 6.0], "d": ["mug"] * 3})  # fmt: skip
    pq.write_table(again, tmp_path / "log-3.parquet")
    manifest = appending.append(shop, "shop.yaml", out, **QUIET)
    rows = pa.concat_tables([pq.read_table(out / shard["file"]) for shard in manifest["shards"]])
    token = [row for row in rows.to_pylist() if row["customer_id"] == "c4"]
    assert [row["amount"] for row in token] == [[6.0]]
    rejects = pa.concat_tables([pq.read_table(out / name) for name in manifest["rejects"]]).to_pylist()
    assert not [row for row in rejects if row["record"] and '"c4"' in row["record"]]
