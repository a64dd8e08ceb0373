"""Arrow in and out: the same scores as JSON, and nothing that a stream may do to a server."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from clv.serve.client import Client, ClvError
from clv.serve.http.arrow import MEDIA_TYPE
from clv.serve.http.routes import create_app
from clv.serve.scoring.backend import LiveBackend

AS_OF = "2011-06-12"


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def post(backend: LiveBackend, connect: Any, body: bytes, accept: str = MEDIA_TYPE, **params: str) -> httpx.Response:
    async def go() -> httpx.Response:
        async with connect(create_app(backend)) as client:
            headers = {"Content-Type": MEDIA_TYPE, "Accept": accept}
            return await client.post("/v1/predict", content=body, headers=headers, params=params)

    return asyncio.run(go())


def test_the_client_gets_by_arrow_what_it_gets_by_json(
    backend: LiveBackend, serve_replicas: Callable[..., Any]
) -> None:
    names = ["nobody", "B", "A", "nor he"]
    with serve_replicas([backend]) as made, Client(made.url) as client:
        table = client.predict_table(names, as_of=AS_OF, horizons_days=[365, 90])
        plain = client.predict(names, as_of=AS_OF, horizons_days=[365, 90])
        head = json.loads(table.schema.metadata[b"clv"])
        assert head["model"]["version"] == "v1"
        assert datetime.fromisoformat(head["as_of"]) == plain.as_of
        assert list(dict.fromkeys(table["customer_id"].to_pylist())) == names
        rows = [row for row in table.to_pylist() if row["status"] == "ok"]
        scores = [score.model_dump() for result in plain.results for score in result.scores]
        assert [{name: value for name, value in row.items() if name != "status"} for row in rows] == scores
        unknown = [row for row in table.to_pylist() if row["status"] == "unknown_customer"]
        assert [(row["customer_id"], row["value_mean"], row["horizon_days"]) for row in unknown] == [
            ("nobody", None, None),
            ("nor he", None, None),
        ]
        assert client.predict_table(["nobody"])["status"].to_pylist() == ["unknown_customer"]
        with pytest.raises(ClvError, match="HTTP 422: as_of"):
            client.predict_table(["A"], as_of=datetime(2001, 1, 1, tzinfo=UTC))


def test_rows_of_events_are_customers_with_their_events(backend: LiveBackend, connect: Any) -> None:
    time = pa.array([datetime(2011, 6, day, tzinfo=UTC) for day in (3, 4, 5)], pa.timestamp("us", tz="UTC"))
    table = pa.table(
        {
            "customer_id": ["x", "y", "x"],
            "event_time": time,
            "event_type": ["purchase"] * 3,
            "amount": [1.0, 2.0, None],
        }
    )
    answer = post(backend, connect, stream(table), "application/json", as_of=AS_OF, horizons_days="365")
    assert answer.headers["content-type"] == "application/json"
    found = {one["customer_id"]: one["scores"][0]["value_mean"] for one in answer.json()["results"]}
    assert found == {"x": 1.0, "y": 2.0}
    wrong = table.set_column(3, "amount", pa.array([1.0, float("nan"), 2.0]))
    problem = post(backend, connect, stream(wrong)).json()
    assert (problem["status"], problem["errors"][0]["field"]) == (422, "customers[1].events[0].amount")


IDS = pa.table({"customer_id": ["A"] * 5_000})
EVENT = pa.table({"customer_id": ["A"], "event_time": ["2011-06-03"], "event_type": ["view"]})


def with_time(microseconds: int, timezone: str) -> pa.Table:
    time = pa.array([microseconds], pa.int64()).cast(pa.timestamp("us", timezone))
    return EVENT.set_column(1, "event_time", time)


def with_shared_bytes() -> bytes:
    """A stream in which the buffers of event_type are those of customer_id."""
    body = stream(pa.table({"customer_id": ["A" * 5000], "event_type": ["B"]}))
    # Offset and length of the buffers with each string's bounds and with its characters.
    for own, other in [((5008, 8), (0, 8)), ((5016, 1), (8, 5000))]:
        assert body.count(struct.pack("<qq", *own)) == 1
        body = body.replace(struct.pack("<qq", *own), struct.pack("<qq", *other))
    return body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "must be an uncompressed Arrow IPC stream"),
        (b"{}", "must be an uncompressed Arrow IPC stream"),
        (stream(IDS)[:200], "must be an uncompressed Arrow IPC stream"),
        (b"\xff" * 500, "must be an uncompressed Arrow IPC stream"),
        (stream(IDS, compression="zstd"), "must be an uncompressed Arrow IPC stream"),
        (stream(IDS, compression="lz4"), "must be an uncompressed Arrow IPC stream"),
        (stream(pa.table({"id": ["A"]})), "has no column customer_id"),
        (stream(pa.table([["A"], ["B"]], ["customer_id"] * 2)), "each of these columns once"),
        (stream(EVENT.append_column("age", pa.array([1]))), "no other: amount, channel, customer_id, event_id"),
        (stream(EVENT.append_column("text", pa.array([["A"]]))), "text must hold strings, integers"),
        (stream(EVENT.replace_schema_metadata({"note": "A" * 4096})), "header of more than 4096 bytes"),
        (stream(with_time(2**62, "UTC")), "event_time has a time outside the years 1 to 9999"),
        (stream(with_time(0, "Mars/Base")), "or an unknown time zone"),
        (with_shared_bytes(), "must not use the same bytes for several columns"),
        (stream(pa.table({"customer_id": pa.array([1, 2])})), "customers[0].customer_id"),
        (stream(pa.table({"customer_id": pa.array([None], pa.string())})), "customers[0].customer_id"),
        (stream(pa.table({"customer_id": pa.nulls(1)})), "customers[0].customer_id"),
        (stream(pa.table({"customer_id": [str(i) for i in range(1_001)]})), "at most 1000"),
        (stream(pa.table({"customer_id": ["A", "A"]})), "customers[1].customer_id"),
    ],
)
def test_a_wrong_stream_is_422(backend: LiveBackend, connect: Any, body: bytes, message: str) -> None:
    answer = post(backend, connect, body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert message in answer.json()["detail"]


UNPACKED = 400 * 2**20
# The system maps the pages of zeros only once they are written: making the bombs needs no memory.
ZEROS = np.zeros(UNPACKED, np.uint8)


def long_string(size: int) -> pa.Array:
    return pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, size], np.int32)), pa.py_buffer(ZEROS)]
    )


def compressed_as_in_arrow_0_17() -> bytes:
    """The first format of compression: the codec stands in the metadata of the message, not in the batch."""
    packed = struct.pack("<q", UNPACKED) + pa.compress(pa.py_buffer(ZEROS), "zstd", asbytes=True)
    batch = pa.record_batch({"customer_id": pa.array(np.frombuffer(packed, np.int8))})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    with pa.ipc.new_stream(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch, custom_metadata={"ARROW:experimental_compression": "zstd"})
    return sink.getvalue().to_pybytes()


def many_batches_of_nulls() -> bytes:
    batch = pa.record_batch({"customer_id": pa.nulls(50_000)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        for _ in range(200):
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def views_of_one_string() -> pa.Array:
    views = np.tile(np.array([10_000, 0x41414141, 0, 0], np.int32), 90_000)  # length, prefix, buffer and offset
    buffers = [None, pa.py_buffer(views), pa.py_buffer(b"A" * 10_000)]
    return pa.Array.from_buffers(pa.string_view(), 90_000, buffers)


def column(values: pa.Array) -> pa.Table:
    return pa.table({"customer_id": values})


BOMBS: dict[str, Callable[[], bytes]] = {
    "zstd": lambda: stream(column(long_string(UNPACKED)), compression="zstd"),
    "lz4": lambda: stream(column(long_string(UNPACKED)), compression="lz4"),
    "arrow 0.17": compressed_as_in_arrow_0_17,
    "nulls": lambda: stream(column(pa.nulls(10**7))),
    "nulls in batches": many_batches_of_nulls,
    "run-end encoded": lambda: stream(column(pa.RunEndEncodedArray.from_arrays([10**7], ["A"]))),
    "dictionary": lambda: stream(column(pa.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["A" * 100_000]))),
    "compressed dictionary": lambda: stream(
        column(pa.DictionaryArray.from_arrays(np.zeros(1, np.int32), long_string(UNPACKED))), compression="zstd"
    ),
    "string view": lambda: stream(column(views_of_one_string())),
    "lists of nulls": lambda: stream(column(pa.FixedSizeListArray.from_arrays(pa.nulls(10**7), 10**7))),
}

MEASURE = """
import sys
from clv.serve.http.arrow import read_request
from clv.serve.http.middleware import ProblemError

