"""What holds for the service holds for two replicas that answer in turn, each with its own connection to the store."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from clv.data.clock import Clock
from clv.data.histories import build
from clv.serve.http.routes import create_app
from clv.serve.http.schemas import Problem
from clv.serve.scoring.backend import LiveBackend
from clv.serve.scoring.batching import Batching
from clv.serve.store.factory import open_store

JSON = {"Content-Type": "application/json"}


@pytest.fixture(params=["sqlite", "redis"])
def address(request: pytest.FixtureRequest, tmp_path: Any) -> str:
    return str(tmp_path / "store") if request.param == "sqlite" else request.getfixturevalue("redis_url")


@pytest.fixture
def service(
    address: str, make_predictor: Callable[..., Any], serve_replicas: Any, sample_events: Any
) -> Iterator[httpx.Client]:
    """Customers A (50.00 in two orders) and B; every request goes to the other replica than the one before."""
    stores = [open_store(address, create=True) for _ in range(2)]
    stores[0].put_histories(build(sample_events, Clock("Europe/London")))
    backends = [LiveBackend(store, Batching(wait_s=0)) for store in stores]
    for backend in backends:
        backend.install(make_predictor())
    with serve_replicas(backends) as made, httpx.Client(base_url=made.url, timeout=30) as client:
        yield client
    for store in stores:
        store.close()


def event(**fields: Any) -> dict[str, Any]:
    whole = {"event_id": "e1", "customer_id": "A", "event_time": "2011-06-11T20:00:00Z", "event_type": "purchase"}
    return whole | {"amount": 50.0} | fields


def send(service: httpx.Client, *events: dict[str, Any]) -> httpx.Response:
    return service.post("/v1/events", content=json.dumps({"events": events}), headers=JSON)


def value(service: httpx.Client, name: str, as_of: str = "2011-06-12") -> float | None:
    """Value over a year; None for somebody unknown."""
    body = {"as_of": as_of, "horizons_days": [365], "customers": [{"customer_id": name}]}
    (result,) = service.post("/v1/predict", json=body).raise_for_status().json()["results"]
    return result["scores"][0]["value_mean"] if result["status"] == "ok" else None


def problem_of(answer: httpx.Response, status: int) -> Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status
    assert "Traceback" not in answer.text
    return problem


def test_an_event_shows_in_the_next_answer_whoever_answers(service: httpx.Client) -> None:
    assert [value(service, "A") for _ in range(2)] == [50.0, 50.0]
    answer = send(service, event())
    assert (answer.status_code, answer.json()) == (200, {"stored": 1, "repeated": 0})
    assert [value(service, "A") for _ in range(4)] == [100.0] * 4
    described = [service.get("/v1/customers/A").json() for _ in range(2)]
    assert [one["amount"] for one in described] == [100.0, 100.0]
    assert {one["data_through"] for one in described} == {"2011-06-11T20:00:00Z"}


def test_the_same_event_at_both_replicas_counts_once(service: httpx.Client) -> None:
    found = [send(service, event(), event(event_id="e2", customer_id="C")).json() for _ in range(4)]
    assert found == [{"stored": 2, "repeated": 0}] + [{"stored": 0, "repeated": 2}] * 3
    assert [value(service, name) for name in "AACC"] == [100.0, 100.0, 50.0, 50.0]


def test_late_and_unordered_events_count_where_they_belong(service: httpx.Client) -> None:
    send(service, event(event_id="e3", event_time="2011-06-11T21:00:00Z"))
    send(service, event(event_id="e2", event_time="2011-05-20T10:00:00Z"))
    send(service, event(event_id="e1", event_time="2011-05-10T10:00:00Z", known_at="2011-06-11T12:00:00Z"))
    assert [value(service, "A", as_of) for as_of in ("2011-06-02", "2011-06-11", "2011-06-12")] == [70.0, 100.0, 200.0]


def test_an_id_of_another_event_is_409_and_nothing_of_the_batch_is_stored(service: httpx.Client) -> None:
    send(service, event())
    for _ in range(2):
        answer = send(service, event(event_id="new"), event(amount=51.0))
        problem = problem_of(answer, 409)
        assert [error.field for error in problem.errors] == ["events[1].event_id"]
        assert "is the id of another event" in problem.detail
    assert value(service, "A") == 100.0
    problem = problem_of(send(service, event(event_id="x"), event(event_id="x", amount=1.0)), 409)
    assert problem.errors[0].field == "events[1].event_id"
    assert value(service, "A") == 100.0


def test_the_erased_are_unknown_to_both_until_new_events_come(service: httpx.Client, caplog: Any) -> None:
    caplog.set_level("INFO")
    send(service, event())
    answer = service.delete("/v1/customers/A")
    assert (answer.status_code, answer.content) == (204, b"")
    for _ in range(2):
        assert value(service, "A") is None
        assert problem_of(service.get("/v1/customers/A"), 404).detail == "The store holds no customer of this id."
        assert problem_of(service.delete("/v1/customers/A"), 404)
    portfolio = service.post("/v1/portfolio", json={"customer_ids": ["A", "B"]}).json()
    assert (portfolio["customers"], portfolio["unknown"]) == (1, 1)
    assert send(service, event(event_id="later", amount=7.0)).json()["stored"] == 1
    assert [value(service, "A") for _ in range(2)] == [7.0, 7.0]
    erased = [record.message for record in caplog.records if "erased" in record.message]
    assert len(erased) == 1
    assert erased[0].startswith("request ")
    assert len(erased[0].split()[-1]) == 16, "a pseudonym"


def test_a_portfolio_is_the_sum_of_its_customers(service: httpx.Client) -> None:
    send(service, event(event_id="c", customer_id="C", amount=30.0))
    body = {"as_of": "2011-06-12", "horizons_days": [365, 730], "customer_ids": ["A", "C", "nobody"]}
    for _ in range(2):
        found = service.post("/v1/portfolio", json=body).raise_for_status().json()
        assert (found["customers"], found["unknown"], found["currency"]) == (2, 1, "GBP")
        assert [(total["horizon_days"], total["value_mean"]) for total in found["totals"]] == [
            (365, 80.0),
            (730, 160.0),
        ]
    nobody = service.post("/v1/portfolio", json={"customer_ids": ["nobody"]}).json()
    assert (nobody["customers"], [total["value_mean"] for total in nobody["totals"]]) == (0, [0.0, 0.0])
    problem = problem_of(service.post("/v1/portfolio", json={"customer_ids": ["A", "A"]}), 422)
    assert problem.errors[0].field == "customer_ids[1]"


def soon(**ahead: float) -> str:
    return (datetime.now(UTC) + timedelta(**ahead)).isoformat()


WRONG_EVENTS: dict[str, tuple[Any, str, str]] = {
    "NaN": (event(amount=math.nan), "events[0].amount", "finite"),
    "infinite": (event(quantity=-math.inf), "events[0].quantity", "finite"),
    "1970": (event(event_time="1970-01-01T00:00:00Z"), "events[0].event_time", "between 1990"),
    "2300": (event(event_time="2300-01-01"), "events[0].event_time", "between 1990"),
    "2101": (event(known_at="2101-01-01"), "events[0].known_at", "between 1990"),
    "next year": (event(event_time=soon(days=300)), "events[0].event_time", "future"),
    "10 MB": (event(text="x" * 10_000_000), "events[0].text", "at most 10000"),
    "10 MB id": (event(customer_id="x" * 10_000_000), "events[0].customer_id", "at most 128"),
    "10 MB type": (event(event_type="x" * 10_000_000), "events[0].event_type", "at most 64"),
    "control character": (event(customer_id="a\x07"), "events[0].customer_id", "pattern"),
    "null byte": (event(item_id="\x00"), "events[0].item_id", "pattern"),
    "lone surrogate": ('{"events":[{"customer_id":"\\ud800"}]}', "body", "JSON"),
    "no id": ({**event(), "event_id": None}, "events[0].event_id", "string"),
    "number as id": (event(customer_id=7), "events[0].customer_id", "string"),
    "time as number": (event(event_time=1307836800), "events[0].event_time", "datetime"),
    "unknown key": (event(email="a@b.c"), "events[0].email", "not permitted"),
    "text as amount": (event(amount="50"), "events[0].amount", "number"),
    "overflow": ('{"events":[{"amount":1e999}]}', "events[0].amount", "finite"),
    "no events": ('{"events":[]}', "events", "at least 1"),
    "deep": ("[" * 100_000, "body", "JSON"),
    "not JSON": ("\xff\xfe", "body", "JSON"),
}


@pytest.mark.parametrize("address", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("wrong", "field", "message"), WRONG_EVENTS.values(), ids=WRONG_EVENTS)
def test_a_wrong_event_is_422_and_named_and_nothing_is_stored(
    service: httpx.Client, wrong: Any, field: str, message: str
) -> None:
    content = wrong if isinstance(wrong, str) else json.dumps({"events": [event(event_id="good"), wrong]})
    for _ in range(2):
        answer = service.post("/v1/events", content=content.encode("latin-1"), headers=JSON)
        problem = problem_of(answer, 422)
        places = [error.field for error in problem.errors]
        wanted = field if isinstance(wrong, str) else field.replace("events[0]", "events[1]")
        assert wanted in places
        assert message in problem.errors[places.index(wanted)].message
        assert len(answer.content) < 5_000, "what was wrong is named, not repeated"
    assert value(service, "A") == 50.0


def test_1001_events_are_refused_and_1000_are_not(service: httpx.Client) -> None:
    many = [event(event_id=str(i), event_type="view") for i in range(1_001)]
    assert "at most 1000" in problem_of(send(service, *many), 422).errors[0].message
    assert send(service, *many[:1_000]).json() == {"stored": 1_000, "repeated": 0}


def test_an_event_of_tomorrow_in_another_time_zone_is_taken(service: httpx.Client) -> None:
    assert send(service, event(event_time=soon(hours=12))).status_code == 200


def test_a_body_over_the_limit_is_413_at_both(service: httpx.Client) -> None:
    for path in ("/v1/events", "/v1/predict", "/v1/portfolio"):
        problem = problem_of(service.post(path, content=b" " * (33 * 2**20), headers=JSON), 413)
        assert problem.errors[0].field == "body"


def test_without_a_store_there_is_nothing_to_write_to(make_predictor: Any, connect: Any) -> None:
    backend = LiveBackend()
    backend.install(make_predictor())

    async def go() -> list[httpx.Response]:
        async with connect(create_app(backend)) as client:
            return [
                await client.post("/v1/events", json={"events": [event()]}),
                await client.delete("/v1/customers/A"),
            ]

    for answer in asyncio.run(go()):
        assert "no online store" in problem_of(answer, 404).detail


def test_a_store_that_is_down_is_503_with_the_reason_and_inline_requests_go_on(
    redis_server: Any, redis_url: str, make_predictor: Any, sample_events: Any, serve_replicas: Any
) -> None:
    stores = [open_store(redis_url, create=True) for _ in range(2)]
    stores[0].put_histories(build(sample_events, Clock("Europe/London")))
    backends = [LiveBackend(store, Batching(wait_s=0)) for store in stores]
    for backend in backends:
        backend.install(make_predictor())
    inline = {"customer_id": "new", "events": [{"event_time": "2011-06-03", "event_type": "purchase", "amount": 7.3}]}
    with serve_replicas(backends) as made, httpx.Client(base_url=made.url, timeout=30) as client:
        assert value(client, "A") == 50.0
        redis_server.kill()
        try:
            for method, path, body in (
                ("POST", "/v1/predict", {"customers": [{"customer_id": "A"}]}),
                ("POST", "/v1/predict", {"customers": [{"customer_id": "A"}, inline]}),
                ("POST", "/v1/portfolio", {"customer_ids": ["A"]}),
                ("POST", "/v1/events", {"events": [event()]}),
                ("GET", "/v1/customers/A", None),
                ("DELETE", "/v1/customers/A", None),
            ):
                answer = client.request(method, path, json=body)
                assert "The online store does not answer" in problem_of(answer, 503).detail
                assert answer.headers["retry-after"] == "1"
            answer = client.post("/v1/predict", json={"as_of": "2011-06-12", "customers": [inline]})
            assert answer.json()["results"][0]["status"] == "ok"
            assert client.get("/readyz").status_code == 200
            assert client.get("/v1/model").json()["customers_stored"] is None
            for backend in backends:
                backend.check_health(60)
        finally:
            redis_server.start()
        assert [value(client, "A") for _ in range(2)] == [50.0, 50.0]
    for store in stores:
        store.close()
