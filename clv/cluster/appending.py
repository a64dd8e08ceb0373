"""Append new source files to a histories folder: only the partitions that their rows belong to are built again."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from clv.cluster.maintenance import open_changeable
from clv.cluster.preparing import ROWS_PER_PARTITION, build_partitions, split_units, staging_plan
from clv.cluster.work_units import Runner, run_on_ray
from clv.data.prepare import regroup
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.check import check_sources
from clv.data.prepare.erasure import Erased
from clv.data.prepare.partition import ROWS
from clv.data.prepare.publish import BuildRecord, write_manifest
from clv.data.sources import reading
from clv.data.sources.reading import Unit
from clv.data.spec.models import DatasetSpec, SpecError
from clv.data.workdir import link_tree, staging_directory

LOG = logging.getLogger(__name__)


def append(spec: DatasetSpec, spec_file: str, out: Path, *, run: Runner = run_on_ray) -> dict[str, Any]:
    """Adds the files of the spec's sources that `out` has not read yet; returns the new manifest.

    Only partitions that hold new rows are built again. The result equals that of preparing all files with the same
    number of partitions. Raises SpecError where that is impossible: for another spec, a file that has changed, or a
    folder without its rows.
    """
    begun = time.monotonic()
    record, old = open_appendable(spec, spec_file, out)
    units = find_new_units(spec, spec_file, out, record)
    if not units:
        LOG.info(f"{spec.name}: no new files; {out} holds all {len(record.files)} files")
        return old
    files = record.files + reading.file_fingerprints([unit.path for unit in units])
    paths = record.paths + [unit.path for unit in units]
    LOG.info(f"{spec.name}: {len(units)} new units of work, about {sum(unit.rows for unit in units):,} rows")
    erased = Erased.load(out)
    plan = staging_plan(spec, files, base=old["created"], shards=old["shards"], erased=len(erased))
    with staging_directory(out, plan) as folder:
        for name in ("shards", "items", "rejects", "erasures", ROWS):  # write_manifest writes the other files
            link_tree(out / name, folder / name)
        added = split_units(spec, spec_file, units, folder, record.num_partitions, erased, run, len(record.paths))
        changed = sorted(_partitions_of_units(folder, {unit.number for unit in units}))
        parts = {part["partition"]: part for part in record.parts}
        parts |= {p["partition"]: p for p in build_partitions(spec, paths, folder, changed, run)}
        total = {table: RowAccounting.from_json(raw) for table, raw in record.pass_1.items()}
        for table, accounting in added.items():
            total.setdefault(table, RowAccounting()).add(accounting)
        pass_1 = {table: accounting.to_json() for table, accounting in total.items()}
        in_order = [parts[number] for number in range(record.num_partitions)]
        new = BuildRecord(record.num_partitions, paths, files, pass_1, in_order)
        manifest = write_manifest(spec, spec_file, folder, new, keeps_rows=True)
    LOG.info(
        f"{len(changed)} of {record.num_partitions} partitions changed; wrote {out} in {time.monotonic() - begun:.1f} s"
    )
    if new.rows > 3 * ROWS_PER_PARTITION * record.num_partitions or len(paths) > 20 * record.num_partitions + 100:
        LOG.info(
            "the folder has many files or large partitions: `python -m ray_jobs.compact` makes the next run faster"
        )
    return manifest


def open_appendable(spec: DatasetSpec, spec_file: str, out: Path) -> tuple[BuildRecord, dict[str, Any]]:
    """Returns (build record, manifest) of the histories; raises SpecError where nothing can be appended to them."""
    prepared, record = open_changeable(out)
    if prepared.manifest["spec_sha256"] != spec.sha256():
        raise SpecError(
            f"{spec_file} differs from the spec that {out} was prepared with; prepare again with --overwrite"
        )
    if any(source.sql is not None for _, _, source, _ in reading.list_sources(spec)):
        raise SpecError(f"{spec_file}: which rows of an SQL source are new is unknown; prepare again with --overwrite")
    return record, prepared.manifest


def find_new_units(spec: DatasetSpec, spec_file: str, out: Path, record: BuildRecord) -> list[Unit]:
    """Returns the units of files that are not in the histories yet, numbered after theirs.

    Raises SpecError for a file that has changed, or one whose rows would have come before others.
    """
    units = check_sources(spec, spec_file)
    known = {file["path"]: file for file in record.files}
    for file in reading.file_fingerprints([unit.path for unit in units]):
        if known.get(file["path"], file) != file:
            raise SpecError(f"{file['path']} has changed since {out} read it; prepare again with --overwrite")
    new = [unit for unit in units if unit.path not in known]
    if spec.cleaning.missing_amount == "item_price" and any(unit.table == "items" for unit in new):
        raise SpecError(f"{spec_file}: new list prices change amounts of old rows; prepare again with --overwrite")
    for unit in new:
        # Of several rows with one id the first stays, in the order of the file names.
        same = {one.path for one in units if (one.table, one.source) == (unit.table, unit.source)}
        if unit.table != "events" and unit.path < max(same & known.keys(), default=""):
            raise SpecError(f"{unit.path} stands before files that {out} has read; prepare again with --overwrite")
    first = len(record.paths)
    return [Unit(**(unit.to_json() | {"number": first + i})) for i, unit in enumerate(new)]


def _partitions_of_units(folder: Path, units: set[int]) -> set[int]:
    """Returns the partitions that hold rows of these units."""
    paths = (path for sub in regroup.row_folders(folder / ROWS) for path in sub.glob("*.arrow"))
    new = (path for path in paths if int(path.name[1:].partition("-")[0]) in units)
    return {number for path in new for number, rows in enumerate(regroup.rows_by_partition(path)) if rows}
