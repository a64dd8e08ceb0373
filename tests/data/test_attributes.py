"""Static attributes: known from a time on, filled and flagged, read from a customer table."""

import numpy as np
import pyarrow as pa

from clv.data import attributes
from clv.data.clock import Clock
from clv.data.prepare.accounting import RowAccounting, RowOutcomes
from clv.data.spec.models import DatasetSpec

SPEC = DatasetSpec.parse(
    """
name: shop
timezone: UTC
value: none
events: {path: log.csv, columns: {customer_id: c, event_time: t}}
customers:
  path: customers.csv
  columns: {customer_id: c}
  attributes:
    town: {column: town, constant: true, fill: none}
    age: {column: age, kind: numeric, known_at: seen, fill: 40}
""",
    "shop.yaml",
)
DAY = Clock().parse("2024-01-02")


def test_an_attribute_is_missing_or_filled_at_origins_before_it_was_known() -> None:
    known = {
        "town": np.array(["York", None], object),
        "age": np.array([30.0, 50.0]),
        "age@known_at": np.array([float(DAY), np.nan]),
    }
    customer, origin = np.array([0, 0, 1]), np.array([DAY, DAY + 1, DAY + 1])
    found = attributes.known_attributes(known, customer, origin)
    assert found["town"].tolist() == ["York", "York", None]
    np.testing.assert_array_equal(found["age"], [np.nan, 30.0, np.nan])
    assert list(found) == ["town", "age"]
    found = attributes.known_attributes(known | {"age@fill": np.array([40.0, 40.0])}, customer, origin)
    assert found["age"].tolist() == [40.0, 30.0, 40.0]
    assert found["age_filled"].tolist() == [1.0, 0.0, 1.0]


def test_a_fill_replaces_missing_constants_at_once_and_dated_ones_at_an_origin() -> None:
    table = pa.table({"attr_town": ["York", None], "attr_age": [30.0, None], "attr_age@known_at": [float(DAY), None]})
    found = attributes.fill_missing(SPEC, table)
    assert found["attr_town"].to_pylist() == ["York", "none"]
    assert found["attr_town_filled"].to_pylist() == [0.0, 1.0]
    assert found["attr_age"].to_pylist() == [30.0, None]
    assert found["attr_age@fill"].to_pylist() == [40.0, 40.0]


def test_a_wrong_number_or_time_rejects_its_row_and_an_undated_value_is_counted() -> None:
    (source,) = SPEC.customers
    rows = pa.table(
        {
            "c": ["a", "b", "c", "d"],
            "town": ["York", "", "Leeds", "Hull"],
            "age": ["30", "old", "50", "60"],
            "seen": ["2024-01-02", "2024-01-02", "soon", None],
        }
    )
    outcomes, accounting = RowOutcomes(4), RowAccounting()
    found = attributes.read_columns(rows, source, "UTC", outcomes, accounting)
    assert list(found) == [name for name in attributes.schema(source).names if name != "customer_id"]
    assert outcomes.accepted.tolist() == [True, False, False, True]
    assert found["attr_age@known_at"].to_pylist()[::3] == [float(DAY), None]
    assert accounting.notices["values of age without a known_at, never used"] == 1
