"""Nothing but the lifespan of the application passes the guard unasked: websockets need a key, like requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from clv.serve.http.metrics import Metrics
from clv.serve.http.middleware import RequestMiddleware, route_path
from clv.serve.http.security import Keys

KEY = "a-key-of-twenty-char"


def client_of(keys: Keys, started: list[bool] | None = None) -> TestClient:
    """A client of an application that greets whoever opens a websocket, behind the guard."""

    async def greet(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if started is not None:
            started.append(True)
        yield

    paths = ("/live", "/healthz")
    app = Starlette(routes=[WebSocketRoute(path, greet) for path in paths], lifespan=lifespan)
    return TestClient(RequestMiddleware(app, keys=keys, metrics=Metrics()), base_url="http://localhost")


def visit(client: TestClient, path: str, key: str | None) -> tuple[int, str]:
    """1000 and the greeting, or the code and reason of a refusal."""
    try:
        with client.websocket_connect(path, headers={"Authorization": f"Bearer {key}"} if key else {}) as websocket:
            return 1000, websocket.receive_text()
    except WebSocketDisconnect as closed:
        return closed.code, closed.reason


@pytest.mark.parametrize("key", [None, "another-key-of-20-ch"])
@pytest.mark.parametrize("path", ["/live", "/healthz"])
@pytest.mark.parametrize("keys", [Keys.parse([KEY]), Keys()], ids=["keys", "no keys"])
def test_a_websocket_without_a_valid_key_is_closed_before_it_opens(keys: Keys, path: str, key: str | None) -> None:
    assert visit(client_of(keys), path, key) == (1008, "A valid key is needed: send Authorization: Bearer KEY.")


def test_a_websocket_opens_with_a_valid_key() -> None:
    assert visit(client_of(Keys.parse([KEY])), "/live", KEY) == (1000, "hello")


@pytest.mark.parametrize(
    ("path", "root", "below"),
    [
        ("/v1/events", "", "/v1/events"),
        ("/shop/v1/events", "/shop", "/v1/events"),
        ("/shop/healthz", "/shop/", "/healthz"),
        ("/shopping/healthz", "/shop", "/shopping/healthz"),
        ("/shop", "/shop", "/shop"),
    ],
)
def test_a_path_is_read_below_the_prefix_of_the_application(path: str, root: str, below: str) -> None:
    assert route_path({"path": path, "root_path": root}) == below


def test_websockets_count_against_the_rate_of_their_key() -> None:
    client = client_of(Keys.parse([f"read@1={KEY}"]))
    found = [visit(client, "/live", KEY) for _ in range(3)]  # a window may end between two of them, hardly twice
    assert found[0] == (1000, "hello")
    assert found[2] == (1008, "This key may send 1 requests a minute.")


def test_the_lifespan_of_the_application_is_run() -> None:
    started: list[bool] = []
    with client_of(Keys.parse([KEY]), started):
        assert started == [True]
