"""CSV and JSON lines in which something is broken: that line is set aside, and nothing around it is lost."""

import json
from pathlib import Path

import pytest

from clv.cluster import preparing, work_units
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.check import check_sources
from clv.data.prepare.mapping import map_events
from clv.data.sources import text_files
from clv.data.sources.reading import plan_units, read_unit
from clv.data.spec.models import DatasetSpec, SpecError

GOOD_CSV = [f"c{i},2024-01-0{1 + i % 9},o{i},5.5" for i in range(6)]
GOOD_JSON = [
    json.dumps({"customer": f"c{i}", "at": f"2024-01-0{1 + i % 9}", "order": f"o{i}", "price": 5.5}) for i in range(6)
]
BAD_JSON = '{"customer": "x", "at": "2024-01-05", "order": "o1", "price": %s}'


def accounting_of(
    folder: Path, name: str, lines: list[str], more: str = ""
) -> tuple[RowAccounting, list[str | None], list[str]]:
    """Row accounting of a log of these lines, the customers accepted, and the records rejected."""
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = "{customer_id: customer, event_time: at, order_id: order, amount: price}"
    spec = DatasetSpec.parse(
        f"name: shop\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: {folder / name}\n  columns: {columns}\n{more}", "s"
    )
    accounting, customers, records = RowAccounting(), list[str | None](), list[str]()
    for unit in plan_units(spec, "s"):
        for block in read_unit(spec.events[0], unit, "s", "events[0]"):
            got = map_events(block, spec.events[0], spec, unit.path)
            accounting.add(got.accounting)
            customers += got.rows["customer_id"].to_pylist()
            records += got.rejects["record"].to_pylist()
    return accounting, customers, records


@pytest.mark.parametrize(
    "bad", ['"x,2024-01-05,o1,5', 'x,2024-01-05,"o1,5', 'x"y,2024-01-05,"o1,5', 'x,2024-01-05,o1,"']
)
@pytest.mark.parametrize("times", [1, 2])
def test_a_quote_that_nobody_closes_takes_no_other_line_with_it(tmp_path: Path, bad: str, times: int) -> None:
    lines = ["customer,at,order,price", *[*GOOD_CSV, bad] * times, *GOOD_CSV]
    accounting, customers, records = accounting_of(tmp_path, "log.csv", lines)
    assert accounting.read == len(lines) - 1
    assert accounting.rejected == {"malformed row": times}
    assert customers == [f"c{i}" for i in range(6)] * (times + 1)
    for record in records:
        said, line = json.loads(record)["line"].split(": ", 2)[0::2]
        assert said == "a quote is opened and not closed on its line (newlines_in_values"
        assert line.endswith(bad)


def test_quotes_that_are_closed_or_do_not_open_a_field_are_values(tmp_path: Path) -> None:
    good = ['"a,b",2024-01-05,o1,5', '"say ""hi""",2024-01-05,o1,5', '5" pipe,2024-01-05,o1,5', '"x"y,2024-01-05,o1,5']
    open_quote = 'x,2024-01-05,"o1,5'
    accounting, customers, _ = accounting_of(
        tmp_path, "log.csv", ["customer,at,order,price", *good, "", open_quote, *GOOD_CSV]
    )
    assert accounting.rejected == {"malformed row": 1}
    assert customers == ["a,b", 'say "hi"', '5" pipe', "xy", *(f"c{i}" for i in range(6))]


