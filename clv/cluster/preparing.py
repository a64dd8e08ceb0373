"""Prepare on a cluster: pass 1 reads, cleans and partitions rows by customer; pass 2 builds a shard per partition.

The passes exchange files instead of shuffling through Ray's object store: memory is bounded by the largest partition,
the driver receives counts only, a failed task runs again, and a killed run continues where it stopped.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from clv.cluster.work_units import Runner, run_on_ray, run_with_journal
from clv.data import histories
from clv.data.prepare import build, partition, regroup
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.check import check_share, check_sources
from clv.data.prepare.erasure import Erased
from clv.data.prepare.partition import ROWS
from clv.data.prepare.publish import BuildRecord, example_rejects, write_manifest
from clv.data.sources import reading
from clv.data.sources.reading import Unit
from clv.data.spec.models import DatasetSpec, SpecError
from clv.data.workdir import JOURNAL, is_occupied, link_tree, staging_directory
from clv.version import __version__

LOG = logging.getLogger(__name__)

ROWS_PER_PARTITION = 500_000
# Above this, partitions grow with the square root of the log: else files × partitions would grow with its square.
MANY_ROWS = 500_000_000
# Up to this many rows, one process finishes before a local Ray has started.
ONE_PROCESS_ROWS = 2_000_000
UNCOMPRESSED = (".parquet", ".pq", ".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")


def prepare(
    spec: DatasetSpec,
    spec_file: str,
    out: Path,
    *,
    run: Runner = run_on_ray,
    partitions: int | None = None,
    overwrite: bool = False,
    keep_rows: bool = True,
) -> dict[str, Any]:
    """Writes the histories folder `out` from the sources of `spec`, which was read from `spec_file`.

    Returns the manifest. A call with the same sources and spec continues an interrupted one. Without `keep_rows` the
    folder is smaller, and nothing can be appended to it or erased from it. Raises SpecError before any work for a wrong
    column or path, TooManyRejectsError past `max_rejected_share`.
    """
    begun = time.monotonic()
    check_target(out, overwrite)
    units = check_sources(spec, spec_file)
    files = reading.file_fingerprints([unit.path for unit in units])
    rows = sum(unit.rows for unit in units if unit.table == "events")
    chosen = partitions or choose_partitions(rows)
    LOG.info(f"{spec.name}: {len(units)} units of work, about {rows:,} events, {chosen} partitions")
    erased = Erased.load(out)
    plan = staging_plan(spec, files, partitions=chosen, units=len(units), erased=len(erased), keep=keep_rows)
    if any(source.sql is not None for _, _, source, _ in reading.list_sources(spec)):
        plan["begun"] = time.time()  # a query may return other rows than it did in an interrupted run
    with staging_directory(out, plan) as folder:
        link_tree(out / "erasures", folder / "erasures")
        accounting = split_units(spec, spec_file, units, folder, chosen, erased, run)
        if partitions is None:
            chosen = _increase_partitions(folder, accounting["events"].accepted, chosen, run)
        paths = [unit.path for unit in units]
        parts = build_partitions(spec, paths, folder, range(chosen), run)
        pass_1 = {table: counts.to_json() for table, counts in accounting.items()}
        record = BuildRecord(chosen, paths, files, pass_1, parts)
        manifest = write_manifest(spec, spec_file, folder, record, keeps_rows=keep_rows)
        if not keep_rows:
            shutil.rmtree(folder / ROWS)
    LOG.info(f"wrote {out} in {time.monotonic() - begun:.1f} s")
    return manifest


def check_target(out: Path, overwrite: bool) -> None:
    """Raises SpecError if `out` holds something that must not be overwritten."""
    if is_occupied(out):
        if not overwrite:
            raise SpecError(f"--out {out} exists and is not empty; choose another folder or add --overwrite")
        if not (out / "manifest.json").is_file() or not (out / "shards").is_dir():
            raise SpecError(
                f"--out {out} is not a histories folder, so --overwrite leaves it alone; choose another folder"
            )


def choose_partitions(rows: int) -> int:
    """Returns the number of partitions of about 500,000 events, or of more from 500 million events on."""
    return max(1, math.ceil(rows / (ROWS_PER_PARTITION * max(1.0, math.sqrt(rows / MANY_ROWS)))))


def fits_one_process(spec: DatasetSpec, units: list[Unit]) -> bool:
    """Whether this process reads the estimated rows of the units before a local Ray has started."""
    if any(source.sql is not None for _, _, source, _ in reading.list_sources(spec)):
        return False
    # A compressed file may hold ten times as many rows as a plain one of its size.
    return sum(unit.rows * (1 if unit.path.endswith(UNCOMPRESSED) else 10) for unit in units) <= ONE_PROCESS_ROWS


def staging_plan(spec: DatasetSpec, files: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """Returns what two runs must have in common for the second to continue the first."""
    versions = {"clv": __version__, "schema": histories.SCHEMA_VERSION}
    return {"spec": spec.sha256(), "files": files, **versions, **more}


def split_units(
    spec: DatasetSpec, spec_file: str, units: list[Unit], folder: Path, partitions: int, erased: Erased, run: Runner,
    first: int = 0,
) -> dict[str, RowAccounting]:  # fmt: skip
    """Pass 1: splits the units, whose numbers begin with `first`, into partitions; returns the accounting by table."""
    total: dict[str, RowAccounting] = {}

    def split(number: int) -> dict[str, Any]:
        accounting = partition.split_unit(units[number - first], spec, spec_file, folder / ROWS, partitions, erased)
        return {table: counts.to_json() for table, counts in accounting.items()}

    # Filling amounts from list prices needs the item table first; otherwise all units run at once.
    stages = [units]
    if spec.cleaning.missing_amount == "item_price":
        stages = [[u for u in units if u.table == "items"], [u for u in units if u.table != "items"]]
    begun, done = time.monotonic(), 0
    for stage in stages:
        for result in run_with_journal(run, split, [unit.number for unit in stage], folder / JOURNAL / "read"):
            done += 1
            for table, raw in result.items():
                total.setdefault(table, RowAccounting()).add(RowAccounting.from_json(raw))
            events = total.get("events", RowAccounting())
            LOG.info(
                f"pass 1: {done}/{len(units)} units, {events.read:,} events read, {time.monotonic() - begun:.1f} s"
            )
    for table, accounting in total.items():
        accounting.check(f"pass 1, {table}")
    if "events" in total:
        check_share(total["events"], spec, spec_file, example_rejects(folder))
    return total


def _increase_partitions(folder: Path, rows: int, partitions: int, run: Runner) -> int:
    """Returns the number of partitions for `rows` events; splits the row files again where there are far too few.

    How many rows a compressed file or the result of a query holds is known only after pass 1.
    """
    wanted = choose_partitions(rows)
    if wanted <= 2 * partitions:
        return partitions
    LOG.info(f"{rows:,} events are more than estimated: they are split again into {wanted} partitions")
    files = [path for sub in regroup.row_folders(folder / ROWS) for path in sorted(sub.glob("*.arrow"))]

    def split_again(number: int) -> dict[str, Any]:
        return {"rows": regroup.merge_files([files[number]], files[number], wanted)}

    list(run_with_journal(run, split_again, range(len(files)), folder / JOURNAL / "split"))
    return wanted


def build_partitions(
    spec: DatasetSpec, paths: list[str], folder: Path, numbers: Iterable[int], run: Runner
) -> list[dict[str, Any]]:
    """Pass 2: builds the partitions `numbers`; returns what `build_partition` returned for each, in their order."""
    begun, numbers = time.monotonic(), list(numbers)
    parts: list[dict[str, Any]] = []
    task = partial(build.build_partition, spec, paths, folder)
    for part in run_with_journal(run, task, numbers, folder / JOURNAL / "build"):
        parts.append(part)
        customers = sum(p["customers"] for p in parts)
        took = time.monotonic() - begun
        LOG.info(f"pass 2: {len(parts)}/{len(numbers)} partitions, {customers:,} customers, {took:.1f} s")
    return sorted(parts, key=lambda part: int(part["partition"]))
