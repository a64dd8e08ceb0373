"""Pasts as flat arrays: events with their fields, or the word pieces that tell of them; each pads its own batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clv.data.histories import ranges

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Padded = dict[str, NDArray[Any]]  # scalars, codes, mask, item, item_bag of `clv.models.inputs.batch.Batch`

NUM_SCALARS = 9
UNKNOWN = 0  # index 0 of every vocabulary


@dataclass(frozen=True)
class TokenArrays:
    """Tokens of S rows, flat: row i owns offsets[i]:offsets[i + 1], token t lines item_offsets[t]:item_offsets[t + 1].

    codes (N, 6): type, amount bin, gap bin, age bin, weekday, channel. item: index into the item tables, 0 unknown.
    """

    offsets: Ints
    scalars: Floats
    codes: Ints
    item_offsets: Ints
    item: Ints

    @property
    def lengths(self) -> Ints:
        """(S,) places of each row in a batch."""
        return np.diff(self.offsets)

    def taken(self, index: Ints, offsets: Ints) -> TokenArrays:
        """Tokens `index` alone, row i of them index[offsets[i]:offsets[i + 1]]."""
        start, stop = self.item_offsets[index], self.item_offsets[index + 1]
        return TokenArrays(
            offsets,
            self.scalars[index],
            self.codes[index],
            np.append(0, np.cumsum(stop - start)),
            self.item[ranges(start, stop)],
        )

    def padded(self, index: Ints, place: Ints, num_rows: int) -> Padded:
        """Tokens `index`, oldest first; place (ascending): the row of the batch that each belongs to."""
        length = np.bincount(place, minlength=num_rows)
        column = _count_up(length)
        width = max(int(length.max(initial=0)), 1)
        scalars = np.zeros((num_rows, width, NUM_SCALARS), np.float32)
        codes = np.zeros((num_rows, width, self.codes.shape[1]), np.int64)
        mask = np.zeros((num_rows, width), np.float32)
        scalars[place, column] = self.scalars[index]
        codes[place, column] = self.codes[index]
        mask[place, column] = 1.0
        start, stop = self.item_offsets[index], self.item_offsets[index + 1]
        bag = np.repeat(place * width + column, stop - start).astype(np.int64)
        return {
            "scalars": scalars,
            "codes": codes,
            "mask": mask,
            "item": self.item[ranges(start, stop)],
            "item_bag": bag,
        }


@dataclass(frozen=True)
class TextArrays:
    """Events of S rows as word pieces, flat: row i owns events offsets[i]:offsets[i + 1], oldest first, event e pieces
    piece_offsets[e]:piece_offsets[e + 1]. marks: the pieces that open a text, close it and pad it."""

    offsets: Ints
    piece_offsets: Ints
    pieces: NDArray[np.int32]
    marks: tuple[int, int, int]

    @property
    def lengths(self) -> Ints:
        return np.diff(self.piece_offsets[self.offsets]) + 2

    def padded(self, index: Ints, place: Ints, num_rows: int) -> Padded:
        """Events `index` of the rows `place` as texts, newest event first; codes (B, P, 1) hold the pieces."""
        order = np.lexsort((-index, place))
        index, place = index[order], place[order]
        start, stop = self.piece_offsets[index], self.piece_offsets[index + 1]
        row = np.repeat(place, stop - start)
        length = np.bincount(row, minlength=num_rows)
        opening, closing, padding = self.marks
        codes = np.full((num_rows, int(length.max(initial=0)) + 2, 1), padding, np.int64)
        codes[:, 0, 0] = opening
        codes[row, 1 + _count_up(length), 0] = self.pieces[ranges(start, stop)]
        codes[np.arange(num_rows), length + 1, 0] = closing
        return {
            "scalars": np.zeros((*codes.shape[:2], 0), np.float32),
            "codes": codes,
            "mask": (np.arange(codes.shape[1]) < length[:, None] + 2).astype(np.float32),
            "item": np.zeros(0, np.int64),
            "item_bag": np.zeros(0, np.int64),
        }


def position(vocabulary: Ints, values: NDArray[Any]) -> Ints:
    """1 + place of each value in a sorted vocabulary, UNKNOWN where it is not there."""
    if len(vocabulary) == 0:
        return np.zeros(len(values), np.int64)
    place = np.minimum(np.searchsorted(vocabulary, values), len(vocabulary) - 1)
    return np.where(vocabulary[place] == values, place + 1, UNKNOWN)


def _count_up(length: Ints) -> Ints:
    """0, 1, ... within each run of the given lengths."""
    return np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
