"""Score all customers that are known at an origin, with the model of a bundle.

Reads BUNDLE and HISTORIES, the folder that ray_jobs.prepare wrote. Writes SCORES: Parquet parts, manifest.json,
run.json, scores.csv and valuable_and_leaving.csv. The same command after a kill continues where the killed run stopped.

    python -m ray_jobs.score --bundle out/bundle --histories out/histories --origin 2011-06-12 --out out/scores
"""

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
    """Options of a scoring."""

    bundle: Path
    """Bundle folder that ray_jobs.train wrote."""
    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    out: Path
    """Folder to write; a folder that holds scores is replaced."""
    origin: str | None = None
    """Begin of the forecast: by default the day after the last event, at most 90 days later, and not before the
    bundle's training cut."""
    horizons_days: tuple[int, ...] = ()
    """Horizons in days; by default those of the bundle."""
    workers: int = 2
    """Processes that score at once, each with the model in memory."""
    model: Literal["clv", "btyd"] = "clv"
    """clv: the whole model. btyd: BG/NBD, conversion and seasonal factor alone, without quantiles; no network runs."""
    csv: bool = True
    """Also write scores.csv and valuable_and_leaving.csv."""
    object_store_mb: int = 512
    """Size in MiB of the object store of a Ray that the job starts."""


def run(options: Options) -> None:
    """Raises ValueError for a damaged bundle, histories of another shop or an impossible origin."""
    begun = datetime.now(UTC)
    from clv.cluster import scoring, session
    from clv.data.dataset import PreparedDataset

    prepared = PreparedDataset.open(options.histories)
    origin = prepared.origin(options.origin)
    out = options.out.absolute()
    # Wrong arguments are refused before Ray starts.
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
