"""The end of every job that writes a histories folder: row accounting are closed, items joined, manifest and page written."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from clv.data import histories
from clv.data.events import type_code
from clv.data.prepare import profile, profile_page
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.check import check_share
from clv.data.prepare.partition import LINES
from clv.data.spec.models import DatasetSpec, SpecError
from clv.data.workdir import replacing, write_text
from clv.version import __version__

LOG = logging.getLogger(__name__)

PARTS = "parts.json"
ITEMS_BUILT = "items-built"


@dataclass
class Stock:
    """What is known of a folder beyond its manifest, so that a later job can change some partitions of it."""

    partitions: int
    paths: list[str]  # of each unit of work
    files: list[dict[str, Any]]  # fingerprints of the sources
    read: dict[str, dict[str, Any]]  # row accounting of pass 1 by table
    parts: list[dict[str, Any]]  # what each partition was made into, in their order

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**json.loads((folder / PARTS).read_text(encoding="utf-8")))

    @property
    def rows(self) -> int:
        """Event lines that pass 1 let through."""
        return int(self.read["events"]["accepted"])


def finish(spec: DatasetSpec, place: str, folder: Path, stock: Stock, **more: Any) -> dict[str, Any]:
    """Writes manifest, stats, page, spec and stock of a folder whose shards are complete; returns the manifest.

    `more` joins the manifest. TooManyRejectsError past the spec's share, SpecError for two event types of one code,
    RuntimeError when the row accounting do not balance: a defect of ours.
    """
    accounting = {table: RowAccounting.from_json(raw) for table, raw in stock.read.items()}
    _close_accounting(accounting, stock.parts)
    check_share(accounting["events"], spec, place, examples(folder))
    types = sorted({name for part in stock.parts for name in part.get("types", [])})
    _check_type_codes(types)
    num_items = _join_items(folder, stock.partitions)
    _measure_again(folder, stock.parts)
    stats = profile.merge([part["stats"] for part in stock.parts if "stats" in part])
    manifest = {
        "schema_version": histories.SCHEMA_VERSION,
        "clv_version": __version__,
        "name": spec.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "timezone": spec.timezone,
        "currency": spec.currency,
        "value": spec.value,
        "spec_sha256": spec.sha256(),
        "sources": stock.files,
        "num_partitions": stock.partitions,
        "num_customers": stats["customers"],
        "num_tokens": stats["tokens"],
        "num_lines": stats["lines"],
        "num_items": num_items,
        "first_time": _iso(stats["first_us"]),
        "last_time": _iso(stats["last_us"]),
        "event_types": {name: int(code) for name, code in zip(types, type_code(types).tolist(), strict=True)},
        "accounting": {table: b.to_json() for table, b in accounting.items()},
        "shards": [
            {key: part[key] for key in ("file", "partition", "customers", "sha256")}
            for part in stock.parts
            if "file" in part
        ],
        "items_sha256": file_sha256(folder / "items" / "items.parquet"),
        "rejects": sorted(str(path.relative_to(folder)) for path in (folder / "rejects").glob("*.parquet")),
        **more,
    }
    write_text(folder / PARTS, json.dumps(asdict(stock)) + "\n")
    write_text(folder / "spec.yaml", spec.to_yaml())
    write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")
    write_text(folder / "stats.json", json.dumps(stats, indent=1) + "\n")
    write_text(folder / "quality.html", profile_page.page(spec, manifest, stats))
    for table, table_accounting in accounting.items():
        for line in table_accounting.lines(table):
            LOG.info(line)
    LOG.info(
        f"histories: {stats['customers']:,} customers, {stats['tokens']:,} tokens of {stats['lines']:,} events,"
        f" {num_items:,} items, {len(manifest['shards'])} shards"
    )
    return manifest


def examples(folder: Path) -> str:
    """A rejected row for each of the first reasons, in words."""
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
    """Shards that an older version has built and this job leaves as they are: their stats lack what came since."""
    measured = profile.measure(histories.HISTORIES.empty_table()).keys()
    for part in parts:
        if "stats" in part and part["stats"].keys() != measured:
            part["stats"] = profile.measure(pq.read_table(folder / part["file"]))


def _close_accounting(accounting: dict[str, RowAccounting], parts: list[dict[str, Any]]) -> None:
    """Pass 2 took in what pass 1 let through; its rejects and notices join the row accounting of the table."""
    for table in list(accounting):
        second = RowAccounting()
        for part in parts:
            if table in part["accounting"]:
                second.add(RowAccounting.from_json(part["accounting"][table]))
        second.check(f"pass 2, {table}")
        if table == "events" or second.read:
            if second.read != accounting[table].accepted:
                raise RuntimeError(
                    f"pass 1 let {accounting[table].accepted} {table} through, pass 2 received {second.read}"
                )
            accounting[table].accepted = second.accepted
            accounting[table].rejected.update(second.rejected)
            accounting[table].notices.update({k: n for k, n in second.notices.items() if n})
        accounting[table].check(f"{table} in all")
    shared = sum(part["shared_orders"] for part in parts)
    if shared:
        accounting["events"].notices["order ids that stand for several customers (each gets an order of its own)"] = (
            shared
        )


def _check_type_codes(types: list[str]) -> None:
    codes: dict[int, str] = {}
    for name, code in zip(types, type_code(types).tolist(), strict=True):
        if code in codes:
            raise SpecError(
                f"event types {codes[code]!r} and {name!r} share the code {code}; rename one in event_type.map"
            )
        codes[code] = name


def _join_items(folder: Path, partitions: int) -> int:
    """One items.parquet from the pieces, row group by row group; without pieces the one that is there stays."""
    target = folder / "items" / "items.parquet"
    built = folder / LINES / ITEMS_BUILT
    if not built.is_dir():
        return int(pq.read_metadata(target).num_rows)
    pieces = [built / f"part-{number:05d}.parquet" for number in range(partitions)]
    schema = pa.unify_schemas([pq.read_schema(piece) for piece in pieces])
    rows = 0
    with replacing(target) as aside, pq.ParquetWriter(aside, schema, compression="zstd") as writer:
        for piece in pieces:
            table = pq.read_table(piece)
            for name in set(schema.names) - set(table.column_names):
                table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
            writer.write_table(table.select(schema.names))
            rows += len(table)
    return rows


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _iso(us: int | None) -> str | None:
    return None if us is None else datetime.fromtimestamp(us / 1e6, UTC).isoformat()
