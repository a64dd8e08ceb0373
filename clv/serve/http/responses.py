"""From tables to the JSON of an answer, column by column; NaN becomes null."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clv.data.events import PURCHASE
from clv.data.histories import Histories
from clv.serve.http.requests import Question
from clv.serve.http.schemas import Score, utc
from clv.serve.scoring.protocol import Facts

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


def header(facts: Facts, as_of: int, data_through: int) -> dict[str, Any]:
    """What every answer says: who answered, in which currency, at which instant, from which data."""
    return {
        "model": {"version": facts.version, "cut": iso(facts.cut)},
        "currency": facts.currency,
        "as_of": iso(as_of),
        "data_through": iso(data_through),
    }


def of_prediction(q: Question, table: pa.Table | None) -> tuple[bytes, int]:
    """JSON of a prediction, and how many customers were known."""
    scores = scores_of(table) if table is not None else {}
    results = [
        {"customer_id": name, "status": "ok" if name in scores else "unknown_customer", "scores": scores.get(name, [])}
        for name in q.names
    ]
    return to_json(_head(q) | {"results": results}), len(scores)


def of_portfolio(q: Question, table: pa.Table) -> tuple[bytes, int]:
    """JSON of a portfolio, and how many customers were known."""
    known = table["customers"][0].as_py()
    totals = [
        {name: None if value != value else value for name, value in row.items() if name != "customers"}
        for row in table.to_pylist()
    ]
    return to_json(_head(q) | {"customers": known, "unknown": len(q.names) - known, "totals": totals}), known


def of_customer(q: Question, table: pa.Table) -> bytes:
    """JSON of one customer's history and scores."""
    h = Histories.from_table(q.histories)
    priced = h.amount[h.amount == h.amount]
    summary = {
        "customer_id": h.customer_id[0].as_py(),
        "first_time": iso(int(h.time[0])),
        "last_time": iso(int(h.time[-1])),
        "tokens": len(h.time),
        "orders": int((h.type == PURCHASE).sum()),
        "amount": float(priced.sum()) if len(priced) else None,
    }
    return to_json(_head(q) | summary | {"scores": scores_of(table).get(q.names[0], [])})


def _head(q: Question) -> dict[str, Any]:
    # Asked only now: a canary that failed has left the answer to the bundle in service.
    return header(q.scorer.facts, q.as_of, q.data_through)


def iso(us: int) -> str:
    """RFC 3339 text of microseconds UTC."""
    return utc(us).isoformat().replace("+00:00", "Z")


def to_json(answer: Mapping[str, Any]) -> bytes:
    """Compact JSON; a NaN that slipped through is an error here, not in the caller's parser."""
    return json.dumps(answer, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
