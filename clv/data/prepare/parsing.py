"""Parse a column of a source as text, numbers or times; masks mark the values that could not be parsed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data.clock import DAY_US

Mask = NDArray[np.bool_]

# A time outside these years is a mistake in the unit (seconds read as milliseconds) or a placeholder.
EARLIEST_US = 0
LATEST_US = 47_482 * DAY_US  # 2100-01-01
_MISSING_NUMBERS = pa.array(["", "na", "n/a", "nan", "null", "none"])
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_ISO = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d{1,9})?)?)?$"


def one_array(column: pa.ChunkedArray | pa.Array) -> Any:
    """Returns the column as one array, with dictionaries decoded and large strings cast to strings."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
        column = column.cast(pa.string())
    return column


def mask(values: Any) -> Mask:
    """Returns Arrow's booleans as a numpy array, (N,); null is false."""
    return np.asarray(pc.fill_null(values, False).to_numpy(zero_copy_only=False))


def strings(column: pa.ChunkedArray | pa.Array, trim: bool = False) -> Any:
    """Returns the text of each value, null where missing or empty; a whole number stored as a float has no ".0"."""
    array = one_array(column)
    if not pa.types.is_string(array.type):
        if pa.types.is_floating(array.type):
            array = pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))
        array = array.cast(pa.string())
    if trim:
        array = pc.utf8_trim_whitespace(array)
    return pc.if_else(pc.equal(array, ""), pa.scalar(None, pa.string()), array)


def numbers(column: pa.ChunkedArray | pa.Array, decimal: str = ".") -> tuple[NDArray[np.float64], Mask]:
    """Returns (values with NaN where missing or unreadable, mask of the unreadable ones)."""
    array = one_array(column)
    if not pa.types.is_string(array.type):
        values = np.asarray(array.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False))
        return values, np.zeros(len(values), bool)
    text = pc.utf8_trim_whitespace(array)
    if decimal == ",":
        text = pc.replace_substring(pc.replace_substring(text, ".", ""), ",", ".")
    missing = pc.or_(pc.is_null(text), pc.is_in(pc.utf8_lower(text), _MISSING_NUMBERS))
    readable = pc.and_(pc.invert(missing), pc.fill_null(pc.match_substring_regex(text, _NUMBER), False))
    clean = pc.if_else(readable, text, pa.scalar(None, pa.string())).cast(pa.float64())
    values = np.asarray(clean.fill_null(np.nan).to_numpy(zero_copy_only=False))
    return values, mask(pc.invert(pc.or_(missing, readable)))


def times(column: pa.ChunkedArray | pa.Array, form: str, timezone: str) -> tuple[NDArray[np.int64], Mask, Mask, int]:
    """Returns (microseconds UTC, mask of missing, mask of unreadable or outside 1970 to 2099, rows in a clock change).

    Times without a zone are local to `timezone`. A local time that occurs twice is the first of the two instants; one
    that is skipped is the first instant after the gap.
    """
    array = one_array(column)
    missing = mask(pc.is_null(array))
    if pa.types.is_string(array.type):
        missing |= mask(pc.equal(pc.utf8_trim_whitespace(array), ""))
    if form in ("unix_s", "unix_ms"):
        values, _ = numbers(array)
        scale = 1_000_000 if form == "unix_s" else 1_000
        ok = (values * scale >= EARLIEST_US) & (values * scale < LATEST_US)
        whole = np.floor(np.where(ok, values, 0))
        # Whole seconds and fraction are scaled separately: a float of microseconds would lose the last digits.
        us = whole.astype(np.int64) * scale + np.rint((np.where(ok, values, 0) - whole) * scale).astype(np.int64)
        return us, missing, ~ok & ~missing, 0
    shifted = 0
    if pa.types.is_timestamp(array.type) or pa.types.is_date(array.type):
        if pa.types.is_date(array.type) or array.type.tz is None:
            stamps, shifted = _localised(array.cast(pa.timestamp("us"), safe=False), timezone)
        else:
            stamps = array.cast(pa.timestamp("us", tz="UTC"), safe=False)
    elif form == "iso":
        stamps, shifted = _iso(pc.utf8_trim_whitespace(array), timezone)
    elif "%z" in form:
        stamps = _pandas_times(array.cast(pa.string()), form, utc=True)
    else:
        stamps, shifted = _localised(_pandas_times(array.cast(pa.string()), form, utc=False), timezone)
    us = np.asarray(stamps.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False))
    ok = (us >= EARLIEST_US) & (us < LATEST_US)
    return np.where(ok, us, 0), missing, ~ok & ~missing, shifted


def _localised(naive: pa.Array, timezone: str) -> tuple[Any, int]:
    if timezone == "UTC":
        return naive.cast(pa.timestamp("us", tz="UTC")), 0
    us = naive.cast(pa.int64())
    inside = pc.and_(pc.greater_equal(us, -DAY_US), pc.less(us, LATEST_US + DAY_US))
    naive = pc.if_else(inside, naive, pa.scalar(None, naive.type))
    first = pc.assume_timezone(naive, timezone, ambiguous="earliest", nonexistent="latest")
    other = pc.assume_timezone(naive, timezone, ambiguous="latest", nonexistent="earliest")
    changed = pc.sum(pc.not_equal(first, other)).as_py() or 0
    return first.cast(pa.timestamp("us", tz="UTC")), int(changed)


def _iso(text: pa.Array, timezone: str) -> tuple[Any, int]:
    null = pa.scalar(None, pa.string())
    plain = pc.fill_null(pc.match_substring_regex(text, _ISO), False)
    naive_text = pc.if_else(plain, text, null)
    try:
        naive = naive_text.cast(pa.timestamp("us"))
    except pa.ArrowInvalid:
        naive = _pandas_times(naive_text, "ISO8601", utc=False)
    stamps, shifted = _localised(naive, timezone)
    zoned = pc.if_else(plain, null, text)
    if zoned.null_count < len(zoned):
        has_zone = pc.fill_null(pc.match_substring_regex(zoned, r"(Z|z|[+-]\d{2}:?\d{0,2})$"), False)
        parsed = _pandas_times(pc.if_else(has_zone, zoned, null), "ISO8601", utc=True)
        stamps = pc.coalesce(stamps, parsed)
    return stamps, shifted


def _pandas_times(text: pa.Array, form: str, utc: bool) -> Any:
    parsed = pd.to_datetime(text.to_pandas().astype(object), format=form, errors="coerce", utc=utc)
    us = parsed.dt.tz_localize(None) if utc else parsed
    values = us.to_numpy().astype("datetime64[us]")
    return pa.array(values, pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC" if utc else None))
