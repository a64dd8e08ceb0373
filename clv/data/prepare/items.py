"""Map item and customer tables to our columns, and build the item table from events where a spec has no item table."""

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
from clv.data.prepare.accounting import RowAccounting, RowOutcomes
from clv.data.prepare.cleaning import Prices
from clv.data.prepare.mapping import (
    CATEGORY_SEPARATOR,
    MappedBlock,
    finite_numbers,
    joined_ids,
    joined_text,
    separate_rejects,
)
from clv.data.sources.reading import SourceBlock
from clv.data.spec.models import CustomerSource, DatasetSpec, EventSource, ItemSource

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
# Rows that describe an item, of which an item may have several; `count` is the number of source rows behind one.
ITEM_ROWS = pa.schema(
    [
        pa.field("item_id", pa.string()),
        pa.field("text", pa.string()),
        pa.field("category", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("image", pa.string()),
        pa.field("count", pa.int64()),
    ]
)


def describes_items(source: EventSource) -> bool:
    """Whether the events have a text or a category of their items."""
    return source.columns.item_text is not None or source.columns.item_category is not None


def map_items(block: SourceBlock, source: ItemSource, path: str) -> MappedBlock:
    """Maps a block of an item table to ITEM_ROWS; rejects items without an id or with a price that is no number."""
    rows, columns = block.rows, source.columns
    outcomes = RowOutcomes(len(rows))
    item_id = joined_ids(rows, columns.item_id, True)
    outcomes.reject(parsing.mask(pc.is_null(item_id)), "item_id is missing")
    price = finite_numbers(rows, columns.price, "price", source, outcomes)
    table = pa.table(
        [
            item_id,
            joined_text(rows, columns.text, " "),
            joined_text(rows, columns.category, CATEGORY_SEPARATOR),
            pa.array(price, from_pandas=True),
            joined_ids(rows, columns.image, True),
            pa.array(np.ones(len(rows), np.int64)),
        ],
        schema=ITEM_ROWS,
    )
    return separate_rejects(table, block, outcomes, RowAccounting(), "items", path)


def map_customers(block: SourceBlock, source: CustomerSource, spec: DatasetSpec, path: str) -> MappedBlock:
    """Maps a block of a customer table to the columns customer_id and attr_*; rejects rows without an id."""
    rows = block.rows
    outcomes, accounting = RowOutcomes(len(rows)), RowAccounting()
    ids = joined_ids(rows, source.columns.customer_id, True)
    outcomes.reject(parsing.mask(pc.is_null(ids)), "customer_id is missing")
    table = pa.table(
        {"customer_id": ids} | attributes.read_columns(rows, source, spec.timezone, outcomes, accounting),
        schema=attributes.schema(source),
    )
    return separate_rejects(table, block, outcomes, accounting, "customers", path)


def items_in_events(events: pa.Table) -> pa.Table:
    """Returns the distinct (item, text, category) of a block of events with their number of rows, as ITEM_ROWS."""
    names = ["item_id", "item_text", "item_category"]
    rows = events.select(names).filter(pc.is_valid(events["item_id"]))
    grouped = rows.group_by(names, use_threads=False).aggregate([([], "count_all")])
    price, image = pa.nulls(len(grouped), pa.float64()), pa.nulls(len(grouped), pa.string())
    return pa.table([*(grouped[name] for name in names), price, image, grouped["count_all"]], schema=ITEM_ROWS)


def most_frequent_descriptions(described: pa.Table) -> pa.Table:
    """Returns ITEMS with the most frequent text and category of each item in `described` (ITEM_ROWS).

    Of equally frequent ones the longest, then the alphabetically first is taken. The price stays null: an average
    over the whole log would carry the future into the past.
    """
    ids = pc.unique(described["item_id"]).sort()
    columns = {name: _most_frequent(described, name, ids) for name in ("text", "category")}
    return to_items_schema(pa.table({"item_id": ids, **columns}))


def _most_frequent(described: pa.Table, name: str, ids: pa.Array) -> Any:
    given = described.filter(pc.is_valid(described[name]))
    rows = given.group_by(["item_id", name], use_threads=False).aggregate([("count", "sum")])
    rows = rows.append_column("length", pc.utf8_length(rows[name]))
    rows = rows.sort_by(
        [("item_id", "ascending"), ("count_sum", "descending"), ("length", "descending"), (name, "ascending")]
    )
    # index_in finds the first match, which after the sort is the most frequent one.
    return rows[name].take(pc.index_in(ids, rows["item_id"].combine_chunks()))


def keep_first(rows: pa.Table, key: str, table: str) -> MappedBlock:
    """Keeps the first row of each `key` and rejects the others."""
    hashes = stable_hash(rows[key])
    outcomes = RowOutcomes(len(rows))
    repeated = np.ones(len(rows), bool)
    repeated[np.unique(hashes, return_index=True)[1]] = False
    outcomes.reject(repeated, f"{key} stands in the table before")
    rejects = outcomes.rejects(rows, table, "customer", "", None)
    kept = rows.filter(pa.array(outcomes.accepted))
    return MappedBlock(kept, rejects, RowAccounting(len(rows), len(kept), outcomes.counts()))


def to_items_schema(rows: pa.Table) -> pa.Table:
    """Returns the rows as ITEMS, with item and text keys, sorted by item_id."""
    rows = rows.sort_by("item_id").combine_chunks()
    price = rows["price"] if "price" in rows.column_names else pa.nulls(len(rows), pa.float64())
    ids, text = rows["item_id"], rows["text"]
    table = pa.table([ids, stable_hash(ids), text, rows["category"], price, stable_hash(text)], schema=ITEMS)
    if "image" in rows.column_names and rows["image"].null_count < len(rows):
        table = table.append_column("image", rows["image"])
    return table


def load_prices(work: Path) -> Prices | None:
    """Returns the list prices that pass 1 wrote, for `missing_amount: item_price`; None without an item table."""
    paths = sorted((work / "items").glob("*.arrow"))
    return list_prices([pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths])


def list_prices(tables: list[pa.Table]) -> Prices | None:
    """Returns the first list price of each item in tables of schema ITEM_ROWS; None without any table."""
    if not tables:
        return None
    rows = pa.concat_tables(tables)
    rows = rows.filter(pc.is_valid(rows["price"]))
    key, first = np.unique(stable_hash(rows["item_id"]), return_index=True)
    return Prices(key, rows["price"].to_numpy()[first])
