"""Drafts of dataset specs from small files."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.data.spec.draft import draft
from clv.data.spec.models import DatasetSpec, SpecError


def test_a_draft_guesses_separator_encoding_times_and_event_types(tmp_path: Path) -> None:
    lines = ["Kunde-ID;Product ID;Action;Created At;Price"]
    lines += [
        f"K{i};Kännchen {i};{kind};{20 + i % 8}.12.2023 1{i % 10}:30;{i},50"
        for i, kind in enumerate(["view", "buy", "spin"] * 9)
    ]
    (tmp_path / "log.csv").write_bytes("\n".join(lines).encode("cp1252"))
    text = draft(str(tmp_path / "log.csv"), "Europe/Berlin")
    source = DatasetSpec.parse(text, "draft").events[0]
    assert (source.delimiter, source.encoding, source.time_format) == (";", "cp1252", "%d.%m.%Y %H:%M")
    assert (source.decimal, source.columns.unit_price) == (",", "Price")
    assert source.event_type.model_dump()["map"] == {"view": "view", "buy": "purchase", "spin": "spin"}  # type: ignore[union-attr]
    assert "['spin'] are none of our types" in text
    assert "customer_id: no column is called like a customer; 'Kunde-ID' is a guess" in text


def test_a_draft_maps_the_column_names_of_the_readme(tmp_path: Path) -> None:
    lines = [
        "buyer,paid_at,order,sku,qty,price,title",
        *(f"B{i},2024-01-{i:02},A{i},S1,2,9.5,Tea" for i in range(1, 9)),
    ]
    (tmp_path / "orders.csv").write_text("\n".join(lines))
    text = draft(str(tmp_path / "orders.csv"))
    columns = DatasetSpec.parse(text, "draft").events[0].columns
    assert (columns.customer_id, columns.event_time, columns.unit_price) == (["buyer"], "paid_at", "price")
    assert "is a guess" not in text


def test_a_file_without_a_header_gets_numbered_columns_and_notes(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 20240101 3 9.5\n2 20240102 1 7.5\n3 20240103 2 1.5\n")
    text = draft(str(tmp_path / "log.txt"))
    source = DatasetSpec.parse(text, "draft").events[0]
    assert (source.delimiter, source.header, source.names) == (r"\s+", False, [f"column_{i}" for i in range(1, 5)])
    assert (source.columns.event_time, source.time_format) == ("column_2", "%Y%m%d")
    assert "event_time: no column is called like a time; 'column_2' is a guess" in text


def test_a_parquet_file_with_milliseconds_and_an_empty_file(tmp_path: Path) -> None:
    table = pa.table({"user_id": ["a", "b"], "ts": [1_700_000_000_000, 1_700_000_060_000], "revenue": [1.5, 2.5]})
    pq.write_table(table, tmp_path / "log.parquet")
    source = DatasetSpec.parse(draft(str(tmp_path / "log.parquet")), "draft").events[0]
    assert (source.format, source.time_format, source.columns.amount) == ("parquet", "unix_ms", "revenue")
    (tmp_path / "empty.csv").write_text("\n")
    with pytest.raises(SpecError, match=r"empty\.csv is empty; name a file with rows"):
        draft(str(tmp_path / "empty.csv"))
