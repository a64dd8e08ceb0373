"""Roll back to the bundle that was in production before.

Reads and writes the registry: production becomes the version that was promoted before the present one.

    python -m ray_jobs.rollback --registry out/registry --reason "wrong prices"
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
    """Options of a rollback."""

    registry: Path
    """Root of the registry."""
    reason: str | None = None
    """Reason for the registry's log."""


def run(options: Options) -> None:
    """Raises ValueError where there is no earlier version, or where it is damaged."""
    from clv.registry import Registry

    registry = Registry(options.registry)
    before = registry.current()
    LOG.info(f"in production: {registry.rollback(reason=options.reason)} (before: {before})")


def main() -> None:
    execute("rollback", Options, run, __doc__)


if __name__ == "__main__":
    main()
