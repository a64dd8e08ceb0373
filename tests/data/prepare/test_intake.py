"""The intake sequence: limits, erased customers and customer rules are the same for job, check and notebook."""

from pathlib import Path

import pyarrow as pa
import pytest

from clv.data.events import EVENTS
from clv.data.prepare import intake
from clv.data.prepare.check import check_sources
from clv.data.prepare.erasure import Erased, Erasure
from clv.data.sources import text_files
from clv.data.spec.models import DatasetSpec
from tests.data.prepare.small_logs import spec_of, written

TEXT = "id,t,x\na,2020-01-01,1\nb,2020-01-02,2\nbroken\na,2020-01-01,1\nc,soon,4\n"


@pytest.fixture
def spec(tmp_path: Path) -> DatasetSpec:
    return spec_of(written(tmp_path / "log.csv", TEXT), cleaning={"exact_duplicates": "drop"})


def test_no_more_rows_are_read_than_asked_for_and_a_malformed_line_is_one(
    spec: DatasetSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "BLOCK_BYTES", 20)
    (unit,) = check_sources(spec, "shop.yaml")
    assert len(list(intake.read_unit(unit, spec, "shop.yaml"))) > 2
    for max_rows in (1, 2, 3, 5):
        blocks = list(intake.read_unit(unit, spec, "shop.yaml", max_rows=max_rows))
        assert sum(block.accounting.read for block in blocks) == max_rows


def test_rows_of_erased_customers_are_rejected_and_their_records_are_hidden(spec: DatasetSpec) -> None:
    (unit,) = check_sources(spec, "shop.yaml")
    erased = Erased([Erasure.create(["a", "c"], at=2_000_000_000_000_000)])
    (block,) = intake.read_unit(unit, spec, "shop.yaml", erased=erased)
    block.accounting.check("intake")
    assert block.rows["customer_id"].to_pylist() == ["b"]
    assert block.accounting.rejected["customer was erased"] == 2
    assert block.rejects["record"].to_pylist() == [None] * 4


def test_the_first_of_exact_duplicates_stays_with_its_columns_and_the_reject_names_its_file(spec: DatasetSpec) -> None:
    (unit,) = check_sources(spec, "shop.yaml")
    (block,) = intake.read_unit(unit, spec, "shop.yaml")
    cleaned = intake.apply_customer_rules(block.rows, spec, [unit.path])
    assert cleaned.rows.column_names == block.rows.column_names
    assert cleaned.rows["customer_id"].to_pylist() == ["a", "b"]
    assert cleaned.accounting.rejected == {"exact duplicate of another row": 1}
    assert cleaned.rejects["source"].to_pylist() == [unit.path]


def test_absent_columns_of_events_are_null_a_quantity_of_one_and_known_at_once() -> None:
    time = pa.array([1_600_000_000_000_000], pa.int64()).cast(EVENTS.field("event_time").type)
    (row,) = intake.to_event_schema(pa.table({"customer_id": ["a"], "event_time": time})).to_pylist()
    assert list(row) == EVENTS.names
    assert (row["known_at"], row["quantity"], row["amount"]) == (row["event_time"], 1.0, None)
