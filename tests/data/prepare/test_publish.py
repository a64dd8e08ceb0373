"""Manifest of a histories folder: counts of both passes must agree, and event types must have codes of their own."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.data.dataset import PreparedDataset
from clv.data.events import type_code
from clv.data.prepare import publish
from clv.data.prepare.accounting import REJECTS
from clv.data.prepare.publish import BuildRecord
from tests.prepared_shop import prepared_shop


def record(pass_1: int, pass_2: int) -> BuildRecord:
    counts: dict[str, Any] = {"rejected": {}, "notices": {}}
    part = {"row_accounting": {"events": counts | {"read": pass_2, "accepted": pass_2}}, "shared_orders": 2}
    return BuildRecord(1, [], [], {"events": counts | {"read": pass_1, "accepted": pass_1}}, [part])


def test_orders_shared_by_customers_become_a_notice_of_the_total_counts() -> None:
    total = publish._total_accounting(record(5, 5))["events"]
    assert (total.read, total.accepted) == (5, 5)
    assert total.notices == {"order ids that stand for several customers (each gets an order of its own)": 2}


def test_rows_that_are_lost_between_the_passes_raise() -> None:
    with pytest.raises(RuntimeError, match="pass 1 accepted 5 rows of events, pass 2 read 4"):
        publish._total_accounting(record(5, 4))


def test_two_event_types_with_one_code_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    publish._check_type_codes(["purchase", "spin", "view"])
    monkeypatch.setattr(publish, "type_code", lambda names: type_code(names) * 0)
    with pytest.raises(publish.SpecError, match="event types 'spin' and 'view' share the code 0; rename one"):
        publish._check_type_codes(["spin", "view"])


def test_the_manifest_counts_what_the_shards_hold(tmp_path: Path) -> None:
    folder = prepared_shop(tmp_path, 2, 15, "2023-01-01", "2023-07-01", seed=1)
    prepared = PreparedDataset.open(folder)
    manifest, table = prepared.manifest, prepared.histories()
    times = sorted(time for row in table["time"].to_pylist() for time in row)
    assert manifest["num_customers"] == len(table) == sum(part["customers"] for part in manifest["shards"])
    assert manifest["num_tokens"] == len(times)
    assert manifest["num_lines"] == sum(sum(row) for row in table["lines"].to_pylist())
    assert [datetime.fromisoformat(manifest[name]) for name in ("first_time", "last_time")] == [times[0], times[-1]]
    assert manifest["event_types"] == {name: int(type_code([name])[0]) for name in ("cart", "purchase", "view")}
    loaded = BuildRecord.load(folder)
    assert (
        loaded.rows
        == manifest["row_accounting"]["events"]["accepted"]
        == len(pq.read_table(tmp_path / "events.parquet"))
    )
    assert json.loads((folder / "stats.json").read_text())["tokens"] == manifest["num_tokens"]
    # Statistics that an older version wrote, without some of the keys, are measured again.
    measured = dict(loaded.parts[0]["stats"])
    loaded.parts[0]["stats"] = {"customers": 1}
    publish._measure_again(folder, loaded.parts)
    assert loaded.parts[0]["stats"] == measured
    # The item table of a folder that keeps no pieces stays.
    (folder / "rows" / publish.ITEMS_BUILT).rename(folder / "rows" / "elsewhere")
    pq.write_table(pa.table({"item_id": ["a", "b"]}), folder / "items" / "items.parquet")
    assert publish._join_items(folder, 2) == 2


def test_pieces_of_the_item_table_are_joined_with_the_columns_of_all(tmp_path: Path) -> None:
    built = tmp_path / publish.ROWS / publish.ITEMS_BUILT
    built.mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["a"]}), built / "part-00000.parquet")
    pq.write_table(pa.table({"item_id": ["b", "c"], "text": ["Mug", "Jar"]}), built / "part-00001.parquet")
    assert publish._join_items(tmp_path, 2) == 3
    joined = pq.read_table(tmp_path / "items" / "items.parquet")
    assert joined.to_pydict() == {"item_id": ["a", "b", "c"], "text": [None, "Mug", "Jar"]}


def test_each_reason_has_one_example_from_the_first_three_files(tmp_path: Path) -> None:
    (tmp_path / "rejects").mkdir()
    files = [
        [("no time", "a" * 400), ("no time", "b")],
        [("no id", None), ("no time", "c")],
        [("no id", "d")],
        [("e", "e")],
    ]
    for number, rows in enumerate(files):
        table = pa.Table.from_pylist([{"reason": reason, "record": text} for reason, text in rows], schema=REJECTS)
        pq.write_table(table, tmp_path / "rejects" / f"part-{number}.parquet")
    assert publish.example_rejects(tmp_path) == f"  for example, no time: {'a' * 300}\n  for example, no id: d\n"
