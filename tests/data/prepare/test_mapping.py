"""Mapping of files to events: every format gives the same events, and bad rows are rejected with a reason."""

import gzip
import json
import sqlite3
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.data.events import EVENTS
from clv.data.sources import reading, text_files
from clv.data.spec.models import DatasetSpec
from tests.data.prepare.small_logs import mapped, spec_of, written

ROWS = [("a", "2020-01-02T10:00:00", 1.5), ("b", "2020-01-03T11:30:00", -2.0), ("a", "2020-01-04T00:00:00", 0.25)]


def write_all_formats(folder: Path) -> list[DatasetSpec]:
    csv = "id,t,x\n" + "".join(f"{i},{t},{x}\n" for i, t, x in ROWS)
    jsonl = "".join(json.dumps({"id": i, "t": t, "x": x}) + "\n" for i, t, x in ROWS)
    table = pa.table(
        {"id": [r[0] for r in ROWS], "t": [datetime.fromisoformat(r[1]) for r in ROWS], "x": [r[2] for r in ROWS]}
    )
    pq.write_table(table, folder / "log.parquet", row_group_size=2)
    with gzip.open(folder / "log.csv.gz", "wt") as file:
        file.write(csv)
    with sqlite3.connect(folder / "log.db") as base:
        base.execute("create table log (id text, t text, x real)")
        base.executemany("insert into log values (?, ?, ?)", ROWS)
    sql = DatasetSpec.parse(
        "name: s\ntimezone: UTC\ncurrency: EUR\nevents:\n"
        f"  sql: {{url: sqlite:///{folder / 'log.db'}, query: select * from log}}\n"
        "  columns: {customer_id: id, event_time: t, amount: x}\n",
        "shop.yaml",
    )
    return [
        sql,
        spec_of(written(folder / "log.csv", csv)),
        spec_of(folder / "log.csv.gz"),
        spec_of(written(folder / "log.tsv", csv.replace(",", "\t")), delimiter="\t"),
        spec_of(written(folder / "log.txt", csv.replace(",", "   ")), delimiter=r"\s+"),
        spec_of(written(folder / "bare.csv", csv.split("\n", 1)[1]), header=False, names=["id", "t", "x"]),
        spec_of(written(folder / "log16.csv", csv.encode("utf-16")), encoding="utf-16"),
        spec_of(written(folder / "bom.csv", b"\xef\xbb\xbf" + csv.encode())),
        spec_of(written(folder / "log.jsonl", jsonl)),
        spec_of(folder / "log.parquet"),
    ]


def test_every_format_gives_the_same_events(tmp_path: Path) -> None:
    results = [mapped(spec) for spec in write_all_formats(tmp_path)]
    assert len(results) == 10
    for got in results:
        assert got.accounting.read == got.accounting.accepted == 3
        assert got.rows.select(EVENTS.names).equals(results[0].rows.select(EVENTS.names))
    first = results[0].rows
    assert first["customer_id"].to_pylist() == ["a", "b", "a"]
    assert first["amount"].to_pylist() == [1.5, -2.0, 0.25]
    assert first["known_at"].equals(first["event_time"])
    assert first["quantity"].to_pylist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_text_cut_into_byte_ranges_gives_every_line_once(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"c{i % 7}", 1_600_000_000 + i, i / 4) for i in range(500)]
    if suffix == "csv":
        text = "id,t,x\n" + "".join(f"{i},{t},{x}\n" for i, t, x in rows)
    else:
        text = "".join(json.dumps({"id": i, "t": t, "x": x}) + "\n" for i, t, x in rows)
    spec = spec_of(written(tmp_path / f"log.{suffix}", text), time_format="unix_s")
    whole = mapped(spec).rows
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 97)
    for size in (61, 100, 1003):
        monkeypatch.setattr(reading, "UNIT_BYTES", size)
        assert len(reading.plan_units(spec, "shop.yaml")) > 5
        pieces = mapped(spec).rows
        assert pieces["amount"].to_pylist() == whole["amount"].to_pylist()
        assert pieces["customer_id"].to_pylist() == whole["customer_id"].to_pylist()


def test_line_breaks_in_quoted_values_survive_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "id,t,x,note\n" + "".join(f'c{i},2020-01-01,{i},"two\nlines ""{i}"""\n' for i in range(50))
    columns = "customer_id: id, event_time: t, amount: x, text: note"
    spec = spec_of(written(tmp_path / "log.csv", text), columns, newlines_in_values=True)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 64)
    got = mapped(spec)
    assert got.rows["text"].to_pylist() == [f'two\nlines "{i}"' for i in range(50)]


