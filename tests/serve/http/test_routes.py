"""Every answer of the HTTP contract: status, body and headers, in process, without Ray."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from clv.serve.http.routes import create_app
from clv.serve.http.schemas import PREDICT_EXAMPLE, CustomerResponse, ModelResponse, PredictResponse, Problem
from clv.serve.http.security import Keys
from clv.serve.scoring.backend import LiveBackend
from clv.serve.scoring.batching import Batching

KEY = "a-key-of-twenty-char"
KEYS = Keys.parse([f"admin={KEY}"])
A_AND_UNKNOWN = {"as_of": "2011-06-12", "customers": [{"customer_id": "A"}, {"customer_id": "nobody"}]}


def ask(app: Any, connect: Any, method: str, path: str, **options: Any) -> httpx.Response:
    async def go() -> httpx.Response:
        async with connect(app) as client:
            return await client.request(method, path, **options)

    return asyncio.run(go())


def problem_of(answer: httpx.Response, status: int) -> Problem:
    """The problem details, after what holds for each of them was checked."""
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status
    assert problem.request_id == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    assert ".py" not in answer.text
    assert_guarded(answer)
    return problem


def assert_guarded(answer: httpx.Response) -> None:
    """The headers that every answer has."""
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]
    assert "strict-transport-security" not in answer.headers


def test_known_and_unknown_customers_are_answered_in_the_order_asked(backend: LiveBackend, connect: Any) -> None:
    body = {**A_AND_UNKNOWN, "horizons_days": [365, 90]}
    answer = ask(create_app(backend), connect, "POST", "/v1/predict", json=body)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert_guarded(answer)
    PredictResponse.model_validate_json(answer.content)
    found = answer.json()
    assert {key: found[key] for key in found if key != "results"} == {
        "model": {"version": "v1", "cut": "2011-06-01T00:00:00Z"},
        "currency": "GBP",
        "as_of": "2011-06-11T23:00:00Z",
        "data_through": "2011-06-11T09:00:00Z",
    }
    known, unknown = found["results"]
    assert unknown == {"customer_id": "nobody", "status": "unknown_customer", "scores": []}
    assert (known["customer_id"], known["status"]) == ("A", "ok")
    assert [score["horizon_days"] for score in known["scores"]] == [90, 365]
    assert [score["value_mean"] for score in known["scores"]] == pytest.approx([50 * 90 / 365, 50.0])
    assert [score["extrapolated"] for score in known["scores"]] == [False, True]
    assert known["scores"][0]["origin"] == "2011-06-11T23:00:00Z"
    assert known["scores"][0]["value_rank"] is None
    assert known["scores"][0]["value_decile"] is None


def test_without_horizons_the_bundles_own_are_scored(backend: LiveBackend, connect: Any) -> None:
    found = ask(create_app(backend), connect, "POST", "/v1/predict", json=A_AND_UNKNOWN).json()
    assert [score["horizon_days"] for score in found["results"][0]["scores"]] == [30, 90]


def test_inline_events_replace_the_stored_history(backend: LiveBackend, connect: Any) -> None:
    event = {"event_time": "2011-06-03T14:20:00", "event_type": "purchase", "amount": 7.3}
    body = {"as_of": "2011-06-12", "horizons_days": [365], "customers": [{"customer_id": "A", "events": [event]}]}
    found = ask(create_app(backend), connect, "POST", "/v1/predict", json=body).json()
    assert found["results"][0]["scores"][0]["value_mean"] == pytest.approx(7.3)
    assert ask(create_app(backend), connect, "GET", "/v1/customers/A").json()["amount"] == 50.0


def test_what_is_not_defined_is_null_and_never_nan(backend: LiveBackend, connect: Any) -> None:
    body = {"as_of": "2011-06-12", "customers": [{"customer_id": "B"}]}
    answer = ask(create_app(backend), connect, "POST", "/v1/predict", json=body)
    assert answer.json()["results"][0]["scores"][0]["value_mean"] is None
    assert "NaN" not in answer.text


def test_only_events_before_as_of_count(backend: LiveBackend, connect: Any) -> None:
    body = {"as_of": "2011-06-05T00:00:00Z", "horizons_days": [365]}
    body["customers"] = [{"customer_id": "A"}, {"customer_id": "B"}]
    first, second = ask(create_app(backend), connect, "POST", "/v1/predict", json=body).json()["results"]
    assert first["scores"][0]["value_mean"] == pytest.approx(20.0)
    assert second["status"] == "unknown_customer"


@pytest.mark.parametrize(
    ("time", "utc"),
    [
        ("2011-06-11T09:30:00", "2011-06-11T08:30:00Z"),
        ("2011-06-11T09:30:00Z", "2011-06-11T09:30:00Z"),
        ("2011-06-11T09:30:00+05:30", "2011-06-11T04:00:00Z"),
        ("2011-06-11", "2011-06-10T23:00:00Z"),
    ],
)
def test_times_without_an_offset_are_the_shops(backend: LiveBackend, connect: Any, time: str, utc: str) -> None:
    body = {"as_of": time, "customers": [{"customer_id": "A"}]}
    assert ask(create_app(backend), connect, "POST", "/v1/predict", json=body).json()["as_of"] == utc


def test_inline_times_are_read_like_as_of(backend: LiveBackend, connect: Any) -> None:
    event = {"event_time": "2011-06-11T09:30:00", "event_type": "purchase", "amount": 1.0}
    customers = [{"customer_id": "new", "events": [event]}]
    for as_of, status in (("2011-06-11T09:30:00", "unknown_customer"), ("2011-06-11T09:30:01", "ok")):
        found = ask(create_app(backend), connect, "POST", "/v1/predict", json={"as_of": as_of, "customers": customers})
        assert found.json()["results"][0]["status"] == status


def test_the_default_time_is_the_midnight_after_the_newest_event(backend: LiveBackend, connect: Any) -> None:
    body: dict[str, Any] = {"customers": [{"customer_id": "A"}]}
    assert ask(create_app(backend), connect, "POST", "/v1/predict", json=body).json()["as_of"] == "2011-06-11T23:00:00Z"
    event = {"event_time": "2011-07-01T12:00:00", "event_type": "view"}
    body["customers"].append({"customer_id": "new", "events": [event]})
    found = ask(create_app(backend), connect, "POST", "/v1/predict", json=body).json()
    assert found["as_of"] == "2011-07-01T23:00:00Z"
    assert [result["status"] for result in found["results"]] == ["ok", "ok"]


def test_data_that_has_left_the_bundle_behind_is_not_scored_in_silence(backend: LiveBackend, connect: Any) -> None:
    late = {"customer_id": "new", "events": [{"event_time": "2012-09-05", "event_type": "view"}]}
    problem = problem_of(ask(create_app(backend), connect, "POST", "/v1/predict", json={"customers": [late]}), 422)
    assert problem.errors[0].field == "as_of"
    assert "90 days past the data" in problem.detail


def test_one_stored_customer_is_described_and_scored(backend: LiveBackend, connect: Any) -> None:
    answer = ask(create_app(backend), connect, "GET", "/v1/customers/A")
    assert answer.status_code == 200
    found = CustomerResponse.model_validate_json(answer.content)
    assert (found.tokens, found.orders, found.amount) == (2, 2, 50.0)
    assert found.last_time.isoformat() == "2011-06-10T10:00:00+00:00"
    assert [score.horizon_days for score in found.scores] == [30, 90]
    assert found.model.version == "v1"


def test_an_unknown_customer_is_404(backend: LiveBackend, connect: Any) -> None:
    problem = problem_of(ask(create_app(backend), connect, "GET", "/v1/customers/nobody"), 404)
    assert problem.title == "Not Found"
    assert "no customer of this id" in problem.detail


def test_an_id_with_slashes_reaches_the_store(backend: LiveBackend, connect: Any) -> None:
    problem_of(ask(create_app(backend), connect, "GET", "/v1/customers/a/b%2Fc"), 404)


def test_the_model_is_described(backend: LiveBackend, connect: Any) -> None:
    found = ModelResponse.model_validate_json(ask(create_app(backend), connect, "GET", "/v1/model").content)
    assert (found.model.version, found.currency, found.timezone) == ("v1", "GBP", "Europe/London")
    assert (found.horizons_days, found.customers_stored) == ([30, 90], 2)


def test_without_a_store_only_inline_events_are_scored(make_predictor: Any, connect: Any) -> None:
    backend = LiveBackend()
    backend.install(make_predictor())
    event = {"event_time": "2011-06-03", "event_type": "purchase", "amount": 1.0}
    body = {"customers": [{"customer_id": "A"}, {"customer_id": "new", "events": [event]}]}
    found = ask(create_app(backend), connect, "POST", "/v1/predict", json=body).json()
    assert [result["status"] for result in found["results"]] == ["unknown_customer", "ok"]
    assert found["data_through"] == "2011-06-01T00:00:00Z"
    assert ask(create_app(backend), connect, "GET", "/v1/model").json()["customers_stored"] is None


@pytest.mark.parametrize("path", ["/v1/model", "/v1/customers/A", "/metrics"])
@pytest.mark.parametrize("header", [None, "Bearer wrong-key-of-20-char", "Basic a-key-of-twenty-char", "Bearer", KEY])
def test_without_a_valid_key_it_is_401(backend: LiveBackend, connect: Any, path: str, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    answer = ask(create_app(backend, KEYS), connect, "GET", path, headers=headers)
    assert "Authorization: Bearer" in problem_of(answer, 401).detail
    assert answer.headers["www-authenticate"] == 'Bearer realm="clv"'


SCOPED = {
    ("GET", "/v1/model"): "read",
    ("GET", "/v1/customers/A"): "read",
    ("POST", "/v1/predict"): "read",
    ("POST", "/v1/portfolio"): "read",
    ("GET", "/metrics"): "read",
    ("POST", "/v1/events"): "write",
    ("DELETE", "/v1/customers/A"): "admin",
}


def mounted(app: Any, prefix: str) -> Any:
    """The application as Serve calls it below a route prefix: the path holds the prefix, and so does root_path."""

    async def below(scope: Any, receive: Any, send: Any) -> None:
        await app(scope | {"root_path": prefix}, receive, send)

    return below


@pytest.mark.parametrize("prefix", ["", "/shop"])
@pytest.mark.parametrize(("call", "scope"), SCOPED.items(), ids=lambda call: str(call))
def test_what_a_key_does_not_cover_is_403(
    backend: LiveBackend, connect: Any, call: tuple[str, str], scope: str, prefix: str
) -> None:
    scopes = ["read", "write", "admin"]
    keys = Keys.parse([f"{one}=key-of-twenty-c-{one}" for one in scopes])
    options = {"content": b"{}", "headers": {"Content-Type": "application/json"}} if call[0] == "POST" else {}
    for one in scopes:
        headers = options.get("headers", {}) | {"Authorization": f"Bearer key-of-twenty-c-{one}"}
        app = mounted(create_app(backend, keys), prefix)
        answer = ask(app, connect, call[0], prefix + call[1], **{**options, "headers": headers})
        if scopes.index(one) >= scopes.index(scope):
            assert answer.status_code in (200, 204, 422)
        else:
            assert problem_of(answer, 403).detail == f"This needs a key of scope {scope}; this key has scope {one}."
            wanted = f'Bearer realm="clv", error="insufficient_scope", scope="{scope}"'
            assert answer.headers["www-authenticate"] == wanted


@pytest.mark.parametrize("prefix", ["", "/shop"])
def test_probes_and_documents_need_no_key_and_every_other_path_does(
    backend: LiveBackend, connect: Any, prefix: str
) -> None:
    app = mounted(create_app(backend, KEYS), prefix)
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert ask(app, connect, "GET", prefix + path).status_code == 200
    for path in ("/", "/v1/nothing", "/healthz/", "/v1/events"):
        problem_of(ask(app, connect, "GET", prefix + path), 401)


def test_more_requests_than_a_key_may_make_are_429(backend: LiveBackend, connect: Any) -> None:
    """A tenth of a minute's requests at once; another key is another account. A window begins every six seconds."""
    if (left := 6 - time.time() % 6) < 3:
        time.sleep(left)
    keys = Keys.parse(["read@60=a-key-of-twenty-char", "another-key-of-20-ch"])
    app = create_app(backend, keys, per_minute=20)

    def calls(key: str, times: int) -> list[httpx.Response]:
        return [ask(app, connect, "GET", "/v1/model", headers={"Authorization": f"Bearer {key}"}) for _ in range(times)]

    found = calls(KEY, 8)
    assert [answer.status_code for answer in found] == [200] * 6 + [429] * 2
    assert problem_of(found[-1], 429).detail == "This key may send 60 requests a minute."
    assert 1 <= int(found[-1].headers["retry-after"]) <= 6
    assert [answer.status_code for answer in calls("another-key-of-20-ch", 3)] == [200, 200, 429]
    for _ in range(30):
        assert ask(app, connect, "GET", "/healthz").status_code == 200
        problem_of(ask(app, connect, "GET", "/v1/model", headers={"Authorization": "Bearer wrong"}), 401)


