"""A rollout over two replicas that follow a real registry of real bundles: it ends well, or everything is as before."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clv.forecast.predictor import Predictor
from clv.registry import Registry
from clv.serve.client import Client
from clv.serve.rollout.controller import Rollout, RolloutError
from clv.serve.rollout.follower import Follower
from clv.serve.rollout.policy import RolloutPolicy
from clv.serve.rollout.smoke_test import SmokeTest, SmokeTestError
from clv.serve.scoring.backend import LiveBackend
from clv.serve.store.sqlite import SqliteStore
from ray_jobs import deploy
from tests.log_lines import each_line

NAMES, CONTROLLER = [f"{i:05d}" for i in range(8)], "clv.serve.rollout.controller"


@pytest.fixture(scope="module")
def bundles(make_shop_bundle: Callable[..., Path]) -> list[Path]:
    return [make_shop_bundle(seed) for seed in range(2)]


class Shop:
    """Two replicas on one store and one registry whose first bundle is in production; `load` is how they load."""

    def __init__(self, root: Path, bundles: list[Path], histories: pa.Table) -> None:
        self.registry = Registry(root / "registry")
        self.first, self.second = (self.registry.publish(bundle) for bundle in bundles)
        self.registry.promote(self.first)
        self.store = SqliteStore(root / "store", create=True)
        self.store.put_histories(histories)
        self.load: Callable[[Path], Any] = Predictor
        self.seen: list[str] = []
        self.client: Any = None
        self.url = ""

    @contextmanager
    def open(self, serve_replicas: Any) -> Iterator[Shop]:
        backends = [LiveBackend(self.store) for _ in range(2)]
        for backend in backends:
            backend.install(Predictor(self.registry.production()))
        followers = [
            Follower(backend, self.registry, lambda bundle: self.load(bundle), f"r{i}", 0.1)
            for i, backend in enumerate(backends)
        ]
        with serve_replicas(backends, followers) as made, Client(made.url) as client:
            self.url, self.client = made.url, client
            yield self

    def deploy(self, reason: str = "rollout", **options: Any) -> tuple[list[str], BaseException | None]:
        """What a rollout of the second bundle says and how it ends, while customers are asked for without a pause."""
        said, stop = [], threading.Event()

        def ask() -> None:
            while not stop.is_set():
                self.seen.append(self.client.predict(NAMES).model.version)
                time.sleep(0.02)

        callers = [threading.Thread(target=ask) for _ in range(2)]
        for caller in callers:
            caller.start()
        policy = RolloutPolicy(**{"candidate_s": 1.0, "watch_s": 0.5, "deadline_s": 20.0, **options})
        predictor = Predictor(self.registry.path(self.second))
        rollout = Rollout(
            self.registry, self.second, policy, SmokeTest.create(predictor, self.url), None, reason=reason
        )
        ended: BaseException | None = None
        try:
            with each_line(said.append, CONTROLLER):
                rollout.run()
        except Exception as error:
            ended = error
        time.sleep(0.3)
        stop.set()
        for caller in callers:
            caller.join()
        return said, ended

    def served_now(self) -> set[str]:
        return {self.client.predict(NAMES[:1]).model.version for _ in range(4)}


@pytest.fixture
def shop(tmp_path: Path, bundles: list[Path], shop_histories: pa.Table, serve_replicas: Any) -> Iterator[Shop]:
    with Shop(tmp_path, bundles, shop_histories).open(serve_replicas) as made:
        yield made
    made.store.close()


def failing(after: int) -> Callable[[Path], Any]:
    """Loads predictors of which the second version fails from its `after`th call on."""

    def load(bundle: Path) -> Any:
        made, calls = Predictor(bundle), []
        predict = made.predict

        def fail(*given: Any) -> pa.Table:
            calls.append(1)
            if len(calls) > after:
                raise RuntimeError("out of luck")
            return predict(*given)

        made.predict = fail  # type: ignore[method-assign]
        return made

    return load


def test_a_good_bundle_takes_over_everywhere_and_no_request_is_lost(shop: Shop) -> None:
    said, ended = shop.deploy(reason="newer data")
    assert ended is None
    assert (shop.registry.current(), shop.served_now()) == (shop.second, {shop.second})
    assert said[0] == f"2 replicas follow the registry; in production is {shop.first}"
    assert f"all 2 replicas serve {shop.second}" in said
    assert f"smoke test: 8 answers for 12 customers equal the scores of {shop.second}" in said
    assert set(shop.seen) == {shop.first, shop.second}
    assert not shop.client.failures
    assert shop.registry.log()[-1]["reason"] == "newer data"


def test_a_canary_answers_its_share_before_it_is_promoted(shop: Shop) -> None:
    said, ended = shop.deploy(canary_share=0.3, candidate_s=2.0)
    assert ended is None
    assert (shop.registry.current(), shop.registry.candidate()) == (shop.second, None)
    before = shop.seen[: len(shop.seen) - shop.seen[::-1].index(shop.first)]
    assert 0 < before.count(shop.second) / len(before) < 0.5
    (line,) = [line for line in said if "predictions in" in line]
    assert int(line.split()[2]) > 0
    assert line.endswith("0 failed")
    assert not shop.client.failures


def test_a_shadow_is_compared_and_a_total_that_differs_too_much_ends_it(shop: Shop) -> None:
    """The weights of both are drawn: whatever they say, a limit of nothing is passed, and one of 100 is not."""
    said, ended = shop.deploy(shadow_share=1.0, max_total_change=1e-12)
    assert isinstance(ended, RolloutError)
    assert "times the total of the bundle in production" in str(ended)
    assert set(shop.seen) == shop.served_now() == {shop.first}
    assert (shop.registry.current(), shop.registry.candidate()) == (shop.first, None)
    _, ended = shop.deploy(shadow_share=1.0, max_total_change=100)
    assert ended is None
    assert any("horizon_days 30" in line and "share_off_by_5_percent" in line for line in said)
    assert not shop.client.failures


def test_a_bundle_that_one_replica_cannot_load_is_rolled_back(shop: Shop) -> None:
    loads = []

    def load(bundle: Path) -> Predictor:
        loads.append(bundle)
        if len(loads) == 2:
            raise MemoryError("no room for the second one")
        return Predictor(bundle)

    shop.load = load
    said, ended = shop.deploy()
    assert "MemoryError: no room for the second one" in str(ended)
    assert said[-1] == f"rolled back: in production is {shop.first}"
    assert (shop.registry.current(), shop.served_now()) == (shop.first, {shop.first})
    assert shop.registry.log()[-1]["act"] == "rollback"
    assert not shop.client.failures


def test_replicas_that_never_have_the_bundle_are_noticed_by_the_deadline(shop: Shop) -> None:
    release = threading.Event()

    def load(bundle: Path) -> Predictor:
        release.wait(20)
        return Predictor(bundle)

    shop.load = load
    began = time.monotonic()
    said, ended = shop.deploy(deadline_s=1.5)
    release.set()
    assert str(ended) == f"after 1.5 s only 0 of 2 replicas serve {shop.second}"
    assert said[-1] == f"rolled back: in production is {shop.first}"
    assert time.monotonic() - began < 15
    assert set(shop.seen) == {shop.first}
    assert not shop.client.failures


def test_a_bundle_that_is_served_with_other_scores_is_rolled_back(shop: Shop) -> None:
    def load(bundle: Path) -> Any:
        made, predict = Predictor(bundle), Predictor(bundle).predict

        def off(*given: Any) -> pa.Table:
            scores = predict(*given)
            where = scores.schema.get_field_index("value_mean")
            return scores.set_column(where, "value_mean", pa.array(scores["value_mean"].to_numpy() * 1.001))

        made.predict = off  # type: ignore[method-assign]
        return made

    shop.load = load
    _, ended = shop.deploy()
    assert isinstance(ended, SmokeTestError)
    assert "value_mean over 30 days" in str(ended)
    assert (shop.registry.current(), shop.served_now()) == (shop.first, {shop.first})


def test_a_bundle_that_fails_later_is_rolled_back(shop: Shop) -> None:
    shop.load = failing(after=25)  # the warm-up and the smoke test still pass
    _, ended = shop.deploy(watch_s=20.0, canary_share=1.0, candidate_s=20.0)
    assert isinstance(ended, RolloutError)
    assert "failed" in str(ended)
    assert (shop.registry.current(), shop.registry.candidate(), shop.served_now()) == (shop.first, None, {shop.first})
    assert not shop.client.failures, "where the canary failed, the other one answered"


def test_one_rollout_at_a_time_and_only_into_a_service_that_runs(shop: Shop, tmp_path: Path) -> None:
    held: list[BaseException] = []

    def sleep(seconds: float) -> None:
        if not held:
            with pytest.raises(RolloutError, match="another rollout is running") as error:
                Rollout(shop.registry, shop.second, policy, None, None, reason="another").run()
            held.append(error.value)
        time.sleep(seconds)

    policy = RolloutPolicy(deadline_s=20, watch_s=0)
    Rollout(shop.registry, shop.second, policy, None, None, reason="newer data", sleep=sleep).run()
    assert held

    deserted = Registry(tmp_path / "deserted")
    deserted.publish(shop.registry.path(shop.first))
    with pytest.raises(RolloutError, match="nothing is in production"):
        Rollout(deserted, shop.second, policy, None, None, reason="newer data").run()
    deserted.promote(shop.first)
    deserted.publish(shop.registry.path(shop.second))
    with pytest.raises(RolloutError, match="no replica writes heartbeats"):
        Rollout(deserted, shop.second, RolloutPolicy(deadline_s=1), None, None, reason="newer data").run()
    assert deserted.current() == shop.first


def test_the_job_publishes_compares_and_promotes(
    shop: Shop, tmp_path: Path, make_shop_bundle: Callable[..., Path]
) -> None:
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            shop.client.predict(NAMES)
            time.sleep(0.02)

    caller = threading.Thread(target=ask)
    caller.start()
    options: dict[str, Any] = {"registry": shop.registry.root, "url": shop.url}
    policy = RolloutPolicy(shadow_share=1.0, watch_s=0.2, candidate_s=1.0, deadline_s=20.0, max_total_change=100.0)
    shadow = {"policy": policy, "report": tmp_path / "shadow.json"}
    said: list[str] = []
    with each_line(said.append, CONTROLLER):
        deploy.run(deploy.Options(bundle=make_shop_bundle(2), reason="newer data", **options, **shadow))
    stop.set()
    caller.join()
    third = shop.registry.current()
    assert third not in (shop.first, shop.second)
    assert f"in production: {third} (before: {shop.first})" in said
    assert [row["horizon_days"] for row in json.loads((tmp_path / "shadow.json").read_text())] == [30, 90]

    smoke_test = tmp_path / "smoke_test.json"
    smoke_test.write_text('{"customers": [{"customer_id": "00001"}]}')
    with pytest.raises(ValueError, match="needs as_of, and the events"):
        deploy.run(deploy.Options(version=shop.second, reason="older", **options, smoke_test=smoke_test))
    with pytest.raises(ValueError, match="either --bundle or --version"):
        deploy.run(deploy.Options(**options))
    assert shop.registry.current() == third
