"""Logs as text: good lines parse to the events, defective lines are planted in known numbers."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa

from clv.data.events import US
from clv.simulate import texts

EVENTS = pa.table(
    {
        "customer_id": ["a", "b", "c"],
        "event_time": pa.array([1_700_000_000_000_000 + second * 10**6 for second in range(3)]).cast(US),
        "known_at": pa.array([1_700_000_000_000_000] * 3).cast(US),
        "quantity": [1.0, 2.0, 3.0],
        "amount": [1.5, 2.5, 3.5],
        "text": ["plain", 'a "quoted", text', None],
    }
)


def test_without_defects_the_text_holds_the_events() -> None:
    content, planted = texts.render(np.random.default_rng(0), EVENTS, EVENTS, "csv", 0)
    frame = pd.read_csv(io.BytesIO(content))
    assert frame["amount"].tolist() == [1.5, 2.5, 3.5]
    assert frame["text"].tolist()[:2] == ["plain", 'a "quoted", text']
    assert frame["event_time"][1] == "2023-11-14T22:13:21.000000Z"
    assert not planted


def test_json_lines_that_do_not_parse_as_objects_are_as_many_as_planted() -> None:
    content, planted = texts.render(np.random.default_rng(0), EVENTS, EVENTS, "jsonl", 2)
    lines = content.split(b"\n")[:-1]
    assert len(lines) == 3 + planted.total()

    def is_row(line: bytes) -> bool:
        try:
            row = json.loads(line.decode())
            return isinstance(row, dict) and all("\ud800" not in str(value) for value in row.values())
        except ValueError:
            return False

    assert sum(not is_row(line) for line in lines) == planted["malformed row"] == 8
    assert planted["amount is not a finite number"] == 2 * 4