def test_over_tls_browsers_are_told_to_stay_there(backend: LiveBackend, connect: Any) -> None:
    answer = ask(create_app(backend), connect, "GET", "/v1/model", headers={"X-Forwarded-Proto": "https"})
    assert answer.headers["strict-transport-security"] == "max-age=31536000"


def test_a_body_that_does_not_come_is_408(backend: LiveBackend, connect: Any) -> None:
    async def slowly() -> Any:
        yield b"{"
        await asyncio.sleep(5)

    app = create_app(backend, deadline_s=0.1)
    headers = {"Content-Type": "application/json"}
    answer = ask(app, connect, "POST", "/v1/events", content=slowly(), headers=headers)
    assert "did not arrive within 0.1 s" in problem_of(answer, 408).detail


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/events", "/v1/portfolio"])
@pytest.mark.parametrize(
    "media", ["", "text/plain", "application/jsonp", "application/json; charset=latin-1", "application/json, text/html"]
)
def test_a_media_type_is_taken_at_its_word(backend: LiveBackend, connect: Any, path: str, media: str) -> None:
    answer = ask(create_app(backend), connect, "POST", path, content=b"{}", headers={"Content-Type": media})
    assert "application/json" in problem_of(answer, 415).detail
    assert answer.headers["accept"].startswith("application/json")
    answer = ask(
        create_app(backend),
        connect,
        "POST",
        path,
        content=b"{}",
        headers={"Content-Type": "Application/JSON; charset=UTF-8"},
    )
    problem_of(answer, 422)


