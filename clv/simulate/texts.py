"""Write a simulated log as CSV or JSON lines with defects of text files: broken lines and values of a wrong type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from clv.data.prepare.accounting import json_rows

Text = Literal["csv", "jsonl"]
BreakLine = Callable[[str], bytes]

_TIMES = ("event_time", "known_at")
# (column, text written instead of a number or a time, reason for which prepare rejects it)
_VALUES = (
    ("amount", "twelve", "amount is not a finite number"),
    ("amount", "NaN", "amount is missing"),
    ("quantity", "1.2.3", "quantity is not a finite number"),
    ("event_time", "yesterday", "event_time is unreadable or outside 1970 to 2099"),
    ("known_at", "soon", "known_at is unreadable or outside 1970 to 2099"),
)
_NOT_UTF8 = b"\xe4\xff"
_LINES: dict[Text, tuple[tuple[BreakLine, str], ...]] = {
    "csv": (
        (lambda line: line.rpartition(",")[0].encode(), "malformed row"),  # too few fields
        (lambda line: line.encode() + b",", "malformed row"),  # too many fields
        (lambda line: "".join(line.rsplit('"', 1)).encode(), "malformed row"),  # an unclosed quote
        (lambda line: _NOT_UTF8 + line.encode(), "malformed row"),
    ),
    "jsonl": (
        (lambda line: line[: len(line) // 2].encode(), "malformed row"),
        (lambda line: f"[{line}]".encode(), "malformed row"),
        (lambda line: line.replace('"customer_id": "', '"customer_id": "\\ud800').encode(), "malformed row"),
        (lambda line: line.encode()[:-2] + _NOT_UTF8 + b'"}', "malformed row"),
        (lambda line: _with_amount(line, "NaN"), "amount is missing"),
        (lambda line: _with_amount(line, "-Infinity"), "amount is not a finite number"),
        (lambda line: _with_amount(line, '{"eur": 1}'), "amount is not a finite number"),
        (lambda line: _with_amount(line, "true"), "amount is not a finite number"),
    ),
}


def render(
    rng: np.random.Generator, events: pa.Table, bought: pa.Table, form: Text, each: int
) -> tuple[bytes, Counter[str]]:
    """Renders `events` as a text with `each` lines of every kind of text defect at random positions.

    The defective lines are copies of rows of `bought`. Returns the text and the number of defective lines by reason.
    """
    lines = [line.encode() for line in _lines(events, form)]
    bad: list[bytes] = []
    planted: Counter[str] = Counter()

    def copies() -> pa.Table:
        return bought.take(pa.array(rng.choice(len(bought), min(each, len(bought)), replace=False)))

    for name, value, reason in _VALUES:
        rows = copies()
        rows = rows.set_column(rows.column_names.index(name), name, pa.repeat(value, len(rows)))
        bad += [line.encode() for line in _lines(rows, form)]
        planted[reason] += len(rows)
    for break_line, reason in _LINES[form]:
        broken = [break_line(line) for line in _lines(copies(), form)]
        bad += broken
        planted[reason] += len(broken)
    positions = np.sort(rng.integers(0, len(lines) + 1, len(bad)))
    mixed = np.insert(np.array(lines, object), positions, np.array(bad, object)[rng.permutation(len(bad))])
    header = [",".join(events.column_names).encode()] if form == "csv" else []
    return b"\n".join([*header, *mixed, b""]), +planted


def _lines(events: pa.Table, form: Text) -> list[str]:
    for name in _TIMES:
        if pa.types.is_timestamp(events.schema.field(name).type):
            text = pc.strftime(events[name], "%Y-%m-%dT%H:%M:%SZ")
            events = events.set_column(events.column_names.index(name), name, text)
    if form == "jsonl":
        return list(json_rows(events).to_pylist())
    sink = pa.BufferOutputStream()
    pacsv.write_csv(events, sink, pacsv.WriteOptions(include_header=False))
    return sink.getvalue().to_pybytes().decode().split("\n")[:-1]


def _with_amount(line: str, value: str) -> bytes:
    return re.sub(r'"amount": [^,}]+', f'"amount": {value}', line).encode()
