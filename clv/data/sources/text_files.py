"""CSV and JSON lines: reads a range of bytes in blocks of whole lines, as Arrow tables and malformed lines."""

from __future__ import annotations

import codecs
import csv as stdcsv
import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.json as pajson

from clv.data.spec.models import Source, SpecError

BLOCK_BYTES = 16 << 20
_HEAD_BYTES = 1 << 20
_TYPED_LINES = 1000

Piece = tuple[pa.Table, int | None, list[str]]


def read_blocks(
    stream: Any, source: Source, kind: str, start: int, stop: int | None, ascii_like: bool, where: str,
    expected: set[str],
) -> Iterator[Piece]:  # fmt: skip
    """Yields (rows, number of the first row, malformed lines) of the lines that begin in bytes [start, stop).

    `expected`: keys of JSON lines that are columns even where no line has them.
    """
    if not ascii_like:
        stream = codecs.EncodedFile(stream, "utf-8", source.encoding, errors="replace")
    names: list[str] = []
    if kind == "csv" and start > 0:
        names = _header(stream.read(_HEAD_BYTES), source, where)[0]
    row: int | None = 0 if start == 0 else None
    types: dict[str, pa.DataType] = {}
    for content in _line_blocks(stream, start, stop, source.newlines_in_values and kind == "csv"):
        text, bad = _utf8(content, source.encoding if ascii_like else "utf-8")
        if kind == "csv":
            if not names:
                names, text = _header(text, source, where)
            rows, malformed = _csv(text, names, source)
        else:
            types = types or _types_of(text.split(b"\n", _TYPED_LINES)[:_TYPED_LINES])
            for name in sorted(expected - types.keys()):
                types[name] = _json_type(text, name)
            rows, malformed = _json(text, types)
        # Rows after a malformed line cannot be numbered.
        yield rows, row if not (bad or malformed) else None, bad + malformed
        row = None if row is None else row + rows.num_rows + len(bad) + len(malformed)


def _line_blocks(stream: Any, start: int, stop: int | None, quoted: bool) -> Iterator[bytes]:
    position, carry = start, b""
    if start > 0:
        stream.seek(start - 1)
        head = b""
        while b"\n" not in head:
            more = stream.read(1 << 16)
            if not more:
                return
            head += more
        skipped = head.index(b"\n") + 1
        carry, position = head[skipped:], start - 1 + skipped
        if stop is not None and position >= stop:
            return
    while True:
        more = stream.read(BLOCK_BYTES)
        carry += more
        if stop is not None and position + len(carry) >= stop:
            end = carry.find(b"\n", max(stop - 1 - position, 0))
            if end >= 0 or not more:
                last = carry if end < 0 else carry[: end + 1]
                if last:
                    yield last
                return
        if not more:
            if carry:
                yield carry
            return
        cut = _last_line_end(carry, quoted)
        if cut:
            yield carry[:cut]
            carry, position = carry[cut:], position + cut


def _last_line_end(content: bytes, quoted: bool) -> int:
    end = content.rfind(b"\n") + 1
    while quoted and end and content.count(b'"', 0, end) % 2:
        end = content.rfind(b"\n", 0, end - 1) + 1
    return end


def _utf8(content: bytes, encoding: str) -> tuple[bytes, list[str]]:
    """Returns the block in UTF-8, and the lines that are not text in the declared encoding."""
    content = content.removeprefix(codecs.BOM_UTF8)
    utf8 = codecs.lookup(encoding).name == "utf-8"
    try:
        text = content.decode(encoding)
        return (content if utf8 else text.encode()), []
    except UnicodeDecodeError:
        good, bad = [], []
        for line in content.splitlines(keepends=True):
            try:
                good.append(line.decode(encoding).encode())
            except UnicodeDecodeError:
                bad.append(f"not {encoding}: {line.decode(encoding, errors='replace').rstrip()}")
        return b"".join(good), bad


def _header(content: bytes, source: Source, where: str) -> tuple[list[str], bytes]:
    """Returns the column names, and the content after the header line."""
    content = content.removeprefix(codecs.BOM_UTF8)
    names = source.names
    if not source.header:
        assert names is not None
        return names, content
    body = content.lstrip(b"\r\n")
    line, _, rest = body.partition(b"\n")
    if names is None:
        if source.delimiter == r"\s+":
            names = line.decode(errors="replace").split()
        else:
            text, quote = line.decode(errors="replace").rstrip("\r"), source.quote or None
            quoting: Literal[0, 3] = stdcsv.QUOTE_MINIMAL if quote else stdcsv.QUOTE_NONE
            reader = stdcsv.reader([text], delimiter=source.delimiter, quotechar=quote, quoting=quoting)
            names = [name.strip() for name in next(reader, [])]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(f"{where}: the columns {twice} stand in the header twice; give names: [...] of all columns")
    return names, rest


