"""From files to events: formats, times, types, rejects, and row accounting that balance."""

import gzip
import json
import sqlite3
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clv.data.events import EVENTS
from clv.data.prepare import parsing
from clv.data.prepare.accounting import RowAccounting, json_rows
from clv.data.prepare.check import check, check_sources
from clv.data.prepare.mapping import MappedBlock, map_events
from clv.data.sources import reading, text_files
from clv.data.spec.models import DatasetSpec, SpecError


def shop(path: Path | str, columns: str = "customer_id: id, event_time: t, amount: x", **more: Any) -> DatasetSpec:
    top = {"timezone": "UTC", "currency": "EUR"} | {k: v for k, v in more.items() if k in DatasetSpec.model_fields}
    source = {k: v for k, v in more.items() if k not in top}
    lines = [f"{key}: {json.dumps(value)}" for key, value in top.items()]
    inner = [f"  {key}: {json.dumps(value)}" for key, value in source.items()]
    text = "\n".join(["name: shop", *lines, "events:", f"  path: {path}", f"  columns: {{{columns}}}", *inner])
    return DatasetSpec.parse(text, "shop.yaml")


def taken(spec: DatasetSpec) -> MappedBlock:
    """All blocks of the first events source, joined."""
    events, rejects, accounting = [], [], RowAccounting()
    for unit in check_sources(spec, "shop.yaml"):
        for block in reading.read_unit(spec.events[0], unit, "shop.yaml", "events[0]"):
            got = map_events(block, spec.events[0], spec, unit.path)
            events.append(got.rows)
            rejects.append(got.rejects)
            accounting.add(got.accounting)
    return MappedBlock(pa.concat_tables(events), pa.concat_tables(rejects), accounting)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


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
        shop(written(folder / "log.csv", csv)),
        shop(folder / "log.csv.gz"),
        shop(written(folder / "log.tsv", csv.replace(",", "\t")), delimiter="\t"),
        shop(written(folder / "log.txt", csv.replace(",", "   ")), delimiter=r"\s+"),
        shop(written(folder / "bare.csv", csv.split("\n", 1)[1]), header=False, names=["id", "t", "x"]),
        shop(written(folder / "log16.csv", csv.encode("utf-16")), encoding="utf-16"),
        shop(written(folder / "bom.csv", b"\xef\xbb\xbf" + csv.encode())),
        shop(written(folder / "log.jsonl", jsonl)),
        shop(folder / "log.parquet"),
    ]


def test_every_format_gives_the_same_events(tmp_path: Path) -> None:
    results = [taken(spec) for spec in write_all_formats(tmp_path)]
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
    spec = shop(written(tmp_path / f"log.{suffix}", text), time_format="unix_s")
    whole = taken(spec).rows
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 97)
    for size in (61, 100, 1003):
        monkeypatch.setattr(reading, "UNIT_BYTES", size)
        assert len(reading.plan_units(spec, "shop.yaml")) > 5
        pieces = taken(spec).rows
        assert pieces["amount"].to_pylist() == whole["amount"].to_pylist()
        assert pieces["customer_id"].to_pylist() == whole["customer_id"].to_pylist()


def test_line_breaks_in_quoted_values_survive_small_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "id,t,x,note\n" + "".join(f'c{i},2020-01-01,{i},"two\nlines ""{i}"""\n' for i in range(50))
    columns = "customer_id: id, event_time: t, amount: x, text: note"
    spec = shop(written(tmp_path / "log.csv", text), columns, newlines_in_values=True)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 64)
    got = taken(spec)
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
    got = taken(shop(path))
    assert got.accounting.rejected == {
        "customer_id is missing (anonymous)": 2,
        "event_time is unreadable or outside 1970 to 2099": 2,
        "event_time is missing": 1,
    }
    assert got.rejects["row"].to_pylist() == [1, 2, 3, 4, 5]
    assert set(got.rejects["source"].to_pylist()) == {str(path)}
    assert json.loads(got.rejects["record"][1].as_py()) == {"id": "b", "t": "yesterday", "x": 3.0}


def test_numbers_that_are_none_nan_or_infinite_are_told_apart(tmp_path: Path) -> None:
    values = ["1", "inf", "twelve", "", "NaN", " 2.5 "]
    text = "id,t,x\n" + "".join(f"a,2020-01-01,{value}\n" for value in values)
    got = taken(shop(written(tmp_path / "log.csv", text)))
    assert got.accounting.rejected == {"amount is not a finite number": 2, "amount is missing": 2}
    assert got.rows["amount"].to_pylist() == [1.0, 2.5]

    table = pa.table({"id": ["a", "b", "c"], "t": ["2020-01-01"] * 3, "x": [1.0, float("nan"), float("inf")]})
    pq.write_table(table, tmp_path / "log.parquet")
    got = taken(shop(tmp_path / "log.parquet"))
    assert got.accounting.rejected == {"amount is not a finite number": 1, "amount is missing": 1}


