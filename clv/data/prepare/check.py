"""`prepare --check`: reads, maps and cleans the first rows of every source without writing anything."""

from __future__ import annotations

import logging
import sys

import pyarrow as pa

from clv.data import histories
from clv.data.prepare import intake, items, mapping
from clv.data.prepare.accounting import RowAccounting
from clv.data.prepare.erasure import REASON
from clv.data.sources import reading
from clv.data.spec.models import DatasetSpec, SpecError

LOG = logging.getLogger(__name__)

CHECK_ROWS = 10_000


class TooManyRejectsError(ValueError):
    """More rows were rejected than the spec allows."""


def check_share(accounting: RowAccounting, spec: DatasetSpec, spec_file: str, examples: str = "") -> None:
    """Raises TooManyRejectsError, with the reasons, past `max_rejected_share` or when no event was accepted."""
    if not accounting.read:
        raise SpecError(f"{spec_file}: the event sources hold no rows; there is nothing to prepare")
    # Rows of erased customers are no fault of the spec.
    wrong_share = (accounting.rejected.total() - accounting.rejected[REASON]) / accounting.read
    if not accounting.accepted or wrong_share > spec.max_rejected_share:
        reasons = "".join(f"{line}\n" for line in accounting.summary("events")[1:])
        raise TooManyRejectsError(
            f"{spec_file}: {accounting.rejected.total():,} of {accounting.read:,} events"
            f" ({accounting.rejected.total() / accounting.read:.1%}) were rejected,"
            f" max_rejected_share is {spec.max_rejected_share:.1%}:\n{reasons}{examples}"
            "correct the spec, or raise max_rejected_share if this is how the data are"
        )


def check_sources(spec: DatasetSpec, spec_file: str) -> list[reading.Unit]:
    """Plans the units of work and checks every file; raises SpecError for a wrong column or a source without rows."""
    units = reading.plan_units(spec, spec_file)
    for table, number, source, key in reading.list_sources(spec):
        paths = dict.fromkeys(unit.path for unit in units if (unit.table, unit.source) == (table, number))
        num_readable = 0
        for path in paths:
            types = reading.column_types(source, path, key, spec_file)
            if not types:
                continue
            num_readable += 1
            mapping.check_columns(source, types, key, spec_file, path)
        if not num_readable:
            raise SpecError(f"{spec_file}: {key}: {', '.join(paths)} is empty; there is nothing to prepare")
    return units


def check(spec: DatasetSpec, spec_file: str, num_rows: int = CHECK_ROWS) -> dict[str, RowAccounting]:
    """Tries the first `num_rows` rows of each source; logs and returns the row accounting by source.

    Raises the errors that prepare would raise: SpecError, and TooManyRejectsError past `max_rejected_share`.
    """
    units = check_sources(spec, spec_file)
    paths = [unit.path for unit in units]
    total: dict[str, RowAccounting] = {}
    # Where list prices fill amounts, the whole item table is read: else amounts would be rejected as missing.
    priced = spec.cleaning.missing_amount == "item_price"
    item_rows: list[pa.Table] = []
    for table, number, _, key in reading.list_sources(spec):
        remaining = sys.maxsize if priced and table == "items" else num_rows
        prices = items.list_prices(item_rows) if priced and table == "events" else None
        event_rows: list[pa.Table] = []
        for unit in (unit for unit in units if (unit.table, unit.source) == (table, number) and remaining > 0):
            for block in intake.read_unit(unit, spec, spec_file, prices, max_rows=remaining):
                remaining -= block.accounting.read
                total.setdefault(key, RowAccounting()).add(block.accounting)
                if table == "events":
                    event_rows.append(block.rows)
                elif priced and table == "items":
                    item_rows.append(block.rows)
        if event_rows:
            _check_histories(pa.concat_tables(event_rows), spec, paths, total[key])
    events = RowAccounting()
    for source, accounting in total.items():
        for line in accounting.summary(source):
            LOG.info(line)
        if source.startswith("events"):
            events.add(accounting)
    LOG.info(f"checked the first {num_rows:,} rows of each table; nothing was written")
    check_share(events, spec, spec_file)
    return total


def _check_histories(rows: pa.Table, spec: DatasetSpec, paths: list[str], accounting: RowAccounting) -> None:
    """Applies the customer rules, adds their counts to `accounting`, and builds the histories in memory."""
    cleaned = intake.apply_customer_rules(rows, spec, paths)
    accounting.add_stage(cleaned.accounting)
    accounting.check("check")
    if len(cleaned.rows):
        table = histories.build(intake.to_event_schema(cleaned.rows), spec.clock)
        tokens = len(histories.Histories.from_table(table).time)
        LOG.info(f"{len(table):,} customers, {tokens:,} tokens from {len(cleaned.rows):,} events")
