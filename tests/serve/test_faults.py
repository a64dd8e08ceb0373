"""What the Python client sees of a cluster in trouble: nothing. The production topology, real processes, SIGKILL."""

from __future__ import annotations

import os
import re
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.serve_cluster import Cluster, cluster
from benchmarks.serve_shop import make_shop
from clv.registry import Registry
from clv.serve.client import Client
from clv.serve.rollout.policy import RolloutPolicy
from clv.serve.store.factory import open_store
from ray_jobs import deploy

pytestmark = pytest.mark.faults

KEY = "a-key-for-the-fault-tests"
IN_FLIGHT_S = 0.1


@dataclass
class Load:
    """Callers that ask without a pause; what they saw, and what was acknowledged to them."""

    client: Client
    seconds: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    sent: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)  # failures that the client did not make good
    flying: dict[int, float] = field(default_factory=dict)  # since when each caller waits

    @contextmanager
    def running(self, ids: list[str], callers: int = 4, writers: int = 0) -> Iterator[Load]:
        stop, lock = threading.Event(), threading.Lock()

        def read() -> None:
            began = self.flying[threading.get_ident()] = time.perf_counter()
            self.versions[self.client.predict(ids).model.version] += 1
            self.seconds.append(time.perf_counter() - began)

        def write() -> None:
            with lock:
                number = len(self.sent) + len(self.seen) + int(time.monotonic() * 1e6)
            names = [f"e-{number}-{threading.get_ident()}-{i}" for i in range(20)]
            event = {"event_time": "2024-11-30T10:00:00Z", "event_type": "view"}
            self.client.send([{**event, "event_id": name, "customer_id": f"new-{name[-1]}"} for name in names])
            with lock:
                self.sent += names
            time.sleep(0.1)

        def go(one: Callable[[], None]) -> None:
            while not stop.is_set():
                try:
                    one()
                except Exception as error:
                    self.seen.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=go, args=(read,)) for _ in range(callers)]
        threads += [threading.Thread(target=go, args=(write,)) for _ in range(writers)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def wait_for(self, answers: int) -> None:
        """Until so many more came."""
        wanted, until = len(self.seconds) + answers, time.monotonic() + 120
        while len(self.seconds) < wanted:
            assert time.monotonic() < until, f"no answers any more: {self.seen[-3:]}"
            time.sleep(0.02)

    def assert_unharmed(self, what: str) -> None:
        """Prints what attempts failed with; nothing of it reached the caller."""
        answers = f"{len(self.seconds)} answers of {statistics.median(self.seconds):.2f} s, {len(self.sent)} events"
        failed = f"attempts that failed {dict(self.client.failures)}, seen by the caller {len(self.seen)}"
        print(f"\n{what}: {answers}, {failed}")
        assert self.seen == []
        assert statistics.median(self.seconds) >= IN_FLIGHT_S


@dataclass
class Shop:
    cluster: Cluster
    folder: Path
    ids: list[str]
    registry: Registry

    def application(self, store: str, **options: Any) -> dict[str, Any]:
        """The service as production.yaml has it, smaller."""
        args = {"registry": str(self.registry.root), "store": store, "cpu_threads": 1, "follow_registry_s": 0.5}
        actor = {"num_cpus": 0.5, "runtime_env": {"env_vars": {"CLV_API_KEYS": f"admin={KEY}"}}}
        clv = {
            "name": "clv",
            "num_replicas": 2,
            "max_ongoing_requests": 64,
            "max_queued_requests": 256,
            "health_check_period_s": 2,
            "ray_actor_options": actor,
            **options,
        }
        return {
            "name": "clv",
            "route_prefix": "/",
            "import_path": "clv.serve.app:build_app",
            "args": args,
            "deployments": [clv],
        }

    def deploy(self, store: str, replicas: int, **options: Any) -> None:
        self.cluster.deploy(self.application(store, num_replicas=replicas, **options))
        self.cluster.wait(replicas)

    def load(self) -> Load:
        return Load(Client(self.cluster.url, KEY, timeout_s=60))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    ids = make_shop(folder, 1_000, bundles_too=1)
    registry = Registry(folder / "registry")
    registry.promote(registry.publish(folder / "bundle"))
    with cluster(haproxy=True) as made:
        yield Shop(made, folder, ids, registry)


def test_a_replica_dies_with_requests_in_flight_and_nothing_acknowledged_is_lost(shop: Shop) -> None:
    """SQLite: the process that writes is killed. Three times, each with requests of 0.1 s and more on the way."""
    store = str(shop.folder / "store")
    shop.deploy(store, 2)
    load = shop.load()
    with load.running(shop.ids[:60], writers=2):
        load.wait_for(8)
        for _ in range(3):
            replicas = shop.cluster.replicas()
            # Each replica has two of the four callers' requests: wait until all have been on their way for so long.
            while time.perf_counter() - max(load.flying.values()) < IN_FLIGHT_S / 2:
                time.sleep(0.002)
            os.kill(next(iter(replicas.values())), signal.SIGKILL)
            load.wait_for(12)
            until = time.monotonic() + 90
            while len(shop.cluster.replicas()) < 2 or set(shop.cluster.replicas()) == set(replicas):
                assert time.monotonic() < until
                time.sleep(0.2)
        load.wait_for(8)
    load.assert_unharmed("replica killed three times")
    assert load.sent
    kept = open_store(store)
    tokens = kept.get([f"new-{i}" for i in range(10)])["time"]
    assert sum(map(len, tokens.to_pylist())) == len(load.sent), "each once"
    kept.close()


def test_a_bundle_is_rolled_out_and_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.deploy(str(shop.folder / "store"), 2)
    monkeypatch.setenv("CLV_KEY", KEY)
    first = shop.registry.current()
    load = shop.load()
    with load.running(shop.ids[:60]):
        load.wait_for(4)
        options: dict[str, Any] = {"registry": shop.registry.root, "url": shop.cluster.url}
        canary = RolloutPolicy(canary_share=0.3, watch_s=2.0, candidate_s=5.0)
        deploy.run(deploy.Options(bundle=shop.folder / "bundle-1", reason="newer data", policy=canary, **options))
        second = shop.registry.current()
        assert second != first
        load.wait_for(4)
        assert first is not None
        deploy.run(deploy.Options(version=first, reason="and back", policy=RolloutPolicy(watch_s=2.0), **options))
        load.wait_for(4)
    load.assert_unharmed("rolled out and back")
    assert set(load.versions) == {first, second}
    assert not load.client.failures, "a rollout costs not even a retry"


def test_replicas_scale(shop: Shop) -> None:
    store = str(shop.folder / "store")
    shop.deploy(store, 1)
    load = shop.load()
    with load.running(shop.ids[:60]):
        for replicas in (1, 3, 1):
            shop.deploy(store, replicas)
            load.wait_for(8)
    load.assert_unharmed("1, 3 and 1 replicas")


def test_the_store_restarts(shop: Shop, redis_server: Any, redis_url: str) -> None:
    """Redis with appendonly is killed and started again a second later, twice."""
    store = open_store(redis_url, create=True)
    local = open_store(str(shop.folder / "store"))
    store.put_histories(local.get(shop.ids))
    local.close()
    shop.deploy(redis_url, 2)
    load = shop.load()
    with load.running(shop.ids[:60], writers=1):
        load.wait_for(4)
        for _ in range(2):
            redis_server.kill()
            time.sleep(1)
            redis_server.start()
            load.wait_for(8)
    load.assert_unharmed("Redis killed twice")
    tokens = store.get([f"new-{i}" for i in range(10)])["time"]
    assert sum(map(len, tokens.to_pylist())) == len(load.sent)
    assert load.client.failures["503"] > 0, "nobody noticed: this proves nothing"
    store.close()


def test_no_log_holds_an_id_and_the_metrics_of_all_replicas_are_exported(shop: Shop) -> None:
    """Ids in bodies and addresses, known and unknown, right and wrong requests; every file the cluster wrote."""
    shop.deploy(str(shop.folder / "store"), 2)
    secret = "customer-5e2c1f"
    event = {"event_id": "s1", "customer_id": secret, "event_time": "2024-11-30T10:00:00Z", "event_type": "view"}
    with Client(shop.cluster.url, KEY) as client:
        for _ in range(4):
            client.send([event])
            client.predict([secret, f"{secret}-unknown"])
            client.portfolio([secret])
            assert client.customer(f"{secret}/unknown") is None
            assert client.customer(secret) is not None
            with pytest.raises(ValueError, match="HTTP 409"):
                client.send([{**event, "channel": "web"}])
        assert client.erase(secret)
    time.sleep(2)
    logs = [path for path in shop.cluster.folder.rglob("*") if path.is_file() and path.suffix != ".sqlite"]
    texts = {path: path.read_bytes() for path in logs}
    assert sum("replica_clv_clv" in path.name for path in logs) >= 2
    assert [path.name for path, text in texts.items() if secret.encode() in text] == []
    assert any(b"erased customer" in text for text in texts.values())

    def exported(name: str) -> dict[str, float]:
        """A metric summed by replica."""
        text = httpx.get(f"http://127.0.0.1:{shop.cluster.metrics_port}/metrics").text
        found: Counter[str] = Counter()
        for labels, value in re.findall(rf"^ray_{name}\{{(.*)\}} (\S+)$", text, re.MULTILINE):
            found[labels.partition('replica="')[2].partition('"')[0]] += float(value)
        return dict(found)

    alive = set(shop.cluster.replicas())
    until = time.monotonic() + 60
    while not alive <= set(exported("clv_model_info")) and time.monotonic() < until:
        time.sleep(1)
    assert alive <= set(exported("clv_model_info"))
    assert sum(exported("clv_requests_total").values()) >= 20