def test_with_a_key_it_is_200_and_probes_need_none(backend: LiveBackend, connect: Any) -> None:
    app = create_app(backend, Keys.parse(["other-key-of-20-chars", KEY]))
    headers = {"Authorization": f"Bearer {KEY}", "Host": "shop.example"}
    assert ask(app, connect, "GET", "/v1/model", headers=headers).status_code == 200
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json"):
        assert ask(app, connect, "GET", path).status_code == 200


def test_without_keys_a_name_that_is_not_local_is_refused(backend: LiveBackend, connect: Any) -> None:
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example"):
        problem_of(ask(create_app(backend), connect, "GET", "/v1/model", headers={"Host": host}), 421)
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "127.0.0.1"):
        assert ask(create_app(backend), connect, "GET", "/v1/model", headers={"Host": host}).status_code == 200


def event(**fields: Any) -> dict[str, Any]:
    return {
        "customers": [{"customer_id": "x", "events": [{"event_time": "2011-06-03", "event_type": "view", **fields}]}]
    }


WRONG = {
    "not JSON": ("{", "body", "JSON"),
    "a list": ("[]", "body", "an object"),
    "nothing": ("{}", "customers", "required"),
    "nobody": ('{"customers": []}', "customers", "at least 1"),
    "too many": ({"customers": [{"customer_id": str(i)} for i in range(1001)]}, "customers", "at most 1000"),
    "unknown key": ({"customers": [{"customer_id": "A"}], "horizon": 3}, "horizon", "not permitted"),
    "twice": (
        {"customers": [{"customer_id": "A"}, {"customer_id": "A"}]},
        "customers[1].customer_id",
        "repeats customers[0]",
    ),
    "empty id": ({"customers": [{"customer_id": ""}]}, "customers[0].customer_id", "at least 1"),
    "long id": ({"customers": [{"customer_id": "x" * 129}]}, "customers[0].customer_id", "at most 128"),
    "control character": ({"customers": [{"customer_id": "a\x00"}]}, "customers[0].customer_id", "pattern"),
    "new line": ({"customers": [{"customer_id": "a\n"}]}, "customers[0].customer_id", "pattern"),
    "number as id": ({"customers": [{"customer_id": 12347}]}, "customers[0].customer_id", "string"),
    "no events": ({"customers": [{"customer_id": "A", "events": []}]}, "customers[0].events", "at least 1"),
    "horizon 0": ({**A_AND_UNKNOWN, "horizons_days": [90, 0]}, "horizons_days[1]", "greater than or equal to 1"),
    "horizon text": ({**A_AND_UNKNOWN, "horizons_days": ["90"]}, "horizons_days[0]", "integer"),
    "before the cut": ({**A_AND_UNKNOWN, "as_of": "2011-05-31"}, "as_of", "before the bundle's cut"),
    "as_of not a time": ({**A_AND_UNKNOWN, "as_of": "soon"}, "as_of", "ISO 8601"),
    "as_of a number": ({**A_AND_UNKNOWN, "as_of": 1307836800}, "as_of", "datetime"),
    "NaN": (json.dumps(event(amount=float("nan"))), "customers[0].events[0].amount", "finite"),
    "infinite": (json.dumps(event(amount=float("inf"))), "customers[0].events[0].amount", "finite"),
    "overflow": (json.dumps(event(quantity=0)).replace("0}", "1e999}"), "customers[0].events[0].quantity", "finite"),
    "1989": (event(event_time="1989-12-31"), "customers[0].events[0].event_time", "between 1990 and 2100"),
    "2101": (event(event_time="2101-01-01"), "customers[0].events[0].event_time", "between 1990 and 2100"),
    "year 1": (event(event_time="0001-01-01T00:00:00Z"), "customers[0].events[0].event_time", "between"),
    "wrong time": (event(event_time="12.06.2011"), "customers[0].events[0].event_time", "ISO 8601"),
    "known before": (event(known_at="2011-06-02"), "customers[0].events[0]", "known_at lies before"),
    "type empty": (event(event_type=""), "customers[0].events[0].event_type", "at least 1"),
    "long text": (event(text="x" * 10_001), "customers[0].events[0].text", "at most 10000"),
}


