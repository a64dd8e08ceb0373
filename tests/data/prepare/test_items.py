"""Item table: the most frequent description from events, the first row of an id, and list prices."""

import numpy as np
import pyarrow as pa

from clv.data.events import stable_hash
from clv.data.prepare import items

NAMES = items.ITEM_ROWS.names


def rows(*values: tuple[str, str | None, str | None, float | None, int]) -> pa.Table:
    columns = {name: [] for name in NAMES}
    for item_id, text, category, price, count in values:
        for name, value in zip(NAMES, (item_id, text, category, price, None, count), strict=True):
            columns[name].append(value)
    return pa.table(columns, schema=items.ITEM_ROWS)


def test_an_item_has_its_most_frequent_text_then_the_longest_then_the_alphabetically_first() -> None:
    described = rows(
        ("b", "mug", "x", 1.0, 1), ("b", "red mug", None, 1.0, 1), ("a", "jar", "y", 2.0, 3),
        ("a", "big jar", "y", 2.0, 2), ("a", "lid", None, 2.0, 2), ("c", "pin", None, None, 1),
        ("c", "cap", None, None, 1),
    )  # fmt: skip
    table = items.most_frequent_descriptions(described)
    assert table.schema == items.ITEMS
    assert table["item_id"].to_pylist() == ["a", "b", "c"]
    assert table["text"].to_pylist() == ["jar", "red mug", "cap"]
    assert table["category"].to_pylist() == ["y", "x", None]
    assert table["price"].null_count == 3
    assert table["item_key"].to_pylist() == stable_hash(["a", "b", "c"]).tolist()


def test_of_several_rows_with_one_id_the_first_stays_and_the_others_are_rejects() -> None:
    first = items.keep_first(
        rows(("a", "jar", None, 1.0, 1), ("b", "mug", None, 2.0, 1), ("a", "lid", None, 3.0, 1)), "item_id", "items"
    )
    assert first.rows["text"].to_pylist() == ["jar", "mug"]
    assert first.rejects["reason"].to_pylist() == ["item_id stands in the table before"]
    assert (first.accounting.read, first.accounting.accepted) == (3, 2)


def test_the_list_price_is_the_first_one_given_and_nan_for_items_without() -> None:
    prices = items.list_prices(
        [rows(("a", None, None, None, 1)), rows(("a", None, None, 2.5, 1), ("a", None, None, 9.0, 1))]
    )
    assert prices is not None
    np.testing.assert_array_equal(prices.lookup(pa.array(["a", "zz", None])), [2.5, np.nan, np.nan])
    assert items.list_prices([]) is None
