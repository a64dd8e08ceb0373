"""Row files rewritten: grouped below a size, merged for other partitions, or without some customers."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clv.data.events import stable_hash
from clv.data.prepare import partition, regroup

IDS = np.array([f"c{n % 7}" for n in range(60)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six row files of three partitions with ten rows each."""
    for number in range(6):
        rows = np.arange(10 * number, 10 * number + 10)
        table = pa.table({"customer_id": IDS[rows], "row": rows})
        part = partition.partition_of(stable_hash(IDS[rows]), 3)
        partition.write_partitions(table, part, 3, tmp_path / "events" / f"u{number:06d}-000000.arrow")
    return tmp_path / "events"


def test_groups_of_row_files_keep_their_order_and_stay_below_the_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition, "FLUSH_ROWS", 25)
    groups = list(regroup.file_groups(folder))
    assert [path for group, _ in groups for path in group] == sorted(folder.iterdir())
    assert [rows for _, rows in groups] == [20, 20, 20]


def test_merged_files_have_the_same_rows_of_a_customer_in_the_same_order(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "merged" / "events" / "u0.arrow"
    assert regroup.merge_files(sorted(folder.iterdir()), target, 5) == 60
    assert sum(regroup.rows_by_partition(target)) == 60
    for number in range(5):
        table = partition.read_partition(target.parent, number)
        owner = partition.partition_of(stable_hash(IDS), 5)
        assert sorted(table["row"].to_pylist()) == np.flatnonzero(owner == number).tolist()
        for name in set(table["customer_id"].to_pylist()):
            rows = table.filter(pa.compute.equal(table["customer_id"], name))["row"].to_pylist()
            assert rows == sorted(rows)


def test_only_rows_of_the_customers_are_dropped_and_other_files_are_linked(folder: Path, tmp_path: Path) -> None:
    hashes = stable_hash(["c3"])
    parts = {int(p) for p in partition.partition_of(hashes, 3)}
    removed = 0
    for path in sorted(folder.iterdir()):
        removed += regroup.drop_customers(path, tmp_path / "kept" / "events" / path.name, hashes, parts)
    kept = [partition.read_partition(tmp_path / "kept" / "events", number) for number in range(3)]
    assert removed == (IDS == "c3").sum()
    assert sorted(pa.concat_tables(kept)["row"].to_pylist()) == np.flatnonzero(IDS != "c3").tolist()
    source = sorted(folder.iterdir())[0]
    target = tmp_path / "other" / "events" / source.name
    assert regroup.drop_customers(source, target, stable_hash(["nobody"]), {0, 1, 2}) == 0
    assert target.stat().st_ino == source.stat().st_ino
