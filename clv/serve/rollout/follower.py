"""Follower: a replica loads the bundles that its registry names, in the background, and writes heartbeats."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from clv.registry import Candidate, Registry
from clv.serve.rollout.heartbeat import Heartbeat, write_heartbeat
from clv.serve.scoring.backend import LiveBackend
from clv.serve.scoring.protocol import PredictorProtocol
from clv.serve.scoring.scorer import BatchedScorer

LOG = logging.getLogger(__name__)


class Follower:
    """Loads the production version and the candidate of a registry, and replaces bundles between two requests.

    A version that cannot be loaded is listed with its error in the heartbeats, and is not loaded again while the
    registry names it. Heartbeats continue during a load, which distinguishes a slow replica from a dead one.
    """

    def __init__(
        self,
        backend: LiveBackend,
        registry: Registry,
        load: Callable[[Path], PredictorProtocol],
        replica: str,
        every_s: float,
    ) -> None:
        self.backend, self.registry, self.replica, self.every_s = backend, registry, replica, every_s
        self._load = load
        self._failed: dict[str, str] = {}
        self._sequence = 0

    async def run(self) -> None:
        """Follows the registry and writes heartbeats until it is cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._repeat(self.follow))
            tasks.create_task(self._repeat(self.write_heartbeat))

    async def follow(self) -> None:
        """Reads the registry once, and loads, promotes or drops bundles accordingly."""
        production, candidate = await asyncio.to_thread(self._read_registry)
        named = {production, candidate.version if candidate else production}
        self._failed = {version: error for version, error in self._failed.items() if version in named}
        current = self.backend.current
        if current is None or production != current.facts.version:
            scorer = await self._scorer(production)
            if scorer and (await asyncio.to_thread(self._read_registry))[0] == production:  # no rollback meanwhile
                self.backend.put_in_service(scorer)
        if candidate is None or candidate.version == production:
            self.backend.end_candidate()
        elif candidate != self.backend.candidate and (scorer := await self._scorer(candidate.version)):
            self.backend.start_candidate(scorer, candidate)
        self.backend.metrics.failed_bundles.set(len(self._failed))

    async def write_heartbeat(self) -> None:
        """Writes one heartbeat."""
        self._sequence += 1
        await asyncio.to_thread(write_heartbeat, self.registry.root, self.heartbeat())

    def heartbeat(self) -> Heartbeat:
        """Returns the present state of this replica."""
        current, candidate = self.backend.current, self.backend.candidate_scorer
        scorers = [scorer for scorer in (current, candidate) if scorer]
        answers, errors = self.backend.metrics.count_responses()
        return Heartbeat(
            replica=self.replica,
            sequence=self._sequence,
            every_s=self.every_s,
            in_service=current.facts.version if current else "",
            candidate=candidate.facts.version if candidate else None,
            failed=dict(self._failed),
            counts={scorer.facts.version: scorer.counts for scorer in scorers},
            http_answers=answers,
            http_errors=errors,
            comparison=self.backend.comparison.to_json() if candidate else None,
        )

    def _read_registry(self) -> tuple[str, Candidate | None]:
        return self.registry.production().name, self.registry.candidate()

    async def _scorer(self, version: str) -> BatchedScorer | None:
        """Returns the candidate's scorer where it has this version, otherwise a new one; None after a failure."""
        candidate = self.backend.candidate_scorer
        if candidate and candidate.facts.version == version:
            return candidate
        if version in self._failed:
            return None
        try:
            return await asyncio.to_thread(lambda: self.backend.prepare(self._load(self.registry.path(version))))
        except Exception as error:
            LOG.exception("bundle %s cannot be served; the previous bundle stays in service", version)
            self._failed[version] = f"{type(error).__name__}: {error}"
            return None

    async def _repeat(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            try:
                await step()
            except Exception:
                LOG.exception("the registry %s cannot be followed", self.registry.root)