def _csv(content: bytes, names: list[str], source: Source) -> tuple[pa.Table, list[str]]:
    if source.delimiter == r"\s+":
        content = re.sub(rb"[ \t]+", b"\t", re.sub(rb"(?m)^[ \t]+|[ \t]+(?=\r?$)", b"", content))
    table, malformed = _csv_rows(content, names, source)
    quoted = source.quote and source.delimiter != r"\s+" and not source.newlines_in_values
    if quoted and len(table) + len(malformed) < content.count(b"\n") + (not content.endswith(b"\n")):
        # Fewer rows than lines: a quote that nobody closes may have swallowed those after it.
        content, unclosed = _without_unclosed_quotes(content, source)
        if unclosed:
            table, malformed = _csv_rows(content, names, source)
            malformed = unclosed + malformed
    return table, malformed


def _without_unclosed_quotes(content: bytes, source: Source) -> tuple[bytes, list[str]]:
    """Returns the lines that end outside of quotes, and a message for each of the others.

    As in the parser, a quote opens a field only at its beginning, and text may follow a closed one.
    """
    assert source.quote
    quote, delimiter = (f"\\x{{{ord(character):x}}}" for character in (source.quote, source.delimiter))
    field = f"(?:{quote}(?:[^{quote}]|{quote}{quote})*{quote}[^{delimiter}]*|[^{quote}{delimiter}][^{delimiter}]*|)"
    lines = pa.array(content.split(b"\n"), pa.string())
    whole = pc.match_substring_regex(lines, f"^{field}(?:{delimiter}{field})*$")
    text = "a quote is opened and not closed on its line (newlines_in_values: true where values hold line breaks): "
    unclosed = [text + line for line in lines.filter(pc.invert(whole)).to_pylist()]
    return "\n".join(lines.filter(whole).to_pylist()).encode(), unclosed


def _csv_rows(content: bytes, names: list[str], source: Source) -> tuple[pa.Table, list[str]]:
    malformed: list[str] = []
    schema = pa.schema([(name, pa.string()) for name in names])

    def skip(row: pacsv.InvalidRow) -> str:
        malformed.append(f"{row.actual_columns} fields instead of {row.expected_columns}: {row.text}")
        return "skip"

    squeeze = source.delimiter == r"\s+"
    if not content.strip():
        return schema.empty_table(), malformed
    table = pacsv.read_csv(
        pa.BufferReader(content),
        pacsv.ReadOptions(use_threads=False, column_names=names, block_size=max(len(content), 1)),
        pacsv.ParseOptions(
            delimiter="\t" if squeeze else source.delimiter,
            quote_char=False if squeeze or not source.quote else source.quote,
            newlines_in_values=source.newlines_in_values,
            invalid_row_handler=skip,
        ),
        pacsv.ConvertOptions(column_types=schema, strings_can_be_null=False),
    )
    return table, malformed


def _json_type(content: bytes, name: str) -> pa.DataType:
    """Returns the type of a key that the first lines lack, from the first line that has it."""
    at = content.find(json.dumps(name).encode())
    if at < 0:
        return pa.string()
    end = content.find(b"\n", at)
    line = content[content.rfind(b"\n", 0, at) + 1 : end if end >= 0 else len(content)]
    return _types_of([line]).get(name, pa.string())


def _types_of(lines: list[bytes]) -> dict[str, pa.DataType]:
    """Returns the type of each key in JSON lines: string, int64, float64 or bool; string for mixed values."""
    seen: dict[str, set[type]] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            for key, value in record.items():
                seen.setdefault(key, set()).update([] if value is None else [type(value)])
    arrow = {frozenset([bool]): pa.bool_(), frozenset([int]): pa.int64(), frozenset([float]): pa.float64(),
             frozenset([int, float]): pa.float64()}  # fmt: skip
    return {key: arrow.get(frozenset(kinds), pa.string()) for key, kinds in seen.items()}


def _json(content: bytes, types: dict[str, pa.DataType]) -> tuple[pa.Table, list[str]]:
    schema = pa.schema(list(types.items()))
    try:
        options = pajson.ReadOptions(use_threads=False, block_size=max(len(content) + 1, 2))
        parsing = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        return pajson.read_json(pa.BufferReader(content), options, parsing), []
    except pa.ArrowInvalid:
        return _json_slowly(content, schema)


def _json_slowly(content: bytes, schema: pa.Schema) -> tuple[pa.Table, list[str]]:
    """Parses line by line a block in which a line is no JSON object, or a value has an unexpected type."""
    records: list[dict[str, Any]] = []
    malformed: list[str] = []
    for line in content.decode().split("\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "\\u" in line:
                json.dumps(record, ensure_ascii=False).encode()  # half a surrogate pair is not valid text
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            malformed.append(f"not a JSON object: {line}")
    columns = []
    for field in schema:
        values = [record.get(field.name) for record in records]
        try:
            columns.append(pa.array(values, field.type))
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            columns.append(
                pa.array([None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values])
            )
    return pa.table(columns, names=schema.names), malformed
