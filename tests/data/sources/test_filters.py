"""Row filters of a source: values by type, folder names, statistics of row groups."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clv.data.sources import filters
from clv.data.spec.models import Range


def test_values_of_where_are_read_as_the_column_has_them() -> None:
    rows = pa.table(
        {
            "n": [1, 2, 10, None],
            "f": [0.5, 1.5, 2.5, 3.5],
            "z": pc.cast(pa.array([0, 3600, 7200, 10800]), pa.timestamp("s")).cast(pa.timestamp("us", tz="UTC")),
            "s": ["1", "2", "10", None],
        }
    )
    rules = {
        "n": Range(min="2"), "f": Range(below="3"), "z": Range(min="1970-01-01T01:00:00"), "s": ["2", "10"],
    }  # fmt: skip
    found = {name: filters.mask({name: rule}, rows).tolist() for name, rule in rules.items()}
    assert found == {
        "n": [False, True, True, False],
        "f": [True, True, True, False],
        "z": [False, True, True, True],
        "s": [False, True, True, False],
    }


def test_names_of_folders_are_columns_and_rule_out_files() -> None:
    assert filters.folder_columns("s3://b/day=2024-01-01/land=D%C3%96/x=__HIVE_DEFAULT_PARTITION__/f=1.csv") == {
        "day": "2024-01-01", "land": "DÖ", "x": None
    }  # fmt: skip
    rules = {"day": Range(min="2024-01-02", below="2024-02-01"), "x": ["1"]}
    days = ("2024-01-01", "2024-01-02", "2024-01-31", "2024-02-01", "__HIVE_DEFAULT_PARTITION__")
    found = [filters.may_hold(rules, f"/data/day={day}/part.parquet") for day in days]
    assert found == [False, True, True, False, False]


def test_statistics_rule_out_row_groups_without_a_match(tmp_path: Path) -> None:
    table = pa.table({"n": range(30), "s": [f"{i:02}" for i in range(30)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=10)
    with pq.ParquetFile(tmp_path / "x.parquet") as file:
        groups = [file.metadata.row_group(i) for i in range(3)]
    kinds = dict(zip(table.column_names, table.schema.types, strict=True))
    for rules, expected in (
        ({"n": Range(min="10", below="20")}, [False, True, False]),
        ({"n": ["9", "25"]}, [True, False, True]),
        ({"s": Range(min="29")}, [False, False, True]),
        ({"s": Range(below="10")}, [True, False, False]),
    ):
        assert [filters.group_may_hold(rules, group, kinds) for group in groups] == expected
