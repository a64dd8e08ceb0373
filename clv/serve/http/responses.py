"""JSON answers from tables of scores, converted column by column; NaN becomes null."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clv.data.clock import to_datetime
from clv.data.events import PURCHASE
from clv.data.histories import Histories
from clv.serve.http.requests import ScoringRequest
from clv.serve.http.schemas import Score
from clv.serve.scoring.protocol import BundleFacts

_NUMBERS = [name for name, kind in Score.__annotations__.items() if kind == "float | None"]


def score_objects(scores: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Returns the score objects of each customer, in the order of the table's rows."""
    names = scores["customer_id"].to_pylist()
    origins = scores["origin"].cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_pylist()
    columns: dict[str, Sequence[Any]] = {
        "customer_id": names,
        "origin": [iso_time(us) for us in origins],
        "horizon_days": scores["horizon_days"].to_pylist(),
    }
    for name in _NUMBERS:
        values = scores[name].cast(pa.float64())
        columns[name] = pc.if_else(pc.is_finite(values), values, None).to_pylist()
    columns["extrapolated"] = scores["extrapolated"].to_pylist()
    # The rank among the customers of one request would differ from the rank among all customers.
    columns["value_rank"] = columns["value_decile"] = [None] * len(names)
    objects: dict[str, list[dict[str, Any]]] = {}
    for row in zip(*columns.values(), strict=True):
        objects.setdefault(row[0], []).append(dict(zip(columns, row, strict=True)))
    return objects


def common_fields(facts: BundleFacts, as_of: int, data_through: int) -> dict[str, Any]:
    """Returns the fields of every answer: bundle, currency, prediction time, and the end of the data."""
    return {
        "model": {"version": facts.version, "cut": iso_time(facts.cut)},
        "currency": facts.currency,
        "as_of": iso_time(as_of),
        "data_through": iso_time(data_through),
    }


def prediction_json(request: ScoringRequest, table: pa.Table | None) -> tuple[bytes, int]:
    """Returns the JSON of a prediction and the number of known customers; `table` is None where none is known."""
    scores = score_objects(table) if table is not None else {}
    results = [
        {"customer_id": name, "status": "ok" if name in scores else "unknown_customer", "scores": scores.get(name, [])}
        for name in request.customer_ids
    ]
    return to_json(_answer_fields(request) | {"results": results}), len(scores)


def portfolio_json(request: ScoringRequest, table: pa.Table) -> tuple[bytes, int]:
    """Returns the JSON of a portfolio and the number of known customers."""
    known = table["customers"][0].as_py()
    totals = [
        {name: None if value != value else value for name, value in row.items() if name != "customers"}
        for row in table.to_pylist()
    ]
    counts = {"customers": known, "unknown": len(request.customer_ids) - known}
    return to_json(_answer_fields(request) | counts | {"totals": totals}), known


def customer_json(request: ScoringRequest, table: pa.Table) -> bytes:
    """Returns the JSON of one customer's history and scores."""
    h = Histories.from_table(request.histories)
    priced = h.amount[h.amount == h.amount]
    summary = {
        "customer_id": h.customer_id[0].as_py(),
        "first_time": iso_time(int(h.time[0])),
        "last_time": iso_time(int(h.time[-1])),
        "tokens": len(h.time),
        "orders": int((h.type == PURCHASE).sum()),
        "amount": float(priced.sum()) if len(priced) else None,
    }
    scores = score_objects(table).get(request.customer_ids[0], [])
    return to_json(_answer_fields(request) | summary | {"scores": scores})


def _answer_fields(request: ScoringRequest) -> dict[str, Any]:
    # Read after scoring: where a canary failed, its scorer holds the facts of the bundle that answered.
    return common_fields(request.scorer.facts, request.as_of, request.data_through)


def iso_time(us: int) -> str:
    """Returns the RFC 3339 text of microseconds UTC."""
    return to_datetime(us).isoformat().replace("+00:00", "Z")


def to_json(answer: Mapping[str, Any]) -> bytes:
    """Returns compact JSON; raises ValueError for NaN, which JSON lacks."""
    return json.dumps(answer, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode()
