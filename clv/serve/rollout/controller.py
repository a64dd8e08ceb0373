"""A new bundle for running replicas: tried, promoted, proved, watched, and taken back by itself when something is off.

The replicas follow the registry and sign the heartbeats; nothing here talks to Ray, and no request is dropped, since a
replica changes its bundle between two requests.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from clv.registry import BundleComparison, Candidate, Registry
from clv.serve.rollout.canary import report
from clv.serve.rollout.heartbeat import Entry, Served, Watch
from clv.serve.rollout.smoke_test import SmokeTest

LOG = logging.getLogger(__name__)

LOOK_S = 0.25


class RolloutError(ValueError):
    """The new bundle is not in service; the message says why, and what was done about it."""


@dataclass(frozen=True, kw_only=True)
class RolloutPolicy:
    """What is rolled out, how, and what takes it back.

    `error_share` is how much larger the share of failed answers may become, `min_errors` how few failures never count.
    """

    version: str
    reason: str | None = None
    comparison: BundleComparison | None = None
    force: bool = False
    canary_share: float = 0.0
    shadow_share: float = 0.0
    trial_s: float = 60.0
    watch_s: float = 30.0
    deadline_s: float = 300.0
    error_share: float = 0.01
    min_errors: int = 3
    max_total_change: float = 0.5

    def __post_init__(self) -> None:
        if self.canary_share and self.shadow_share:
            raise ValueError("a canary and a shadow are two rollouts: give one of canary_share and shadow_share")
        if self.deadline_s <= 0 or min(self.trial_s, self.watch_s) < 0 or not 0 <= self.error_share < 1:
            raise ValueError("deadline_s must be above 0, trial_s and watch_s at least 0, error_share within [0, 1)")

    @property
    def trial(self) -> Candidate | None:
        share = self.canary_share or self.shadow_share
        return Candidate(self.version, share, shadow=bool(self.shadow_share)) if share else None


class Rollout:
    """One rollout, by one process at a time."""

    def __init__(
        self,
        registry: Registry,
        plan: RolloutPolicy,
        smoke_test: SmokeTest | None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.registry, self.plan, self.smoke_test = registry, plan, smoke_test
        self._watch = Watch(registry.root)
        self._sleep = sleep
        self.comparison: list[dict[str, Any]] = []

    def run(self) -> None:
        """RolloutError when the bundle is not in service in the end; everything is then as it was before."""
        plan = self.plan
        with _alone(self.registry):
            before = self.registry.current()
            if before is None:
                raise RolloutError(f"nothing is in production in {self.registry.root} yet: promote the first bundle")
            replicas = self._present()
            LOG.info(f"{len(replicas)} replicas follow the registry; in production is {before}")
            try:
                if plan.trial and before != plan.version:
                    self._try_out(plan.trial)
                self.registry.promote(
                    plan.version, comparison=plan.comparison, force=plan.force, reason=plan.reason or "rollout"
                )
                self.registry.end_trial(reason="promoted")
                self._until("serve", lambda entry: entry.in_service == plan.version)
                self._prove()
                self._observe(plan.watch_s, Tally(self._watch, plan.version))
            except BaseException as error:
                self._take_back(before, error)
                raise
            LOG.info(f"in production: {plan.version} (before: {before})")

    def _present(self) -> list[Entry]:
        """Replicas that sign, after looking for as long as one of them may stay silent."""
        until = time.monotonic() + min(self.plan.deadline_s, 30.0)
        settled = None
        while time.monotonic() < (settled or until):
            found = self._watch.alive()
            if found and settled is None:
                settled = time.monotonic() + 2 * max(entry.every_s for entry in found)
            self._sleep(LOOK_S)
        if not (found := self._watch.alive()):
            raise RolloutError(
                f"no replica signs the heartbeats in {self.registry.root}: is the service running, with this registry?"
            )
        return found

    def _try_out(self, trial: Candidate) -> None:
        kind = "shadow" if trial.shadow else "canary"
        self.registry.start_trial(trial)
        self._until("have loaded", lambda entry: entry.trial == trial.version)
        self._prove()
        LOG.info(f"{trial.version} is a {kind} on {trial.share:.0%} of the requests for {self.plan.trial_s:g} s")
        tally = Tally(self._watch, trial.version)
        self._observe(self.plan.trial_s, tally)
        LOG.info(tally.text())
        if not trial.shadow:
            return
        self.comparison = rows = report(entry.comparison for entry in tally.last.values() if entry.comparison)
        for row in rows:
            LOG.info("  ".join(f"{name} {_short(value)}" for name, value in row.items()))
        for row in rows:
            total, limit = row["total_candidate_over_current"], 1 + self.plan.max_total_change
            if total is not None and not 1 / limit <= total <= limit:
                raise RolloutError(
                    f"{trial.version} predicts {total:.2f} times the total of the bundle in production over "
                    f"{row['horizon_days']} days: more than max_total_change {self.plan.max_total_change:g} allows"
                )

    def _until(self, what: str, done: Callable[[Entry], bool]) -> None:
        """Until all replicas are `done`; RolloutError when one of them cannot, or the deadline passes."""
        version, until = self.plan.version, time.monotonic() + self.plan.deadline_s
        while True:
            found = self._watch.alive()
            for entry in found:
                if version in entry.failed:
                    raise RolloutError(f"replica {entry.replica} cannot serve {version}: {entry.failed[version]}")
            ready = [entry for entry in found if done(entry)]
            if found and len(ready) == len(found):
                LOG.info(f"all {len(found)} replicas {what} {version}")
                return
            if time.monotonic() > until:
                raise RolloutError(
                    f"after {self.plan.deadline_s:g} s only {len(ready)} of {len(found)} replicas {what} {version}"
                )
            self._sleep(LOOK_S)

    def _prove(self) -> None:
        if self.smoke_test is not None:
            asked = self.smoke_test.check(len(self._watch.alive()))
            LOG.info(
                f"{asked} answers for {self.smoke_test.num_customers} probe customers are those of {self.plan.version}"
            )

    def _observe(self, seconds: float, tally: Tally) -> None:
        """Looks for so long; RolloutError as soon as failures rise."""
        until = time.monotonic() + seconds
        while True:
            if objection := tally.look(self.plan.error_share, self.plan.min_errors):
                raise RolloutError(objection)
            if time.monotonic() >= until:
                return
            self._sleep(LOOK_S)

    def _take_back(self, before: str, error: BaseException) -> None:
        version, why = self.plan.version, str(error) or type(error).__name__
        self.registry.end_trial(reason=why)
        if self.registry.current() != version or version == before:
            LOG.info(f"in production is still {before}")
            return
        self.registry.rollback(reason=why)
        until = time.monotonic() + min(self.plan.deadline_s, 60.0)
        while time.monotonic() < until:
            found = self._watch.alive()
            if found and all(entry.in_service == before for entry in found):
                break
            self._sleep(LOOK_S)
        LOG.info(f"rolled back: in production is {before}")


class Tally:
    """What replicas answered and failed since the tally began, those that died meanwhile included."""

    def __init__(self, watch: Watch, version: str) -> None:
        self._watch, self._version = watch, version
        self._first = {entry.replica: entry for entry in watch.alive()}
        self.last = dict(self._first)

    def look(self, error_share: float, min_errors: int) -> str | None:
        """What is wrong, if anything."""
        self.last |= {entry.replica: entry for entry in self._watch.alive()}
        scored, http = self._scored(), self._http()
        old = [(entry.http_answers, entry.http_errors) for entry in self._first.values()]
        usual = sum(errors for _, errors in old) / max(sum(answers for answers, _ in old), 1)
        if scored.errors >= min_errors and scored.errors > error_share * scored.answered:
            return f"{self._version} failed {scored.errors} of {scored.answered} predictions"
        if http.errors >= min_errors and http.errors > (usual + error_share) * http.answered:
            return f"{http.errors} of {http.answered} answers were 5xx, {usual:.1%} were before"
        return None

    def text(self) -> str:
        """One line for people."""
        scored = self._scored()
        mean = 1000 * scored.seconds / scored.answered if scored.answered else 0.0
        return f"{self._version} answered {scored.answered} predictions in {mean:.0f} ms each, {scored.errors} failed"

    def _scored(self) -> Served:
        return self._sum(lambda entry: entry.served.get(self._version, Served()))

    def _http(self) -> Served:
        return self._sum(lambda entry: Served(answered=entry.http_answers, errors=entry.http_errors))

    def _sum(self, of: Callable[[Entry], Served]) -> Served:
        total = Served()
        for name, entry in self.last.items():
            now, then = of(entry), of(self._first[name]) if name in self._first else Served()
            total = replace(
                total,
                answered=total.answered + now.answered - then.answered,
                errors=total.errors + now.errors - then.errors,
                seconds=total.seconds + now.seconds - then.seconds,
            )
        return total


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _alone(registry: Registry) -> Iterator[None]:
    with (registry.root / ".rollout").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RolloutError(f"another rollout is going on in {registry.root}: wait for it to end") from None
        yield
