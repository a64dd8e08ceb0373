"""Rows of SQL queries; PostgreSQL is tested with a server in test_reading."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from clv.data.sources import sql
from clv.data.spec.models import SpecError


@pytest.fixture
def url(tmp_path: Path) -> str:
    with closing(sqlite3.connect(tmp_path / "log.db")) as base, base:
        base.execute("create table log (c text, n integer, x real, mixed)")
        rows = [(f"c{i}", i, None if i == 3 else i / 2, i if i % 2 else f"t{i}") for i in range(7)]
        base.executemany("insert into log values (?, ?, ?, ?)", rows)
    return f"sqlite:///{tmp_path / 'log.db'}"


def test_a_query_yields_typed_tables_of_bounded_size(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "FETCH_ROWS", 3)
    tables = list(sql.query(url, "select * from log order by n", "s"))
    assert [len(table) for table in tables] == [3, 3, 1]
    assert tables[0].schema.types == [pa.string(), pa.int64(), pa.float64(), pa.string()]
    assert tables[1].to_pydict() == {
        "c": ["c3", "c4", "c5"], "n": [3, 4, 5], "x": [None, 2.0, 2.5], "mixed": ["3", "t4", "5"],
    }  # fmt: skip


def test_a_limit_bounds_the_rows_of_a_query_with_a_semicolon(url: str) -> None:
    (table,) = sql.query(url, "select c from log order by n;", "s", limit=2)
    assert table["c"].to_pylist() == ["c0", "c1"]


def test_a_wrong_query_or_scheme_is_one_error_and_nothing_is_written(url: str) -> None:
    with pytest.raises(SpecError, match=r"events\[0\]: no such column: absent; correct url or query"):
        list(sql.query(url, "select absent from log", "events[0]"))
    with pytest.raises(SpecError, match="'mysql' is not supported; use sqlite:///file, postgresql://"):
        list(sql.query("mysql://h/x", "select 1", "s"))
    with pytest.raises(SpecError, match="attempt to write a readonly database"):
        list(sql.query(url, "delete from log", "s"))
