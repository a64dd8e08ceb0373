"""Simulate a shop with known expectations: `python -m ray_jobs.simulate --shop.num-customers 100000 --out LOG`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Literal

from clv.simulate.settings import ShopSettings
from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Writes events, items, customers and a spec.yaml for prepare, and beside them truth (expected orders and value of
    each customer), treatments (coupons with propensity and effect) and the counts of planted defects. The same seed
    gives the same bytes with any number of workers."""

    out: Path
    """Folder to write; one that holds a simulated shop is replaced."""
    shop: ShopSettings = field(default_factory=ShopSettings.full)
    origins: tuple[str, ...] = ()
    """Dates at which to write the truth; by default the last one whose longest horizon lies within the log."""
    horizons_days: tuple[int, ...] = (30, 90)
    defects: int = 0
    """Rows of each kind of defect in every block of 20,000 customers."""
    format: Literal["parquet", "csv", "jsonl"] = "parquet"
    """Format of the events; csv and jsonl also get defects that only a text can have."""
    plain: bool = False
    """Turn off everything that BG/NBD with Gamma-Gamma does not model."""
    engine: Literal["auto", "ray", "here"] = "auto"
    """ray, or here for this process alone; auto uses Ray from 100,000 customers on. The result is the same."""
    workers: int | None = None
    """Ray tasks that run at once; by default as many as the cluster has CPUs."""


def run(options: Options) -> None:
    """Raises ValueError for an impossible shop, an origin outside the log, or a folder that holds something else."""
    begun = datetime.now(UTC)
    from clv.cluster import session, work_units
    from clv.data.workdir import JOURNAL, check_output, staging_directory
    from clv.simulate import files, log

    shop = options.shop.exact_btyd() if options.plain else options.shop
    longest = max(options.horizons_days, default=0)
    if longest < 1 or min(options.horizons_days) < 1:
        raise ValueError(f"--horizons-days {list(options.horizons_days)} must be positive")
    origins = options.origins or (str(date.fromisoformat(shop.end) - timedelta(days=longest)),)
    plan = files.SimulationPlan(shop, origins, tuple(sorted(options.horizons_days)), options.defects, options.format)
    plan.check()
    out = options.out.absolute()
    check_output(out, "a simulated shop", "truth")
    with staging_directory(out, {"plan": repr(plan)}) as folder:
        task = partial(files.write_block, plan, folder)
        numbers = range(log.num_blocks(shop))
        blocks = partial(work_units.run_with_journal, task=task, numbers=numbers, journal=folder / JOURNAL / "blocks")
        here = options.engine == "here" or (options.engine == "auto" and shop.num_customers < 100_000)
        if here:
            manifest = files.write_shop(plan, folder, blocks(work_units.run_here), out)
        else:
            with session.ray_session(num_cpus=options.workers):
                on_ray = partial(work_units.run_on_ray, workers=options.workers)
                manifest = files.write_shop(plan, folder, blocks(on_ray), out)
    record.write(out, options, begun)
    seconds = (datetime.now(UTC) - begun).total_seconds()
    LOG.info(
        f"wrote {manifest['rows']:,} events of {manifest['customers']:,} customers to {options.out} in {seconds:.0f} s"
    )
    LOG.info(f"next: python -m ray_jobs.prepare --dataset {options.out}/spec.yaml --out HISTORIES")


def main() -> None:
    execute("simulate", Options, run, __doc__)


if __name__ == "__main__":
    main()
