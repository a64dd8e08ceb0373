"""Row accounting balances and adds up over stages; a rejected row as JSON keeps every column."""

import json
import math
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clv.data.prepare.accounting import RowAccounting, json_rows, malformed_rejects


def test_a_row_keeps_all_of_its_columns_and_a_missing_value_is_null() -> None:
    table = pa.table(
        {
            'the "id"': [7, None],
            "paid": [True, None],
            "amount": [1.5, None],
            "text": ['a "b"\\\n\tc', None],
            "items": [["x", None], None],
            "at": pa.array([{"day": 1}, None]),
        }
    )
    full, empty = map(json.loads, json_rows(table).to_pylist())
    assert full == {
        'the "id"': 7,
        "paid": True,
        "amount": 1.5,
        "text": 'a "b"\\\n\tc',
        "items": "['x', None]",
        "at": "{'day': 1}",
    }
    assert empty == dict.fromkeys(full)


def test_numbers_that_json_lacks_and_control_characters_are_kept_as_text() -> None:
    table = pa.table({"x": [math.nan, math.inf], "text": ["a\x00b", "\x1b"]})
    assert [json.loads(row) for row in json_rows(table).to_pylist()] == [
        {"x": "nan", "text": "a b"},
        {"x": "inf", "text": " "},
    ]


def test_a_malformed_line_is_an_object_with_the_line_in_it() -> None:
    found = malformed_rejects(['{"broken": ', "a;b"], "events", "log.csv")
    assert [json.loads(record) for record in found["record"].to_pylist()] == [{"line": '{"broken": '}, {"line": "a;b"}]
    assert set(found["reason"].to_pylist()) == {"malformed row"}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=12), st.one_of(st.none(), st.floats(allow_nan=False)), st.integers(-(2**60), 2**60)),
        max_size=8,
    )
)
def test_a_record_is_valid_json_for_all_values(rows: list[tuple[str, float | None, int]]) -> None:
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


def test_row_accounting_that_does_not_balance_is_a_defect() -> None:
    with pytest.raises(RuntimeError, match="5 rows read, 3 accepted, 1 rejected"):
        RowAccounting(read=5, accepted=3, rejected=Counter(x=1)).check("test")


def test_a_later_stage_replaces_the_accepted_rows_and_adds_its_rejects() -> None:
    total = RowAccounting(10, 8, Counter({"amount is missing": 2}))
    later = RowAccounting(8, 7, Counter({"duplicate": 1}), Counter({"late": 1, "never": 0}))
    total.add_stage(later)
    total.check("both stages")
    assert total == RowAccounting(10, 7, Counter({"amount is missing": 2, "duplicate": 1}), Counter({"late": 1}))
