"""Compact a histories folder after many appends: `python -m ray_jobs.compact --histories HISTORIES`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from ray_jobs import record
from ray_jobs.command import execute, run_tasks
from ray_jobs.options import JobOptions


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Merges small row files of a histories folder; builds the shards again only if their number changes."""

    histories: Path
    """Folder written by prepare."""
    partitions: int | None = None
    """Number of shards; by default unchanged, unless twice or half as many would fit the log."""
    engine: Literal["auto", "ray", "here"] = "auto"
    """ray, or here for this process alone; auto uses Ray above 2 million events."""
    workers: int | None = None
    """Ray tasks that run at once; by default as many as the cluster has CPUs."""


def run(options: Options) -> None:
    """Raises ValueError for a folder that does not hold histories or was prepared without its rows."""
    from clv.cluster import maintenance, preparing

    begun = datetime.now(UTC)
    out = options.histories.absolute()
    _, build_record = maintenance.open_changeable(out)
    job = partial(maintenance.compact, out, partitions=options.partitions)
    run_tasks(job, options.engine, build_record.rows <= preparing.ONE_PROCESS_ROWS, options.workers, 512)
    record.write(out, options, begun)


def main() -> None:
    execute("compact", Options, run, __doc__)


if __name__ == "__main__":
    main()
