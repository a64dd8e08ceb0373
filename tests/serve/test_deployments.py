"""The application on Ray Serve, over real HTTP."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from ray import cloudpickle, serve

from clv.forecast.predictor import Predictor
from clv.registry import Registry
from clv.serve.app import build_app
from clv.serve.client import Client, ClvError
from clv.serve.deployments import AppArgs, Replica
from clv.serve.store.sqlite import SqliteStore

pytestmark = pytest.mark.ray

AS_OF = "2011-06-12"


def small_service(predictor: Callable[..., Any], **options: Any) -> Any:
    """The deployment with a predictor that needs no bundle: the folder's name is its version."""

    class SmallReplica(Replica):
        def load(self, bundle: Path) -> Any:
            if bundle.name == "broken":
                raise ValueError("this bundle is damaged")
            made = predictor(bundle.name)
            made.before = lambda histories: time.sleep(0.02)
            return made

    cloudpickle.register_pickle_by_value(sys.modules[predictor.__module__])
    return serve.deployment(name="clv", ray_actor_options={"num_cpus": 0.5}, **options)(serve.ingress()(SmallReplica))


@pytest.fixture
def address(ray_cluster: None, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Serve on a free port; on all interfaces, or with a certificate of its own, where the test asks for it."""
    host = getattr(request, "param", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    tls = host == "tls"
    options: dict[str, Any] = {"host": "127.0.0.1" if tls else host, "port": port}
    if tls:
        key, certificate = (str(tmp_path / name) for name in ("key.pem", "certificate.pem"))
        request_ = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "1", "-nodes"]
        files = ["-newkey", "rsa:2048", "-keyout", key, "-out", certificate]
        subprocess.run(["openssl", "req", "-x509", *request_, *files], check=True, capture_output=True)
        options |= {"ssl_keyfile": key, "ssl_certfile": certificate}
    serve.start(http_options=options)
    yield f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_two_replicas_behind_serves_proxy_are_one_service(
    address: str, make_predictor: Callable[..., Any], store: SqliteStore, tmp_path: Path
) -> None:
    args = {"bundle": str(tmp_path / "v7"), "store": str(store.path.parent), "batching": {"wait_s": 0.02}}
    serve.run(small_service(make_predictor, num_replicas=2).bind(args), route_prefix="/")

    body = {"as_of": AS_OF, "horizons_days": [365], "customers": [{"customer_id": "A"}, {"customer_id": "nobody"}]}
    answer = httpx.post(f"{address}/v1/predict", json=body, headers={"X-Request-ID": "abc-1"})
    assert answer.status_code == 200, answer.text
    assert answer.headers.get_list("x-request-id") == ["abc-1"]
    assert answer.json()["model"]["version"] == "v7"
    assert answer.json()["results"][0]["scores"][0]["value_mean"] == 50.0
    assert answer.json()["results"][1]["status"] == "unknown_customer"

    wrong = httpx.post(f"{address}/v1/predict", json=body | {"horizons_days": [0]})
    assert (wrong.status_code, wrong.headers["content-type"]) == (422, "application/problem+json")
    assert wrong.json()["errors"][0]["field"] == "horizons_days[0]"
    assert wrong.json()["request_id"] == wrong.headers["x-request-id"]
    assert httpx.get(f"{address}/v1/customers/nobody").status_code == 404
    assert httpx.get(f"{address}/readyz").json() == {"status": "ready", "version": "v7"}

    with Client(address) as client:

        def call(_: int) -> float | None:
            return client.predict(["A"], as_of=AS_OF, horizons_days=[365]).results[0].scores[0].value_mean

        with ThreadPoolExecutor(8) as callers:
            assert set(callers.map(call, range(48))) == {50.0}
            assert "clv_batch_customers_bucket" in httpx.get(f"{address}/metrics").text
            assert "clv_requests_total" in httpx.get(f"{address}/metrics").text
        event = {"customer_id": "A", "event_id": "e", "event_time": "2011-06-11T10:00:00Z", "event_type": "purchase"}
        found = [client.send([{**event, "amount": 50.0}]) for _ in range(4)]
        assert [one.stored for one in found] == [1, 0, 0, 0], "whichever replica answers"
        assert {call(i) for i in range(8)} == {100.0}
        portfolio = client.portfolio(["A", "B"], as_of=AS_OF, horizons_days=[365])
        assert portfolio.totals[0].value_mean == 100.0
        assert client.predict_table(["A"], as_of=AS_OF, horizons_days=[365])["value_mean"].to_pylist() == [100.0]
        assert client.erase("A")
        assert {client.predict(["A"]).results[0].status for _ in range(4)} == {"unknown_customer"}


def test_the_built_application_serves_the_production_bundle_and_follows_the_pointer(
    address: str, make_shop_bundle: Callable[..., Path], shop_histories: pa.Table, tmp_path: Path
) -> None:
    registry = Registry(tmp_path / "registry")
    first, second = (registry.publish(make_shop_bundle(seed)) for seed in range(2))
    registry.promote(first)
    store = SqliteStore(tmp_path / "store", create=True)
    store.put_histories(shop_histories)
    args = AppArgs(registry=registry.root, store=str(tmp_path / "store"), follow_registry_s=0.5)
    serve.run(build_app(args), route_prefix="/")

    with Client(address) as client:
        names = shop_histories["customer_id"].to_pylist()
        answer = client.predict([*names, "nobody"])
        assert (answer.model.version, answer.currency) == (first, "GBP")
        assert [result.status for result in answer.results] == ["ok"] * len(names) + ["unknown_customer"]
        predictor = Predictor(registry.path(first))
        expected = predictor.predict(shop_histories, answer.as_of)["value_mean"].to_numpy()
        found = [score.value_mean for result in answer.results for score in result.scores]
        assert found == pytest.approx(expected, rel=1e-5)

        registry.promote(second, reason="a test has nothing held out")
        seen, until = [], time.monotonic() + 60
        while second not in seen and time.monotonic() < until:
            seen.append(client.predict(names[:2]).model.version)
        assert list(dict.fromkeys(seen)) == [first, second]
        registry.rollback()
        while client.model().model.version != first and time.monotonic() < until:
            time.sleep(0.1)
        assert client.model().model.version == first


@pytest.mark.parametrize("address", ["0.0.0.0"], indirect=True)
def test_without_keys_no_replica_starts_on_a_public_address(
    address: str, make_predictor: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = small_service(make_predictor, max_constructor_retry_count=1)
    with pytest.raises(RuntimeError, match="failed"):
        serve.run(service.bind({"bundle": str(tmp_path / "v7")}), route_prefix="/")
    status = serve.status().applications["default"].deployments["clv"]
    assert "refusing to serve on '0.0.0.0' without API keys" in status.message
    assert httpx.get(f"{address}/v1/model").status_code >= 400

    keys = {"env_vars": {"CLV_API_KEYS": "a-key-of-twenty-char"}}
    options = {"num_cpus": 0.5, "runtime_env": keys}
    serve.run(service.options(ray_actor_options=options).bind({"bundle": str(tmp_path / "v7")}), route_prefix="/")
    with Client(address, "a-key-of-twenty-char") as client:
        assert client.model().model.version == "v7"
    with Client(address) as client, pytest.raises(ClvError, match="HTTP 401"):
        client.model()


@pytest.mark.parametrize("address", ["tls"], indirect=True)
def test_serve_speaks_tls_with_the_certificate_of_its_file(
    address: str, make_predictor: Callable[..., Any], tmp_path: Path
) -> None:
    serve.run(small_service(make_predictor).bind({"bundle": str(tmp_path / "v7")}), route_prefix="/")
    trusted = ssl.create_default_context(cafile=str(tmp_path / "certificate.pem"))
    with Client(address, verify=trusted) as client:
        assert client.model().model.version == "v7"
    answer = httpx.get(f"{address}/v1/model", verify=trusted)
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    with Client(address, retries=0) as client, pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        client.model()
