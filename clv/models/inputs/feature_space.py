"""The feature space: vocabularies, scalers and clip points that turn rows of a cut into arrays for the model.

It is fitted once, on the pasts before the training cutoff, and travels in the bundle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data.clock import DAY_US
from clv.data.cutoff import Cut
from clv.data.events import PURCHASE
from clv.data.features import default_value, feature_names
from clv.data.histories import ATTRIBUTE_PREFIX, Histories, ranges
from clv.models.inputs.text_history import TextSpace
from clv.models.inputs.tokens import Floats, Ints, TextArrays, TokenArrays, vocabulary_index

NUM_AMOUNT_BINS = 16
NUM_TIME_BINS = 16
LONGEST_GAP_DAYS = 1500.0
TEXT = "text."  # prefix of the names of a text space's arrays


@dataclass(frozen=True)
class Items:
    """Items by 64-bit key, each with a text vector and a category (the top of its path)."""

    keys: Ints  # Shape: (I,)
    vectors: Floats  # Shape: (I, D); D = 0 without text
    category: Ints  # Shape: (I,), 1 + index into `category_names`, 0 unknown
    category_names: tuple[str, ...] = ()
    texts: pa.Array | None = None  # Shape: (I,), an item's text, else its category

    @classmethod
    def empty(cls) -> Self:
        """No items: every item of a history is unknown."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 0), np.float32), np.zeros(0, np.int64))

    @classmethod
    def from_tables(cls, items: pa.Table, vectors: pa.Table | None) -> Self:
        """Joins the items table of a prepared dataset (`clv.data.prepare.items.ITEMS`) with its text vectors."""
        keys = items["item_key"].to_numpy()
        top = items["category"].to_pandas().fillna("").astype(str).str.split(" / ").str[0]
        names = sorted(set(top) - {""})
        category = pd.Index(names).get_indexer(top) + 1
        texts = pc.coalesce(items["text"], items["category"]).combine_chunks()
        if vectors is None or len(vectors) == 0:
            return cls(keys, np.zeros((len(keys), 0), np.float32), category, tuple(names), texts)
        column = vectors["vector"].combine_chunks()
        matrix = column.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1).astype(np.float32)
        row = pd.Index(vectors["text_key"].to_numpy()).get_indexer(items["text_key"].to_numpy())
        item_vectors = np.where((row >= 0)[:, None], matrix[row], np.float32(0))
        return cls(keys, item_vectors, category, tuple(names), texts)


