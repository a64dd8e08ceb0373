"""Prepare an event log as histories: `python -m ray_jobs.prepare --dataset SPEC.yaml --out HISTORIES`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from clv.data.spec.models import DatasetSpec, SpecError
from ray_jobs import record
from ray_jobs.command import execute, run_tasks
from ray_jobs.options import JobOptions


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Reads a dataset, cleans it and writes one row per customer (histories), with row accounting."""

    dataset: Path
    """Dataset file (YAML), such as ray_jobs/datasets/cdnow.yaml."""
    out: Path | None = None
    """Folder to write; needed unless --check."""
    append: bool = False
    """Append source files that --out does not hold yet; only the shards that change are built again."""
    check: bool = False
    """Only try the first 10,000 rows of each table, without Ray, and log the row accounting."""
    partitions: int | None = None
    """Number of shards; by default one for about 500,000 events."""
    engine: Literal["auto", "ray", "here"] = "auto"
    """ray, or here for this process alone; auto uses Ray above 2 million rows. The result is the same."""
    workers: int | None = None
    """Ray tasks that run at once; by default as many as the cluster has CPUs."""
    object_store_mb: int = 512
    """Object store of a local Ray in MB; the tables do not pass through it."""
    overwrite: bool = False
    """Replace an existing histories folder."""
    keep_rows: bool = True
    """Keep the mapped rows beside the shards, which --append, compact and erase need."""
    max_rejected_share: float | None = None
    """Overrides the dataset's limit."""


def run(options: Options) -> None:
    """Raises SpecError for a wrong dataset file or target, ValueError for data past the limit of rejects."""
    begun = datetime.now(UTC)
    spec_file = str(options.dataset)
    spec = DatasetSpec.load(options.dataset)
    if options.max_rejected_share is not None:
        spec = DatasetSpec.model_validate(spec.model_dump() | {"max_rejected_share": options.max_rejected_share})
    if options.check:
        from clv.data.prepare.check import check

        check(spec, spec_file)
        return
    if options.out is None:
        raise SpecError("--out is missing: name the folder to write, or add --check to write nothing")
    # Errors in the dataset file or the sources are raised before Ray starts.
    from clv.cluster import appending, preparing
    from clv.data.prepare.check import check_sources

    out = options.out.absolute()
    if options.append:
        if options.overwrite or options.partitions or not options.keep_rows:
            raise SpecError(
                "--append keeps the folder's own settings: leave --overwrite, --partitions, --keep-rows out"
            )
        histories, _ = appending.open_appendable(spec, spec_file, out)
        units = appending.find_new_units(spec, spec_file, out, histories)
        job = partial(appending.append, spec, spec_file, out)
    else:
        preparing.check_target(out, options.overwrite)
        units = check_sources(spec, spec_file)
        job = partial(preparing.prepare, spec, spec_file, out, overwrite=options.overwrite)
        job = partial(job, partitions=options.partitions, keep_rows=options.keep_rows)
    few = preparing.fits_one_process(spec, units)
    operators = run_tasks(job, options.engine, few, options.workers, options.object_store_mb)
    record.write(out, options, begun, operators=[text.splitlines() for text in operators])


def main() -> None:
    execute("prepare", Options, run, __doc__, (ValueError, OSError))


if __name__ == "__main__":
    main()
