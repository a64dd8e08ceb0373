"""Reading of sources: plans units of work over the files of a spec and reads a unit block by block.

No function holds a whole file: Parquet is read in batches of a row group, text in blocks of whole lines.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from clv.data.sources import filters, sql, text_files
from clv.data.sources.paths import expand, fill_variables, open_filesystem
from clv.data.spec.models import DatasetSpec, Source, SpecError

BATCH_ROWS = 262_144
UNIT_ROWS = 2_000_000
UNIT_BYTES = 256 << 20
_HEAD_BYTES = 1 << 16
_SUFFIXES = {".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl",
             ".ndjson": "jsonl", ".json": "jsonl"}  # fmt: skip
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")


@dataclass(frozen=True)
class Unit:
    """A piece of a file that one task reads: row groups [start, stop) of Parquet, or bytes of a text (stop -1: all)."""

    number: int
    table: str
    source: int
    path: str
    start: int
    stop: int
    first_row: int | None
    rows: int
    size: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class SourceBlock:
    """Some rows of a source, unchanged; `row` is the number of the first, None where it is unknown."""

    rows: pa.Table
    row: int | None
    malformed: list[str] = field(default_factory=list)


def file_format(source: Source, path: str, key: str, place: str) -> str:
    """Returns parquet, csv or jsonl: as given, or by the file's name. Raises SpecError where the name shows none."""
    if source.format is not None:
        return source.format
    name = path.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    known = _SUFFIXES.get(Path(name).suffix)
    if known is None:
        raise SpecError(f"{place}: {key}.format is missing and the name {Path(path).name!r} does not show it: "
                        "write format: parquet, csv or jsonl")  # fmt: skip
    return known


def list_sources(spec: DatasetSpec) -> Iterator[tuple[str, int, Source, str]]:
    """Yields (table, number, source, key) of every source of the spec."""
    for table in ("items", "customers", "events"):
        for number, source in enumerate(getattr(spec, table)):
            yield table, number, source, f"{table}[{number}]"


def plan_units(spec: DatasetSpec, place: str) -> list[Unit]:
    """Returns the units of work of all sources; reads footers and sizes only. Raises SpecError without any file."""
    units: list[Unit] = []
    for table, number, source, key in list_sources(spec):
        if source.sql is not None:
            units.append(Unit(len(units), table, number, source.sql.url, 0, 0, 0, 0, 0))
            continue
        assert source.path is not None
        paths = expand(source.path, f"{key}.path", place)
        before = len(units)
        for path in (path for path in paths if filters.may_hold(source.where, path)):
            filesystem, inside = open_filesystem(path)
            if file_format(source, path, key, place) == "parquet":
                for piece in _parquet_pieces(filesystem, inside, source.where, f"{place}: {key}"):
                    units.append(Unit(len(units), table, number, path, *piece))
            else:
                size = int(filesystem.get_file_info(inside).size)
                compressed = path.lower().endswith(_COMPRESSED)
                whole = compressed or source.newlines_in_values or not _ascii_like(source.encoding)
                step = max(size, 1) if whole else UNIT_BYTES
                for start in range(0, max(size, 1), step):
                    stop = min(start + step, size)
                    first, rows = None if start else 0, (stop - start) // 60
                    end = -1 if whole else stop
                    units.append(Unit(len(units), table, number, path, start, end, first, rows, stop - start))
        if len(units) == before:
            raise SpecError(f"{place}: {key}.where leaves nothing of the {len(paths)} files of {source.path}; widen it")
    return units


def _parquet_pieces(
    filesystem: fs.FileSystem, path: str, rules: filters.Rules, place: str
) -> Iterator[tuple[int, int, int, int, int]]:
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            kinds = {field.name: field.type for field in file.schema_arrow}
            counts = [(g.num_rows, g.total_byte_size, filters.group_may_hold(rules, g, kinds)) for g in groups]
    except (pa.ArrowInvalid, OSError) as error:
        raise SpecError(f"{place}: {path} is not a readable Parquet file ({_first_line(error)})") from error
    start = first = rows = size = 0
    for index, (group_rows, group_size, wanted) in enumerate(counts):
        if wanted:
            rows += group_rows
            size += group_size
        stop = index + 1 if wanted else index
        if rows and (rows >= UNIT_ROWS or index + 1 == len(counts) or not wanted):
            yield start, stop, first, rows, size
            first, rows, size = first + rows, 0, 0
            start = stop
        if not wanted:
            first += group_rows
            start = index + 1
    if not counts:
        yield 0, 0, 0, 0, 0