@dataclass(frozen=True)
class FeatureSpace:
    """Turns rows of a cut into arrays for the model: `wide` features and `tokens`.

    Numeric features are sign-log scaled, standardised and clipped at points fitted on the training rows, so that a
    customer older than any seen in training does not leave the known range.
    """

    numeric: tuple[str, ...]
    center: Floats  # as scale, low and high: one number per numeric feature
    scale: Floats
    low: Floats
    high: Floats
    categorical: dict[str, tuple[str, ...]]  # the known values of each categorical attribute
    types: Ints
    channels: Ints
    amount_edges: Floats
    amount_center: float
    amount_scale: float
    item_keys: Ints  # Shape: (I,), sorted; the index of an item is 1 + its place here
    item_rank: Ints  # Shape: (I,), 1.. for items with a learned vector, 0 for all others
    item_category: Ints  # Shape: (I + 1,), row 0 for unknown items
    category_names: tuple[str, ...]
    text_vectors: Floats = field(repr=False)  # Shape: (I + 1, D), row 0 for unknown items
    text: TextSpace | None = None  # for a model with a text encoder

    @property
    def num_learned_items(self) -> int:
        """Rows of the table of learned item vectors, the row of unknown items included."""
        return int(self.item_rank.max(initial=0)) + 1

    @property
    def width(self) -> int:
        """Number of wide features: each numeric one, a flag for those that can be missing, one-hot attributes."""
        return 2 * len(self.numeric) + sum(len(values) + 1 for values in self.categorical.values())

    @classmethod
    def fit(
        cls,
        cut: Cut,
        table: pd.DataFrame,
        items: Items | None = None,
        *,
        num_items: int = 2000,
        text_width: int = 32,
        min_count: int = 20,
    ) -> Self:
        """Fits the space on the pasts of `cut` and its feature table; nothing after a row's origin is used.

        num_items: items with a learned vector, at most. text_width: components of the items' text vectors. min_count:
        channels, attribute values and items that are rarer count as unknown.
        """
        items = items or Items.empty()
        numeric = tuple(name for name in feature_names(table) if not name.startswith("f_doy"))
        categorical: dict[str, tuple[str, ...]] = {}
        for name in [c for c in table.columns if c.startswith(ATTRIBUTE_PREFIX)]:
            if pd.api.types.is_numeric_dtype(table[name]):
                numeric = (*numeric, name)
            else:
                values_seen = table[name].value_counts()
                categorical[name] = tuple(sorted(values_seen.index[values_seen >= min_count].astype(str)))
        values = _sign_log(table[list(numeric)].to_numpy(np.float64))
        center, scale = _column_statistic(values, np.mean), _column_statistic(values, np.std)
        low, high = (_column_statistic(values, partial(np.quantile, q=q)) for q in (0.001, 0.999))

        h, past = cut.histories, np.unique(cut.index)
        amounts = _sign_log(h.amount[past][~np.isnan(h.amount[past])])
        inner = np.linspace(0, 1, NUM_AMOUNT_BINS)[1:-1]
        edges = np.unique(np.quantile(amounts, inner)) if len(amounts) else np.zeros(0)
        channels, channel_counts = np.unique(h.channel[past], return_counts=True)
        keys, counts = _past_items(h, past)
        rank = np.zeros(len(keys), np.int64)
        frequent = np.argsort(-counts, kind="stable")[:num_items]
        frequent = frequent[counts[frequent] >= min_count]
        rank[frequent] = np.arange(1, len(frequent) + 1)
        vectors, category = _look_up(items, keys)
        return cls(
            numeric=numeric,
            center=center.astype(np.float32),
            scale=np.where(scale > 1e-6, scale, 1.0).astype(np.float32),
            low=low.astype(np.float32),
            high=high.astype(np.float32),
            categorical=categorical,
            types=np.unique(h.type[past]).astype(np.int64),
            channels=channels[(channel_counts >= min_count) & (channels != 0)],
            amount_edges=edges.astype(np.float32),
            amount_center=float(amounts.mean()) if len(amounts) else 0.0,
            amount_scale=float(max(amounts.std(), 1e-3)) if len(amounts) else 1.0,
            item_keys=keys,
            item_rank=rank,
            item_category=category,
            category_names=items.category_names,
            text_vectors=_principal(vectors, counts, text_width),
        )

    def wide(self, table: pd.DataFrame) -> Floats:
        """(S, F) features of a feature table; a missing one is 0 with its flag set, also where its column is absent."""
        missing = [name for name in self.numeric if name not in table.columns]
        raw = table.assign(**{name: default_value(name) for name in missing})[list(self.numeric)].to_numpy(np.float64)
        values = np.clip(_sign_log(raw), self.low, self.high)
        values = (values - self.center) / self.scale
        undefined = np.isnan(values)
        parts = [np.where(undefined, 0.0, np.clip(values, -6, 6)), undefined.astype(np.float32)]
        for name, known in self.categorical.items():
            column = table[name].astype(str) if name in table.columns else pd.Series([""] * len(table))
            index = pd.Index(known).get_indexer(pd.Index(column)) + 1
            parts.append(np.eye(len(known) + 1, dtype=np.float32)[index])
        return np.concatenate(parts, axis=1).astype(np.float32)

    def tokens(self, cut: Cut, max_tokens: int) -> TokenArrays | TextArrays:
        """Flat arrays of the newest `max_tokens` events of each row, or of that many word pieces of its text."""
        return self.event_tokens(cut, max_tokens) if self.text is None else self.text.tokens(cut, max_tokens)

    def event_tokens(self, cut: Cut, max_tokens: int) -> TokenArrays:
        """Flat arrays of the newest `max_tokens` events of each row, whether or not the model encodes a text."""
        h = cut.histories
        offsets, past_index = cut.newest(max_tokens)
        index = cut.index[past_index]
        row = np.repeat(np.arange(len(cut)), np.diff(offsets))
        since = (cut.origin[row] - h.time[index]) / DAY_US
        # The gap reaches back to the previous event of this past, which skips events that were known only later.
        first = past_index == cut.offsets[:-1][row]
        gap = np.where(first, LONGEST_GAP_DAYS, (h.time[index] - h.time[cut.index[past_index - 1]]) / DAY_US)
        amount = _sign_log(np.nan_to_num(h.amount[index]))
        angle = 2 * np.pi * ((h.day[index] + 0.0) % 365.2425) / 365.2425
        scalars = np.stack(
            [
                (amount - self.amount_center) / self.amount_scale,
                np.log1p(np.clip(h.quantity[index], 0, None)) / 3,
                np.log1p(h.lines[index]) / 2,
                _log_days(gap),
                _log_days(since),
                np.sin(angle),
                np.cos(angle),
                np.isnan(h.amount[index]),
                first,
            ],
            axis=1,
        ).astype(np.float32)
        codes = np.stack(
            [
                vocabulary_index(self.types, h.type[index]),
                np.searchsorted(self.amount_edges, amount) + 1,
                _time_bin(gap),
                _time_bin(since),
                (h.day[index] + 3) % 7,  # 1970-01-01 was a Thursday; Monday is 0
                vocabulary_index(self.channels, h.channel[index]),
            ],
            axis=1,
        ).astype(np.int64)
        start, stop = h.item_offsets[index], h.item_offsets[index + 1]
        items = vocabulary_index(self.item_keys, h.items[ranges(start, stop)])
        return TokenArrays(offsets, scalars, codes, np.append(0, np.cumsum(stop - start)), items)

    def event_codes(self, types: NDArray[Any], amounts: NDArray[Any], days: NDArray[Any]) -> tuple[Ints, Ints, Ints]:
        """(type, amount bin, time bin of `days`) of E single events, (E,) each, coded as in `tokens`."""
        amount = _sign_log(np.nan_to_num(amounts))
        return (
            vocabulary_index(self.types, types),
            np.asarray(np.searchsorted(self.amount_edges, amount) + 1),
            _time_bin(days),
        )

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """(JSON part, arrays) of the space for a bundle; `from_arrays` is the inverse."""
        plain = {
            "numeric": list(self.numeric),
            "categorical": {name: list(values) for name, values in self.categorical.items()},
            "amount_center": self.amount_center,
            "amount_scale": self.amount_scale,
            "category_names": list(self.category_names),
        }
        names = (
            *("center", "scale", "low", "high", "types", "channels", "amount_edges"),
            *("item_keys", "item_rank", "item_category", "text_vectors"),
        )
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in names}
        if self.text is not None:
            plain["text"], text_arrays = self.text.to_arrays()
            arrays |= {f"{TEXT}{name}": array for name, array in text_arrays.items()}
        return plain, arrays

    @classmethod
    def from_arrays(cls, plain: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """Builds the space from what `to_arrays` returned."""
        text = {name.removeprefix(TEXT): array for name, array in arrays.items() if name.startswith(TEXT)}
        return cls(
            numeric=tuple(plain["numeric"]),
            categorical={name: tuple(values) for name, values in plain["categorical"].items()},
            amount_center=float(plain["amount_center"]),
            amount_scale=float(plain["amount_scale"]),
            category_names=tuple(plain["category_names"]),
            text=TextSpace.from_arrays(plain["text"], text) if text else None,
            **{name: array for name, array in arrays.items() if not name.startswith(TEXT)},
        )


def _sign_log(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)), dtype=np.float64)


