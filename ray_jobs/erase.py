"""Erase: customers leave a histories folder, with a proof. `python -m ray_jobs.erase --histories DIR --customers F`."""

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
    """Removes customers from shards, lines and rejected records, searches every file for them, and writes the proof.

    The proof lies in HISTORIES/erasures and names customers by salted hashes only; prepare and --append heed it. The
    sources, bundles and stores are not touched: erase there too, and train again where a model must forget.
    """

    histories: Path
    """Folder written by prepare."""
    customers: Path
    """Text file with one customer id per line."""
    engine: Literal["auto", "ray", "here"] = "auto"
    """ray, or this process alone; auto takes Ray from 2 million events on."""
    workers: int | None = None
    """Tasks of Ray that run at once; by default as many as the cluster has CPUs."""


def run(options: Options) -> None:
    """Raises ValueError for an empty list, a folder that is not one of histories or was prepared without its lines."""
    from clv.cluster import maintenance, preparing

    begun = datetime.now(UTC)
    out = options.histories.absolute()
    ids = [line.strip() for line in options.customers.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    _, stock = maintenance.with_lines(out)
    job = partial(maintenance.erase, out, ids)
    run_tasks(job, options.engine, stock.rows <= preparing.FEW_ROWS, options.workers, 512)
    record.write(out, options, begun)


def main() -> None:
    execute("erase", Options, run, __doc__)


if __name__ == "__main__":
    main()
