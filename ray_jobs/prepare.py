"""Prepare: event log in, histories out. `python -m ray_jobs.prepare --dataset SPEC.yaml --out HISTORIES`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from clv.data.spec.models import DatasetSpec, SpecError
from ray_jobs import record
from ray_jobs.command import execute, run_tasks


@dataclass(frozen=True, kw_only=True)
class Options:
    """Reads a dataset, cleans it and writes one row per customer (histories), with the row accounting of every row."""

    dataset: Path
    """Dataset file (YAML), such as ray_jobs/datasets/cdnow.yaml."""
    out: Path | None = None
    """Folder to write; needed unless --check."""
    append: bool = False
    """Add the files that the sources hold by now and --out has not read yet: only shards that change are made anew."""
    check: bool = False
    """Only try the first 10,000 rows of each table, without Ray, and print the row accounting."""
    partitions: int | None = None
    """Number of shards; by default one for about 500,000 events."""
    engine: Literal["auto", "ray", "here"] = "auto"
    """ray, or this process alone; auto takes Ray from 2 million rows on. The result is the same."""
    workers: int | None = None
    """Tasks of Ray that run at once; by default as many as the cluster has CPUs."""
    object_store_mb: int = 512
    """Object store of a Ray started here; the tables never pass through it."""
    overwrite: bool = False
    """Replace an existing histories folder."""
    keep_lines: bool = True
    """Keep the cleaned events beside the shards: --append, compact and a change of shards need them."""
    max_rejected_share: float | None = None
    """Overrides the dataset's limit."""


def run(options: Options) -> None:
    """Raises SpecError for a wrong dataset file or target, ValueError for data past the limit of rejects."""
    begun = datetime.now(UTC)
    place = str(options.dataset)
    spec = DatasetSpec.load(options.dataset)
    if options.max_rejected_share is not None:
        spec = DatasetSpec.model_validate(spec.model_dump() | {"max_rejected_share": options.max_rejected_share})
    if options.check:
        from clv.data.prepare.check import check

        check(spec, place)
        return
    if options.out is None:
        raise SpecError("--out is missing: name the folder to write, or add --check to write nothing")
    # Everything that a wrong file can cause is found before Ray starts.
    from clv.cluster import appending, preparing
    from clv.data.prepare.check import check_sources

    out = options.out.absolute()
    if options.append:
        if options.overwrite or options.partitions or not options.keep_lines:
            raise SpecError(
                "--append keeps the folder's own settings: leave --overwrite, --partitions, --keep-lines out"
            )
        stock, _ = appending.appendable(spec, place, out)
        units = appending.new_units(spec, place, out, stock)
        job = partial(appending.append, spec, place, out)
    else:
        preparing.check_target(out, options.overwrite)
        units = check_sources(spec, place)
        job = partial(preparing.prepare, spec, place, out, overwrite=options.overwrite)
        job = partial(job, partitions=options.partitions, keep_lines=options.keep_lines)
    few = preparing.are_few(spec, units)
    operators = run_tasks(job, options.engine, few, options.workers, options.object_store_mb)
    record.write(out, options, begun, operators=[text.splitlines() for text in operators])


def main() -> None:
    execute("prepare", Options, run, __doc__, (ValueError, OSError))


if __name__ == "__main__":
    main()
