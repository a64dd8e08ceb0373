"""Score: `python -m ray_jobs.score --bundle BUNDLE --histories HISTORIES --origin 2011-06-12 --out SCORES`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Scores everybody known at the origin: SCORES as Parquet parts, a CSV, and the list of valuable leavers."""

    bundle: Path
    histories: Path
    out: Path
    """Folder to write; one that holds scores is replaced. The same command after a kill goes on where that one was."""
    origin: str | None = None
    """By default the day after the last event; up to 90 days later, and not before the bundle's cut."""
    horizons_days: tuple[int, ...] = ()
    """By default those the bundle has learned."""
    workers: int = 2
    model: Literal["clv", "btyd"] = "clv"
    """BTYD model: the bundle's BG/NBD, conversion and level alone, without bands; no network runs."""
    csv: bool = True
    """Also write scores.csv and valuable_and_leaving.csv."""
    object_store_mb: int = 512


def run(options: Options) -> None:
    """Raises ValueError for a damaged bundle, another shop's histories or an impossible origin."""
    begun = datetime.now(UTC)
    from clv.cluster import scoring, session
    from clv.data.dataset import PreparedDataset

    prepared = PreparedDataset.open(options.histories)
    origin = prepared.origin(options.origin)
    out = options.out.absolute()
    # Everything that a wrong argument can cause is found before Ray starts.
    scoring.check_target(out)
    if options.workers < 1:
        raise ValueError(f"--workers {options.workers} must be at least 1")
    if not all(1 <= days <= 3650 for days in options.horizons_days):
        raise ValueError(f"--horizons-days {list(options.horizons_days)} must lie between 1 and 3650")
    prepared.check_shards()
    scoring.check_bundle(options.bundle, prepared, origin)
    with session.ray_session(num_cpus=options.workers + 1, object_store_mb=options.object_store_mb):
        written = scoring.score(
            options.bundle.absolute(),
            prepared,
            origin,
            out,
            horizons=options.horizons_days or None,
            workers=options.workers,
            csv=options.csv,
            model=options.model,
        )
    record.write(out, options, begun)
    known = prepared.manifest["num_customers"]
    LOG.info(
        f"customers: {known:,} read, {written['customers']:,} scored, {known - written['customers']:,} not yet known"
    )
    LOG.info(f"wrote {written['rows']:,} rows to {options.out} in {written['seconds']:.0f} s")


def main() -> None:
    execute("score", Options, run, __doc__)


if __name__ == "__main__":
    main()
