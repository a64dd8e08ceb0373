"""Where rows come from: expands a source to files, cuts files into units of work, reads a unit block by block.

Nothing here holds a whole file: Parquet is read by batches of a row group, text by blocks of whole lines.
"""

from __future__ import annotations

import codecs
import glob
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from clv.data import textfiles
from clv.data.spec import DatasetSpec, Source, SpecError

BATCH_ROWS = 262_144
UNIT_ROWS = 2_000_000
UNIT_BYTES = 256 << 20
_REMOTE = ("s3://", "gs://", "gcs://")
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
class Block:
    """Some rows as they stand in the source; `row` is the number of the first, None where it cannot be known."""

    rows: pa.Table
    row: int | None
    malformed: list[str] = field(default_factory=list)


def expand(path: str, key: str, place: str) -> list[str]:
    """Files of a source path, sorted. SpecError for an unset ${VAR}, an absent package, or a glob without a match."""
    filled = fill_variables(path, key, place)
    if filled.startswith("pkg://"):
        filled = _in_package(filled.removeprefix("pkg://"), key, place)
    found = _glob_remote(filled) if filled.startswith(_REMOTE) else _glob_local(filled)
    if not found:
        seen = "" if filled.startswith(_REMOTE) or Path(filled).is_absolute() else f" in {Path.cwd()}"
        raise SpecError(f"{place}: {key}: no file matches {filled}{seen}; correct the path")
    return found


def fill_variables(text: str, key: str, place: str) -> str:
    """The text with every ${VAR} replaced from the environment; SpecError for one that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if not os.environ.get(name):
            raise SpecError(
                f"{place}: {key}: the environment variable {name} is not set; `export {name}=...` to fill {text}"
            )
        return os.environ[name]

    return re.sub(r"\$\{(\w+)\}", value, text)


def _in_package(inside: str, key: str, place: str) -> str:
    module, _, file = inside.partition("/")
    found = importlib.util.find_spec(module) if "." not in module else None
    if found is None or not found.submodule_search_locations:
        raise SpecError(f"{place}: {key}: the package {module!r} is not installed; `pip install` it, or give a path")
    return str(Path(found.submodule_search_locations[0]) / file)


def _glob_local(pattern: str) -> list[str]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return sorted(str(file) for file in path.iterdir() if file.is_file() and not file.name.startswith((".", "_")))
    return sorted(file for file in glob.glob(str(path), recursive=True) if os.path.isfile(file))


def _glob_remote(pattern: str) -> list[str]:
    scheme = pattern.split("://")[0] + "://"
    fixed = re.split(r"[*?\[]", pattern)[0]
    filesystem, base = fs.FileSystem.from_uri(fixed if fixed == pattern else fixed.rsplit("/", 1)[0])
    info = filesystem.get_file_info(base)
    if info.type == fs.FileType.File:
        return [pattern]
    files = filesystem.get_file_info(fs.FileSelector(base, recursive=True, allow_not_found=True))
    uris = [scheme + file.path for file in files if file.type == fs.FileType.File]
    wanted = pattern if fixed != pattern else pattern.rstrip("/") + "/*"
    return sorted(uri for uri in uris if fnmatchcase(uri, wanted))


def opened(path: str) -> tuple[fs.FileSystem, str]:
    """Filesystem of a local path or s3:// / gs:// address, and the path in it."""
    if path.startswith(_REMOTE):
        filesystem, inside = fs.FileSystem.from_uri(path)
        return filesystem, inside
    return fs.LocalFileSystem(), path


def head_of(path: str, num_bytes: int = 1 << 18) -> bytes:
    """First bytes of a file, unpacked if its name says that it is compressed."""
    filesystem, inside = opened(path)
    with filesystem.open_input_stream(inside) as stream:
        return bytes(stream.read(num_bytes))


def format_of(source: Source, path: str, key: str, place: str) -> str:
    """parquet, csv or jsonl: as given, or by the file's name."""
    if source.format is not None:
        return source.format
    name = path.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    known = _SUFFIXES.get(Path(name).suffix)
    if known is None:
        raise SpecError(f"{place}: {key}.format is missing and the name {Path(path).name!r} does not tell it: "
                        "write format: parquet, csv or jsonl")  # fmt: skip
    return known


def tables_of(spec: DatasetSpec) -> Iterator[tuple[str, int, Source, str]]:
    """(table, number, source, key) of every source of the spec."""
    for table in ("items", "customers", "events"):
        for number, source in enumerate(getattr(spec, table)):
            yield table, number, source, f"{table}[{number}]"


