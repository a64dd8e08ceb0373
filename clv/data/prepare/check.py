"""`prepare --check`: the first rows of every source through the real path, without Ray and without writing anything."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

import pyarrow as pa

from clv.data import histories
from clv.data.prepare import cleaning, items, mapping
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.erasure import REASON
from clv.data.prepare.partition import whole_events
from clv.data.sources import reading
from clv.data.sources.reading import SourceBlock
from clv.data.spec.models import DatasetSpec, SpecError

LOG = logging.getLogger(__name__)

CHECK_ROWS = 10_000


class TooManyRejectsError(ValueError):
    """More rows were rejected than the spec allows."""


def check_share(accounting: RowAccounting, spec: DatasetSpec, place: str, examples: str = "") -> None:
    """TooManyRejectsError, with the reasons, past `max_rejected_share` or when no event at all was accepted."""
    if not accounting.read:
        raise SpecError(f"{place}: the event sources hold no rows; there is nothing to prepare")
    # Who was erased says nothing about the spec.
    wrong = (accounting.rejected.total() - accounting.rejected[REASON]) / accounting.read
    if not accounting.accepted or wrong > spec.max_rejected_share:
        reasons = "".join(f"{line}\n" for line in accounting.lines("events")[1:])
        raise TooManyRejectsError(
            f"{place}: {accounting.rejected.total():,} of {accounting.read:,} events ({accounting.rejected_share:.1%}) were rejected,"
            f" max_rejected_share is {spec.max_rejected_share:.1%}:\n{reasons}{examples}"
            "correct the spec, or raise max_rejected_share if this is how the data are"
        )


def check_sources(spec: DatasetSpec, place: str) -> list[reading.Unit]:
    """The plan, after every file has been looked at: SpecError for a wrong column or a source without a row."""
    units = reading.plan(spec, place)
    for table, number, source, key in reading.tables_of(spec):
        paths = dict.fromkeys(unit.path for unit in units if (unit.table, unit.source) == (table, number))
        seen = 0
        for path in paths:
            types = reading.column_types(source, path, key, place)
            if not types:
                continue
            seen += 1
            if table == "events":
                mapping.check_columns(spec.events[number], types, key, place, path)
            else:
                items.check_side_table(getattr(spec, table)[number], types, key, place, path)
        if not seen:
            raise SpecError(f"{place}: {key}: {', '.join(paths)} is empty; there is nothing to prepare")
    return units


def check(spec: DatasetSpec, place: str, num_rows: int = CHECK_ROWS) -> dict[str, RowAccounting]:
    """Tries the first `num_rows` rows of each table and says the row accounting; raises the errors that prepare would."""
    units = check_sources(spec, place)
    total: dict[str, RowAccounting] = {}
    # List prices fill amounts: then the item table is read whole, or amounts would look missing that are not.
    priced = spec.cleaning.missing_amount == "item_price"
    listed: list[pa.Table] = []
    for table, number, source, key in reading.tables_of(spec):
        left = sys.maxsize if priced and table == "items" else num_rows
        prices = items.prices_of(listed) if priced and table == "events" else None
        events: list[pa.Table] = []
        for unit in (u for u in units if (u.table, u.source) == (table, number)):
            for block in reading.read(source, unit, place, key, mapping.needed(source, spec)):
                block = _head(block, left)
                left -= len(block.rows) + len(block.malformed)
                if table == "events":
                    taken = mapping.take(block, spec.events[number], spec, unit.path, prices)
                    events.append(taken.events)
                elif table == "items":
                    taken = items.take(block, spec.items[number], unit.path)
                    listed += [taken.events] if priced else []
                else:
                    taken = items.take_customers(block, spec.customers[number], spec, unit.path)
                total.setdefault(f"{table}[{number}]", RowAccounting()).add(taken.accounting)
                if left <= 0:
                    break
            if left <= 0:
                break
        if events:
            _second_half(pa.concat_tables(events), spec, total[f"{table}[{number}]"])
    for name, accounting in total.items():
        for line in accounting.lines(name):
            LOG.info(line)
    LOG.info(f"checked the first {num_rows:,} rows of each table; nothing was written")
    events_accounting = RowAccounting()
    for name, accounting in total.items():
        if name.startswith("events"):
            events_accounting.add(accounting)
    check_share(events_accounting, spec, place)
    return total


def _head(block: SourceBlock, num_rows: int) -> SourceBlock:
    lines = block.malformed[:num_rows]
    return replace(block, rows=block.rows.slice(0, max(num_rows - len(lines), 0)), malformed=lines)


def _second_half(events: pa.Table, spec: DatasetSpec, accounting: RowAccounting) -> None:
    verdict = cleaning.customer_rules(events.combine_chunks(), spec)
    accounting.rejected.update(verdict.counts())
    accounting.accepted -= int((~verdict.accepted).sum())
    accounting.check("check")
    kept = events.filter(pa.array(verdict.accepted))
    if len(kept):
        table = histories.build(whole_events(kept), spec.clock)
        tokens = len(histories.Histories.from_table(table).time)
        LOG.info(f"{len(table):,} customers, {tokens:,} tokens from {len(kept):,} events")
