"""The service with a real bundle: what it answers is what batch scoring writes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clv.data.histories import build
from clv.forecast.predictor import Predictor
from clv.serve.client import Client
from clv.serve.http.responses import score_objects
from clv.serve.http.routes import create_app
from clv.serve.scoring.backend import LiveBackend
from clv.serve.store.factory import open_store
from clv.serve.store.sqlite import SqliteStore
from clv.simulate.small import simulate

MakeBundle = Callable[..., Path]


@pytest.fixture(scope="module")
def predictor(make_shop_bundle: MakeBundle) -> Predictor:
    return Predictor(make_shop_bundle())


@pytest.fixture(scope="module")
def backend(predictor: Predictor, shop_histories: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> LiveBackend:
    store = SqliteStore(tmp_path_factory.mktemp("store"), create=True)
    store.put_histories(shop_histories)
    backend = LiveBackend(store)
    backend.install(predictor)
    return backend


def post(backend: LiveBackend, connect: Any, *bodies: dict[str, Any]) -> list[httpx.Response]:
    async def go() -> list[httpx.Response]:
        async with connect(create_app(backend)) as client:
            return await asyncio.gather(*(client.post("/v1/predict", json=body) for body in bodies))

    return asyncio.run(go())


def flat(answer: httpx.Response) -> pd.DataFrame:
    rows = [score for result in answer.json()["results"] for score in result["scores"]]
    return pd.DataFrame(rows).set_index(["customer_id", "horizon_days"]).sort_index()


def test_served_scores_equal_batch_scores_however_requests_are_joined(
    backend: LiveBackend, predictor: Predictor, shop_histories: pa.Table, connect: Any
) -> None:
    ids = shop_histories["customer_id"].to_pylist()
    bodies = [{"as_of": "2011-06-12", "customers": [{"customer_id": i} for i in ids[k::5]]} for k in range(5)]
    found = pd.concat([flat(answer) for answer in post(backend, connect, *bodies)]).sort_index()
    batch = predictor.predict(shop_histories, predictor.cut)
    expected = pd.DataFrame([row for rows in score_objects(batch).values() for row in rows])
    expected = expected.set_index(["customer_id", "horizon_days"]).sort_index()
    assert len(found) == 600
    pd.testing.assert_frame_equal(found, expected, rtol=1e-5, check_dtype=False)


def test_the_same_history_inline_gets_the_same_scores(
    backend: LiveBackend, predictor: Predictor, shop_histories: pa.Table, connect: Any
) -> None:
    # Customer 2 has no town: static attributes do not come with inline events.
    row = shop_histories.slice(2, 1).to_pylist()[0]
    assert row["attr_town"] is None
    events = [
        {"event_time": time.isoformat(), "event_type": "purchase", "amount": amount, "order_id": str(i)}
        for i, (time, amount) in enumerate(zip(row["time"], row["amount"], strict=True))
    ]
    stored = {"as_of": "2011-06-12", "customers": [{"customer_id": row["customer_id"]}]}
    inline = {"as_of": "2011-06-12", "customers": [{"customer_id": row["customer_id"], "events": events}]}
    by_id, by_events = (flat(answer) for answer in post(backend, connect, stored, inline))
    # The BTYD model knows times and amounts only; the items differ.
    assert by_events["btyd_value_mean"].to_numpy() == pytest.approx(by_id["btyd_value_mean"].to_numpy(), rel=1e-5)


@pytest.mark.parametrize(
    ("as_of", "message"), [("2011-06-11", "before the bundle's cut"), ("2011-12-01", "90 days past")]
)
def test_times_the_bundle_must_not_be_asked_about_are_refused(
    backend: LiveBackend, connect: Any, as_of: str, message: str
) -> None:
    (answer,) = post(backend, connect, {"as_of": as_of, "customers": [{"customer_id": "00001"}]})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "as_of"
    assert message in answer.json()["detail"]


def test_horizons_beyond_the_learned_ones_are_marked(backend: LiveBackend, connect: Any) -> None:
    body = {"as_of": "2011-06-12", "horizons_days": [60, 365], "customers": [{"customer_id": "00001"}]}
    (answer,) = post(backend, connect, body)
    found = flat(answer)
    assert found["extrapolated"].tolist() == [False, True]
    assert found["value_mean"].is_monotonic_increasing
    assert answer.json()["data_through"] < datetime(2011, 6, 12, tzinfo=UTC).isoformat()


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_many_customers_are_served_as_batch_scoring_scores_them_also_after_a_stream_of_events(
    make_shop_bundle: MakeBundle, tmp_path: Path, kind: str, redis_url: str, serve_replicas: Any
) -> None:
    """Histories until May are loaded, what happened in June comes as events, late and out of order, to two replicas."""
    predictor = Predictor(make_shop_bundle(1))
    clock = predictor.clock
    events = simulate(480, "2010-01-01", "2011-06-30", seed=8, timezone="Europe/London").events
    early = pc.less(events["event_time"].cast(pa.int64()), clock.parse("2011-05-01"))
    loaded, streamed = build(events.filter(early), clock), events.filter(pc.invert(early))
    address = str(tmp_path / "store") if kind == "sqlite" else redis_url
    stores = [open_store(address, create=True) for _ in range(2)]
    stores[0].put_histories(loaded)
    backends = [LiveBackend(store) for store in stores]
    for one in backends:
        one.install(predictor)

    def difference(client: Client, histories: pa.Table, as_of: str) -> float:
        """Largest relative difference of any number of any customer."""
        names = histories["customer_id"].to_pylist()
        found = client.predict_table(names[:400], as_of=as_of)
        expected = predictor.predict(histories.slice(0, 400), clock.parse(as_of))
        keys = [("customer_id", "ascending"), ("horizon_days", "ascending")]
        found, expected = found.filter(pc.equal(found["status"], "ok")).sort_by(keys), expected.sort_by(keys)
        assert found["customer_id"].to_pylist() == expected["customer_id"].to_pylist()
        assert len(expected) > 760
        numbers = [name for name in expected.column_names if pa.types.is_floating(expected[name].type)]
        pairs = [(found[name].to_numpy(), expected[name].to_numpy()) for name in numbers]
        return max(float(np.nanmax(np.abs(a - b) / np.maximum(np.abs(b), 1e-9))) for a, b in pairs)

    rows = streamed.select([n for n in streamed.column_names if n != "amount_filled"]).to_pylist()
    random.Random(3).shuffle(rows)
    posted = [{name: value for name, value in row.items() if value is not None} for row in rows]
    with serve_replicas(backends) as made, Client(made.url, timeout_s=120) as client:
        assert difference(client, loaded, "2011-06-12") < 1e-5
        assert client.send(posted).stored == len(posted) > 200
        full = build(events, clock)
        assert len(full) >= 400
        assert difference(client, full, "2011-06-12") < 1e-5
        assert difference(client, full, "2011-06-30") < 1e-5
        inline = client.portfolio(full["customer_id"].to_pylist()[:400], as_of="2011-06-12")
        total = predictor.portfolio(full.slice(0, 400), clock.parse("2011-06-12"))
        assert [one.value_mean for one in inline.totals] == pytest.approx(total["value_mean"].to_pylist(), rel=1e-5)
        assert [one.value_p90 for one in inline.totals] == pytest.approx(total["value_p90"].to_pylist(), rel=1e-5)
    for store in stores:
        store.close()
