"""Prepare on a cluster: pass 1 reads, maps, cleans and splits by customer; pass 2 builds one shard per partition.

Two passes over files instead of a shuffle through the object store: memory is bounded by the largest partition, the
driver sees counts only, and a task that dies is simply run again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import clv
from clv.data import attributes, histories, intake, items, quality, quality_page, shuffle, sources
from clv.data.books import Books
from clv.data.check import check_share, check_sources
from clv.data.events import EVENTS, type_code
from clv.data.sources import Unit
from clv.data.spec import DatasetSpec, SpecError

ROWS_PER_PARTITION = 500_000
SMALL_PARTITION = 50_000

Task = Callable[[int], dict[str, Any]]
Runner = Callable[[Task, int], Iterator[dict[str, Any]]]
Say = Callable[[str], None]


def run_here(task: Task, count: int) -> Iterator[dict[str, Any]]:
    """Runs the tasks one after the other in this process."""
    yield from map(task, range(count))


def run_on_ray(task: Task, count: int, workers: int | None = None) -> Iterator[dict[str, Any]]:
    """Runs task(0..count-1) as Ray Data map tasks; yields the results as they come, in no fixed order."""
    import ray

    if not count:
        return
    # Default resources on purpose: only then does Ray fuse the range with the map into one task each.
    options = {"compute": ray.data.TaskPoolStrategy(size=workers)} if workers else {}
    rows = ray.data.range(count, override_num_blocks=count).map_batches(
        partial(_call, task), batch_size=1, batch_format="numpy", **options
    )
    for row in rows.iter_rows():
        result = json.loads(row["result"])
        if "failed" in result:
            raise (SpecError if result["failed"] == "SpecError" else OSError)(result["message"])
        yield result


def _call(task: Task, batch: dict[str, Any]) -> dict[str, Any]:
    out = []
    for number in batch["id"]:
        try:
            result = task(int(number))
        except (SpecError, OSError) as error:
            # What the user can mend travels as a result: raised here, Ray would wrap it in pages of its own traceback.
            result = {"failed": type(error).__name__, "message": str(error)}
        out.append(json.dumps(result))
    return {"result": np.array(out, dtype=object)}


def prepare(
    spec: DatasetSpec,
    place: str,
    out: Path,
    *,
    run: Runner = run_on_ray,
    cpus: int = 1,
    partitions: int | None = None,
    overwrite: bool = False,
    say: Say = print,
) -> dict[str, Any]:
    """Writes the histories folder `out` from the sources of `spec` (read from `place`); returns its manifest.

    Raises SpecError before any work for a wrong column or path, TooManyRejectsError past `max_rejected_share`.
    """
    begun = time.monotonic()
    check_target(out, overwrite)
    units = check_sources(spec, place)
    rows = sum(unit.rows for unit in units if unit.table == "events")
    partitions = partitions or choose_partitions(rows, cpus)
    say(f"{spec.name}: {len(units)} units of work, about {rows:,} events, {partitions} partitions")
    folder = out.parent / f"{out.name}.tmp-{os.getpid()}-{time.time_ns() % 10**9}"
    work = folder / "work"
    work.mkdir(parents=True)
    try:
        books = _first_pass(spec, place, units, work, partitions, run, say)
        parts = _second_pass(spec, units, work, partitions, run, say)
        manifest = _finish(spec, place, units, folder, partitions, books, parts, begun, say)
        shutil.rmtree(work)
        _publish(folder, out)
    except BaseException:
        with suppress(OSError):
            shutil.rmtree(folder)
        raise
    say(f"wrote {out} in {time.monotonic() - begun:.1f} s")
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


def choose_partitions(rows: int, cpus: int) -> int:
    """Partitions of about 500,000 events; fewer rows still get one per CPU as long as they hold 50,000."""
    return max(1, math.ceil(rows / ROWS_PER_PARTITION), min(cpus, rows // SMALL_PARTITION))


def _first_pass(
    spec: DatasetSpec, place: str, units: list[Unit], work: Path, partitions: int, run: Runner, say: Say
) -> dict[str, Books]:
    total: dict[str, Books] = {}
    # Filling amounts from list prices needs the item table first; otherwise everything runs at once.
    staged = spec.cleaning.missing_amount == "item_price"
    stages = [[u for u in units if u.table == "items"], [u for u in units if u.table != "items"]] if staged else [units]
    begun, done = time.monotonic(), 0
    for stage in stages:
        for result in run(partial(split_unit, stage, spec, place, work, partitions), len(stage)):
            done += 1
            for table, raw in result.items():
                total.setdefault(table, Books()).add(Books.from_json(raw))
            events = total.get("events", Books())
            say(f"pass 1: {done}/{len(units)} units, {events.read:,} events read, {time.monotonic() - begun:.1f} s")
    for table, books in total.items():
        books.check(f"pass 1, {table}")
    check_share(total["events"], spec, place, _examples(work))
    return total


def _examples(work: Path) -> str:
    lines: dict[str, str] = {}
    for path in sorted((work.parent / "rejects").glob("*.parquet"))[:3]:
        for batch in pq.ParquetFile(path).iter_batches(10_000, columns=["reason", "record"]):
            for reason in batch["reason"].unique().to_pylist():
                if reason not in lines:
                    lines[reason] = batch["record"][batch["reason"].index(reason).as_py()].as_py()
            break
    return "".join(f"  for example, {reason}: {record[:300]}\n" for reason, record in lines.items())


def split_unit(
    units: list[Unit], spec: DatasetSpec, place: str, work: Path, partitions: int, number: int
) -> dict[str, Any]:
    """Task of pass 1."""
    return {table: b.to_json() for table, b in shuffle.split(units[number], spec, place, work, partitions).items()}


def _second_pass(
    spec: DatasetSpec, units: list[Unit], work: Path, partitions: int, run: Runner, say: Say
) -> list[dict[str, Any]]:
    paths = [unit.path for unit in units]
    begun = time.monotonic()
    parts: list[dict[str, Any]] = []
    for part in run(partial(build_partition, spec, paths, work), partitions):
        parts.append(part)
        customers = sum(p["customers"] for p in parts)
        say(f"pass 2: {len(parts)}/{partitions} partitions, {customers:,} customers, {time.monotonic() - begun:.1f} s")
    return sorted(parts, key=lambda part: int(part["partition"]))


def build_partition(spec: DatasetSpec, paths: list[str], work: Path, number: int) -> dict[str, Any]:
    """Task of pass 2: one partition's events become a shard, its items a piece of the item table."""
    out = work.parent
    events, rejects, books = shuffle.cleaned(
        shuffle.gather(work / "events", number, _carried_schema(spec)), spec, paths
    )
    tables, side = [rejects], {"events": books.to_json()}
    given, more, customer_books = _attributes(spec, work, number)
    tables += more
    part: dict[str, Any] = {"partition": number, "customers": 0}
    if len(events):
        table = attributes.filled(spec, histories.build(events, spec.clock, given))
        lines = quality.measure(table)
        if lines["lines"] != len(events):
            raise RuntimeError(f"partition {number}: {len(events)} events became {lines['lines']} lines of histories")
        path = out / "shards" / f"part-{number:05d}.parquet"
        shuffle.write_parquet(table, path)
        part |= {"file": f"shards/{path.name}", "customers": len(table), "sha256": file_sha256(path), "stats": lines}
        part["types"] = sorted(set(events["event_type"].unique().to_pylist()))
        if given is not None:
            without = len(given) - int(np.isin(given["customer_id"].to_numpy(), table["customer_id"].to_numpy()).sum())
            customer_books.notices["customers of the customer table without an event"] += without
    if given is not None:
        side["customers"] = customer_books.to_json()
    seen = shuffle.gather(work / "items", number, items.SEEN)
    if spec.items:
        found, item_rejects, item_books = items.from_table(seen)
        tables.append(item_rejects)
        side["items"] = item_books.to_json()
    else:
        found = items.from_events(seen)
    shuffle.write_parquet(found, work / "items-built" / f"part-{number:05d}.parquet")
    shuffle.write_rejects(tables, work, f"customer-{number:05d}")
    pairs = shuffle.gather(work / "orders", number, shuffle.ORDERS)
    return part | {"books": side, "items": len(found), "shared_orders": shuffle.shared_orders(pairs)}


