"""Arrow in and out: the same scores as JSON, and nothing that a stream may do to a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pyarrow as pa
import pytest

from clv.serve.arrow import MEDIA
from clv.serve.backend import LiveBackend
from clv.serve.client import Client, ClvError
from clv.serve.routes import routes

AS_OF = "2011-06-12"


def stream(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def post(backend: LiveBackend, connect: Any, body: bytes, accept: str = MEDIA, **params: str) -> httpx.Response:
    async def go() -> httpx.Response:
        async with connect(routes(backend)) as client:
            headers = {"Content-Type": MEDIA, "Accept": accept}
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
            "customer_id": pa.array(["x", "y", "x"]).dictionary_encode(),
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


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "is not an Arrow IPC stream"),
        (b"{}", "is not an Arrow IPC stream"),
        (stream(IDS)[:200], "is not an Arrow IPC stream"),
        (b"\xff" * 500, "is not an Arrow IPC stream"),
        (stream(pa.table({"id": ["A"]})), "has no column customer_id"),
        (stream(IDS, compression="zstd"), "must be an uncompressed"),
        (stream(IDS, compression="lz4"), "must be an uncompressed"),
        (stream(pa.table({"customer_id": IDS["customer_id"].dictionary_encode()}), compression="zstd"), "uncompressed"),
        (stream(pa.table({"customer_id": pa.array([1, 2])})), "customers[0].customer_id"),
        (stream(pa.table({"customer_id": pa.array([None], pa.string())})), "customers[0].customer_id"),
        (stream(pa.table({"customer_id": [str(i) for i in range(1_001)]})), "at most 1000"),
        (stream(pa.table({"customer_id": ["A", "A"]})), "customers[1].customer_id"),
    ],
)
def test_a_wrong_stream_is_422(backend: LiveBackend, connect: Any, body: bytes, message: str) -> None:
    answer = post(backend, connect, body)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
    assert message in answer.json()["detail"]


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
