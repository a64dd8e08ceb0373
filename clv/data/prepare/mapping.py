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
from clv.data.spec.models import CustomerSource, DatasetSpec, EventSource, Source, SpecError

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
_NUMBERS = ("columns.quantity", "columns.unit_price", "columns.amount")


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
    outcomes.reject(parsing.mask(pc.is_null(customer)), "customer_id is missing (anonymous)")
    event_type = _event_type(rows, source, outcomes)

    quantity = finite_numbers(rows, columns.quantity, "quantity", source, outcomes)
    unit_price = finite_numbers(rows, columns.unit_price, "unit_price", source, outcomes)
    amount = finite_numbers(rows, columns.amount, "amount", source, outcomes)
    absent = np.isnan(quantity)
    if columns.quantity is not None and (counted := int((absent & outcomes.accepted).sum())):
        accounting.notices["rows without a quantity, counted as 1"] += counted
    quantity = np.where(absent, 1.0, quantity)
    amount = np.where(np.isnan(amount), quantity * unit_price, amount)
    if shifted:
        accounting.notices["times in the hour of a clock change, read by rule"] += shifted

    event = cleaning.EventArrays(
        event_type=event_type,
        time=time,
        order_id=joined_ids(rows, columns.order_id, trim),
        item_id=joined_ids(rows, columns.item_id, trim),
        quantity=quantity,
        unit_price=unit_price,
        amount=amount,
        filled=np.zeros(count, bool),
    )
    cleaning.apply_row_rules(event, spec, outcomes, accounting, prices)

    table = pa.table(
        [
            joined_ids(rows, columns.event_id, trim),
            customer,
            pa.array(event.time).cast(US),
            pa.array(known).cast(US),
            event.event_type,
            event.order_id,
            event.item_id,
            pa.array(event.quantity),
            pa.array(event.amount, from_pandas=True),
            pa.array(event.filled),
            joined_text(rows, columns.text, " "),
            joined_ids(rows, columns.channel, trim),
            joined_text(rows, columns.item_text, " "),
            joined_text(rows, columns.item_category, CATEGORY_SEPARATOR),
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
    return None if needs_row_hash(spec) and isinstance(source, EventSource) else source.mapped()


def check_columns(source: Source, types: dict[str, pa.DataType], key: str, spec_file: str, path: str) -> None:
    """Raises SpecError if a mapped column is absent from the file or has a type that our column cannot have."""
    for ours, name in source.mapped_keys():
        where = f"{spec_file}: {key}.{ours}"
        if name not in types:
            raise SpecError(f"{where}: {path} has no column {name!r}{did_you_mean(name, list(types))}")
        kind, column = types[name], f"{where}: column {name!r} of {path}"
        if ours in _NUMBERS and not _holds_numbers(kind):
            raise SpecError(f"{column} is {kind}, not a number; name another one")
        if isinstance(source, EventSource | CustomerSource) and ours.endswith((".event_time", ".known_at")):
            _check_time(kind, source.time_format, column)
        if pa.types.is_nested(kind) or (pa.types.is_binary(kind) and isinstance(source, EventSource)):
            raise SpecError(f"{column} is {kind}; a plain column is needed")


def _check_time(kind: pa.DataType, form: str, column: str) -> None:
    """Raises SpecError if a column of type `kind` cannot be read as times in the format `form`."""
    stamped = pa.types.is_timestamp(kind) or pa.types.is_date(kind)
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if stamped and form in ("unix_s", "unix_ms"):
        raise SpecError(f"{column} is already a time ({kind}); leave time_format out")
    if number and form == "iso":
        raise SpecError(f"{column} is {kind}; set time_format: unix_s, unix_ms or a pattern such as '%Y%m%d'")
    if not (stamped or text or number or pa.types.is_null(kind)):
        raise SpecError(f"{column} is {kind}, which is no time; name another one")


def _holds_numbers(kind: pa.DataType) -> bool:
    t = pa.types
    numeric = t.is_integer(kind) or t.is_floating(kind) or t.is_decimal(kind) or t.is_null(kind)
    return numeric or t.is_string(kind) or t.is_large_string(kind) or t.is_dictionary(kind)


def _event_type(rows: pa.Table, source: EventSource, outcomes: RowOutcomes) -> Any:
    rule = source.event_type
    if isinstance(rule, str):
        return pa.repeat(rule, len(rows))
    theirs = parsing.strings(rows[rule.column])
    outcomes.reject(parsing.mask(pc.is_null(theirs)), "event_type is missing")
    if rule.map is None:
        return theirs
    position = pc.index_in(theirs, pa.array(list(rule.map)))
    mapped = pa.array(list(rule.map.values())).take(position)
    if rule.other == "keep":
        return pc.coalesce(mapped, theirs)
    outcomes.reject(parsing.mask(pc.is_null(mapped)), "event_type is not in the map")
    return mapped


def finite_numbers(
    rows: pa.Table, name: str | None, ours: str, source: Source, outcomes: RowOutcomes
) -> NDArray[np.float64]:
    """Returns the numbers of a column, (N,), NaN where missing or without a column; rejects all but finite ones."""
    if name is None:
        return np.full(len(rows), np.nan)
    values, unreadable = parsing.numbers(rows[name], source.decimal)
    outcomes.reject(unreadable | np.isinf(values), f"{ours} is not a finite number")
    return values


def joined_ids(rows: pa.Table, names: list[str] | str | None, trim: bool) -> Any:
    """Returns ids of one column, or of several joined with "/", null if a part or every column is missing."""
    if names is None:
        return pa.nulls(len(rows), pa.string())
    parts = [parsing.strings(rows[name], trim) for name in ([names] if isinstance(names, str) else names)]
    return parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, "/")


def joined_text(rows: pa.Table, names: list[str] | None, separator: str) -> Any:
    """Returns the trimmed text of some columns; missing parts are skipped, and the text is null without any part."""
    if names is None or len(names) == 1:
        return joined_ids(rows, names, trim=True)
    parts = [parsing.strings(rows[name], trim=True) for name in names]
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
            values = column.cast(pa.float64() if pa.types.is_floating(column.type) else pa.int64()).fill_null(0)
            hashed = pd.util.hash_array(values.to_numpy(zero_copy_only=False))
            hashed = np.where(parsing.mask(pc.is_null(column)), np.uint64(0x9E3779B97F4A7C15), hashed)
        total = (total ^ hashed) * np.uint64(0x100000001B3) + (total >> np.uint64(29))
    return total.view(np.int64)


def _is_parquet(source: EventSource, path: str) -> bool:
    return source.format == "parquet" or (source.format is None and path.lower().endswith((".parquet", ".pq")))
