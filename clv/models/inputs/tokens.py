"""Token arrays of many pasts, flat or padded to a rectangle: events with their fields, or the word pieces of a text.

Both kinds pad their own batches: `pad` returns the arrays of a `clv.models.inputs.batch.Batch` without a loop over
customers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clv.data.histories import ranges

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Padded = dict[str, NDArray[Any]]  # scalars, codes, mask, item, item_token of a Batch

NUM_SCALARS = 9
UNKNOWN = 0  # index 0 of every vocabulary


@dataclass(frozen=True)
class TokenArrays:
    """Events of S rows as N tokens: row i has tokens offsets[i]:offsets[i + 1], oldest first, and token t has items
    item_offsets[t]:item_offsets[t + 1]."""

    offsets: Ints  # Shape: (S + 1,)
    scalars: Floats  # Shape: (N, NUM_SCALARS)
    codes: Ints  # Shape: (N, 6): type, amount bin, gap bin, age bin, weekday, channel
    item_offsets: Ints  # Shape: (N + 1,)
    item: Ints  # Shape: (L,), index into the item tables of the feature space, 0 unknown

    @property
    def lengths(self) -> Ints:
        """(S,) tokens of each row."""
        return np.diff(self.offsets)

    def select(self, index: Ints, offsets: Ints) -> TokenArrays:
        """The tokens `index` alone; row i of the result has index[offsets[i]:offsets[i + 1]]."""
        start, stop = self.item_offsets[index], self.item_offsets[index + 1]
        return TokenArrays(
            offsets,
            self.scalars[index],
            self.codes[index],
            np.append(0, np.cumsum(stop - start)),
            self.item[ranges(start, stop)],
        )

    def pad(self, index: Ints, row: Ints, num_rows: int) -> Padded:
        """Batch arrays of the tokens `index`, oldest first; row (ascending): the batch row that each belongs to."""
        length = np.bincount(row, minlength=num_rows)
        column = _index_in_run(length)
        width = max(int(length.max(initial=0)), 1)
        scalars = np.zeros((num_rows, width, NUM_SCALARS), np.float32)
        codes = np.zeros((num_rows, width, self.codes.shape[1]), np.int64)
        mask = np.zeros((num_rows, width), np.float32)
        scalars[row, column] = self.scalars[index]
        codes[row, column] = self.codes[index]
        mask[row, column] = 1.0
        start, stop = self.item_offsets[index], self.item_offsets[index + 1]
        return {
            "scalars": scalars,
            "codes": codes,
            "mask": mask,
            "item": self.item[ranges(start, stop)],
            "item_token": np.repeat(row * width + column, stop - start).astype(np.int64),
        }


@dataclass(frozen=True)
class TextArrays:
    """Events of S rows as word pieces: row i has events offsets[i]:offsets[i + 1], oldest first, and event e has pieces
    piece_offsets[e]:piece_offsets[e + 1]."""

    offsets: Ints
    piece_offsets: Ints
    pieces: NDArray[np.int32]
    special_pieces: tuple[int, int, int]  # that begin a text, end it and pad it: [CLS], [SEP], [PAD]

    @property
    def lengths(self) -> Ints:
        """(S,) word pieces of each row's text, [CLS] and [SEP] included."""
        return np.diff(self.piece_offsets[self.offsets]) + 2

    def pad(self, index: Ints, row: Ints, num_rows: int) -> Padded:
        """Batch arrays of the events `index` of the batch rows `row` as texts, newest event first.

        codes (B, T, 1) are the word pieces; texts have neither scalars nor items.
        """
        order = np.lexsort((-index, row))
        index, row = index[order], row[order]
        start, stop = self.piece_offsets[index], self.piece_offsets[index + 1]
        piece_row = np.repeat(row, stop - start)
        length = np.bincount(piece_row, minlength=num_rows)
        first, last, padding = self.special_pieces
        codes = np.full((num_rows, int(length.max(initial=0)) + 2, 1), padding, np.int64)
        codes[:, 0, 0] = first
        codes[piece_row, 1 + _index_in_run(length), 0] = self.pieces[ranges(start, stop)]
        codes[np.arange(num_rows), length + 1, 0] = last
        return {
            "scalars": np.zeros((*codes.shape[:2], 0), np.float32),
            "codes": codes,
            "mask": (np.arange(codes.shape[1]) < length[:, None] + 2).astype(np.float32),
            "item": np.zeros(0, np.int64),
            "item_token": np.zeros(0, np.int64),
        }


def vocabulary_index(vocabulary: Ints, values: NDArray[Any]) -> Ints:
    """1 + index of each value in a sorted vocabulary; UNKNOWN for a value that the vocabulary lacks."""
    if len(vocabulary) == 0:
        return np.zeros(len(values), np.int64)
    index = np.minimum(np.searchsorted(vocabulary, values), len(vocabulary) - 1)
    return np.where(vocabulary[index] == values, index + 1, UNKNOWN)


def token_batches(order: Ints, length: Ints, batch_tokens: int) -> list[Ints]:
    """`order` (rows ascending in length) in runs of at most `batch_tokens` tokens with padding, one row at least."""
    batches, start = [], 0
    sizes = length[order]
    while start < len(order):
        # With sizes ascending, rows start..stop-1 padded to the longest take (stop - start) * sizes[stop - 1] tokens.
        padded = np.arange(1, len(order) - start + 1) * sizes[start:]
        stop = start + max(1, int(np.searchsorted(padded, batch_tokens, side="right")))
        batches.append(order[start:stop])
        start = stop
    return batches


def _index_in_run(length: Ints) -> Ints:
    """0, 1, ... within each run of the given lengths."""
    return np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
