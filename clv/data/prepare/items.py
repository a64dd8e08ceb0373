"""Items and customers: the two side tables, mapped like events, and items taken from the events for want of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from clv.data import attributes
from clv.data.events import stable_hash
from clv.data.prepare import parsing
from clv.data.prepare.accounting import REJECTS, RowAccounting, Verdict, malformed_rejects
from clv.data.prepare.cleaning import Prices
from clv.data.prepare.mapping import CATEGORY_SEPARATOR, Taken, check_column, check_time, joined_ids, joined_text
from clv.data.sources.reading import SourceBlock
from clv.data.spec.models import CustomerSource, DatasetSpec, EventSource, ItemSource, SpecError

ITEMS = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("item_key", pa.int64(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("category", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("text_key", pa.int64(), nullable=False),
    ]
)
SEEN = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("category", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("image", pa.string()),
        pa.field("count", pa.int64()),
    ]
)


def described(source: EventSource) -> bool:
    """Whether the events themselves say what their items are."""
    return source.columns.item_text is not None or source.columns.item_category is not None


def take(block: SourceBlock, source: ItemSource, path: str) -> Taken:
    """Rows (SEEN) of a block of an item table; items without an id, or with a price that is no number, are rejected."""
    rows, columns = block.rows, source.columns
    nothing = pa.nulls(len(rows), pa.string())
    verdict = Verdict(len(rows))
    item_id = joined_ids(rows, columns.item_id, True)
    verdict.reject(np.asarray(pc.is_null(item_id).to_numpy(zero_copy_only=False)), "item_id is missing")
    price = np.full(len(rows), np.nan)
    if columns.price is not None:
        price, unreadable = parsing.numbers(rows[columns.price], source.decimal)
        verdict.reject(unreadable | np.isinf(price), "price is not a finite number")
    table = pa.table(
        [
            item_id,
            nothing if columns.text is None else joined_text(rows, columns.text, " "),
            nothing if columns.category is None else joined_text(rows, columns.category, CATEGORY_SEPARATOR),
            pa.array(price, from_pandas=True),
            nothing if columns.image is None else parsing.strings(rows[columns.image], True),
            pa.array(np.ones(len(rows), np.int64)),
        ],
        schema=SEEN,
    )
    return _split(table, block, verdict, RowAccounting(), "items", path)


def take_customers(block: SourceBlock, source: CustomerSource, spec: DatasetSpec, path: str) -> Taken:
    """Rows (customer_id, attr_*) of a block of a customer table; rows without an id are rejected."""
    rows = block.rows
    verdict, accounting = Verdict(len(rows)), RowAccounting()
    ids = joined_ids(rows, source.columns.customer_id, True)
    verdict.reject(np.asarray(pc.is_null(ids).to_numpy(zero_copy_only=False)), "customer_id is missing")
    table = pa.table(
        {"customer_id": ids} | attributes.values(rows, source, spec.timezone, verdict, accounting),
        schema=attributes.schema(source),
    )
    return _split(table, block, verdict, accounting, "customers", path)


def _split(
    table: pa.Table, block: SourceBlock, verdict: Verdict, accounting: RowAccounting, name: str, path: str
) -> Taken:
    count = len(block.rows)
    number = None if block.row is None else pa.array(np.arange(block.row, block.row + count))
    rejects = pa.concat_tables(
        [verdict.rejects(block.rows, name, "read", path, number), malformed_rejects(block.malformed, name, path)]
    )
    accounting.read, accounting.rejected = count + len(block.malformed), verdict.counts()
    if block.malformed:
        accounting.rejected["malformed row"] += len(block.malformed)
    accepted = table.filter(pa.array(verdict.accepted))
    accounting.accepted = len(accepted)
    accounting.check(f"intake of {path}")
    return Taken(accepted, rejects, accounting)


def check_side_table(
    source: ItemSource | CustomerSource, types: dict[str, pa.DataType], key: str, place: str, path: str
) -> None:
    """SpecError if the file lacks a mapped column or an attribute is said to be numeric and is not."""
    wanted = {f"{key}.columns.{ours}": theirs for ours, theirs in source.columns.model_dump(exclude_none=True).items()}
    if isinstance(source, CustomerSource):
        wanted |= {f"{key}.attributes.{name}.column": rule.column for name, rule in source.attributes.items()}
        dated = {name: rule.known_at for name, rule in source.attributes.items() if rule.known_at is not None}
        wanted |= {f"{key}.attributes.{name}.known_at": column for name, column in dated.items()}
        for name, column in dated.items():
            where = f"{key}.attributes.{name}.known_at"
            check_column(column, types, where, place, path)
            check_time(types[column], source.time_format, f"{place}: {where}", column, path)
    for where, theirs in wanted.items():
        for name in theirs if isinstance(theirs, list) else [theirs]:
            check_column(name, types, where, place, path)
            if pa.types.is_nested(types[name]):
                raise SpecError(
                    f"{place}: {where}: column {name!r} of {path} is {types[name]}; a plain column is needed"
                )


def seen_in_events(events: pa.Table) -> pa.Table:
    """Distinct (item, text, category) of a block of events with their number of rows, as SEEN."""
    rows = events.select(["item_id", "item_text", "item_category"]).filter(pc.is_valid(events["item_id"]))
    grouped = rows.group_by(["item_id", "item_text", "item_category"], use_threads=False).aggregate([([], "count_all")])
    count = len(grouped)
    return pa.table(
        [grouped["item_id"], grouped["item_text"], grouped["item_category"], pa.nulls(count, pa.float64()),
         pa.nulls(count, pa.string()), grouped["count_all"]],
        schema=SEEN,
    )  # fmt: skip


def from_events(seen: pa.Table) -> pa.Table:
    """ITEMS: to each item its most frequent text and category, of equally frequent ones the longest, then the first.

    The price stays null: an average over the whole log would carry the future into the past.
    """
    ids = pc.unique(seen["item_id"]).sort()
    return finished(
        pa.table([ids, _leading(seen, "text", ids), _leading(seen, "category", ids)], ["item_id", "text", "category"])
    )


def _leading(seen: pa.Table, name: str, ids: pa.Array) -> Any:
    rows = (
        seen.filter(pc.is_valid(seen[name]))
        .group_by(["item_id", name], use_threads=False)
        .aggregate([("count", "sum")])
    )
    rows = rows.append_column("length", pc.utf8_length(rows[name]))
    rows = rows.sort_by(
        [("item_id", "ascending"), ("count_sum", "descending"), ("length", "descending"), (name, "ascending")]
    )
    # index_in finds the first match, which after the sort is the leading one.
    return rows[name].take(pc.index_in(ids, rows["item_id"].combine_chunks()))


def from_table(rows: pa.Table) -> tuple[pa.Table, pa.Table, RowAccounting]:
    """(ITEMS, rejects, row accounting) of an item table's partition: of several rows with one id the first stays."""
    kept, rejects, accounting = first_of(rows, "item_id", "items")
    return finished(kept), rejects, accounting


