"""Schema of the cleaned event table, codes of event types, and 64-bit keys of ids.

Every source is mapped to the schema `EVENTS` before histories are built from it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clv.data.hashing import hash_strings

US = pa.timestamp("us", tz="UTC")

EVENTS = pa.schema(
    [
        pa.field("event_id", pa.string()),
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("event_time", US, nullable=False),
        pa.field("known_at", US, nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("order_id", pa.string()),
        pa.field("item_id", pa.string()),
        pa.field("quantity", pa.float64()),
        pa.field("amount", pa.float64()),
        pa.field("amount_filled", pa.bool_()),
        pa.field("text", pa.string()),
        pa.field("channel", pa.string()),
    ]
)

TYPES = {
    "purchase": 0,
    "return": 1,
    "view": 2,
    "cart": 3,
    "favourite": 4,
    "click": 5,
    "impression": 6,
    "rating": 7,
    "review": 8,
    "message": 9,
}
PURCHASE, RETURN = TYPES["purchase"], TYPES["return"]
FIRST_FREE_TYPE = 32


def stable_hash(strings: pa.Array | pa.ChunkedArray | Iterable[str | None]) -> NDArray[np.int64]:
    """Returns the int64 hash of each string, (N,): SipHash with a fixed key, equal on every machine and in every run.

    Null has the hash 0, and no string has it.
    """
    array = strings if isinstance(strings, pa.Array | pa.ChunkedArray) else pa.array(strings, pa.string())
    if isinstance(array, pa.ChunkedArray):
        parts = [stable_hash(chunk) for chunk in array.chunks]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)
    if array.null_count == len(array):
        return np.zeros(len(array), np.int64)
    if pa.types.is_dictionary(array.type):
        hashes = np.append(stable_hash(array.dictionary), 0)
        return hashes[array.indices.fill_null(len(array.dictionary)).to_numpy(zero_copy_only=False)]
    hashes = hash_strings(array.cast(pa.string())).view(np.int64)
    hashes[hashes == 0] = 1
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = 0
    return hashes


def type_code(names: pa.Array | pa.ChunkedArray | Iterable[str]) -> NDArray[np.int16]:
    """Returns the int16 code of each event type, (N,): that of `TYPES`, or for another name a stable one from 32 up."""
    array = names if isinstance(names, pa.Array | pa.ChunkedArray) else pa.array(names, pa.string())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    words = encoded.dictionary.to_pylist()
    free = (stable_hash(words).view(np.uint64) % 30_000 + FIRST_FREE_TYPE).tolist()
    codes = np.array([TYPES.get(word, code) for word, code in zip(words, free, strict=True)], dtype=np.int16)
    return codes[encoded.indices.to_numpy(zero_copy_only=False)] if len(codes) else np.zeros(len(array), np.int16)