def plan(spec: DatasetSpec, place: str) -> list[Unit]:
    """Units of work of all sources, read off footers and sizes only."""
    units: list[Unit] = []

    def add(table: str, number: int, path: str, start: int, stop: int, first: int | None, rows: int, size: int) -> None:
        units.append(Unit(len(units), table, number, path, start, stop, first, rows, size))

    for table, number, source, key in tables_of(spec):
        if source.sql is not None:
            add(table, number, source.sql.url, 0, 0, 0, 0, 0)
            continue
        assert source.path is not None
        for path in expand(source.path, f"{key}.path", place):
            filesystem, inside = opened(path)
            if format_of(source, path, key, place) == "parquet":
                for piece in _parquet_pieces(filesystem, inside, f"{place}: {key}.path"):
                    add(table, number, path, *piece)
            else:
                size = int(filesystem.get_file_info(inside).size)
                whole = (
                    path.lower().endswith(_COMPRESSED) or source.newlines_in_values or not _ascii_like(source.encoding)
                )
                step = max(size, 1) if whole else UNIT_BYTES
                for start in range(0, max(size, 1), step):
                    stop = min(start + step, size)
                    first = 0 if start == 0 else None
                    add(table, number, path, start, -1 if whole else stop, first, (stop - start) // 60, stop - start)
    return units


def _parquet_pieces(filesystem: fs.FileSystem, path: str, where: str) -> Iterator[tuple[int, int, int, int, int]]:
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            counts = [(group.num_rows, group.total_byte_size) for group in groups]
    except (pa.ArrowInvalid, OSError) as error:
        raise SpecError(f"{where}: {path} is not a readable Parquet file ({_first_line(error)})") from error
    start = first = rows = size = 0
    for index, (group_rows, group_size) in enumerate(counts):
        rows += group_rows
        size += group_size
        if rows >= UNIT_ROWS or index + 1 == len(counts):
            yield start, index + 1, first, rows, size
            start, first, rows, size = index + 1, first + rows, 0, 0
    if not counts:
        yield 0, 0, 0, 0, 0


def column_types(source: Source, path: str, key: str, place: str) -> dict[str, pa.DataType]:
    """Columns of a file and their types, from its footer or its first block."""
    if source.sql is None and format_of(source, path, key, place) == "parquet":
        filesystem, inside = opened(path)
        with pq.ParquetFile(inside, filesystem=filesystem) as file:
            schema = file.schema_arrow
        return dict(zip(schema.names, schema.types, strict=True))
    unit = Unit(0, "", 0, path, 0, 1 << 16, 0, 0, 0)
    block = next(iter(read(source, unit, place, key)), None)
    return {} if block is None else dict(zip(block.rows.column_names, block.rows.schema.types, strict=True))


def read(source: Source, unit: Unit, place: str, key: str) -> Iterator[Block]:
    """The rows of a unit, in blocks of bounded size, columns as they are called in the source."""
    if source.sql is not None:
        # The address is filled here and not in the plan: it may hold a password, and a unit's path is written down.
        url = fill_variables(source.sql.url, f"{key}.sql.url", place)
        for rows, first_row, _ in textfiles.query(url, source.sql.query, f"{place}: {key}.sql"):
            yield Block(rows, first_row)
        return
    filesystem, path = opened(unit.path)
    if format_of(source, unit.path, key, place) == "parquet":
        first = unit.first_row or 0
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            for batch in file.iter_batches(
                BATCH_ROWS, row_groups=list(range(unit.start, unit.stop)), use_threads=False
            ):
                yield Block(pa.Table.from_batches([batch]), first)
                first += batch.num_rows
        return
    stream = filesystem.open_input_stream(path) if unit.start == 0 else filesystem.open_input_file(path)
    with stream:
        kind = format_of(source, unit.path, key, place)
        for rows, row, malformed in textfiles.blocks(
            stream,
            source,
            kind,
            unit.start,
            None if unit.stop < 0 else unit.stop,
            _ascii_like(source.encoding),
            f"{place}: {key} ({unit.path})",
        ):
            yield Block(rows, row, malformed)


def fingerprint(unit_paths: list[str]) -> list[dict[str, Any]]:
    """Path, size and modification time of each file read."""
    out = []
    for path in dict.fromkeys(unit_paths):
        with suppress(OSError, pa.ArrowInvalid):
            filesystem, inside = opened(path)
            info = filesystem.get_file_info(inside)
            if info.type == fs.FileType.File:
                out.append({"path": path, "size": info.size, "mtime": info.mtime.isoformat() if info.mtime else None})
    return out


def _ascii_like(encoding: str) -> bool:
    name = codecs.lookup(encoding).name
    return not name.startswith(("utf-16", "utf-32", "utf-7"))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