def column_types(source: Source, path: str, key: str, place: str) -> dict[str, pa.DataType]:
    """Returns the columns of a file and of its folders' names, with their types; reads the footer or first block."""
    if source.sql is not None:
        url = fill_variables(source.sql.url, f"{key}.sql.url", place)
        first = next(sql.query(url, source.sql.query, f"{place}: {key}.sql", limit=1000), None)
        found = {} if first is None else dict(zip(first.column_names, first.schema.types, strict=True))
    elif file_format(source, path, key, place) == "parquet":
        filesystem, inside = open_filesystem(path)
        with pq.ParquetFile(inside, filesystem=filesystem) as file:
            schema = file.schema_arrow
        found = dict(zip(schema.names, schema.types, strict=True))
    else:
        # Without `where`, which may match no row of the first block.
        found = _first_types(source, path, place, key, _HEAD_BYTES, set())
        absent = source.mapped() - found.keys()
        # A log may begin with views, so that keys of orders are missing in its first lines.
        if absent and file_format(source, path, key, place) == "jsonl":
            found |= _first_types(source, path, place, key, text_files.BLOCK_BYTES, absent)
    if found and source.sql is None:
        found = dict.fromkeys(filters.folder_columns(path), pa.string()) | found
    for name in source.where:
        if found and name not in found:
            raise SpecError(f"{place}: {key}.where: {path} has no column {name!r}; it has {', '.join(found)}")
    return found


def _first_types(
    source: Source, path: str, place: str, key: str, size: int, expected: set[str]
) -> dict[str, pa.DataType]:
    """Returns the columns of the first bytes of a text, and of `expected` those with a value in some row."""
    block = next(_blocks(source, Unit(0, "", 0, path, 0, size, 0, 0, 0), place, key, None, expected), None)
    columns = {} if block is None else dict(zip(block.rows.column_names, block.rows.columns, strict=True))
    return {name: c.type for name, c in columns.items() if name not in expected or c.null_count < len(c)}


def read_unit(
    source: Source, unit: Unit, place: str, key: str, columns: set[str] | None = None
) -> Iterator[SourceBlock]:
    """Yields the rows of a unit in blocks of bounded size, with the column names of the source.

    With `columns`, others are left out where that saves reading them. Rows outside of `where` are left out.
    """
    stated = {} if source.sql is not None else filters.folder_columns(unit.path)
    for block in _blocks(source, unit, place, key, columns, (source.mapped() | source.where.keys()) - stated.keys()):
        for name, value in stated.items():
            wanted = columns is None or name in columns or name in source.where
            if wanted and name not in block.rows.column_names:
                block.rows = block.rows.append_column(name, pa.repeat(pa.scalar(value, pa.string()), len(block.rows)))
        if source.where:
            try:
                keep = filters.mask(source.where, block.rows)
            except pa.ArrowInvalid as error:
                raise SpecError(f"{place}: {key}.where: {_first_line(error)}") from error
            if not keep.all():
                # The remaining rows are not consecutive, so the number of the first does not number the others.
                block = SourceBlock(block.rows.filter(pa.array(keep)), None, block.malformed)
        yield block


def _blocks(
    source: Source, unit: Unit, place: str, key: str, columns: set[str] | None, expected: set[str]
) -> Iterator[SourceBlock]:
    if source.sql is not None:
        # The address is filled here and not in the plan: it may hold a password, and the path of a unit is stored.
        url = fill_variables(source.sql.url, f"{key}.sql.url", place)
        first = 0
        for rows in sql.query(url, source.sql.query, f"{place}: {key}.sql"):
            yield SourceBlock(rows, first)
            first += len(rows)
        return
    filesystem, path = open_filesystem(unit.path)
    kind = file_format(source, unit.path, key, place)
    if kind == "parquet":
        first = unit.first_row or 0
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            names = (
                None if columns is None else [n for n in file.schema_arrow.names if n in columns | source.where.keys()]
            )
            for batch in file.iter_batches(
                BATCH_ROWS, row_groups=list(range(unit.start, unit.stop)), columns=names, use_threads=False
            ):
                yield SourceBlock(pa.Table.from_batches([batch]), first)
                first += batch.num_rows
        return
    stream = filesystem.open_input_stream(path) if unit.start == 0 else filesystem.open_input_file(path)
    with stream:
        stop = None if unit.stop < 0 else unit.stop
        ascii_like = _ascii_like(source.encoding)
        for rows, row, malformed in text_files.read_blocks(
            stream, source, kind, unit.start, stop, ascii_like, f"{place}: {key} ({unit.path})", expected
        ):
            yield SourceBlock(rows, row, malformed)


def file_fingerprints(unit_paths: list[str]) -> list[dict[str, Any]]:
    """Returns path, size and modification time of each file."""
    out = []
    for path in dict.fromkeys(unit_paths):
        with suppress(OSError, pa.ArrowInvalid):
            filesystem, inside = open_filesystem(path)
            info = filesystem.get_file_info(inside)
            if info.type == fs.FileType.File:
                out.append({"path": path, "size": info.size, "mtime": info.mtime.isoformat() if info.mtime else None})
    return out


def _ascii_like(encoding: str) -> bool:
    name = codecs.lookup(encoding).name
    return not name.startswith(("utf-16", "utf-32", "utf-7"))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
