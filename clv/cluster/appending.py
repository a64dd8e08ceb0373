"""Adding the files that came since to a histories folder: only the partitions that they touch are built again."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from clv.cluster.maintenance import with_lines
from clv.cluster.preparing import ROWS_PER_PARTITION, first_pass, plan_of, second_pass
from clv.cluster.work_units import Runner, run_on_ray
from clv.data.prepare import regroup
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.check import check_sources
from clv.data.prepare.erasure import Erased
from clv.data.prepare.partition import LINES
from clv.data.prepare.publish import Stock, finish
from clv.data.sources import reading
from clv.data.sources.reading import Unit
from clv.data.spec.models import DatasetSpec, SpecError
from clv.data.workdir import link_tree, publish, staging_directory

LOG = logging.getLogger(__name__)


def append(spec: DatasetSpec, place: str, out: Path, *, run: Runner = run_on_ray) -> dict[str, Any]:
    """Adds the files of the spec's sources that `out` has not read yet; returns the new manifest.

    Only partitions that the new rows fall into are built again; what results equals a prepare of all files with the
    same number of partitions. Raises SpecError where that cannot be: another spec, a file that has changed, no lines.
    """
    begun = time.monotonic()
    stock, old = appendable(spec, place, out)
    units = new_units(spec, place, out, stock)
    if not units:
        LOG.info(f"{spec.name}: nothing new; {out} has read all {len(stock.files)} files")
        return old
    files = stock.files + reading.fingerprint([unit.path for unit in units])
    paths = stock.paths + [unit.path for unit in units]
    LOG.info(f"{spec.name}: {len(units)} new units of work, about {sum(unit.rows for unit in units):,} rows")
    erased = Erased.load(out)
    plan = plan_of(spec, files, base=old["created"], shards=old["shards"], erased=len(erased))
    with staging_directory(out, plan) as folder:
        copy_by_links(out, folder)
        read = first_pass(spec, place, units, folder, stock.partitions, erased, run, len(stock.paths))
        touched = sorted(_touched(folder, {unit.number for unit in units}))
        parts = {part["partition"]: part for part in stock.parts}
        parts |= {p["partition"]: p for p in second_pass(spec, paths, folder, touched, run)}
        total = {table: RowAccounting.from_json(raw) for table, raw in stock.read.items()}
        for table, accounting in read.items():
            total.setdefault(table, RowAccounting()).add(accounting)
        all_read = {table: accounting.to_json() for table, accounting in total.items()}
        new = Stock(stock.partitions, paths, files, all_read, [parts[i] for i in range(stock.partitions)])
        manifest = finish(spec, place, folder, new, lines=True)
        publish(folder, out)
    LOG.info(
        f"{len(touched)} of {stock.partitions} partitions changed; wrote {out} in {time.monotonic() - begun:.1f} s"
    )
    if new.rows > 3 * ROWS_PER_PARTITION * stock.partitions or len(paths) > 20 * stock.partitions + 100:
        LOG.info("many files or large partitions by now: `python -m ray_jobs.compact` makes the next run faster")
    return manifest


def appendable(spec: DatasetSpec, place: str, out: Path) -> tuple[Stock, dict[str, Any]]:
    """(stock, manifest) of the histories; SpecError where nothing can be added to them."""
    prepared, stock = with_lines(out)
    if prepared.manifest["spec_sha256"] != spec.sha256():
        raise SpecError(f"{place} differs from the spec that {out} was prepared with; prepare again with --overwrite")
    if any(source.sql is not None for _, _, source, _ in reading.tables_of(spec)):
        raise SpecError(f"{place}: which rows of an SQL source are new cannot be told; prepare again with --overwrite")
    return stock, prepared.manifest


def new_units(spec: DatasetSpec, place: str, out: Path, stock: Stock) -> list[Unit]:
    """Units of the files that the histories have not read, numbered after theirs; SpecError for a changed file."""
    units = check_sources(spec, place)
    known = {file["path"]: file for file in stock.files}
    for file in reading.fingerprint([unit.path for unit in units]):
        if known.get(file["path"], file) != file:
            raise SpecError(f"{file['path']} has changed since {out} read it; prepare again with --overwrite")
    fresh = [unit for unit in units if unit.path not in known]
    if spec.cleaning.missing_amount == "item_price" and any(unit.table == "items" for unit in fresh):
        raise SpecError(f"{place}: new list prices change amounts of old rows; prepare again with --overwrite")
    for unit in fresh:
        # Of several rows with one id the first stays, in the order of the files' names.
        if unit.table != "events" and unit.path < max(
            (path for path in known if path in _paths(units, unit)), default=""
        ):
            raise SpecError(f"{unit.path} stands before files that {out} has read; prepare again with --overwrite")
    first = len(stock.paths)
    return [Unit(**(unit.to_json() | {"number": first + i})) for i, unit in enumerate(fresh)]


def _paths(units: list[Unit], like: Unit) -> set[str]:
    return {unit.path for unit in units if (unit.table, unit.source) == (like.table, like.source)}


def copy_by_links(out: Path, folder: Path) -> None:
    """The files of `out` that a job replaces one by one; not those that `finish` writes."""
    for name in ("shards", "items", "rejects", "erasures", LINES):
        link_tree(out / name, folder / name)


def _touched(folder: Path, units: set[int]) -> set[int]:
    """Partitions that hold rows of these units."""
    found: set[int] = set()
    for sub in regroup.folders(folder / LINES):
        for path in sub.glob("*.arrow"):
            if int(path.name[1:].partition("-")[0]) in units:
                found.update(number for number, rows in enumerate(regroup.batch_rows(path)) if rows)
    return found