def test_lines_with_too_few_fields_or_foreign_bytes_are_rejected_alone(tmp_path: Path) -> None:
    text = b"id,t,x\na,2020-01-01,1\nbroken,line\nb,2020-01-02,2\n" + b"M\xfcller,2020-01-03,3\n"
    got = taken(shop(written(tmp_path / "log.csv", text)))
    assert got.accounting.read == 4
    assert got.accounting.accepted == 2
    assert got.accounting.rejected == {"malformed row": 2}
    records = [json.loads(record)["line"] for record in got.rejects["record"].to_pylist()]
    assert records[0].startswith("not utf-8: M")
    assert records[1] == "2 fields instead of 3: broken,line"

    latin = taken(shop(tmp_path / "log.csv", encoding="latin-1"))
    assert latin.rows["customer_id"].to_pylist() == ["a", "b", "Müller"]


def test_json_lines_that_are_no_objects_are_rejected_and_odd_types_read_as_text(tmp_path: Path) -> None:
    text = '{"id": 7, "t": "2020-01-01", "x": 1}\nnot json\n[1, 2]\n{"id": "u8", "t": "2020-01-02", "x": "2.5"}\n'
    got = taken(shop(written(tmp_path / "log.jsonl", text)))
    assert got.accounting.rejected == {"malformed row": 2}
    assert got.rows["customer_id"].to_pylist() == ["7", "u8"]
    assert got.rows["amount"].to_pylist() == [1.0, 2.5]


def test_amount_is_quantity_times_unit_price_where_absent(tmp_path: Path) -> None:
    text = "id,t,q,p,x\na,2020-01-01,3,2.5,\nb,2020-01-01,,4,\nc,2020-01-01,2,9,5\n"
    columns = "customer_id: id, event_time: t, quantity: q, unit_price: p, amount: x"
    got = taken(shop(written(tmp_path / "log.csv", text), columns))
    assert got.rows["amount"].to_pylist() == [7.5, 4.0, 5.0]
    assert got.accounting.notices == {"rows without a quantity, counted as 1": 1}


def test_event_types_are_mapped_and_foreign_ones_rejected_or_kept(tmp_path: Path) -> None:
    path = written(
        tmp_path / "log.csv", "id,t,k\na,2020-01-01,pv\na,2020-01-02,buy\na,2020-01-03,spin\na,2020-01-04,\n"
    )
    rule = {"column": "k", "map": {"pv": "view", "buy": "purchase"}}
    got = taken(shop(path, "customer_id: id, event_time: t", value="none", event_type=rule))
    assert got.rows["event_type"].to_pylist() == ["view", "purchase"]
    assert got.accounting.rejected == {"event_type is not in the map": 1, "event_type is missing": 1}
    got = taken(shop(path, "customer_id: id, event_time: t", value="none", event_type=rule | {"other": "keep"}))
    assert got.rows["event_type"].to_pylist() == ["view", "purchase", "spin"]


def test_ids_of_several_columns_are_joined_and_whole_floats_lose_their_fraction(tmp_path: Path) -> None:
    table = pa.table({"shop": [1, 1, 2], "c": [17.0, None, 18.0], "t": ["2020-01-01"] * 3, "x": [1.0, 1.0, 1.0]})
    pq.write_table(table, tmp_path / "log.parquet")
    got = taken(shop(tmp_path / "log.parquet", "customer_id: [shop, c], event_time: t, amount: x"))
    assert got.rows["customer_id"].to_pylist() == ["1/17", "2/18"]


@pytest.mark.parametrize(
    ("values", "form", "expected"),
    [
        (
            ["2020-07-01", "2020-07-01 12:00", "2020-07-01T12:00:00.5"],
            "iso",
            ["06-30T22:00:00", "07-01T10:00:00", "07-01T10:00:00.5"],
        ),
        (["2020-07-01T12:00Z", "2020-07-01T12:00:00+05:30"], "iso", ["07-01T12:00:00", "07-01T06:30:00"]),
        (["01/07/2020 12:00"], "%d/%m/%Y %H:%M", ["07-01T10:00:00"]),
        ([20200701], "%Y%m%d", ["06-30T22:00:00"]),
        ([1593604800, 1593604801], "unix_s", ["07-01T12:00:00", "07-01T12:00:01"]),
        ([1593604800500], "unix_ms", ["07-01T12:00:00.5"]),
        (["1593604800.25"], "unix_s", ["07-01T12:00:00.25"]),
    ],
)
def test_times_are_read_as_local_to_the_shop(values: list[Any], form: str, expected: list[str]) -> None:
    us, missing, bad, _ = parsing.times(pa.array(values), form, "Europe/Berlin")
    assert us.tolist() == [np.datetime64(f"2020-{text}", "us").astype(int) for text in expected]
    assert not missing.any()
    assert not bad.any()


