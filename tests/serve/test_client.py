"""The client against a real server on loopback, and against one that fails on purpose."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from pydantic import ValidationError

from clv.serve.client import Client, ClvError
from clv.serve.http.routes import create_app
from clv.serve.http.schemas import EventsResponse
from clv.serve.http.security import Keys
from clv.serve.scoring.backend import LiveBackend

KEY = "a-key-of-twenty-char"
KEYS = Keys.parse([f"admin={KEY}"])


@contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of a uvicorn in a thread."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def test_ids_events_and_the_model_over_a_real_connection(backend: Any) -> None:
    event = {"event_time": "2011-06-03", "event_type": "purchase", "amount": 7.3}
    with served(create_app(backend, KEYS)) as url, Client(url, KEY) as client:
        answer = client.predict(["A", {"customer_id": "new", "events": [event]}, "nobody"], horizons_days=[365])
        assert [result.status for result in answer.results] == ["ok", "ok", "unknown_customer"]
        assert [result.scores[0].value_mean for result in answer.results[:2]] == pytest.approx([50.0, 7.3])
        assert answer.as_of.isoformat() == "2011-06-11T23:00:00+00:00"
        assert client.model().customers_stored == 2
        stored = client.customer("A")
        assert stored is not None
        assert stored.amount == 50.0
        assert client.customer("no/body ?#") is None


def test_a_refusal_names_the_field_and_the_request(backend: Any) -> None:
    with served(create_app(backend)) as url, Client(url) as client:
        with pytest.raises(ClvError, match=r"HTTP 422: as_of: origin lies before") as refused:
            client.predict(["A"], as_of="2001-01-01")
        assert refused.value.problem is not None
        assert refused.value.problem.errors[0].field == "as_of"
        assert refused.value.problem.request_id == refused.value.request_id


def test_a_wrong_key_is_told_at_once(backend: Any) -> None:
    with served(create_app(backend, KEYS)) as url, Client(url, "wrong") as client:
        began = time.perf_counter()
        with pytest.raises(ClvError, match="HTTP 401"):
            client.model()
        assert time.perf_counter() - began < 1


def test_what_cannot_be_valid_is_not_sent(backend: Any) -> None:
    with Client("http://127.0.0.1:9") as client:
        with pytest.raises(ValidationError, match="horizons_days"):
            client.predict(["A"], horizons_days=[0])
        with pytest.raises(ValueError, match="customers is empty"):
            client.predict([])


def test_many_customers_are_asked_in_parts_of_one_time(backend: Any, predictor: Any) -> None:
    names = ["A", *(f"nobody-{i}" for i in range(1_500)), "B"]
    with served(create_app(backend, metrics=backend.metrics)) as url, Client(url) as client:
        answer = client.predict(names)
    assert [result.customer_id for result in answer.results] == names
    assert [result.status for result in answer.results if result.status == "ok"] == ["ok", "ok"]
    assert len({score.origin for result in answer.results for score in result.scores}) == 1


class Failing:
    """Answers with each of `first` in turn, then with the application: a status, or None for a cut connection."""

    def __init__(self, first: list[tuple[int, dict[str, str], str] | None], app: Any) -> None:
        self.first, self.app, self.seen = list(first), app, []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append((time.monotonic(), dict(scope["headers"])[b"x-request-id"]))
        if not self.first:
            await self.app(scope, receive, send)
            return
        failure = self.first.pop(0)
        if failure is None:
            # Promising more bytes than come: the client sees the connection die in the middle of an answer.
            headers = [(b"content-length", b"1000")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"{", "more_body": True})
            raise ConnectionAbortedError
        status, extra, body = failure
        headers = [(name.encode(), value.encode()) for name, value in extra.items()]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "failures",
    [
        [None],
        [None, None, None],
        [(503, {"retry-after": "0"}, "")],
        [(429, {}, ""), None, (503, {}, "")],
    ],
)
def test_lost_answers_and_busy_servers_are_asked_again(backend: Any, failures: list[Any]) -> None:
    app = Failing(failures, create_app(backend))
    with served(app) as url, Client(url, retry_for_s=5) as client:
        assert client.predict(["A"]).results[0].status == "ok"
        assert sum(client.failures.values()) == len(failures), "those that were made good count"
    assert len(app.seen) == len(failures) + 1
    assert len({request_id for _, request_id in app.seen}) == 1, "a repeated call keeps its id"


@pytest.mark.parametrize("status", [500, 501, 502, 504])
def test_no_other_5xx_is_repeated(backend: Any, status: int) -> None:
    app = Failing([(status, {"content-type": "text/plain"}, "The actor died")], create_app(backend))
    with served(app) as url, Client(url) as client, pytest.raises(ClvError, match=f"HTTP {status}: no explanation"):
        client.predict(["A"])
    assert len(app.seen) == 1


def test_a_pause_that_would_outlast_the_time_for_retries_is_not_begun(backend: Any) -> None:
    app = Failing([(503, {"retry-after": "9"}, "")], create_app(backend))
    began = time.monotonic()
    with served(app) as url, Client(url) as client, pytest.raises(ClvError, match="HTTP 503"):
        client.model()
    assert time.monotonic() - began < 2
    assert len(app.seen) == 1


def test_events_portfolio_and_erasure_over_a_real_connection(backend: Any) -> None:
    """1,001 events go in two requests; sent again they change nothing."""
    events = [
        {"customer_id": f"c{i % 7}", "event_id": f"e{i}", "event_time": "2011-06-03T10:00", "event_type": "view"}
        for i in range(1_000)
    ]
    bought = {"customer_id": "A", "event_id": "e", "event_time": "2011-06-11T10:00:00Z", "event_type": "purchase"}
    with served(create_app(backend)) as url, Client(url) as client:
        assert client.send([*events, {**bought, "amount": 50.0}]) == EventsResponse(stored=1_001, repeated=0)
        assert client.send([*events, {**bought, "amount": 50.0}]) == EventsResponse(stored=0, repeated=1_001)
        found = client.portfolio(["A", "B", "nobody"], horizons_days=[365])
        assert (found.customers, found.unknown) == (2, 1)
        assert found.totals[0].value_mean == pytest.approx(100.0)
        assert (client.erase("A"), client.erase("A"), client.customer("A")) == (True, False, None)
        with pytest.raises(ClvError, match="HTTP 409") as conflict:
            client.send([{**events[0], "channel": "web"}])
        assert conflict.value.problem is not None
        assert conflict.value.problem.errors[0].field == "events[0].event_id"


OTHER_404 = {
    "a proxy's page": ({"content-type": "text/plain"}, "Path '/v1/customers/A' not found."),
    "a page of the right media type": ({"content-type": "application/problem+json"}, "{}"),
    "our fields in another media type": (
        {"content-type": "application/json"},
        '{"title":"","status":404,"detail":"","request_id":"","errors":[{"field":"customer_id","message":""}]}',
    ),
}


@pytest.mark.parametrize(("headers", "body"), OTHER_404.values(), ids=OTHER_404.keys())
def test_a_404_that_is_not_the_services_own_is_an_error(backend: Any, headers: dict[str, str], body: str) -> None:
    app = Failing([(404, headers, body)] * 2, create_app(backend))
    with served(app) as url, Client(url) as client:
        with pytest.raises(ClvError, match="HTTP 404"):
            client.erase("A")
        with pytest.raises(ClvError, match="HTTP 404"):
            client.customer("A")
        assert client.customer("A") is not None, "nothing was erased"


def test_a_wrong_prefix_and_a_service_without_a_store_do_not_pass_for_an_unknown_customer(backend: Any) -> None:
    with (
        served(create_app(backend)) as url,
        Client(f"{url}/shop") as client,
        pytest.raises(ClvError, match="HTTP 404: There is nothing at this address"),
    ):
        client.erase("A")
    with (
        served(create_app(LiveBackend())) as url,
        Client(url) as client,
        pytest.raises(ClvError, match="HTTP 404: This service has no online store"),
    ):
        client.erase("A")


def test_an_erasure_that_is_answered_by_a_page_is_an_error(backend: Any) -> None:
    app = Failing([(200, {"content-type": "text/html"}, "<p>Log in</p>")], create_app(backend))
    with served(app) as url, Client(url) as client, pytest.raises(ClvError, match="HTTP 200"):
        client.erase("A")


def test_the_time_for_retries_begins_with_the_first_failure() -> None:
    """The first attempt takes longer than the time for retries, and is repeated all the same."""
    calls = []

    def answer(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        if len(calls) == 1:
            time.sleep(0.6)
            raise httpx.ReadTimeout("no answer", request=request)
        return httpx.Response(204)

    with Client("http://localhost", retry_for_s=0.5, transport=httpx.MockTransport(answer)) as client:
        assert client.erase("A") is True
    assert len(calls) == 2


def test_retry_after_is_obeyed(backend: Any) -> None:
    app = Failing([(503, {"retry-after": "1"}, "")], create_app(backend))
    with served(app) as url, Client(url) as client:
        client.model()
    assert 0.95 < app.seen[1][0] - app.seen[0][0] < 3


def test_a_service_that_stays_busy_is_an_error_with_its_reason() -> None:
    with (
        served(create_app(LiveBackend())) as url,
        Client(url, retries=2, retry_for_s=0.3) as client,
        pytest.raises(ClvError, match="HTTP 503: No bundle is in service"),
    ):
        client.model()


def test_a_failure_of_the_service_itself_is_not_repeated(backend: Any, predictor: Any) -> None:
    def fail(histories: object) -> None:
        raise RuntimeError

    predictor.before = fail
    with served(create_app(backend)) as url, Client(url) as client, pytest.raises(ClvError, match="HTTP 500"):
        client.predict(["A"])
    assert len(predictor.calls) == 1


def test_nobody_listening_is_a_transport_error() -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Client(url, retries=1) as client, pytest.raises(httpx.ConnectError, match="refused"):
        client.model()
