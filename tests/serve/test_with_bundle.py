"""The service with a real bundle: what it answers is what batch scoring writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pyarrow as pa
import pytest

from clv.predict import Predictor
from clv.serve.answers import scores_of
from clv.serve.backend import LiveBackend
from clv.serve.routes import routes
from clv.serve.store_sqlite import SqliteStore

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
        async with connect(routes(backend)) as client:
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
    expected = pd.DataFrame([row for rows in scores_of(batch).values() for row in rows])
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
    # The anchor knows times and amounts only; the items differ.
    assert by_events["anchor_value_mean"].to_numpy() == pytest.approx(by_id["anchor_value_mean"].to_numpy(), rel=1e-5)


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
