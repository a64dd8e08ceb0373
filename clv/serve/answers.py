"""From a SCORES table to the JSON of an answer, column by column; NaN becomes null."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clv.serve.schemas import Score, utc

_NUMBERS = [name for name, kind in Score.__annotations__.items() if kind == "float | None"]


def scores_of(scores: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Score objects of each customer in the table's row order."""
    names = scores["customer_id"].to_pylist()
    columns: dict[str, Sequence[Any]] = {
        "customer_id": names,
        "origin": [iso(us) for us in scores["origin"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist()],
        "horizon_days": scores["horizon_days"].to_pylist(),
    }
    for name in _NUMBERS:
        values = scores[name].cast(pa.float64())
        columns[name] = pc.if_else(pc.is_finite(values), values, None).to_pylist()
    columns["extrapolated"] = scores["extrapolated"].to_pylist()
    # A rank is a place among all customers; within one request it would say something else under the same name.
    columns["value_rank"] = columns["value_decile"] = [None] * len(names)
    answer: dict[str, list[dict[str, Any]]] = {}
    for row in zip(*columns.values(), strict=True):
        answer.setdefault(row[0], []).append(dict(zip(columns, row, strict=True)))
    return answer


def iso(us: int) -> str:
    """RFC 3339 text of microseconds UTC."""
    return utc(us).isoformat().replace("+00:00", "Z")


def to_json(answer: Mapping[str, Any]) -> bytes:
    """Compact JSON; a NaN that slipped through is an error here, not in the caller's parser."""
    return json.dumps(answer, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