def _carried_schema(spec: DatasetSpec) -> pa.Schema:
    known = pa.schema([*EVENTS, *intake.EXTRAS, shuffle.UNIT])
    return pa.schema([known.field(name) for name in shuffle.carried(spec)])


def _attributes(spec: DatasetSpec, work: Path, number: int) -> tuple[pa.Table | None, list[pa.Table], Books]:
    """attr_* of this partition's customers, joined over the customer tables."""
    joined: pa.Table | None = None
    rejects: list[pa.Table] = []
    books = Books()
    for position, source in enumerate(spec.customers):
        rows = shuffle.gather(work / f"customers-{position}", number, attributes.schema(source))
        kept, rejected, more = items.first_of(rows, "customer_id", "customers")
        books.add(more)
        rejects.append(rejected)
        joined = kept if joined is None else joined.join(kept, "customer_id", join_type="full outer", use_threads=False)
    return joined, rejects, books


def _finish(
    spec: DatasetSpec, place: str, units: list[Unit], folder: Path, partitions: int, books: dict[str, Books],
    parts: list[dict[str, Any]], begun: float, say: Say,
) -> dict[str, Any]:  # fmt: skip
    _close_books(books, parts)
    check_share(books["events"], spec, place, _examples(folder / "work"))
    types = sorted({name for part in parts for name in part.get("types", [])})
    _check_type_codes(types)
    num_items = _join_items(folder, partitions)
    stats = quality.merge([part["stats"] for part in parts if "stats" in part])
    everything = {table: b.to_json() for table, b in books.items()}
    rejects = sorted(str(path.relative_to(folder)) for path in (folder / "rejects").glob("*.parquet"))
    manifest = {
        "schema_version": histories.SCHEMA_VERSION,
        "clv_version": clv.__version__,
        "name": spec.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "timezone": spec.timezone,
        "currency": spec.currency,
        "value": spec.value,
        "spec_sha256": spec.sha256(),
        "sources": sources.fingerprint([unit.path for unit in units]),
        "num_partitions": partitions,
        "num_customers": stats["customers"],
        "num_tokens": stats["tokens"],
        "num_lines": stats["lines"],
        "num_items": num_items,
        "first_time": _iso(stats["first_us"]),
        "last_time": _iso(stats["last_us"]),
        "event_types": {name: int(code) for name, code in zip(types, type_code(types).tolist(), strict=True)},
        "books": everything,
        "shards": [
            {key: part[key] for key in ("file", "partition", "customers", "sha256")} for part in parts if "file" in part
        ],
        "items_sha256": file_sha256(folder / "items" / "items.parquet"),
        "rejects": rejects,
    }
    (folder / "spec.yaml").write_text(spec.to_yaml(), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    (folder / "stats.json").write_text(json.dumps(stats, indent=1) + "\n", encoding="utf-8")
    (folder / "quality.html").write_text(quality_page.page(spec, manifest, stats), encoding="utf-8")
    for table, table_books in books.items():
        for line in table_books.lines(table):
            say(line)
    say(
        f"histories: {stats['customers']:,} customers, {stats['tokens']:,} tokens of {stats['lines']:,} events,"
        f" {num_items:,} items, {len(manifest['shards'])} shards, {time.monotonic() - begun:.1f} s"
    )
    return manifest


def _close_books(books: dict[str, Books], parts: list[dict[str, Any]]) -> None:
    """Pass 2 took in what pass 1 let through; its rejects and notices join the books of the table."""
    for table in list(books):
        second = Books()
        for part in parts:
            if table in part["books"]:
                second.add(Books.from_json(part["books"][table]))
        second.check(f"pass 2, {table}")
        if table == "events" or second.read:
            if second.read != books[table].accepted:
                raise RuntimeError(f"pass 1 let {books[table].accepted} {table} through, pass 2 received {second.read}")
            books[table].accepted = second.accepted
            books[table].rejected.update(second.rejected)
            books[table].notices.update({k: n for k, n in second.notices.items() if n})
        books[table].check(f"{table} in all")
    shared = sum(part["shared_orders"] for part in parts)
    if shared:
        books["events"].notices["order ids that stand for several customers (each gets an order of its own)"] = shared


def _check_type_codes(types: list[str]) -> None:
    codes: dict[int, str] = {}
    for name, code in zip(types, type_code(types).tolist(), strict=True):
        if code in codes:
            raise SpecError(
                f"event types {codes[code]!r} and {name!r} share the code {code}; rename one in event_type.map"
            )
        codes[code] = name


def _join_items(folder: Path, partitions: int) -> int:
    """One items.parquet from the pieces, row group by row group."""
    pieces = [folder / "work" / "items-built" / f"part-{number:05d}.parquet" for number in range(partitions)]
    schema = pa.unify_schemas([pq.read_schema(piece) for piece in pieces])
    target = folder / "items" / "items.parquet"
    target.parent.mkdir()
    rows = 0
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for piece in pieces:
            table = pq.read_table(piece)
            for name in set(schema.names) - set(table.column_names):
                table = table.append_column(name, pa.nulls(len(table), schema.field(name).type))
            writer.write_table(table.select(schema.names))
            rows += len(table)
    return rows


def _publish(folder: Path, out: Path) -> None:
    """Puts the finished folder in place of `out` by renaming."""
    old = None
    if out.exists():
        old = out.parent / f"{folder.name}.old"
        os.replace(out, old)
    os.replace(folder, out)
    if old is not None:
        shutil.rmtree(old)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _iso(us: int | None) -> str | None:
    return None if us is None else datetime.fromtimestamp(us / 1e6, UTC).isoformat()