def _log_days(days: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log1p(np.clip(days, 0, LONGEST_GAP_DAYS)) / 3 - 1)


def _time_bin(days: NDArray[np.float64]) -> Ints:
    bins = np.log1p(np.clip(days, 0, LONGEST_GAP_DAYS)) / np.log1p(LONGEST_GAP_DAYS) * (NUM_TIME_BINS - 1)
    return np.asarray(bins.astype(np.int64))


def _past_items(h: Histories, tokens: Ints) -> tuple[Ints, Ints]:
    """(sorted keys, counts) of the items that were bought at `tokens`."""
    bought = tokens[h.type[tokens] == PURCHASE]
    items = h.items[ranges(h.item_offsets[bought], h.item_offsets[bought + 1])]
    keys, counts = np.unique(items, return_counts=True)
    return keys.astype(np.int64), counts.astype(np.int64)


def _look_up(items: Items, keys: Ints) -> tuple[Floats, Ints]:
    """(I + 1, D) vectors and (I + 1,) categories of sorted keys; row 0 and the rows of keys not in `items` are zero."""
    order = np.argsort(items.keys, kind="stable")
    index = vocabulary_index(items.keys[order], keys)
    rows = np.append(0, order)[index] if len(order) else index
    known = index > 0
    vectors = np.zeros((len(keys) + 1, items.vectors.shape[1]), np.float32)
    vectors[1:][known] = items.vectors[rows[known]]
    category = np.zeros(len(keys) + 1, np.int64)
    category[1:][known] = items.category[rows[known]]
    return vectors, category


def _principal(vectors: Floats, counts: Ints, width: int) -> Floats:
    """(I + 1, width) leading principal components of the vectors, weighted by purchases; their mean square is 1."""
    if vectors.shape[1] == 0 or len(vectors) < 3:
        return np.zeros((len(vectors), 0), np.float32)
    weights = np.sqrt(counts / counts.sum())[:, None]
    mean = (vectors[1:] * weights**2).sum(0)
    centred = vectors - mean
    _, axes = np.linalg.eigh((centred[1:] * weights).T @ (centred[1:] * weights))
    reduced = centred @ axes[:, ::-1][:, :width]
    reduced[0] = 0.0
    return np.asarray(reduced / max(float(np.sqrt((reduced[1:] ** 2).mean())), 1e-6), np.float32)


def _column_statistic(values: NDArray[np.float64], statistic: Callable[[Any], Any]) -> NDArray[np.float64]:
    """The statistic of each column's values that are not NaN; 0 for a column without any."""
    columns = [column[~np.isnan(column)] for column in values.T]
    return np.array([statistic(column) if len(column) else 0.0 for column in columns])
