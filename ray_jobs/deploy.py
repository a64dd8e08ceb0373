"""Roll out a bundle to the running service, and roll it back when it fails.

The job publishes the bundle, compares its totals with those of the bundle in production, gives it a share of the
requests (--canary-share to answer them, --shadow-share to compute them for comparison only), promotes it, compares the
service's scores with those computed here (smoke test), and watches the failures. Totals that change too much, a replica
that cannot load the bundle, the deadline, a wrong score or a rise of failures end the rollout with exit code 1 and the
previous bundle in production. No request is dropped. CLV_KEY holds the key (scope: read).

    python -m ray_jobs.deploy --registry ROOT --bundle BUNDLE --url https://clv.example --reason "June refit"
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from clv.serve.rollout.policy import RolloutPolicy
from ray_jobs.command import execute
from ray_jobs.options import JobOptions


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options of a rollout."""

    registry: Path
    """Root of the registry that the replicas follow."""
    url: str
    """Address of the service, for the smoke test."""
    bundle: Path | None = None
    """Bundle folder to publish first."""
    version: str | None = None
    """A published version, instead of --bundle."""
    reason: str | None = None
    """Reason of the rollout, for the registry's log; needed when another version is in production."""
    store: str | None = None
    """The online store, for a comparison with the bundle in production on up to 1,000 of its customers; by default
    that of CLV_STORE, and without one the comparison uses the customers of the smoke test only."""
    smoke_test: Path | None = None
    """JSON of a prediction request with as_of and the events of its customers; by default synthetic customers."""
    policy: OmitArgPrefixes[RolloutPolicy] = field(default_factory=RolloutPolicy)
    report: Path | None = None
    """File for the comparison of a shadow, as JSON."""


def run(options: Options) -> None:
    """Raises ValueError (RolloutError, SmokeTestError, BundleError) when the bundle is not in service in the end."""
    from clv.registry import Registry
    from clv.serve.rollout.comparison import TotalsCheck, sample_customers
    from clv.serve.rollout.controller import Rollout, load_bundle
    from clv.serve.rollout.smoke_test import SmokeTest

    if (options.bundle is None) == (options.version is None):
        raise ValueError("give either --bundle or --version")
    registry = Registry(options.registry)
    version = options.version or registry.publish(options.bundle or Path())
    current = registry.current()
    if current not in (None, version) and not (options.reason or "").strip():
        raise ValueError(f"{current} is in production: give a --reason to replace it, which the registry's log keeps")
    predictor = load_bundle(registry, version)
    smoke_test = SmokeTest.create(predictor, options.url, os.environ.get("CLV_KEY"), options.smoke_test)
    samples = {"customers of the smoke test": smoke_test.histories}
    if address := options.store or os.environ.get("CLV_STORE"):
        samples["stored customers"] = sample_customers(address)
    totals_check = TotalsCheck(predictor, samples, smoke_test.as_of)
    rollout = Rollout(registry, version, options.policy, smoke_test, totals_check, reason=options.reason)
    try:
        rollout.run()
    finally:
        if options.report is not None and rollout.comparison:
            options.report.write_text(json.dumps(rollout.comparison, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    # SIGTERM raises SystemExit here, so that the rollout is rolled back before the job ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("deploy: ended from outside"))
    execute("deploy", Options, run, __doc__)


if __name__ == "__main__":
    main()
