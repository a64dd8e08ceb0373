"""Prepare on a cluster: pass 1 reads, maps, cleans and splits by customer; pass 2 builds one shard per partition.

Two passes over files instead of a shuffle through the object store: memory is bounded by the largest partition, the
driver sees counts only, a task that dies is simply run again, and a killed run goes on where it stopped.
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

from clv.cluster.work_units import Runner, remembered, run_on_ray
from clv.cluster.work_units import run_here as run_here
from clv.data import histories
from clv.data.prepare import build, partition, regroup
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.check import check_share, check_sources
from clv.data.prepare.erasure import Erased
from clv.data.prepare.partition import LINES
from clv.data.prepare.publish import Stock, examples, finish
from clv.data.sources import reading
from clv.data.sources.reading import Unit
from clv.data.spec.models import DatasetSpec, SpecError
from clv.data.workdir import JOURNAL, link_tree, publish, staging_directory
from clv.version import __version__

LOG = logging.getLogger(__name__)

ROWS_PER_PARTITION = 500_000
# Beyond this the partitions grow with the root of the log, or files x partitions would.
MANY_ROWS = 500_000_000
# Up to here one process is done before a local Ray would have started.
FEW_ROWS = 2_000_000
PLAIN = (".parquet", ".pq", ".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")


def prepare(
    spec: DatasetSpec,
    place: str,
    out: Path,
    *,
    run: Runner = run_on_ray,
    partitions: int | None = None,
    overwrite: bool = False,
    keep_lines: bool = True,
) -> dict[str, Any]:
    """Writes the histories folder `out` from the sources of `spec` (read from `place`); returns its manifest.

    Interrupted, it goes on from its finished tasks when called again with the same sources and spec. Without
    `keep_lines` the folder is smaller and nothing can be appended to it. Raises SpecError before any work for a wrong
    column or path, TooManyRejectsError past `max_rejected_share`.
    """
    begun = time.monotonic()
    check_target(out, overwrite)
    units = check_sources(spec, place)
    files = reading.fingerprint([unit.path for unit in units])
    rows = sum(unit.rows for unit in units if unit.table == "events")
    chosen = partitions or choose_partitions(rows)
    LOG.info(f"{spec.name}: {len(units)} units of work, about {rows:,} events, {chosen} partitions")
    erased = Erased.load(out)
    plan = plan_of(spec, files, partitions=chosen, units=len(units), erased=len(erased), keep=keep_lines)
    if any(source.sql is not None for _, _, source, _ in reading.tables_of(spec)):
        plan["begun"] = time.time()  # a query may answer otherwise than it did to the run that was interrupted
    with staging_directory(out, plan) as folder:
        link_tree(out / "erasures", folder / "erasures")
        read = first_pass(spec, place, units, folder, chosen, erased, run)
        if partitions is None:
            chosen = _more_partitions(folder, read["events"].accepted, chosen, run)
        paths = [unit.path for unit in units]
        parts = second_pass(spec, paths, folder, range(chosen), run)
        stock = Stock(chosen, paths, files, {table: b.to_json() for table, b in read.items()}, parts)
        manifest = finish(spec, place, folder, stock, lines=keep_lines)
        if not keep_lines:
            shutil.rmtree(folder / LINES)
        publish(folder, out)
    LOG.info(f"wrote {out} in {time.monotonic() - begun:.1f} s")
    return manifest


def check_target(out: Path, overwrite: bool) -> None:
    """SpecError if `out` holds something that must not be overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not overwrite:
            raise SpecError(f"--out {out} exists and is not empty; choose another folder or add --overwrite")
        if not (out / "manifest.json").is_file() or not (out / "shards").is_dir():
            raise SpecError(
                f"--out {out} is not a histories folder, so --overwrite leaves it alone; choose another folder"
            )


def choose_partitions(rows: int) -> int:
    """Partitions of about 500,000 events; larger ones from 500 million events on. Depends on the data alone."""
    return max(1, math.ceil(rows / (ROWS_PER_PARTITION * max(1.0, math.sqrt(rows / MANY_ROWS)))))


def are_few(spec: DatasetSpec, units: list[Unit]) -> bool:
    """Whether the rows are so few that this process has read them before a local Ray would have started."""
    if any(source.sql is not None for _, _, source, _ in reading.tables_of(spec)):
        return False
    # The size of a compressed file says little: ten times as many rows fit in it.
    return sum(unit.rows * (1 if unit.path.endswith(PLAIN) else 10) for unit in units) <= FEW_ROWS


def plan_of(spec: DatasetSpec, files: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """What two runs must agree on for the second to use what the first has done."""
    versions = {"clv": __version__, "schema": histories.SCHEMA_VERSION}
    return {"spec": spec.sha256(), "files": files, **versions, **more}


def first_pass(
    spec: DatasetSpec, place: str, units: list[Unit], folder: Path, partitions: int, erased: Erased, run: Runner,
    first: int = 0,
) -> dict[str, RowAccounting]:  # fmt: skip
    """Splits the units, whose numbers begin with `first`; returns the row accounting by table."""
    total: dict[str, RowAccounting] = {}
    # Filling amounts from list prices needs the item table first; otherwise everything runs at once.
    staged = spec.cleaning.missing_amount == "item_price"
    stages = [[u for u in units if u.table == "items"], [u for u in units if u.table != "items"]] if staged else [units]
    begun, done = time.monotonic(), 0
    task = partial(split_unit, units, first, spec, place, folder / LINES, partitions, erased)
    for stage in stages:
        for result in remembered(run, task, [unit.number for unit in stage], folder / JOURNAL / "read"):
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
        check_share(total["events"], spec, place, examples(folder))
    return total


def split_unit(
    units: list[Unit],
    first: int,
    spec: DatasetSpec,
    place: str,
    lines: Path,
    partitions: int,
    erased: Erased,
    number: int,
) -> dict[str, Any]:
    """Task of pass 1."""
    found = partition.split(units[number - first], spec, place, lines, partitions, erased)
    return {table: accounting.to_json() for table, accounting in found.items()}


def _more_partitions(folder: Path, rows: int, partitions: int, run: Runner) -> int:
    """The number of partitions for the rows that there are; where the plan was far off, the lines are split anew.

    The size of a compressed file or a query's answer is known only when it has been read.
    """
    wanted = choose_partitions(rows)
    if wanted <= 2 * partitions:
        return partitions
    LOG.info(f"{rows:,} events instead of the few expected: split anew into {wanted} partitions")
    files = [path for sub in regroup.folders(folder / LINES) for path in sorted(sub.glob("*.arrow"))]
    task = partial(_split_anew, files, wanted)
    for _ in remembered(run, task, range(len(files)), folder / JOURNAL / "split"):
        pass
    return wanted


def _split_anew(files: list[Path], partitions: int, number: int) -> dict[str, Any]:
    return {"rows": regroup.merge([files[number]], files[number], partitions)}


def second_pass(
    spec: DatasetSpec, paths: list[str], folder: Path, numbers: Iterable[int], run: Runner
) -> list[dict[str, Any]]:
    begun, numbers = time.monotonic(), list(numbers)
    parts: list[dict[str, Any]] = []
    task = partial(build.build_partition, spec, paths, folder)
    for part in remembered(run, task, numbers, folder / JOURNAL / "build"):
        parts.append(part)
        customers = sum(p["customers"] for p in parts)
        took = time.monotonic() - begun
        LOG.info(f"pass 2: {len(parts)}/{len(numbers)} partitions, {customers:,} customers, {took:.1f} s")
    return sorted(parts, key=lambda part: int(part["partition"]))