def peak_mb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

before = peak_mb()
for name in sys.argv[1:]:
    try:
        read_request(open(name, "rb").read(), {})
    except ProblemError as problem:
        print(problem.status, round(peak_mb() - before), name)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of a process is read from /proc")
def test_no_stream_needs_more_memory_than_its_size_accounts_for(tmp_path: Path) -> None:
    """The peak is that of a process of its own, over what the process needed before it read a stream."""
    for name, make in BOMBS.items():
        (tmp_path / name).write_bytes(make())
        assert (tmp_path / name).stat().st_size < 4 * 2**20
    found = subprocess.run([sys.executable, "-c", MEASURE, *BOMBS], cwd=tmp_path, capture_output=True, text=True)
    results = [line.split(maxsplit=2) for line in found.stdout.splitlines()]
    assert [(status, name) for status, _, name in results] == [("422", name) for name in BOMBS], found.stderr
    assert max(int(megabytes) for _, megabytes, _ in results) < 256, found.stdout


def test_cut_and_altered_streams_never_fail_the_server(backend: LiveBackend, connect: Any, rng: Any) -> None:
    whole = stream(
        pa.table({"customer_id": ["A", "B", "C"], "event_time": ["2011-06-03"] * 3, "event_type": ["x"] * 3})
    )
    for _ in range(100):
        body = bytearray(whole)
        for place in rng.integers(len(body), size=rng.integers(1, 6)):
            body[place] = rng.integers(256)
        answer = post(backend, connect, bytes(body[: rng.integers(len(body) // 2, len(body) + 1)]))
        assert answer.status_code in (200, 422), answer.text


@pytest.mark.parametrize("days", ["", "x", "1,", "90;30", "-1", "999999999999", "0"])
def test_wrong_parameters_are_named(backend: LiveBackend, connect: Any, days: str) -> None:
    answer = post(backend, connect, stream(pa.table({"customer_id": ["A"]})), horizons_days=days)
    assert (answer.status_code, answer.json()["errors"][0]["field"].split("[")[0]) == (422, "horizons_days")