def test_bad_rows_are_rejected_with_reason_record_source_and_row(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    table = pa.table(
        {
            "id": ["a", None, "b", "c", "", "d"],
            "t": ["2020-01-01", "2020-01-01", "yesterday", None, "2020-01-01", "1850-01-01"],
            "x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        }
    )
    pq.write_table(table, path)
    got = mapped(spec_of(path))
    assert got.accounting.rejected == {
        "customer_id is missing (anonymous)": 2,
        "event_time is unreadable or outside 1970 to 2099": 2,
        "event_time is missing": 1,
    }
    assert got.rejects["row"].to_pylist() == [1, 2, 3, 4, 5]
    assert set(got.rejects["source"].to_pylist()) == {str(path)}
    assert json.loads(got.rejects["record"][1].as_py()) == {"id": "b", "t": "yesterday", "x": 3.0}


def test_missing_nan_and_infinite_numbers_have_reasons_of_their_own(tmp_path: Path) -> None:
    values = ["1", "inf", "twelve", "", "NaN", " 2.5 "]
    text = "id,t,x\n" + "".join(f"a,2020-01-01,{value}\n" for value in values)
    got = mapped(spec_of(written(tmp_path / "log.csv", text)))
    assert got.accounting.rejected == {"amount is not a finite number": 2, "amount is missing": 2}
    assert got.rows["amount"].to_pylist() == [1.0, 2.5]

    table = pa.table({"id": ["a", "b", "c"], "t": ["2020-01-01"] * 3, "x": [1.0, float("nan"), float("inf")]})
    pq.write_table(table, tmp_path / "log.parquet")
    got = mapped(spec_of(tmp_path / "log.parquet"))
    assert got.accounting.rejected == {"amount is not a finite number": 1, "amount is missing": 1}


def test_lines_with_too_few_fields_or_foreign_bytes_are_rejected_alone(tmp_path: Path) -> None:
    text = b"id,t,x\na,2020-01-01,1\nbroken,line\nb,2020-01-02,2\n" + b"M\xfcller,2020-01-03,3\n"
    got = mapped(spec_of(written(tmp_path / "log.csv", text)))
    assert got.accounting.read == 4
    assert got.accounting.accepted == 2
    assert got.accounting.rejected == {"malformed row": 2}
    records = [json.loads(record)["line"] for record in got.rejects["record"].to_pylist()]
    assert records[0].startswith("not utf-8: M")
    assert records[1] == "2 fields instead of 3: broken,line"

    latin = mapped(spec_of(tmp_path / "log.csv", encoding="latin-1"))
    assert latin.rows["customer_id"].to_pylist() == ["a", "b", "Müller"]


def test_json_lines_that_are_no_objects_are_rejected_and_odd_types_read_as_text(tmp_path: Path) -> None:
    text = '{"id": 7, "t": "2020-01-01", "x": 1}\nnot json\n[1, 2]\n{"id": "u8", "t": "2020-01-02", "x": "2.5"}\n'
    got = mapped(spec_of(written(tmp_path / "log.jsonl", text)))
    assert got.accounting.rejected == {"malformed row": 2}
    assert got.rows["customer_id"].to_pylist() == ["7", "u8"]
    assert got.rows["amount"].to_pylist() == [1.0, 2.5]


def test_amount_is_quantity_times_unit_price_where_absent(tmp_path: Path) -> None:
    text = "id,t,q,p,x\na,2020-01-01,3,2.5,\nb,2020-01-01,,4,\nc,2020-01-01,2,9,5\n"
    columns = "customer_id: id, event_time: t, quantity: q, unit_price: p, amount: x"
    got = mapped(spec_of(written(tmp_path / "log.csv", text), columns))
    assert got.rows["amount"].to_pylist() == [7.5, 4.0, 5.0]
    assert got.accounting.notices == {"rows without a quantity, counted as 1": 1}


def test_event_types_are_mapped_and_foreign_ones_rejected_or_kept(tmp_path: Path) -> None:
    path = written(
        tmp_path / "log.csv", "id,t,k\na,2020-01-01,pv\na,2020-01-02,buy\na,2020-01-03,spin\na,2020-01-04,\n"
    )
    rule = {"column": "k", "map": {"pv": "view", "buy": "purchase"}}
    got = mapped(spec_of(path, "customer_id: id, event_time: t", value="none", event_type=rule))
    assert got.rows["event_type"].to_pylist() == ["view", "purchase"]
    assert got.accounting.rejected == {"event_type is not in the map": 1, "event_type is missing": 1}
    got = mapped(spec_of(path, "customer_id: id, event_time: t", value="none", event_type=rule | {"other": "keep"}))
    assert got.rows["event_type"].to_pylist() == ["view", "purchase", "spin"]


def test_ids_of_several_columns_are_joined_and_whole_floats_lose_their_fraction(tmp_path: Path) -> None:
    table = pa.table({"shop": [1, 1, 2], "c": [17.0, None, 18.0], "t": ["2020-01-01"] * 3, "x": [1.0, 1.0, 1.0]})
    pq.write_table(table, tmp_path / "log.parquet")
    got = mapped(spec_of(tmp_path / "log.parquet", "customer_id: [shop, c], event_time: t, amount: x"))
    assert got.rows["customer_id"].to_pylist() == ["1/17", "2/18"]
