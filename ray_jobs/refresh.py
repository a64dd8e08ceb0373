"""Refresh: the scheduled job that keeps scores and store fresh. Safe to run twice, and after a run that died.

    python -m ray_jobs.refresh --dataset shop.yaml --histories H --registry ROOT --store STORE --scores S

New events are added to the histories, everybody is scored by the bundle in production, the store is loaded. A lock
beside the histories lets one refresh run at a time: a second one ends with exit code 1 and changes nothing.
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
    """Prepares new events, scores everybody, loads the store."""

    dataset: Path
    """Dataset file (YAML)."""
    histories: Path
    """Folder of the histories; made by the first run, grown by the others."""
    registry: Path
    """Root of the registry; its production bundle scores."""
    scores: Path
    """Folder of the scores, replaced as a whole."""
    store: str | None = None
    """The online store to load; by default none."""
    metrics: Path | None = None
    """File for Prometheus' textfile collector: when the last refresh ended well, and how new its data are."""
    workers: int = 2
    object_store_mb: int = 512


def run(options: Options) -> None:
    """Raises ValueError while another refresh runs, and what its parts raise; what they had done by then stays."""
    from clv.data.clock import to_datetime
    from clv.data.dataset import PreparedDataset
    from clv.data.workdir import write_json, write_text
    from clv.registry import Registry
    from ray_jobs import load_store, prepare, score

    with alone(options.histories):
        begun = time.monotonic()
        bundle = Registry(options.registry).production()
        grow = (options.histories / "manifest.json").exists()
        prepare.run(prepare.Options(dataset=options.dataset, out=options.histories, append=grow))
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
            write_text(options.metrics, textfile(time.time(), through / 1e6))
    LOG.info(f"refreshed in {facts['seconds']:.0f} s: data through {facts['data_through']}, scored by {bundle.name}")


@contextmanager
def alone(histories: Path) -> Iterator[None]:
    """The lock; the system releases it when the process ends, however that happens."""
    histories.parent.mkdir(parents=True, exist_ok=True)
    with histories.with_name(f".{histories.name}.refresh").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another refresh of {histories} is running: nothing was done") from None
        yield


def textfile(ended: float, through: float) -> str:
    """Two gauges in Prometheus' text format, Unix seconds."""
    lines = (
        ("clv_refresh_timestamp_seconds", "When the last refresh ended well.", ended),
        ("clv_refresh_data_through_timestamp_seconds", "Time of the newest event it read.", through),
    )
    return "".join(f"# HELP {name} {text}\n# TYPE {name} gauge\n{name} {value:.3f}\n" for name, text, value in lines)


def main() -> None:
    execute("refresh", Options, run, __doc__)


if __name__ == "__main__":
    main()
