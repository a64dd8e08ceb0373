"""Rejected rows as JSON: every column is there, and a value that JSON lacks stays readable."""

import json
import math

import pyarrow as pa

from clv.data.prepare.accounting import json_rows, malformed_rejects


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