def test_a_clock_change_follows_the_stated_rule_and_is_counted() -> None:
    values = pa.array(["2011-03-27 01:30", "2011-10-30 01:30", "2011-06-01 01:30"])
    us, _, bad, changed = parsing.times(values, "iso", "Europe/London")
    stamps = us.astype("datetime64[us]").astype(str).tolist()
    # The skipped half past one becomes the first instant after the gap; the repeated one is its first pass (summer).
    assert stamps[0].startswith("2011-03-27T01:00")
    assert stamps[1].startswith("2011-10-30T00:30")
    assert changed == 2
    assert not bad.any()


def test_seconds_read_as_milliseconds_are_out_of_range_not_the_year_1970() -> None:
    _, _, bad, _ = parsing.times(pa.array([1593604800000]), "unix_s", "UTC")
    assert bad.tolist() == [True]


def test_a_decimal_comma_is_read_when_declared() -> None:
    values, bad = parsing.numbers(pa.array(["1.234,50", "7", "x"]), ",")
    assert values[:2].tolist() == [1234.5, 7.0]
    assert bad.tolist() == [False, False, True]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=12), st.one_of(st.none(), st.floats(allow_nan=False)), st.integers(-(2**60), 2**60)),
        max_size=8,
    )
)
def test_a_record_is_valid_json_whatever_stands_in_it(rows: list[tuple[str, float | None, int]]) -> None:
    table = pa.table(
        {
            'te"xt': pa.array([r[0] for r in rows], pa.string()),
            "number": pa.array([r[1] for r in rows], pa.float64()),
            "whole": pa.array([r[2] for r in rows], pa.int64()),
        }
    )
    for text, (_, _, whole) in zip(json_rows(table).to_pylist(), rows, strict=True):
        record = json.loads(text)
        assert list(record) == ['te"xt', "number", "whole"]
        assert record["whole"] == whole


@pytest.mark.parametrize(
    ("columns", "more", "message"),
    [
        (
            "customer_id: idd, event_time: t, amount: x",
            {},
            r"customer_id: .*has no column 'idd' \(did you mean 'id'\?\)",
        ),
        ("customer_id: id, event_time: t, amount: flag", {}, "column 'flag' of .* is bool, not a number"),
        ("customer_id: id, event_time: x, amount: x", {}, "event_time: column 'x' of .* is double; set time_format"),
        ("customer_id: id, event_time: t, amount: x", {"time_format": "unix_s"}, r"already a time \(timestamp\[us\]\)"),
        ("customer_id: id, event_time: flag, amount: x", {}, "is bool, which is no time"),
        (
            "customer_id: id, event_time: t, amount: x, text: many",
            {},
            "text: column 'many' .* a plain column is needed",
        ),
    ],
)
def test_a_wrong_or_mistyped_column_is_found_before_any_work(
    tmp_path: Path, columns: str, more: dict[str, Any], message: str
) -> None:
    table = pa.table({"id": ["a"], "t": [datetime(2020, 1, 1)], "x": [1.0], "flag": [True], "many": [[1, 2]]})
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(SpecError, match=message):
        check_sources(shop(tmp_path / "log.parquet", columns, **more), "shop.yaml")


def test_paths_that_lead_nowhere_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    for path, message in [
        ("${NO_SUCH_PLACE}/x.csv", "environment variable NO_SUCH_PLACE is not set"),
        ("pkg://no_such_package/x.csv", "the package 'no_such_package' is not installed"),
        (f"{tmp_path}/*.tsv", "no file matches"),
        ("absent.csv", f"no file matches absent.csv in {Path.cwd()}; correct the path"),
        (str(written(tmp_path / "log.dat", "x")), "format is missing and the name 'log.dat' does not tell it"),
        (str(written(tmp_path / "broken.parquet", "PAR1 no")), "is not a readable Parquet file"),
        (str(written(tmp_path / "empty.csv", "")), "is empty; there is nothing to prepare"),
    ]:
        with pytest.raises(SpecError, match=message):
            check_sources(shop(path), "shop.yaml")


def test_a_header_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    spec = shop(written(tmp_path / "log.csv", "id,t,x,x\na,2020-01-01,1,2\n"))
    with pytest.raises(SpecError, match=r"columns \['x'\] stand in the header twice; give names"):
        check_sources(spec, "shop.yaml")


def test_check_reads_ten_thousand_rows_at_most_and_writes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "id,t,x\n" + "".join(f"c{i % 50},{1_600_000_000 + i},1\n" for i in range(12_000))
    spec = shop(written(tmp_path / "log.csv", text), time_format="unix_s")
    caplog.set_level("INFO")
    accounting = check(spec, "shop.yaml")
    assert accounting["events[0]"].read == 10_000
    assert "events[0]: 10,000 rows read, 10,000 accepted, 0 rejected" in caplog.messages
    assert "50 customers, 10,000 tokens from 10,000 events" in caplog.messages
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_row_accounting_that_do_not_balance_are_a_defect() -> None:
    with pytest.raises(RuntimeError, match="5 rows read, 3 accepted, 1 rejected"):
        RowAccounting(read=5, accepted=3, rejected=Counter(x=1)).check("test")
