"""Complete a histories folder: join items, check the row accounting, write manifest, statistics and quality page."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from clv.data import histories
from clv.data.clock import to_datetime
from clv.data.events import type_code
from clv.data.hashing import file_sha256
from clv.data.prepare import profile, profile_page
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.check import check_share
from clv.data.prepare.partition import ROWS
from clv.data.spec.models import DatasetSpec, SpecError
from clv.data.workdir import atomic_write, write_json, write_text
from clv.version import __version__

LOG = logging.getLogger(__name__)

BUILD_RECORD = "parts.json"
ITEMS_BUILT = "items-built"  # the folder of the pieces of the item table


@dataclass
class BuildRecord:
    """What a later job needs, beside the manifest, to change some partitions of a histories folder."""

    num_partitions: int
    paths: list[str]  # of the file of each unit of work
    files: list[dict[str, Any]]  # fingerprints of the source files
    pass_1: dict[str, dict[str, Any]]  # row accounting of pass 1 by table
    parts: list[dict[str, Any]]  # what `build_partition` returned for each partition, in their order

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the build record of a histories folder."""
        return cls(**json.loads((folder / BUILD_RECORD).read_text(encoding="utf-8")))

    @property
    def rows(self) -> int:
        """Number of events that pass 1 accepted."""
        return int(self.pass_1["events"]["accepted"])


def write_manifest(spec: DatasetSpec, spec_file: str, folder: Path, record: BuildRecord, **more: Any) -> dict[str, Any]:
    """Writes manifest, statistics, quality page, spec and build record of a folder that has all shards.

    Returns the manifest, to which `more` is added. Raises TooManyRejectsError past `max_rejected_share`, SpecError for
    two event types of one code, RuntimeError when the row accounting does not balance, which is a defect of our code.
    """
    accounting = _total_accounting(record)
    check_share(accounting["events"], spec, spec_file, example_rejects(folder))
    types = sorted({name for part in record.parts for name in part.get("types", [])})
    _check_type_codes(types)
    num_items = _join_items(folder, record.num_partitions)
    _measure_again(folder, record.parts)
    stats = profile.merge([part["stats"] for part in record.parts if "stats" in part])
    manifest = {
        "schema_version": histories.SCHEMA_VERSION,
        "clv_version": __version__,
        "name": spec.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "timezone": spec.timezone,
        "currency": spec.currency,
        "value": spec.value,
        "spec_sha256": spec.sha256(),
        "sources": record.files,
        "num_partitions": record.num_partitions,
        "num_customers": stats["customers"],
        "num_tokens": stats["tokens"],
        "num_lines": stats["lines"],
        "num_items": num_items,
        "first_time": _iso(stats["first_us"]),
        "last_time": _iso(stats["last_us"]),
        "event_types": {name: int(code) for name, code in zip(types, type_code(types).tolist(), strict=True)},
        "row_accounting": {table: counts.to_json() for table, counts in accounting.items()},
        "shards": [
            {key: part[key] for key in ("file", "partition", "customers", "sha256")}
            for part in record.parts
            if "file" in part
        ],
        "items_sha256": file_sha256(folder / "items" / "items.parquet"),
        "rejects": sorted(str(path.relative_to(folder)) for path in (folder / "rejects").glob("*.parquet")),
        **more,
    }
    write_text(folder / BUILD_RECORD, json.dumps(asdict(record)) + "\n")
    write_text(folder / "spec.yaml", spec.to_yaml())
    write_json(folder / "manifest.json", manifest)
    write_json(folder / "stats.json", stats)
    write_text(folder / "quality.html", profile_page.page(spec, manifest, stats))
    for table, counts in accounting.items():
        for line in counts.summary(table):
            LOG.info(line)
    LOG.info(
        f"histories: {stats['customers']:,} customers, {stats['tokens']:,} tokens of {stats['lines']:,} events,"
        f" {num_items:,} items, {len(manifest['shards'])} shards"
    )
    return manifest


def example_rejects(folder: Path) -> str:
    """Returns a line with an example of a rejected row for each reason that stands in the first reject files."""
    lines: dict[str, str] = {}
    for path in sorted((folder / "rejects").glob("*.parquet"))[:3]:
        for batch in pq.ParquetFile(path).iter_batches(10_000, columns=["reason", "record"]):
            for reason in batch["reason"].unique().to_pylist():
                record = batch["record"][batch["reason"].index(reason).as_py()].as_py()
                if reason not in lines and record is not None:
                    lines[reason] = record
            break
    return "".join(f"  for example, {reason}: {record[:300]}\n" for reason, record in lines.items())


def _measure_again(folder: Path, parts: list[dict[str, Any]]) -> None:
    """Measures shards again whose statistics were written by an older version and lack some of the keys."""
    measured = profile.measure(histories.HISTORIES.empty_table()).keys()
    for part in parts:
        if "stats" in part and part["stats"].keys() != measured:
            part["stats"] = profile.measure(pq.read_table(folder / part["file"]))


def _total_accounting(record: BuildRecord) -> dict[str, RowAccounting]:
    """Returns the row accounting of both passes by table; RuntimeError where pass 2 did not read what pass 1 wrote."""
    accounting = {table: RowAccounting.from_json(raw) for table, raw in record.pass_1.items()}
    for table, total in accounting.items():
        second = RowAccounting()
        for part in record.parts:
            if table in part["row_accounting"]:
                second.add(RowAccounting.from_json(part["row_accounting"][table]))
        second.check(f"pass 2, {table}")
        if table == "events" or second.read:
            if second.read != total.accepted:
                raise RuntimeError(f"pass 1 accepted {total.accepted} rows of {table}, pass 2 read {second.read}")
            total.add_stage(second)
        total.check(f"{table} in all")
    shared = sum(part["shared_orders"] for part in record.parts)
    if shared:
        notice = "order ids that stand for several customers (each gets an order of its own)"
        accounting["events"].notices[notice] = shared
    return accounting


def _check_type_codes(types: list[str]) -> None:
    codes: dict[int, str] = {}
    for name, code in zip(types, type_code(types).tolist(), strict=True):
        if code in codes:
            raise SpecError(
                f"event types {codes[code]!r} and {name!r} share the code {code}; rename one in event_type.map"
            )
        codes[code] = name


def _join_items(folder: Path, partitions: int) -> int:
    """Joins the pieces of the item table into items.parquet; without pieces the existing file stays.

    Returns the number of items.
    """
    target = folder / "items" / "items.parquet"
    built = folder / ROWS / ITEMS_BUILT
    if not built.is_dir():
        return int(pq.read_metadata(target).num_rows)
    pieces = [built / f"part-{number:05d}.parquet" for number in range(partitions)]
    schema = pa.unify_schemas([pq.read_schema(piece) for piece in pieces])
    rows = 0
    with atomic_write(target) as staged, pq.ParquetWriter(staged, schema, compression="zstd") as writer:
        for piece in pieces:
            table = pq.read_table(piece)
            writer.write_table(pa.concat_tables([schema.empty_table(), table], promote_options="default"))
            rows += len(table)
    return rows


def _iso(us: int | None) -> str | None:
    return None if us is None else to_datetime(us).isoformat()
