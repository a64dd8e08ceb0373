"""Erase customers from a histories folder: `python -m ray_jobs.erase --histories HISTORIES --customers IDS.txt`."""

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
    """Removes customers from shards, rows and reject records, searches every file for them, and writes a proof.

    The proof in HISTORIES/erasures names customers by salted hashes only; prepare and --append reject their events by
    it. The sources, bundles and stores are not changed: erase there too, and train again if a model must forget.
    """

    histories: Path
    """Folder written by prepare."""
    customers: Path
    """Text file with one customer id per line."""
    engine: Literal["auto", "ray", "here"] = "auto"
    """ray, or here for this process alone; auto uses Ray above 2 million events."""
    workers: int | None = None
    """Ray tasks that run at once; by default as many as the cluster has CPUs."""


def run(options: Options) -> None:
    """Raises ValueError for an empty list, or a folder that holds no histories or was prepared without its rows."""
    from clv.cluster import maintenance, preparing

    begun = datetime.now(UTC)
    out = options.histories.absolute()
    ids = [line.strip() for line in options.customers.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    _, build_record = maintenance.open_changeable(out)
    job = partial(maintenance.erase, out, ids)
    run_tasks(job, options.engine, build_record.rows <= preparing.ONE_PROCESS_ROWS, options.workers, 512)
    record.write(out, options, begun)


def main() -> None:
    execute("erase", Options, run, __doc__)


if __name__ == "__main__":
    main()
