"""Static attributes of customers, each with the time from which it was known.

Histories carry `attr_<name>`; where the spec names a `known_at` also `attr_<name>@known_at` (us UTC) and, with a
`fill`, `attr_<name>@fill`. `known_attributes` computes from these the attributes that were known at an origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from clv.data.histories import ATTRIBUTE_PREFIX
from clv.data.prepare import parsing
from clv.data.prepare.accounting import RowAccounting, RowOutcomes
from clv.data.prepare.mapping import finite_numbers
from clv.data.spec.models import Attribute, CustomerSource, DatasetSpec

# No name of an attribute holds a "@". Times are floats, since stores hold text and floats; exact until 2255.
KNOWN_AT, FILL, FILLED = "@known_at", "@fill", "_filled"


def schema(source: CustomerSource) -> pa.Schema:
    """Returns the schema of the columns that `read_columns` computes, with `customer_id`."""
    fields = [("customer_id", pa.string())]
    for name, rule in source.attributes.items():
        fields.append((ATTRIBUTE_PREFIX + name, _kind(rule)))
        if rule.known_at is not None:
            fields.append((ATTRIBUTE_PREFIX + name + KNOWN_AT, pa.float64()))
    return pa.schema(fields)


def read_columns(
    rows: pa.Table, source: CustomerSource, timezone: str, outcomes: RowOutcomes, accounting: RowAccounting
) -> dict[str, Any]:
    """Returns the attr_* columns of a block of a customer table, by name.

    Rejects rows with a number or time that cannot be read; counts values without a known_at, which are never used.
    """
    columns: dict[str, Any] = {}
    for name, rule in source.attributes.items():
        if rule.kind == "numeric":
            given = pa.array(finite_numbers(rows, rule.column, name, source, outcomes), from_pandas=True)
        else:
            given = parsing.strings(rows[rule.column], True)
        columns[ATTRIBUTE_PREFIX + name] = given
        if rule.known_at is not None:
            time, missing, bad, _ = parsing.times(rows[rule.known_at], source.time_format, timezone)
            outcomes.reject(bad, f"known_at of {name} is unreadable or outside 1970 to 2099")
            columns[ATTRIBUTE_PREFIX + name + KNOWN_AT] = pa.array(np.where(missing, np.nan, time), from_pandas=True)
            undated = missing & given.is_valid().to_numpy(zero_copy_only=False) & outcomes.accepted
            if undated.any():
                accounting.notices[f"values of {name} without a known_at, never used"] += int(undated.sum())
    return columns


def fill_missing(spec: DatasetSpec, table: pa.Table) -> pa.Table:
    """Returns histories whose missing attributes are filled and flagged, as the spec declares.

    An attribute with a known_at gets its fill as a column, which `known_attributes` applies at an origin.
    """
    for source in spec.customers:
        for name, rule in source.attributes.items():
            column = ATTRIBUTE_PREFIX + name
            if rule.fill is None or column not in table.column_names:
                continue
            fill = pa.scalar(float(rule.fill) if rule.kind == "numeric" else str(rule.fill), _kind(rule))
            if rule.known_at is not None:
                table = table.append_column(column + FILL, pa.repeat(fill, len(table)))
                continue
            missing = table[column].is_null().cast(pa.float64())
            table = table.set_column(table.column_names.index(column), column, table[column].fill_null(fill))
            table = table.append_column(column + FILLED, missing)
    return table


def known_attributes(
    attributes: Mapping[str, NDArray[Any]], customer: NDArray[np.int64], origin: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Returns the attributes of each row's customer by name; those not known before its origin (us UTC) are missing."""
    out: dict[str, NDArray[Any]] = {}
    for name, all_values in attributes.items():
        if "@" in name:
            continue
        out[name] = all_values[customer]
        if name + KNOWN_AT not in attributes:
            continue
        # A comparison with NaN is false: a value without a time was never known.
        known = np.asarray(attributes[name + KNOWN_AT], np.float64)[customer] < origin
        missing_value: Any = np.nan if all_values.dtype.kind == "f" else None
        out[name] = np.where(known, out[name], missing_value)
        if name + FILL in attributes:
            fill = attributes[name + FILL][customer]
            missing = np.asarray(pd.isna(out[name]))
            out[name] = np.where(missing, fill, out[name])
            out[name + FILLED] = missing.astype(np.float64)
    return out


def _kind(rule: Attribute) -> pa.DataType:
    return pa.float64() if rule.kind == "numeric" else pa.string()
