"""Arrow IPC streams as request and answer of a prediction, for callers with many customers."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clv.serve.http import responses
from clv.serve.http.inline_events import invalid_field
from clv.serve.http.requests import ScoringRequest
from clv.serve.http.schemas import MAX_EVENTS, Event

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
STATUS = "status"

# A flatbuffer may refer to one string many times, so reading it may take memory of the order of its squared size. The
# schema of a pandas table with every field of an event takes 2.3 kB.
_MAX_METADATA_BYTES = 4096
_ALLOWED_TYPES = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_timestamp,
    pa.types.is_null,
)


def read_request(body: bytes, parameters: Mapping[str, str]) -> dict[str, Any]:
    """Returns the content of a PredictRequest, not yet validated, from a stream of customer ids or of events.

    The stream has the column `customer_id` alone, or a row per event with the fields of `Event`. The query parameters
    hold as_of, horizons_days (separated by commas) and model_version. Raises ProblemError 422.
    """
    names, rows = _read_rows(body)
    content: dict[str, Any] = {"customers": rows}
    if names != ["customer_id"]:
        events: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            customer_id = row.pop("customer_id")
            events[customer_id].append({field: value for field, value in row.items() if value is not None})
        content["customers"] = [{"customer_id": name, "events": given} for name, given in events.items()]
    content |= {name: parameters[name] for name in ("as_of", "model_version") if name in parameters}
    if "horizons_days" in parameters:
        days = parameters["horizons_days"].split(",")
        if not all(one.isdecimal() and len(one) < 6 for one in days):
            raise invalid_field("horizons_days", "must be whole numbers, separated by commas")
        content["horizons_days"] = [int(one) for one in days]
    return content


def prediction_stream(request: ScoringRequest, table: pa.Table | None) -> tuple[bytes, int]:
    """Returns the stream of an answer, and the number of known customers; `table` is None where none is known.

    The stream holds SCORES and `status` in the order of the request, with one row of nulls for each unknown customer;
    the key `clv` of its metadata holds the other fields of the JSON answer.
    """
    from clv.forecast.scores import SCORES

    scores = SCORES.empty_table() if table is None else table.select(SCORES.names)
    known = set(scores["customer_id"].to_pylist())
    missing = [name for name in request.customer_ids if name not in known]
    columns = {name: _nan_to_null(scores[name]) for name in SCORES.names} | {
        "value_rank": pa.nulls(len(scores), pa.int64()),
        "value_decile": pa.nulls(len(scores), pa.int32()),
        STATUS: pa.array(["ok"] * len(scores), pa.string()),
    }
    empty = {name: pa.nulls(len(missing), column.type) for name, column in columns.items()} | {
        "customer_id": pa.array(missing, pa.string()),
        STATUS: pa.array(["unknown_customer"] * len(missing), pa.string()),
    }
    whole = pa.concat_tables([pa.table(columns), pa.table(empty)])
    position = pc.index_in(whole["customer_id"], pa.array(request.customer_ids, pa.string()))
    rows = pc.sort_indices(
        pa.table({"position": position, "days": whole["horizon_days"]}),
        [("position", "ascending"), ("days", "ascending")],
    )
    fields = responses.common_fields(request.scorer.facts, request.as_of, request.data_through)
    whole = whole.take(rows).replace_schema_metadata({"clv": json.dumps(fields)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return sink.getvalue().to_pybytes(), len(known)


def _nan_to_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def _read_rows(body: bytes) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the column names and the rows of a stream; raises ProblemError 422 for a stream that is malformed, or
    that would need more memory than its own size and `MAX_EVENTS` rows account for."""
    try:
        names = _check_stream(body)
        rows: list[dict[str, Any]] = []
        num_bytes = 0
        for batch in pa.ipc.open_stream(body):
            batch.validate(full=True)
            num_bytes += batch.nbytes
            if num_bytes > len(body):
                raise invalid_field("body", "must not use the same bytes for several columns")
            columns = [_python_values(name, batch[name]) for name in names]
            rows += [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
        return names, rows
    except (pa.ArrowException, OSError, UnicodeDecodeError, StopIteration):
        raise invalid_field("body", "must be an uncompressed Arrow IPC stream") from None


def _check_stream(body: bytes) -> list[str]:
    """Returns the column names of a stream whose columns, types and number of rows are acceptable. It reads the
    metadata only: compressed buffers, null columns and run-end encoded or dictionary columns can unpack to any size."""
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(body))
    schema = pa.ipc.read_schema(_check_metadata_size(messages.read_next_message()))
    names, known = schema.names, {"customer_id", *Event.model_fields}
    if "customer_id" not in names:
        raise invalid_field("body", "has no column customer_id")
    if len(set(names)) != len(names) or not known.issuperset(names):
        raise invalid_field("body", f"may have each of these columns once, and no other: {', '.join(sorted(known))}")
    for field in schema:
        if not any(is_type(field.type) for is_type in _ALLOWED_TYPES):
            raise invalid_field(field.name, "must hold strings, integers, floats or timestamps, without any encoding")
    num_rows = 0
    for message in messages:
        num_rows += pa.ipc.read_record_batch(_overwrite_body(_check_metadata_size(message)), schema).num_rows
        if num_rows > MAX_EVENTS:
            raise invalid_field("body", f"has more than {MAX_EVENTS} rows: send fewer per request")
    return names


def _check_metadata_size(message: pa.ipc.Message) -> pa.ipc.Message:
    if message.metadata.size > _MAX_METADATA_BYTES:
        raise invalid_field(
            "body", f"has a schema or batch header of more than {_MAX_METADATA_BYTES} bytes: send no metadata"
        )
    return message


def _overwrite_body(message: pa.ipc.Message) -> pa.ipc.Message:
    """Returns the message of a record batch, its body overwritten with bytes 0x80, to detect compression.

    pyarrow has no public function for that. Reading the overwritten message detects it: pyarrow slices
    uncompressed buffers without looking at them, while a compressed buffer begins with its unpacked size, here a
    negative one, for which pyarrow raises ArrowInvalid. This covers every format version that pyarrow reads.
    """
    whole = message.serialize()
    head = whole.slice(0, whole.size - message.body.size)
    return pa.ipc.read_message(head.to_pybytes() + b"\x80" * message.body.size)


def _python_values(name: str, column: pa.Array) -> list[Any]:
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):
        raise invalid_field(name, "has a time outside the years 1 to 9999, or an unknown time zone") from None