def first_of(rows: pa.Table, key: str, table: str) -> tuple[pa.Table, pa.Table, RowAccounting]:
    """Rows with the first of each `key`, the others as rejects."""
    hashes = stable_hash(rows[key])
    verdict = Verdict(len(rows))
    repeat = np.ones(len(rows), bool)
    repeat[np.unique(hashes, return_index=True)[1]] = False
    verdict.reject(repeat, f"{key} stands in the table before")
    rejects = verdict.rejects(rows, table, "customer", "", None) if repeat.any() else REJECTS.empty_table()
    kept = rows.filter(pa.array(verdict.accepted))
    return kept, rejects, RowAccounting(len(rows), len(kept), verdict.counts())


def finished(rows: pa.Table) -> pa.Table:
    """ITEMS with keys, sorted by item_id."""
    rows = rows.sort_by("item_id").combine_chunks()
    price = rows["price"] if "price" in rows.column_names else pa.nulls(len(rows), pa.float64())
    table = pa.table(
        [
            rows["item_id"],
            stable_hash(rows["item_id"]),
            rows["text"],
            rows["category"],
            price,
            stable_hash(rows["text"]),
        ],
        schema=ITEMS,
    )
    if "image" in rows.column_names and rows["image"].null_count < len(rows):
        table = table.append_column("image", rows["image"])
    return table


def load_prices(work: Path) -> Prices | None:
    """List prices that the items stage left for `missing_amount: item_price`."""
    tables = []
    for path in sorted((work / "items").glob("*.arrow")):
        with pa.memory_map(str(path)) as file:
            tables.append(pa.ipc.open_file(file).read_all())
    return prices_of(tables)


def prices_of(tables: list[pa.Table]) -> Prices | None:
    """First list price of each item in tables of schema SEEN; None where there is no table."""
    if not tables:
        return None
    rows = pa.concat_tables(tables)
    rows = rows.filter(pc.is_valid(rows["price"]))
    key, first = np.unique(stable_hash(rows["item_id"]), return_index=True)
    return Prices(key, rows["price"].to_numpy()[first])