@pytest.mark.parametrize(("body", "field", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_field_is_422_and_named(
    backend: LiveBackend, connect: Any, body: Any, field: str, message: str
) -> None:
    content = body if isinstance(body, str) else json.dumps(body)
    headers = {"Content-Type": "application/json"}
    answer = ask(create_app(backend), connect, "POST", "/v1/predict", content=content, headers=headers)
    problem = problem_of(answer, 422)
    assert problem.errors[0].field == field
    assert message in problem.errors[0].message
    assert field in problem.detail


def test_many_errors_are_cut_short(backend: LiveBackend, connect: Any) -> None:
    body = {"customers": [{"customer_id": ""} for _ in range(100)]}
    problem = problem_of(ask(create_app(backend), connect, "POST", "/v1/predict", json=body), 422)
    assert len(problem.errors) == 20
    assert "100 errors" in problem.detail


def test_too_many_events_in_all_are_422(backend: LiveBackend, connect: Any) -> None:
    events = [{"event_time": "2011-06-03", "event_type": "view"}] * 10_000
    body = {"customers": [{"customer_id": str(i), "events": events} for i in range(11)]}
    problem = problem_of(ask(create_app(backend), connect, "POST", "/v1/predict", json=body), 422)
    assert problem.errors[0].field == "customers"
    assert "110000 events" in problem.detail


def test_free_event_types_are_welcome(backend: LiveBackend, connect: Any) -> None:
    answer = ask(create_app(backend), connect, "POST", "/v1/predict", json=event(event_type="spin the wheel"))
    assert answer.json()["results"][0]["status"] == "ok"


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_413(backend: LiveBackend, connect: Any, declared: bool) -> None:
    size = 33 * 2**20

    async def pieces() -> Any:
        for _ in range(33):
            yield b" " * 2**20

    content = b" " * size if declared else pieces()
    headers = {"Content-Type": "application/json"}
    answer = ask(create_app(backend), connect, "POST", "/v1/predict", content=content, headers=headers)
    problem = problem_of(answer, 413)
    assert problem.errors[0].field == "body"
    assert "fewer customers" in problem.detail


def test_another_media_type_is_415(backend: LiveBackend, connect: Any) -> None:
    answer = ask(create_app(backend), connect, "POST", "/v1/predict", data={"a": "b"})
    assert "application/json" in problem_of(answer, 415).detail


def test_other_addresses_and_methods_are_problems_too(backend: LiveBackend, connect: Any) -> None:
    problem_of(ask(create_app(backend), connect, "GET", "/nothing"), 404)
    answer = ask(create_app(backend), connect, "GET", "/v1/predict")
    problem_of(answer, 405)
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("call", [("POST", "/v1/predict"), ("GET", "/v1/model"), ("GET", "/readyz")])
def test_before_a_bundle_is_in_service_it_is_503(connect: Any, call: tuple[str, str]) -> None:
    options = {"json": A_AND_UNKNOWN} if call[0] == "POST" else {}
    answer = ask(create_app(LiveBackend()), connect, *call, **options)
    assert "No bundle" in problem_of(answer, 503).detail
    assert answer.headers["retry-after"] == "5"
    assert ask(create_app(LiveBackend()), connect, "GET", "/healthz").json() == {"status": "ok"}


def test_ready_means_a_bundle_is_in_service(backend: LiveBackend, connect: Any) -> None:
    assert ask(create_app(backend), connect, "GET", "/readyz").json() == {"status": "ready", "version": "v1"}


def test_an_answer_that_takes_too_long_is_503_and_health_still_answers(
    backend: LiveBackend, predictor: Any, connect: Any
) -> None:
    predictor.before = lambda histories: time.sleep(0.5)

    async def go() -> tuple[httpx.Response, float, httpx.Response]:
        async with connect(create_app(backend, deadline_s=0.2)) as client:
            slow = asyncio.create_task(client.post("/v1/predict", json=A_AND_UNKNOWN))
            await asyncio.sleep(0.05)
            began = time.perf_counter()
            await client.get("/healthz")
            health_s = time.perf_counter() - began
            return await slow, health_s, await client.get("/readyz")

    slow, health_s, ready = asyncio.run(go())
    assert "0.2 s" in problem_of(slow, 503).detail
    assert slow.headers["retry-after"] == "1"
    assert health_s < 0.1
    assert ready.status_code == 200


def test_a_full_queue_is_429(predictor: Any, store: Any, connect: Any) -> None:
    backend = LiveBackend(store, Batching(wait_s=0, max_customers=1, max_waiting=2))
    backend.install(predictor)
    predictor.before = lambda histories: time.sleep(0.1)

    async def go() -> list[httpx.Response]:
        async with connect(create_app(backend)) as client:
            body = {"as_of": "2011-06-12", "customers": [{"customer_id": "A"}]}
            return await asyncio.gather(*(client.post("/v1/predict", json=body) for _ in range(8)))

    found = asyncio.run(go())
    assert {answer.status_code for answer in found} == {200, 429}
    refused = next(answer for answer in found if answer.status_code == 429)
    assert "Too many customers" in problem_of(refused, 429).detail
    assert refused.headers["retry-after"] == "1"


def test_a_failure_inside_is_500_without_its_reason(backend: LiveBackend, predictor: Any, connect: Any) -> None:
    def fail(histories: object) -> None:
        raise RuntimeError("secret /srv/bundles/v1")

    predictor.before = fail
    answer = ask(create_app(backend), connect, "POST", "/v1/predict", json=A_AND_UNKNOWN)
    assert "secret" not in problem_of(answer, 500).model_dump_json()


def test_a_request_id_is_kept_and_a_bad_one_replaced(backend: LiveBackend, connect: Any) -> None:
    app = create_app(backend)
    assert ask(app, connect, "GET", "/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("x" * 129, "with space", ""):
        given = ask(app, connect, "GET", "/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert len(given) == 32
    first, second = (ask(app, connect, "GET", "/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second


def test_behind_a_proxy_that_writes_the_request_id_it_is_not_written_twice(backend: LiveBackend, connect: Any) -> None:
    answer = ask(
        create_app(backend, echo_request_id=False), connect, "GET", "/nothing", headers={"X-Request-ID": "abc"}
    )
    assert "x-request-id" not in answer.headers
    assert answer.json()["request_id"] == "abc"


def test_metrics_count_requests_customers_batches_and_the_model(backend: LiveBackend, connect: Any) -> None:
    app = create_app(backend, metrics=backend.metrics)
    ask(app, connect, "POST", "/v1/predict", json=A_AND_UNKNOWN)
    ask(app, connect, "GET", "/v1/customers/secret-id")
    ask(app, connect, "GET", "/some/path/nobody/asked/for")
    answer = ask(app, connect, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'clv_requests_total{method="POST",route="/v1/predict",status="200"} 1.0',
        'clv_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'clv_request_seconds_count{route="/v1/predict"} 1.0',
        'clv_customers_total{status="ok"} 1.0',
        'clv_customers_total{status="unknown_customer"} 1.0',
        "clv_batch_customers_count 1.0",
        'clv_model_info{cut="2011-06-01T00:00:00+00:00",version="v1"} 1.0',
    ):
        assert line in answer.text
    assert "secret-id" not in answer.text


def test_the_document_describes_body_answers_and_problems(backend: LiveBackend, connect: Any) -> None:
    app = create_app(backend)
    found = ask(app, connect, "GET", "/openapi.json").json()
    operation = found["paths"]["/v1/predict"]["post"]
    body = operation["requestBody"]["content"]["application/json"]
    assert body["schema"] == {"$ref": "#/components/schemas/PredictRequest"}
    assert PREDICT_EXAMPLE in [example["value"] for example in body["examples"].values()]
    assert set(operation["responses"]) == {"200", "401", "403", "413", "415", "422", "429", "503"}
    schemas = found["components"]["schemas"]
    assert {"PredictRequest", "Customer", "Event", "PredictResponse", "Score", "Problem", "FieldError"} <= set(schemas)
    for reference in set(json.dumps(found).split('"#/components/schemas/')[1:]):
        assert reference.split('"')[0] in schemas
    assert "swagger" in ask(app, connect, "GET", "/docs").text.lower()


def test_the_example_of_the_document_works(backend: LiveBackend, connect: Any) -> None:
    found = ask(create_app(backend), connect, "POST", "/v1/predict", json=PREDICT_EXAMPLE).json()
    assert [result["status"] for result in found["results"]] == ["unknown_customer", "ok"]
