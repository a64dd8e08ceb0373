"""Promote a bundle: publish it in the registry and put it in production.

For the first bundle, or where no service runs; `deploy` does the same and watches a running service. Servers that
follow the registry load the bundle within seconds. The job loads the bundle once before, so that a bundle that cannot
be loaded is not promoted. Writes the bundle and a line of log.jsonl into the registry.

    python -m ray_jobs.promote --registry out/registry --bundle out/bundle --reason "June refit"
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options of a promotion."""

    registry: Path
    """Root of the registry; created when missing."""
    bundle: Path | None = None
    """Bundle folder to publish first."""
    version: str | None = None
    """A published version, instead of --bundle."""
    reason: str | None = None
    """Reason for the registry's log; needed when another version is in production."""
    publish_only: bool = False
    """Publish the bundle and leave production as it is."""


def run(options: Options) -> None:
    """Raises ValueError for a bundle that is damaged or cannot be loaded, an unknown version, or a missing reason."""
    from clv.registry import Registry
    from clv.serve.rollout.controller import load_bundle

    if (options.bundle is None) == (options.version is None):
        raise ValueError("give either --bundle or --version")
    registry = Registry(options.registry)
    version = options.version or registry.publish(options.bundle or Path())
    if options.publish_only:
        LOG.info(f"{version} is published; in production is {registry.current() or 'nothing'}")
        return
    load_bundle(registry, version)
    before = registry.current()
    registry.promote(version, reason=options.reason)
    LOG.info(f"in production: {version} (before: {before or 'nothing'})")


def main() -> None:
    execute("promote", Options, run, __doc__)


if __name__ == "__main__":
    main()
