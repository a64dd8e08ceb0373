"""Rollback: back to the bundle that was in production before. `python -m ray_jobs.rollback --registry ROOT`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Points production at the version promoted before the present one."""

    registry: Path
    """Root of the registry."""
    reason: str | None = None
    """Why; kept in the registry's log."""


def run(options: Options) -> None:
    """Raises ValueError when there is no earlier version, or it is damaged."""
    from clv.registry import Registry

    registry = Registry(options.registry)
    before = registry.current()
    LOG.info(f"in production: {registry.rollback(reason=options.reason)} (before: {before})")


def main() -> None:
    execute("rollback", Options, run, __doc__)


if __name__ == "__main__":
    main()
