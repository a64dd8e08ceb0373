"""Parsing of columns: times in every format, clock changes, decimal commas."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clv.data.prepare import parsing


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
