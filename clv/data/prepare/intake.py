"""Intake: how rows of a source become cleaned events; prepare, `prepare --check` and `clv.fit` share this sequence.

1. `read_unit` reads a unit of work block by block, and `map_block` maps each block to our columns, applies the rules
   that look at one row and leaves out customers who were erased.
2. `apply_customer_rules` drops duplicates, as soon as all rows of a customer are at hand.
3. `to_event_schema` gives the cleaned events their final columns.

Every step returns the rows it rejected and its row accounting.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from clv.data.events import EVENTS
from clv.data.prepare import cleaning, items, mapping
from clv.data.prepare.accounting import REJECTS, RowAccounting
from clv.data.prepare.erasure import Erased, filter_erased, redact_records
from clv.data.prepare.mapping import MappedBlock
from clv.data.sources import reading
from clv.data.sources.reading import SourceBlock, Unit
from clv.data.spec.models import DatasetSpec

UNIT = pa.field("unit", pa.int32())


def read_unit(
    unit: Unit,
    spec: DatasetSpec,
    spec_file: str,
    prices: cleaning.Prices | None = None,
    erased: Erased | None = None,
    max_rows: int = sys.maxsize,
) -> Iterator[MappedBlock]:
    """Yields the mapped blocks of at most the first `max_rows` rows of a unit; malformed lines count as rows.

    Raises SpecError for a file that cannot be read as `spec` describes it; `spec_file` names the spec in the message.
    """
    source = getattr(spec, unit.table)[unit.source]
    columns = mapping.columns_to_read(source, spec)
    for block in reading.read_unit(source, unit, spec_file, f"{unit.table}[{unit.source}]", columns):
        malformed = block.malformed[:max_rows]
        block = replace(block, rows=block.rows.slice(0, max(max_rows - len(malformed), 0)), malformed=malformed)
        max_rows -= len(block.rows) + len(block.malformed)
        yield map_block(block, unit, spec, prices, erased)
        if max_rows <= 0:
            return


def map_block(
    block: SourceBlock,
    unit: Unit,
    spec: DatasetSpec,
    prices: cleaning.Prices | None = None,
    erased: Erased | None = None,
) -> MappedBlock:
    """Maps a block of `unit` to our columns and applies the row rules; rows of erased customers are rejected."""
    source = getattr(spec, unit.table)[unit.source]
    if unit.table == "events":
        mapped = mapping.map_events(block, source, spec, unit.path, prices)
        if has_customer_rules(spec):
            number = pa.array(np.full(len(mapped.rows), unit.number, np.int32))
            mapped.rows = mapped.rows.append_column(UNIT, number)
    elif unit.table == "items":
        mapped = items.map_items(block, source, unit.path)
    else:
        mapped = items.map_customers(block, source, spec, unit.path)
    if erased:
        mapped.rejects = redact_records(mapped.rejects, spec, erased.mask)
        if unit.table != "items":
            mapped = filter_erased(mapped, erased, unit.table, unit.path)
    return mapped


def apply_customer_rules(rows: pa.Table, spec: DatasetSpec, paths: Sequence[str]) -> MappedBlock:
    """Drops duplicates from the mapped event rows of whole customers; the rows that stay keep all their columns.

    `paths[i]` is the file of unit i, which the rejects name.
    """
    if not has_customer_rules(spec):
        return MappedBlock(rows, REJECTS.empty_table(), RowAccounting(read=len(rows), accepted=len(rows)))
    rows = rows.combine_chunks()
    events = to_event_schema(rows)
    keyed = events.append_column("row_hash", rows["row_hash"]) if "row_hash" in rows.column_names else events
    outcomes = cleaning.reject_duplicates(keyed, spec)
    source = pa.array(paths, pa.string()).take(rows["unit"].combine_chunks())
    rejects = outcomes.rejects(events, "events", "customer", source, rows["row"].combine_chunks())
    kept = rows.filter(pa.array(outcomes.accepted))
    accounting = RowAccounting(len(rows), len(kept), outcomes.counts())
    accounting.check("customer rules")
    return MappedBlock(kept, rejects, accounting)


def has_customer_rules(spec: DatasetSpec) -> bool:
    """Whether the spec has a rule that needs all rows of a customer."""
    return "drop" in (spec.cleaning.exact_duplicates, spec.cleaning.duplicated_orders)


def to_event_schema(rows: pa.Table) -> pa.Table:
    """Events with the columns EVENTS; an absent one is null, an absent known_at is the event's time, a quantity 1."""
    columns = {field.name: pa.nulls(len(rows), field.type) for field in EVENTS}
    columns |= {"known_at": rows["event_time"], "quantity": pa.array(np.ones(len(rows)))}
    columns |= {name: rows[name] for name in rows.column_names if name in columns}
    return pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in EVENTS]))
