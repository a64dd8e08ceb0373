"""Predictions as Arrow IPC streams, for callers with many customers: the same request and answer as in JSON."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clv.serve import answers, inline
from clv.serve.questions import Question

MEDIA = "application/vnd.apache.arrow.stream"
STATUS = "status"


def request_of(body: bytes, parameters: Mapping[str, str]) -> dict[str, Any]:
    """A PredictRequest, not yet checked, of a stream with `customer_id` alone, or with a row per event and the fields
    of `Event`; as_of, horizons_days (by commas) and model_version are parameters of the address."""
    rows = _read(body)
    if "customer_id" not in rows.column_names:
        raise inline.refused("body", "has no column customer_id")
    customers: dict[str, dict[str, Any]] = {}
    if rows.column_names == ["customer_id"]:
        listed = [{"customer_id": name} for name in rows["customer_id"].to_pylist()]
    else:
        for row in rows.to_pylist():
            name = row.pop("customer_id")
            event = {field: value for field, value in row.items() if value is not None}
            customers.setdefault(name, {"customer_id": name, "events": []})["events"].append(event)
        listed = list(customers.values())
    found: dict[str, Any] = {"customers": listed}
    found |= {name: parameters[name] for name in ("as_of", "model_version") if name in parameters}
    if "horizons_days" in parameters:
        days = parameters["horizons_days"].split(",")
        if not all(one.isdecimal() and len(one) < 6 for one in days):
            raise inline.refused("horizons_days", "must be whole numbers, separated by commas")
        found["horizons_days"] = [int(one) for one in days]
    return found


def of_prediction(q: Question, table: pa.Table | None) -> tuple[bytes, int]:
    """The stream of an answer, and how many customers were known: SCORES in the order asked for, with `status`; one row
    without scores for each unknown customer; what the JSON answer has beside `results` in the metadata, as `clv`."""
    from clv.predict import SCORES

    scores = SCORES.empty_table() if table is None else table.select(SCORES.names)
    known = set(scores["customer_id"].to_pylist())
    missing = [name for name in q.names if name not in known]
    columns = {name: _defined(scores[name]) for name in SCORES.names} | {
        "value_rank": pa.nulls(len(scores), pa.int64()),
        "value_decile": pa.nulls(len(scores), pa.int32()),
        STATUS: pa.array(["ok"] * len(scores), pa.string()),
    }
    empty = {name: pa.nulls(len(missing), column.type) for name, column in columns.items()}
    empty |= {
        "customer_id": pa.array(missing, pa.string()),
        STATUS: pa.array(["unknown_customer"] * len(missing), pa.string()),
    }
    whole = pa.concat_tables([pa.table(columns), pa.table({name: empty[name] for name in columns})])
    place = {name: i for i, name in enumerate(q.names)}
    order = pa.array([place[name] for name in whole["customer_id"].to_pylist()], pa.int64())
    rows = pc.sort_indices(
        pa.table([order, whole["horizon_days"]], ["a", "b"]), [("a", "ascending"), ("b", "ascending")]
    )
    head = answers.header(q.scorer.facts, q.as_of, q.data_through)
    whole = whole.take(rows).replace_schema_metadata({"clv": json.dumps(head)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, whole.schema) as writer:
        writer.write_table(whole)
    return sink.getvalue().to_pybytes(), len(known)


def _defined(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_floating(column.type):
        return column
    return pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))


def _read(body: bytes) -> pa.Table:
    """The table of a stream; 422 for what is none. Compression is refused: 32 MB could unpack to any size."""
    try:
        for message in pa.ipc.MessageReader.open_stream(pa.py_buffer(body)):
            if _is_compressed(message.metadata.to_pybytes()):
                raise inline.refused("body", "must be an uncompressed Arrow stream")
        table = pa.ipc.open_stream(body).read_all()
        table.validate(full=True)
        for i, name in enumerate(table.column_names):
            if pa.types.is_dictionary(table.schema.field(i).type):
                table = table.set_column(i, name, table[name].cast(table.schema.field(i).type.value_type))
        return table
    except (pa.ArrowException, OSError, IndexError, struct.error, UnicodeDecodeError):
        raise inline.refused("body", "is not an Arrow IPC stream") from None


def _is_compressed(message: bytes) -> bool:
    """Whether a batch says so: field `compression` of RecordBatch in the flatbuffer (format/Message.fbs of Arrow)."""
    root = struct.unpack_from("<I", message, 0)[0]
    kind, header = _field(message, root, 1), _field(message, root, 2)
    if kind is None or header is None:
        return False
    batch = header + struct.unpack_from("<I", message, header)[0]
    if message[kind] == 2:  # DictionaryBatch: its data is a RecordBatch
        data = _field(message, batch, 1)
        if data is None:
            return False
        batch = data + struct.unpack_from("<I", message, data)[0]
    return message[kind] in (2, 3) and _field(message, batch, 3) is not None


def _field(message: bytes, table: int, number: int) -> int | None:
    """Where a flatbuffer table's field lies."""
    vtable = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, vtable)[0]
    if 4 + 2 * number >= size:
        return None
    offset = struct.unpack_from("<H", message, vtable + 4 + 2 * number)[0]
    return table + offset if offset else None
