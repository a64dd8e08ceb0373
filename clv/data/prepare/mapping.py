"""Map a block of a source table to events in our columns, and check that the mapped columns exist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data.events import EVENTS, US, stable_hash
from clv.data.prepare import cleaning, parsing
from clv.data.prepare.accounting import RowAccounting, RowOutcomes, malformed_rejects
from clv.data.sources.reading import SourceBlock
from clv.data.spec.errors import did_you_mean
from clv.data.spec.models import DatasetSpec, EventSource, EventType, Source, SpecError

# Columns that mapped events have beside EVENTS, until all rows of their customer are at hand.
EXTRA_COLUMNS = pa.schema(
    [
        pa.field("item_text", pa.string()),
        pa.field("item_category", pa.string()),
        pa.field("row_hash", pa.int64()),
        pa.field("row", pa.int64()),
    ]
)
CATEGORY_SEPARATOR = " / "


@dataclass
class MappedBlock:
    """Rows in our columns that were accepted, rejects (schema REJECTS) and the row accounting of both."""

    rows: pa.Table
    rejects: pa.Table
    accounting: RowAccounting


def map_events(
    block: SourceBlock, source: EventSource, spec: DatasetSpec, path: str, prices: cleaning.Prices | None = None
) -> MappedBlock:
    """Maps a block of `source` to events (EVENTS, then EXTRA_COLUMNS) and applies the row rules.

    The rejects name `path`. `prices` fill missing amounts where the spec has `missing_amount: item_price`.
    """
    rows, columns = block.rows, source.columns
    count = len(rows)
    outcomes = RowOutcomes(count)
    accounting = RowAccounting()
    trim = not _is_parquet(source, path)

    customer = joined_ids(rows, columns.customer_id, trim)
    time, missing, bad, shifted = parsing.times(rows[columns.event_time], source.time_format, spec.timezone)
    outcomes.reject(bad, "event_time is unreadable or outside 1970 to 2099")
    outcomes.reject(missing, "event_time is missing")
    known = time
    if columns.known_at is not None:
        known, none, bad, more = parsing.times(rows[columns.known_at], source.time_format, spec.timezone)
        outcomes.reject(bad, "known_at is unreadable or outside 1970 to 2099")
        known = np.where(none, time, known)
        shifted += more
    outcomes.reject(_nulls(customer), "customer_id is missing (anonymous)")
    event_type = _event_type(rows, source, outcomes)

    quantity, had_quantity = _number(rows, columns.quantity, "quantity", source, outcomes)
    unit_price, _ = _number(rows, columns.unit_price, "unit_price", source, outcomes)
    amount, _ = _number(rows, columns.amount, "amount", source, outcomes)
    absent = np.isnan(quantity)
    if had_quantity and (counted := int((absent & outcomes.accepted).sum())):
        accounting.notices["rows without a quantity, counted as 1"] += counted
    quantity = np.where(absent, 1.0, quantity)
    amount = np.where(np.isnan(amount), quantity * unit_price, amount)
    if shifted:
        accounting.notices["times in the hour of a clock change, read by rule"] += shifted

    event = cleaning.EventArrays(
        event_type=event_type,
        time=time,
        order_id=None if columns.order_id is None else joined_ids(rows, columns.order_id, trim),
        item_id=None if columns.item_id is None else joined_ids(rows, columns.item_id, trim),
        quantity=quantity,
        unit_price=unit_price,
        amount=amount,
        filled=np.zeros(count, bool),
    )
    cleaning.apply_row_rules(event, spec, outcomes, accounting, prices)

    nothing = pa.nulls(count, pa.string())
    table = pa.table(
        [
            nothing if columns.event_id is None else parsing.strings(rows[columns.event_id], trim),
            customer,
            pa.array(event.time).cast(US),
            pa.array(known).cast(US),
            event.event_type,
            nothing if event.order_id is None else event.order_id,
            nothing if event.item_id is None else event.item_id,
            pa.array(event.quantity),
            pa.array(event.amount, from_pandas=True),
            pa.array(event.filled),
            nothing if columns.text is None else joined_text(rows, columns.text, " "),
            nothing if columns.channel is None else parsing.strings(rows[columns.channel], trim),
            nothing if columns.item_text is None else joined_text(rows, columns.item_text, " "),
            nothing if columns.item_category is None else joined_text(rows, columns.item_category, CATEGORY_SEPARATOR),
            pa.array(row_hash(rows)) if needs_row_hash(spec) else pa.nulls(count, pa.int64()),
            pa.nulls(count, pa.int64()) if block.row is None else pa.array(np.arange(block.row, block.row + count)),
        ],
        schema=pa.schema([*(field.with_nullable(True) for field in EVENTS), *EXTRA_COLUMNS]),
    )
    return separate_rejects(table, block, outcomes, accounting, "events", path)


def separate_rejects(
    rows: pa.Table, block: SourceBlock, outcomes: RowOutcomes, accounting: RowAccounting, table: str, path: str
) -> MappedBlock:
    """Splits the mapped `rows` of a block into accepted ones and rejects, and completes `accounting`."""
    numbers = None if block.row is None else pa.array(np.arange(block.row, block.row + len(rows)))
    rejects = pa.concat_tables(
        [
            outcomes.rejects(block.rows, table, "read", path, numbers),
            malformed_rejects(block.malformed, table, path),
        ]
    )
    accounting.read = len(rows) + len(block.malformed)
    accounting.rejected.update(outcomes.counts())
    if block.malformed:
        accounting.rejected["malformed row"] += len(block.malformed)
    accepted = outcomes.accepted
    kept = rows if accepted.all() else rows.filter(pa.array(accepted))
    accounting.accepted = len(kept)
    accounting.check(f"intake of {path}")
    return MappedBlock(kept, rejects, accounting)


def columns_to_read(source: Source, spec: DatasetSpec) -> set[str] | None:
    """Returns the columns to read from a source; None for all, which duplicates of a row must share."""
    if needs_row_hash(spec) and isinstance(source, EventSource):
        return None
    return source.mapped()


def check_columns(source: EventSource, types: dict[str, pa.DataType], key: str, spec_file: str, path: str) -> None:
    """Raises SpecError if a mapped column is absent from the file or has a type that our column cannot have."""
    columns = source.columns.model_dump(exclude_none=True)
    wanted = [(f"{key}.columns.{ours}", ours, theirs) for ours, theirs in columns.items()]
    if isinstance(source.event_type, EventType):
        wanted.append((f"{key}.event_type.column", "event_type", source.event_type.column))
    for where, ours, theirs in wanted:
        for name in theirs if isinstance(theirs, list) else [theirs]:
            check_column(name, types, where, spec_file, path)
            kind = types[name]
            if ours in ("quantity", "unit_price", "amount") and not _holds_numbers(kind):
                raise SpecError(
                    f"{spec_file}: {where}: column {name!r} of {path} is {kind}, not a number; name another one"
                )
            if ours in ("event_time", "known_at"):
                check_time(kind, source.time_format, f"{spec_file}: {where}", name, path)
            if pa.types.is_nested(kind) or pa.types.is_binary(kind):
                raise SpecError(f"{spec_file}: {where}: column {name!r} of {path} is {kind}; a plain column is needed")


def check_column(name: str, types: dict[str, pa.DataType], where: str, spec_file: str, path: str) -> None:
    """Raises SpecError with a suggestion if the file has no such column."""
    if name not in types:
        raise SpecError(f"{spec_file}: {where}: {path} has no column {name!r}{did_you_mean(name, list(types))}")


def check_time(kind: pa.DataType, form: str, where: str, name: str, path: str) -> None:
    """Raises SpecError if a column of type `kind` cannot be read as times in the format `form`."""
    stamped = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if stamped and form in ("unix_s", "unix_ms"):
        raise SpecError(f"{where}: column {name!r} of {path} is already a time ({kind}); leave time_format out")
    if number and form == "iso":
        raise SpecError(
            f"{where}: column {name!r} of {path} is {kind}; set time_format:"
            " unix_s, unix_ms or a pattern such as '%Y%m%d'"
        )
    if not (stamped or text or number or pa.types.is_null(kind)):
        raise SpecError(f"{where}: column {name!r} of {path} is {kind}, which is no time; name another one")


def _holds_numbers(kind: pa.DataType) -> bool:
    t = pa.types
    return any(
        is_kind(kind)
        for is_kind in (
            t.is_integer,
            t.is_floating,
            t.is_decimal,
            t.is_string,
            t.is_large_string,
            t.is_dictionary,
            t.is_null,
        )
    )


def _event_type(rows: pa.Table, source: EventSource, outcomes: RowOutcomes) -> Any:
    rule = source.event_type
    if isinstance(rule, str):
        return pa.repeat(rule, len(rows))
    theirs = parsing.strings(rows[rule.column])
    outcomes.reject(_nulls(theirs), "event_type is missing")
    if rule.map is None:
        return theirs
    position = pc.index_in(theirs, pa.array(list(rule.map)))
    mapped = pa.array(list(rule.map.values())).take(position)
    if rule.other == "keep":
        return pc.coalesce(mapped, theirs)
    outcomes.reject(_nulls(mapped), "event_type is not in the map")
    return mapped


def _number(
    rows: pa.Table, name: str | None, ours: str, source: EventSource, outcomes: RowOutcomes
) -> tuple[NDArray[np.float64], bool]:
    if name is None:
        return np.full(len(rows), np.nan), False
    values, unreadable = parsing.numbers(rows[name], source.decimal)
    outcomes.reject(unreadable | np.isinf(values), f"{ours} is not a finite number")
    return values, True


def joined_ids(rows: pa.Table, names: list[str], trim: bool) -> Any:
    """Returns ids of one column, or of several joined with "/"; an id is null if one of its parts is."""
    parts = [parsing.strings(rows[name], trim) for name in names]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "/")


def joined_text(rows: pa.Table, names: list[str], separator: str) -> Any:
    """Returns the trimmed text of one or several columns; missing parts are skipped, null where all are missing."""
    parts = [parsing.strings(rows[name], trim=True) for name in names]
    if len(parts) == 1:
        return parts[0]
    text = pc.binary_join_element_wise(*parts, separator, null_handling="skip")
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)


def needs_row_hash(spec: DatasetSpec) -> bool:
    """Whether exact duplicates are to be dropped, which have one `row_hash`."""
    return spec.cleaning.exact_duplicates == "drop"


def row_hash(rows: pa.Table) -> NDArray[np.int64]:
    """Returns a 64-bit hash of each row over all columns of its source."""
    total = np.zeros(len(rows), np.uint64)
    for name in sorted(rows.column_names):
        column = parsing.one_array(rows[name])
        if pa.types.is_string(column.type) or pa.types.is_nested(column.type) or pa.types.is_decimal(column.type):
            text = column if pa.types.is_string(column.type) else pa.array([str(v) for v in column.to_pylist()])
            hashed = stable_hash(text).view(np.uint64)
        else:
            values = column.cast(pa.int64()) if not pa.types.is_floating(column.type) else column.cast(pa.float64())
            plain = values.fill_null(0).to_numpy(zero_copy_only=False)
            hashed = pd.util.hash_array(plain)
            hashed = np.where(_nulls(column), np.uint64(0x9E3779B97F4A7C15), hashed)
        total = (total ^ hashed) * np.uint64(0x100000001B3) + (total >> np.uint64(29))
    return total.view(np.int64)


def _nulls(array: Any) -> NDArray[np.bool_]:
    return np.asarray(pc.is_null(array).to_numpy(zero_copy_only=False))


def _is_parquet(source: EventSource, path: str) -> bool:
    return source.format == "parquet" or (source.format is None and path.lower().endswith((".parquet", ".pq")))
