"""Roll out a bundle to the running service, and roll it back when it fails.

The job publishes the bundle, gives it a share of the requests (--canary-share to answer them, --shadow-share to compute
them for comparison only), promotes it, compares the service's scores with those computed here (smoke test), and watches
the failures. A replica that cannot load the bundle, the deadline, a wrong score or a rise of failures ends the rollout
with exit code 1 and the previous bundle in production. No request is dropped. CLV_KEY holds the key (scope: read).

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
    reason: str = "rollout"
    """Reason of the rollout, for the registry's log."""
    smoke_test: Path | None = None
    """JSON of a prediction request with as_of and the events of its customers; by default synthetic customers."""
    policy: OmitArgPrefixes[RolloutPolicy] = field(default_factory=RolloutPolicy)
    report: Path | None = None
    """File for the comparison of a shadow, as JSON."""


def run(options: Options) -> None:
    """Raises ValueError (RolloutError, SmokeTestError, BundleError) when the bundle is not in service in the end."""
    from clv.forecast.predictor import Predictor
    from clv.registry import Registry
    from clv.serve.rollout.controller import Rollout
    from clv.serve.rollout.smoke_test import SmokeTest

    if (options.bundle is None) == (options.version is None):
        raise ValueError("give either --bundle or --version")
    registry = Registry(options.registry)
    version = options.version or registry.publish(options.bundle or Path())
    predictor = Predictor(registry.path(version))
    smoke_test = SmokeTest.create(predictor, options.url, os.environ.get("CLV_KEY"), options.smoke_test)
    rollout = Rollout(registry, version, options.policy, smoke_test, reason=options.reason)
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
