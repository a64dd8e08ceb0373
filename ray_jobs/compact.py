"""Compact: what many appends left in small files becomes few large ones. `python -m ray_jobs.compact --histories H`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from ray_jobs import record
from ray_jobs.command import execute, run_tasks


@dataclass(frozen=True, kw_only=True)
class Options:
    """Merges the line files of a histories folder; shards are built anew only where their number should change."""

    histories: Path
    """Folder written by prepare."""
    partitions: int | None = None
    """Number of shards; by default as it is, unless the log has grown or shrunk by more than two."""
    engine: Literal["auto", "ray", "here"] = "auto"
    """ray, or this process alone; auto takes Ray from 2 million events on."""
    workers: int | None = None
    """Tasks of Ray that run at once; by default as many as the cluster has CPUs."""


def run(options: Options) -> None:
    """Raises ValueError for a folder that is not one of histories, or was prepared without its lines."""
    from clv.cluster import maintenance, preparing

    begun = datetime.now(UTC)
    out = options.histories.absolute()
    _, stock = maintenance.with_lines(out)
    job = partial(maintenance.compact, out, partitions=options.partitions)
    run_tasks(job, options.engine, stock.rows <= preparing.FEW_ROWS, options.workers, 512)
    record.write(out, options, begun)


def main() -> None:
    execute("compact", Options, run, __doc__)


if __name__ == "__main__":
    main()
