"""A replica serves what its registry names, and says so in the heartbeats."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clv.registry import Candidate, Registry
from clv.serve.rollout.canary import CanaryScorer, ShadowScorer
from clv.serve.rollout.follower import Follower
from clv.serve.rollout.heartbeat import Heartbeat, read_heartbeats
from clv.serve.scoring.backend import LiveBackend


class NamedRegistry(Registry):
    """A registry whose bundles are empty folders: what they hold is not what is tested here."""

    def name(self, production: str, trial: Candidate | None = None) -> None:
        for version in {production, trial.version if trial else production}:
            (self.root / "versions" / version).mkdir(parents=True, exist_ok=True)
        self._point([production])
        if trial:
            self._replace(self._candidate, {"version": trial.version, "share": trial.share, "shadow": trial.shadow})
        else:
            self._candidate.unlink(missing_ok=True)


@pytest.fixture
def registry(tmp_path: Path) -> NamedRegistry:
    made = NamedRegistry(tmp_path / "registry")
    made.root.mkdir()
    return made


@pytest.fixture
def follower(backend: LiveBackend, registry: NamedRegistry, make_predictor: Callable[..., Any]) -> Follower:
    """v1 is in service; loads a predictor of the folder's name, unless that is `broken`."""
    loads: list[str] = []

    def load(bundle: Path) -> Any:
        loads.append(bundle.name)
        if bundle.name == "broken":
            raise ValueError("damaged")
        return make_predictor(bundle.name)

    made = Follower(backend, registry, load, "replica-1", 0.02)
    made.loads = loads  # type: ignore[attr-defined]
    return made


def looks(follower: Follower, registry: NamedRegistry, *named: tuple[str, Candidate | None]) -> list[Heartbeat]:
    """What the replica says after each look at a registry that names these."""

    async def go() -> list[Heartbeat]:
        found = []
        for one in named:
            registry.name(*one)
            await follower.follow()
            found.append(follower.heartbeat())
        return found

    return asyncio.run(go())


def test_a_new_bundle_takes_over_and_a_broken_one_does_not(follower: Any, registry: NamedRegistry) -> None:
    names = ["v1", "v2", "broken", "broken", "v3", "broken"]
    found = looks(follower, registry, *((name, None) for name in names))
    assert [heartbeat.in_service for heartbeat in found] == ["v1", "v2", "v2", "v2", "v3", "v3"]
    assert [bool(heartbeat.failed) for heartbeat in found] == [False, False, True, True, False, True]
    assert found[2].failed == {"broken": "ValueError: damaged"}
    assert follower.loads == ["v2", "broken", "v3", "broken"], "once while it is named"
    assert follower.backend.metrics.registry.get_sample_value("clv_failed_bundles") == 1


def test_a_trial_is_loaded_beside_production_and_promoted_without_loading_again(
    follower: Any, registry: NamedRegistry
) -> None:
    canary, shadow = Candidate("v2", 1.0, shadow=False), Candidate("v2", 1.0, shadow=True)
    backend = follower.backend
    found = looks(follower, registry, ("v1", canary))
    assert (found[0].in_service, found[0].candidate) == ("v1", "v2")
    assert isinstance(backend.scorer(), CanaryScorer)
    looks(follower, registry, ("v1", shadow))
    assert isinstance(backend.scorer(), ShadowScorer)
    assert [backend.scorer(name).facts.version for name in ("v1", "v2", "v9")] == ["v1", "v2", "v1"]
    found = looks(follower, registry, ("v2", shadow))
    assert (found[0].in_service, found[0].candidate, backend.candidate) == ("v2", None, None)
    assert follower.loads == ["v2"]
    assert looks(follower, registry, ("v1", Candidate("broken", 0.5, shadow=False)))[0].failed == {
        "broken": "ValueError: damaged"
    }
    assert backend.scorer().facts.version == "v1"


def test_a_replica_goes_on_signing_while_a_bundle_loads(
    backend: LiveBackend, registry: NamedRegistry, make_predictor: Callable[..., Any]
) -> None:
    release = threading.Event()

    def load(bundle: Path) -> Any:
        release.wait(10)
        return make_predictor(bundle.name)

    async def go() -> None:
        registry.name("v2")
        running = asyncio.create_task(Follower(backend, registry, load, "slow", 0.01).run())
        while not (found := read_heartbeats(registry.root)) or found[0].sequence < 5:
            await asyncio.sleep(0.01)
        assert found[0].in_service == "v1"
        release.set()
        while read_heartbeats(registry.root)[0].in_service != "v2":
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(go(), 20))


def test_a_registry_that_cannot_be_read_for_a_moment_stops_nothing(follower: Follower, registry: NamedRegistry) -> None:
    async def go() -> None:
        running = asyncio.create_task(follower.run())
        await asyncio.sleep(0.1)  # no pointer yet
        registry.name("v2")
        while follower.backend.scorer().facts.version != "v2":
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(asyncio.wait_for(go(), 20))


def test_what_each_version_answered_and_failed_is_signed(
    follower: Any, registry: NamedRegistry, store: Any, make_predictor: Callable[..., Any]
) -> None:
    looks(follower, registry, ("v1", None))
    backend = follower.backend

    def fail(histories: object) -> None:
        raise RuntimeError("no")

    bad = make_predictor("v2")
    backend.put_in_service(backend.prepare(bad))
    bad.before = fail

    async def go() -> None:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="no"):
                await backend.scorer().score(store.get(["A"]), 1_307_836_800_000_000, (30,))
        await follower.write_heartbeat()

    asyncio.run(go())
    (heartbeat,) = read_heartbeats(registry.root)
    assert (heartbeat.counts["v2"].answered, heartbeat.counts["v2"].errors) == (3, 3)
