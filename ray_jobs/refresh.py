"""Refresh scores and store: the scheduled job. It can be repeated, also after a run that was killed.

Appends new events of the dataset to HISTORIES, scores all customers with the bundle in production into SCORES, and
loads STORE; writes SCORES/refresh.json. A lock beside the histories lets one refresh run at a time: a second one ends
with exit code 1 and changes nothing.

    python -m ray_jobs.refresh --dataset shop.yaml --histories H --registry ROOT --store STORE --scores S
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options of a refresh."""

    dataset: Path
    """Dataset file (YAML)."""
    histories: Path
    """Folder of the histories; created by the first run, extended by the next ones."""
    registry: Path
    """Root of the registry, whose bundle in production scores."""
    scores: Path
    """Folder of the scores, replaced as a whole."""
    store: str | None = None
    """The online store to load; by default none."""
    metrics: Path | None = None
    """File for Prometheus' textfile collector: time of the last complete refresh, and of its newest event."""
    workers: int = 2
    """Processes that score at once."""
    object_store_mb: int = 512
    """Size in MiB of the object store of a Ray that the job starts."""


def run(options: Options) -> None:
    """Raises ValueError while another refresh runs, and the errors of prepare, score and load_store; the results of the
    steps before an error are kept."""
    from clv.data.clock import to_datetime
    from clv.data.dataset import PreparedDataset
    from clv.data.workdir import write_json, write_text
    from clv.registry import Registry
    from ray_jobs import load_store, prepare, score

    with refresh_lock(options.histories):
        begun = time.monotonic()
        bundle = Registry(options.registry).production()
        append = (options.histories / "manifest.json").exists()
        prepare.run(prepare.Options(dataset=options.dataset, out=options.histories, append=append))
        score.run(
            score.Options(
                bundle=bundle,
                histories=options.histories,
                out=options.scores,
                workers=options.workers,
                object_store_mb=options.object_store_mb,
            )
        )
        if options.store is not None:
            load_store.run(load_store.Options(histories=options.histories, store=options.store))
        through = PreparedDataset.open(options.histories).data_through
        facts = {
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "data_through": to_datetime(through).isoformat(timespec="seconds"),
            "bundle": bundle.name,
            "seconds": round(time.monotonic() - begun, 1),
        }
        write_json(options.scores / "refresh.json", facts)
        if options.metrics is not None:
            write_text(options.metrics, prometheus_text(time.time(), through / 1e6))
    LOG.info(f"refreshed in {facts['seconds']:.0f} s: data through {facts['data_through']}, scored by {bundle.name}")


@contextmanager
def refresh_lock(histories: Path) -> Iterator[None]:
    """Holds the lock of a refresh; the operating system releases it when the process ends, also after a kill."""
    histories.parent.mkdir(parents=True, exist_ok=True)
    with histories.with_name(f".{histories.name}.refresh").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another refresh of {histories} is running: nothing was done") from None
        yield


def prometheus_text(ended: float, through: float) -> str:
    """The time of the last refresh and of its newest event as gauges in Prometheus' text format, in Unix seconds."""
    lines = (
        ("clv_refresh_timestamp_seconds", "Time of the last complete refresh.", ended),
        ("clv_refresh_data_through_timestamp_seconds", "Time of the newest event that the refresh read.", through),
    )
    return "".join(f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value:.3f}\n" for name, text, value in lines)


def main() -> None:
    execute("refresh", Options, run, __doc__)


if __name__ == "__main__":
    main()
