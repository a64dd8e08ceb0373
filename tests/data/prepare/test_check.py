"""Checks before any work: wrong columns, wrong paths, and the first rows of every source."""

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.check import TooManyRejectsError, check, check_share, check_sources
from clv.data.prepare.erasure import REASON
from clv.data.spec.models import SpecError
from tests.data.prepare.small_logs import spec_of, written


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
        check_sources(spec_of(tmp_path / "log.parquet", columns, **more), "shop.yaml")


@pytest.mark.parametrize(
    ("table", "source", "message"),
    [
        (
            "items",
            {"columns": {"item_id": "idd"}},
            r"items\[0\]\.columns\.item_id: .*has no column 'idd' \(did you mean",
        ),
        ("items", {"columns": {"item_id": "id", "text": "many"}}, r"columns\.text: column 'many' .* a plain column is"),
        (
            "customers",
            {"columns": {"customer_id": "id"}, "attributes": {"town": {"column": "id", "known_at": "x"}}},
            r"customers\[0\]\.attributes\.town\.known_at: column 'x' of .* is double; set time_format",
        ),
    ],
)
def test_a_wrong_column_of_an_item_or_customer_table_is_found_too(
    tmp_path: Path, table: str, source: dict[str, Any], message: str
) -> None:
    pq.write_table(pa.table({"id": ["a"], "x": [1.0], "many": [[1, 2]]}), tmp_path / "side.parquet")
    log = written(tmp_path / "log.csv", "id,t,x\na,2020-01-01,1\n")
    with pytest.raises(SpecError, match=message):
        check_sources(spec_of(log, **{table: source | {"path": str(tmp_path / "side.parquet")}}), "shop.yaml")


def test_an_error_for_a_wrong_path_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_PLACE", raising=False)
    for path, message in [
        ("${NO_SUCH_PLACE}/x.csv", "environment variable NO_SUCH_PLACE is not set"),
        ("pkg://no_such_package/x.csv", "the package 'no_such_package' is not installed"),
        (f"{tmp_path}/*.tsv", "no file matches"),
        ("absent.csv", f"no file matches absent.csv in {Path.cwd()}; correct the path"),
        (str(written(tmp_path / "log.dat", "x")), "format is missing and the name 'log.dat' does not show it"),
        (str(written(tmp_path / "broken.parquet", "PAR1 no")), "is not a readable Parquet file"),
        (str(written(tmp_path / "empty.csv", "")), "is empty; there is nothing to prepare"),
    ]:
        with pytest.raises(SpecError, match=message):
            check_sources(spec_of(path), "shop.yaml")


def test_a_header_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    spec = spec_of(written(tmp_path / "log.csv", "id,t,x,x\na,2020-01-01,1,2\n"))
    with pytest.raises(SpecError, match=r"columns \['x'\] stand in the header twice; give names"):
        check_sources(spec, "shop.yaml")


def test_check_reads_ten_thousand_rows_at_most_and_writes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "id,t,x\n" + "".join(f"c{i % 50},{1_600_000_000 + i},1\n" for i in range(12_000))
    spec = spec_of(written(tmp_path / "log.csv", text), time_format="unix_s")
    caplog.set_level("INFO")
    accounting = check(spec, "shop.yaml")
    assert accounting["events[0]"].read == 10_000
    assert "events[0]: 10,000 rows read, 10,000 accepted, 0 rejected" in caplog.messages
    assert "50 customers, 10,000 tokens from 10,000 events" in caplog.messages
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_the_limit_of_rows_holds_over_all_files_of_a_source(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        written(tmp_path / f"day-{day}.csv", f"id,t,x\na,2024-01-0{day},1\nb,2024-01-0{day},2\n")
    accounting = check(spec_of(f"{tmp_path}/day-*.csv"), "shop.yaml", num_rows=3)
    assert accounting["events[0]"].read == 3


def test_more_rejected_rows_than_allowed_are_an_error_but_rows_of_erased_customers_are_not(tmp_path: Path) -> None:
    spec = spec_of(written(tmp_path / "log.csv", "id,t,x\n"), max_rejected_share=0.2)

    def counts(**rejected: int) -> RowAccounting:
        return RowAccounting(10, 10 - sum(rejected.values()), Counter(rejected))

    check_share(counts(**{"no time": 2, REASON: 5}), spec, "shop.yaml")
    message = (
        r"^shop.yaml: 8 of 10 events \(80.0%\) were rejected, max_rejected_share is 20.0%:\n(.*\n)+an example\ncorr"
    )
    with pytest.raises(TooManyRejectsError, match=message):
        check_share(counts(**{"no time": 3, REASON: 5}), spec, "shop.yaml", "an example\n")
    with pytest.raises(TooManyRejectsError, match="10 of 10 events"):
        check_share(counts(**{REASON: 10}), spec, "shop.yaml")
    with pytest.raises(SpecError, match=r"shop.yaml: the event sources hold no rows; there is nothing to prepare"):
        check_share(RowAccounting(), spec, "shop.yaml")


def test_the_whole_item_table_is_read_where_its_prices_fill_amounts(tmp_path: Path) -> None:
    log = written(tmp_path / "log.csv", "id,t,x,item\na,2024-01-01,,i5\nb,2024-01-02,3,i1\n")
    items = written(tmp_path / "items.csv", "item,price\n" + "".join(f"i{number},{number}\n" for number in range(6)))
    columns = "customer_id: id, event_time: t, amount: x, item_id: item"
    table = {"path": str(items), "columns": {"item_id": "item", "price": "price"}}
    accounting = {}
    for rule in ("item_price", "zero"):
        spec = spec_of(log, columns, items=table, cleaning={"missing_amount": rule})
        accounting[rule] = check(spec, "shop.yaml", num_rows=2)
    assert {rule: found["items[0]"].read for rule, found in accounting.items()} == {"item_price": 6, "zero": 2}
    assert {rule: found["events[0]"].read for rule, found in accounting.items()} == {"item_price": 2, "zero": 2}
    assert accounting["item_price"]["events[0]"].accepted == 2
    assert accounting["item_price"]["events[0]"].notices
