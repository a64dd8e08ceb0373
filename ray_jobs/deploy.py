"""Deploy: roll out a bundle to the running service, and take it back when something is off.

    python -m ray_jobs.deploy --registry ROOT --bundle BUNDLE --url https://clv.example --reason "June refit"

The bundle is published, tried on a share of the requests (--canary-share, or --shadow-share for a comparison without
answering), promoted, proved with a probe set whose scores are computed here too, and watched. A replica that cannot
load it, a deadline that passes, an answer that disagrees or failures that rise end the rollout: production is then
what it was before, and the exit code 1. No request is dropped either way. The key is read from CLV_KEY (scope: read).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.command import execute
from ray_jobs.options import JobOptions


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Rolls out a bundle."""

    registry: Path
    """Root of the registry that the replicas follow."""
    url: str
    """Address of the service, for the probe."""
    bundle: Path | None = None
    """Bundle folder to publish first."""
    version: str | None = None
    """A version published before; instead of --bundle."""
    reason: str | None = None
    """Why; kept in the registry's log."""
    smoke_test: Path | None = None
    """JSON of a prediction request with as_of and the events of its customers; by default invented customers."""
    canary_share: float = 0.0
    """Share of requests that the new bundle answers first, for --candidate-s."""
    shadow_share: float = 0.0
    """Share of requests that it computes beside the bundle in production first, for --candidate-s, to be compared."""
    candidate_s: float = 60.0
    watch_s: float = 30.0
    """How long failures are watched after the promotion."""
    deadline_s: float = 300.0
    """By when every replica must have loaded the bundle."""
    error_share: float = 0.01
    """How much larger the share of failures may become."""
    max_total_change: float = 0.5
    """A shadow whose total differs by a larger factor than 1 + this is not promoted."""
    report: Path | None = None
    """File for the comparison of a shadow, as JSON."""


def run(options: Options) -> None:
    """Raises ValueError (RolloutError, ProbeError, BundleError) when the bundle is not in service in the end."""
    from clv.forecast.predictor import Predictor
    from clv.registry import Registry
    from clv.serve.rollout.controller import Rollout, RolloutPolicy
    from clv.serve.rollout.smoke_test import SmokeTest

    if (options.bundle is None) == (options.version is None):
        raise ValueError("give either --bundle or --version")
    registry = Registry(options.registry)
    version = options.version or registry.publish(options.bundle or Path())
    plan = RolloutPolicy(
        version=version,
        reason=options.reason,
        canary_share=options.canary_share,
        shadow_share=options.shadow_share,
        candidate_s=options.candidate_s,
        watch_s=options.watch_s,
        deadline_s=options.deadline_s,
        error_share=options.error_share,
        max_total_change=options.max_total_change,
    )
    predictor = Predictor(registry.path(version))
    smoke_test = SmokeTest.of(predictor, options.url, os.environ.get("CLV_KEY"), options.smoke_test)
    rollout = Rollout(registry, plan, smoke_test)
    try:
        rollout.run()
    finally:
        if options.report is not None and rollout.comparison:
            options.report.write_text(json.dumps(rollout.comparison, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    # Whoever ends this job ends the rollout too: it is taken back, not left half done.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("deploy: ended from outside"))
    execute("deploy", Options, run, __doc__)


if __name__ == "__main__":
    main()
