"""Row filters: `where` of a source chooses its rows; files and row groups without such rows are not read.

A column of the file, or of a folder such as `day=2024-05-01`, with a value, a list of values, or {min, below}. Numbers
and times are compared as such, times with a zone in UTC; values of a CSV or of a folder's name are compared as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data.spec.models import Range

Rules = Mapping[str, Range | list[str]]


def folder_columns(path: str) -> dict[str, str | None]:
    """Returns the columns in the folder names of a path, which Hive writes as name=value."""
    found: dict[str, str | None] = {}
    for part in path.split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and name.isidentifier():
            found[name] = None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
    return found


def may_hold(rules: Rules, path: str) -> bool:
    """Returns whether a file can hold a row that matches, by its folders' names."""
    known = folder_columns(path)
    return all(_overlaps(rule, known[name], known[name]) for name, rule in rules.items() if name in known)


def group_may_hold(rules: Rules, group: Any, kinds: Mapping[str, pa.DataType]) -> bool:
    """Returns whether a Parquet row group can hold a row that matches, by its statistics."""
    for index in range(group.num_columns):
        column = group.column(index)
        name, found = column.path_in_schema, column.statistics
        if name not in rules or found is None or not found.has_min_max:
            continue
        if not _overlaps(_typed(rules[name], kinds[name]), found.min, found.max):
            return False
    return True


def mask(rules: Rules, rows: pa.Table) -> NDArray[np.bool_]:
    """Returns which rows match, (N,); a missing value never does."""
    keep = np.ones(len(rows), bool)
    for name, rule in rules.items():
        column = rows[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        typed = _typed(rule, column.type)
        if isinstance(typed, list):
            hit = pc.is_in(column, pa.array(typed, column.type))
        else:
            hit = column.is_valid()
            for bound, holds in ((typed.min, pc.greater_equal), (typed.below, pc.less)):
                if bound is not None:
                    hit = pc.and_kleene(hit, holds(column, pa.scalar(bound, column.type)))
        keep &= hit.fill_null(False).to_numpy(zero_copy_only=False)
    return keep


def _typed(rule: Any, kind: pa.DataType) -> Any:
    """Returns the rule with values of the column's type. Raises pa.ArrowInvalid for one that cannot be converted."""
    if isinstance(rule, list):
        return [_value(one, kind) for one in rule]
    return Range.model_construct(min=_value(rule.min, kind), below=_value(rule.below, kind))


def _value(text: str | None, kind: pa.DataType) -> Any:
    if text is None or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return text
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    scalar = pa.scalar(text).cast(pa.timestamp(kind.unit) if zoned else kind)
    return (scalar.cast(pa.timestamp(kind.unit, "UTC")).cast(kind) if zoned else scalar).as_py()


def _overlaps(rule: Any, low: Any, high: Any) -> bool:
    if low is None:
        return False
    if isinstance(rule, list):
        return any(low <= one <= high for one in rule)
    return (rule.min is None or high >= rule.min) and (rule.below is None or low < rule.below)