def test_values_over_several_lines_are_read_where_the_source_says_so(tmp_path: Path) -> None:
    lines = ["customer,at,order,price", 'x,2024-01-05,"o\n1",5', *GOOD_CSV]
    accounting, customers, _ = accounting_of(tmp_path, "log.csv", lines, more="  newlines_in_values: true\n")
    assert (accounting.read, accounting.accepted) == (7, 7)
    assert customers[0] == "x"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"customer": "x", "at": "2024-', "malformed row"),
        ("[1, 2]", "malformed row"),
        ('{"customer": "\\ud800", "at": "2024-01-05", "order": "o1", "price": 1}', "malformed row"),
        (BAD_JSON % "NaN", "amount is missing"),
        (BAD_JSON % "null", "amount is missing"),
        (BAD_JSON % "-Infinity", "amount is not a finite number"),
        (BAD_JSON % "1e999", "amount is not a finite number"),
        (BAD_JSON % '"twelve"', "amount is not a finite number"),
        (BAD_JSON % "true", "amount is not a finite number"),
        (BAD_JSON % "[1]", "amount is not a finite number"),
        (BAD_JSON % '{"eur": 1}', "amount is not a finite number"),
        ('{"customer": "x", "order": "o1", "price": 1}', "event_time is missing"),
        ('{"at": "2024-01-05", "order": "o1", "price": 1}', "customer_id is missing (anonymous)"),
    ],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_json_line_with_something_else_than_expected_is_rejected_alone(
    tmp_path: Path, line: str, reason: str, first: bool
) -> None:
    lines = [line, *GOOD_JSON] if first else [*GOOD_JSON, line, *GOOD_JSON]
    accounting, customers, _ = accounting_of(tmp_path, "log.jsonl", lines)
    assert accounting.rejected == {reason: 1}
    assert accounting.read == len(lines)
    assert customers == [f"c{i}" for i in range(6)] * (len(lines) // 6)


def test_a_line_separator_of_unicode_in_a_json_value_ends_no_line(tmp_path: Path) -> None:
    odd = json.dumps({"customer": "x\u2028y\x85z", "at": "2024-01-05", "price": 1.0}, ensure_ascii=False)
    accounting, customers, _ = accounting_of(tmp_path, "log.jsonl", ["nonsense", odd])
    assert accounting.rejected == {"malformed row": 1}
    assert customers == ["x\u2028y\x85z"]


def test_a_key_that_comes_late_or_only_in_some_blocks_is_a_column_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_TYPED_LINES", 2)
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 400)
    without = [json.dumps({"customer": f"w{i}", "at": "2024-01-05", "price": 2}) for i in range(20)]
    accounting, customers, _ = accounting_of(tmp_path, "log.jsonl", ["nonsense", *without, *GOOD_JSON, *without])
    assert (accounting.read, accounting.accepted) == (47, 46)
    assert len(customers) == 46


def test_keys_of_orders_are_found_in_a_log_that_begins_with_views_and_keys_of_no_line_are_named(tmp_path: Path) -> None:
    view = json.dumps({"customer": "w", "at": "2024-01-05", "kind": "view"})
    sold = json.dumps({"customer": "c", "at": "2024-01-06", "kind": "purchase", "order": "o1", "price": 5.5})
    (tmp_path / "log.jsonl").write_text("\n".join([view] * 2_000 + [sold]) + "\n")
    text = (
        "name: shop\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: %s\n  event_type: {column: kind}\n  columns: %s\n"
    )
    columns = "{customer_id: customer, event_time: at, order_id: order, amount: %s}"
    check_sources(DatasetSpec.parse(text % (tmp_path / "log.jsonl", columns % "price"), "s"), "s")
    with pytest.raises(SpecError, match="has no column 'prize'"):
        check_sources(DatasetSpec.parse(text % (tmp_path / "log.jsonl", columns % "prize"), "s"), "s")


def test_a_file_in_which_no_line_is_right_is_rejected_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text("nonsense\nmore of it\n")
    (tmp_path / "a.jsonl").write_text("\n".join(GOOD_JSON) + "\n")
    spec = tmp_path / "shop.yaml"
    columns = "{customer_id: customer, event_time: at, order_id: order, amount: price}"
    text = f"name: shop\ntimezone: UTC\ncurrency: EUR\nmax_rejected_share: .5\nevents:\n  path: {tmp_path}/*.jsonl\n"
    spec.write_text(text + f"  columns: {columns}\n")
    loaded, out = DatasetSpec.load(spec), tmp_path / "out"
    manifest = preparing.prepare(loaded, str(spec), out, run=work_units.run_here, partitions=1)
    assert manifest["row_accounting"]["events"]["rejected"] == {"malformed row": 2}
    assert manifest["num_customers"] == 6
