"""A replica follows its registry: the bundle in production, and what is tried beside it. It signs the heartbeats."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from clv.registry import Candidate, Registry
from clv.serve.rollout.heartbeat import Entry, sign
from clv.serve.scoring.backend import LiveBackend
from clv.serve.scoring.scorer import BatchedScorer, Predicts

LOG = logging.getLogger(__name__)


class Follower:
    """Loads in the background what the registry names, and puts it in service between two requests.

    A version that fails stays with its reason in the heartbeats and is not tried again while it is named. Signing goes
    on while a bundle loads, however long: a replica that hangs is seen to be behind, not taken for dead.
    """

    def __init__(
        self, backend: LiveBackend, registry: Registry, load: Callable[[Path], Predicts], replica: str, every_s: float
    ) -> None:
        self.backend, self.registry, self.replica, self.every_s = backend, registry, replica, every_s
        self._load = load
        self._failed: dict[str, str] = {}
        self._beat = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._again(self.follow))
            tasks.create_task(self._again(self.sign))

    async def follow(self) -> None:
        """One look at the registry, and what follows from it."""
        production, trial = await asyncio.to_thread(self._named)
        named = {production, trial.version if trial else production}
        self._failed = {version: why for version, why in self._failed.items() if version in named}
        current, candidate = self.backend.current, self.backend.candidate
        if current is None or production != current.facts.version:
            known = candidate if candidate and candidate.facts.version == production else None
            scorer = known or await self._prepared(production)
            if scorer and (await asyncio.to_thread(self._named))[0] == production:  # not rolled back meanwhile
                self.backend.put_in_service(scorer)
        await self._follow_trial(trial, production)
        self.backend.metrics.failed_bundles.set(len(self._failed))

    async def _follow_trial(self, trial: Candidate | None, production: str) -> None:
        if trial is None or trial.version == production:
            if self.backend.candidate:
                self.backend.end_trial()
        elif trial != self.backend.trial:
            candidate = self.backend.candidate
            known = candidate if candidate and candidate.facts.version == trial.version else None
            if scorer := known or await self._prepared(trial.version):
                self.backend.fit_holdout(scorer, trial)

    async def sign(self) -> None:
        """One line in the heartbeats."""
        self._beat += 1
        await asyncio.to_thread(sign, self.registry.root, self.entry())

    def entry(self) -> Entry:
        """What this replica serves at the moment."""
        current, candidate = self.backend.current, self.backend.candidate
        scorers = [scorer for scorer in (current, candidate) if scorer]
        answers, errors = self.backend.metrics.answers_and_errors()
        return Entry(
            replica=self.replica,
            beat=self._beat,
            every_s=self.every_s,
            in_service=current.facts.version if current else "",
            trial=candidate.facts.version if candidate else None,
            failed=dict(self._failed),
            served={scorer.facts.version: scorer.served for scorer in scorers},
            http_answers=answers,
            http_errors=errors,
            comparison=self.backend.comparison.to_json() if candidate else None,
        )

    def _named(self) -> tuple[str, Candidate | None]:
        return self.registry.production().name, self.registry.trial()

    async def _prepared(self, version: str) -> BatchedScorer | None:
        if version in self._failed:
            return None
        try:
            return await asyncio.to_thread(lambda: self.backend.prepare(self._load(self.registry.path(version))))
        except Exception as error:
            LOG.exception("bundle %s cannot be served, still serving the one from before", version)
            self._failed[version] = f"{type(error).__name__}: {error}"
            return None

    async def _again(self, step: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            try:
                await step()
            except Exception:
                LOG.exception("cannot follow the registry %s", self.registry.root)
