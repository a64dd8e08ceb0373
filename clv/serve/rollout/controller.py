"""Rollout: puts a new bundle into production of a running service, and takes it back when it fails.

The replicas follow the registry and write heartbeats; this module reads and writes these files only and uses no Ray. A
replica changes its bundle between two requests, so no request is dropped.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from clv.forecast.predictor import Predictor
from clv.registry import Candidate, Registry
from clv.serve.rollout.canary import shadow_report
from clv.serve.rollout.comparison import TotalsCheck
from clv.serve.rollout.heartbeat import Heartbeat, HeartbeatMonitor
from clv.serve.rollout.policy import RolloutPolicy
from clv.serve.rollout.smoke_test import SmokeTest
from clv.serve.scoring.protocol import RequestCounts

LOG = logging.getLogger(__name__)

POLL_S = 0.25


class RolloutError(ValueError):
    """The new bundle is not in service; the message holds the reason."""


def load_bundle(registry: Registry, version: str) -> Predictor:
    """Returns a published version on the CPU; raises RolloutError, with the cause, when it cannot be loaded."""
    try:
        return Predictor(registry.path(version))
    except Exception as error:
        raise RolloutError(f"bundle {version} cannot be loaded: {type(error).__name__}: {error}") from error


class Rollout:
    """One rollout; a lock in the registry's folder refuses a second one at the same time."""

    def __init__(
        self,
        registry: Registry,
        version: str,
        policy: RolloutPolicy,
        smoke_test: SmokeTest | None,
        totals_check: TotalsCheck | None,
        *,
        reason: str | None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.registry, self.version, self.policy, self.smoke_test = registry, version, policy, smoke_test
        self.totals_check, self.reason = totals_check, reason
        self._monitor = HeartbeatMonitor(registry.root)
        self._sleep = sleep
        self.comparison: list[dict[str, Any]] = []

    def run(self) -> None:
        """Rolls the bundle out; after RolloutError or another exception the previous bundle is in production."""
        policy = self.policy
        share = policy.canary_share or policy.shadow_share
        with _rollout_lock(self.registry):
            before = self.registry.current()
            if before is None:
                raise RolloutError(f"nothing is in production in {self.registry.root} yet: promote the first bundle")
            if before != self.version:
                self._check_totals(before)
            replicas = self._find_replicas()
            LOG.info(f"{len(replicas)} replicas follow the registry; in production is {before}")
            try:
                if share and before != self.version:
                    self._run_candidate(Candidate(self.version, share, shadow=bool(policy.shadow_share)))
                self.registry.promote(self.version, reason=self.reason)
                self.registry.end_candidate(reason="promoted")
                self._wait_for_replicas("serve", lambda heartbeat: heartbeat.in_service == self.version)
                self._run_smoke_test()
                self._watch_failures(policy.watch_s, FailureMonitor(self._monitor, self.version))
            except BaseException as error:
                self._roll_back(before, error)
                raise
            LOG.info(f"in production: {self.version} (before: {before})")

    def _find_replicas(self) -> list[Heartbeat]:
        """Returns the live replicas, once two heartbeat intervals have passed since the first one was found."""
        until = time.monotonic() + min(self.policy.deadline_s, 30.0)
        settled = None
        while time.monotonic() < (settled or until):
            found = self._monitor.live_replicas()
            if found and settled is None:
                settled = time.monotonic() + 2 * max(heartbeat.every_s for heartbeat in found)
            self._sleep(POLL_S)
        if not (found := self._monitor.live_replicas()):
            raise RolloutError(
                f"no replica writes heartbeats in {self.registry.root}: start the service with this registry"
            )
        return found

    def _check_totals(self, before: str) -> None:
        """Raises RolloutError when the totals differ too much from those of the bundle in production."""
        if self.totals_check is not None:
            objection = self.totals_check.run(load_bundle(self.registry, before), self.policy)
            if objection is not None:
                raise RolloutError(objection)

    def _run_candidate(self, candidate: Candidate) -> None:
        kind = "shadow" if candidate.shadow else "canary"
        self.registry.start_candidate(candidate)
        self._wait_for_replicas("have loaded", lambda heartbeat: heartbeat.candidate == candidate.version)
        self._run_smoke_test()
        seconds = self.policy.candidate_s
        LOG.info(f"{candidate.version} is a {kind} on {candidate.share:.0%} of the requests for {seconds:g} s")
        failures = FailureMonitor(self._monitor, candidate.version)
        self._watch_failures(seconds, failures)
        LOG.info(failures.summary())
        if not candidate.shadow:
            return
        comparisons = (heartbeat.comparison for heartbeat in failures.last.values())
        self.comparison = rows = shadow_report(comparison for comparison in comparisons if comparison)
        for row in rows:
            LOG.info("  ".join(f"{name} {_short(value)}" for name, value in row.items()))
        for row in rows:
            total = row["total_candidate_over_current"]
            if total is not None and not self.policy.tolerates(total):
                raise RolloutError(
                    f"{candidate.version} predicts {total:.2f} times the total of the bundle in production over "
                    f"{row['horizon_days']} days: more than max_total_change {self.policy.max_total_change:g} allows"
                )

    def _wait_for_replicas(self, what: str, done: Callable[[Heartbeat], bool]) -> None:
        """Waits until all live replicas are `done`; raises RolloutError when one cannot load, or at the deadline."""
        version, until = self.version, time.monotonic() + self.policy.deadline_s
        while True:
            found = self._monitor.live_replicas()
            for heartbeat in found:
                if error := heartbeat.failed.get(version):
                    raise RolloutError(f"replica {heartbeat.replica} cannot serve {version}: {error}")
            ready = [heartbeat for heartbeat in found if done(heartbeat)]
            if found and len(ready) == len(found):
                LOG.info(f"all {len(found)} replicas {what} {version}")
                return
            if time.monotonic() > until:
                raise RolloutError(
                    f"after {self.policy.deadline_s:g} s only {len(ready)} of {len(found)} replicas {what} {version}"
                )
            self._sleep(POLL_S)

    def _run_smoke_test(self) -> None:
        if self.smoke_test is not None:
            requests = self.smoke_test.run(len(self._monitor.live_replicas()))
            LOG.info(
                f"smoke test: {requests} answers for {self.smoke_test.num_customers} customers equal the scores of "
                f"{self.version}"
            )

    def _watch_failures(self, seconds: float, failures: FailureMonitor) -> None:
        """Watches for `seconds`; raises RolloutError as soon as the failures exceed the policy."""
        until = time.monotonic() + seconds
        while True:
            if objection := failures.check(self.policy.error_share, self.policy.min_errors):
                raise RolloutError(objection)
            if time.monotonic() >= until:
                return
            self._sleep(POLL_S)

    def _roll_back(self, before: str, error: BaseException) -> None:
        version, reason = self.version, str(error) or type(error).__name__
        self.registry.end_candidate(reason=reason)
        if self.registry.current() != version or version == before:
            LOG.info(f"in production is still {before}")
            return
        self.registry.rollback(reason=reason)
        until = time.monotonic() + min(self.policy.deadline_s, 60.0)
        while time.monotonic() < until:
            found = self._monitor.live_replicas()
            if found and all(heartbeat.in_service == before for heartbeat in found):
                break
            self._sleep(POLL_S)
        LOG.info(f"rolled back: in production is {before}")


class FailureMonitor:
    """Counts predictions and HTTP answers of all replicas since its creation, including replicas that died since."""

    def __init__(self, heartbeats: HeartbeatMonitor, version: str) -> None:
        self._heartbeats, self._version = heartbeats, version
        self._first = {heartbeat.replica: heartbeat for heartbeat in heartbeats.live_replicas()}
        self.last = dict(self._first)

    def check(self, error_share: float, min_errors: int) -> str | None:
        """Returns why the rollout must end; None while the failures are tolerable."""
        self.last |= {heartbeat.replica: heartbeat for heartbeat in self._heartbeats.live_replicas()}
        predictions, http = self._predictions(), self._sum(_http_counts)
        earlier = [_http_counts(heartbeat) for heartbeat in self._first.values()]
        usual = sum(counts.errors for counts in earlier) / max(sum(counts.answered for counts in earlier), 1)
        if predictions.errors >= min_errors and predictions.errors > error_share * predictions.answered:
            return f"{self._version} failed {predictions.errors} of {predictions.answered} predictions"
        if http.errors >= min_errors and http.errors > (usual + error_share) * http.answered:
            return f"{http.errors} of {http.answered} answers were 5xx, compared with {usual:.1%} before"
        return None

    def summary(self) -> str:
        """Returns one line with the number, mean duration and failures of the predictions."""
        counts = self._predictions()
        mean = 1000 * counts.seconds / counts.answered if counts.answered else 0.0
        return f"{self._version} answered {counts.answered} predictions in {mean:.0f} ms each, {counts.errors} failed"

    def _predictions(self) -> RequestCounts:
        return self._sum(lambda heartbeat: heartbeat.counts.get(self._version, RequestCounts()))

    def _sum(self, counts_of: Callable[[Heartbeat], RequestCounts]) -> RequestCounts:
        def total(name: str) -> Any:
            replicas = self.last.values(), self._first.values()
            last, first = (sum(getattr(counts_of(one), name) for one in found) for found in replicas)
            return last - first

        return RequestCounts(answered=total("answered"), errors=total("errors"), seconds=total("seconds"))


def _http_counts(heartbeat: Heartbeat) -> RequestCounts:
    return RequestCounts(answered=heartbeat.http_answers, errors=heartbeat.http_errors)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def _rollout_lock(registry: Registry) -> Iterator[None]:
    with (registry.root / ".rollout").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RolloutError(f"another rollout is running in {registry.root}: wait for it to end") from None
        yield
