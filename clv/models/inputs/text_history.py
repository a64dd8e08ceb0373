"""A customer's past as text, newest event first, in the word pieces of a pretrained encoder:

    [CLS] 3 days ago purchase 25 4 items , fluid milk , white bread , … . 2 months ago view , … . [SEP]

An event says when it happened, what it was, what it cost (two significant digits, in the shop's currency), how many
items it had, what some of them are (item text, else category) and what the customer wrote. Items are named from the
newest event on until their names fill half of the text, so that the rhythm before them is still told. Each phrase is
tokenised once, when the space is fitted: a text is then a run of rows of one table, and no string is touched when a
model is trained or scores, but for what customers wrote.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from itertools import chain
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clv.data.clock import DAY_US
from clv.data.cutoff import Cut
from clv.data.events import TYPES
from clv.data.histories import ranges
from clv.models.backbones import text_backbone
from clv.models.backbones.encoders import BackboneConfig
from clv.models.inputs.tokens import Ints, TextArrays, position

MAX_ITEMS = 3  # named of a basket
ITEM_PIECES = 6  # of an item's text, the comma before it not counted
SAID_PIECES = 32  # of a message or review
SAID_LETTERS = 1000  # that are looked at for them
LONGEST_DAYS = 1500
MOST_LINES = 100
SMALLEST, LARGEST = -2, 8  # powers of ten of an amount; a smaller one is 0
MANTISSAS = 90  # 10 to 99
AMOUNTS = 1 + (LARGEST - SMALLEST + 1) * MANTISSAS  # of one sign

# Where each kind of phrase begins in the table; phrase 0 is empty.
AGE = 1
KIND = AGE + LONGEST_DAYS + 1
AMOUNT = KIND + len(TYPES) + 1
LINES = AMOUNT + 2 * AMOUNTS
END = LINES + MOST_LINES + 1
ITEM = END + 1
NAMES = slice(4, 4 + MAX_ITEMS)  # the columns of an event's phrases that name its items
SAID = NAMES.stop  # and the one of its text; the last is END


@dataclass(frozen=True)
class TextSpace:
    """Word pieces of every phrase, and what the encoder is: fitted before the cut, kept in the bundle.

    checkpoint: the encoder's own configuration; tokenizer: its `tokenizer.json`. item_phrase[i]: phrase of the item
    with key item_keys[i].
    """

    checkpoint: dict[str, Any] = field(repr=False)
    marks: tuple[int, int, int]  # the pieces that open a text, close it and pad it
    starts: Ints  # phrase p is pieces[starts[p]:starts[p + 1]]
    pieces: NDArray[np.int32]
    item_keys: Ints
    item_phrase: Ints
    tokenizer: str = field(repr=False)

    @classmethod
    def fit(cls, cut: Cut, keys: Ints, texts: pa.Array | None, backbone: BackboneConfig) -> Self:
        """For the items (keys, with their texts) that stand in the pasts of `cut`, and the encoder that `backbone` is.

        Raises ValueError where `backbone` is not the shape of the checkpoint that it names.
        """
        source = backbone.pretrained
        if source is None:
            raise ValueError("model.encoder text reads a pretrained encoder: name one in model.backbone.pretrained")
        text_backbone.check_shape(source, backbone)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # training forks nothing, but warns
        tokenizer = text_backbone.tokenizer_of(source)
        h = cut.histories
        past = np.unique(cut.index)
        seen = np.unique(h.items[ranges(h.item_offsets[past], h.item_offsets[past + 1])])
        item_keys, rows, names = _named(keys, texts, seen)
        phrases = [*_phrases(), *(f", {name}" for name in names)]
        # A blank before each: encoders that tell the start of a word by it then see the start of a word.
        ids = tokenizer([f" {phrase}" for phrase in phrases], add_special_tokens=False)["input_ids"]
        ids[0] = []
        comma = len(tokenizer(" ,", add_special_tokens=False)["input_ids"])
        ids[ITEM:] = [found[: comma + ITEM_PIECES] for found in ids[ITEM:]]
        return cls(
            checkpoint=text_backbone.configuration(source),
            marks=(tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id),
            starts=np.append(0, np.cumsum([len(found) for found in ids])),
            pieces=np.array([piece for found in ids for piece in found], np.int32),
            item_keys=item_keys,
            item_phrase=rows + ITEM,
            tokenizer=tokenizer.backend_tokenizer.to_str(),
        )

    def tokens(self, cut: Cut, max_tokens: int) -> TextArrays:
        """The newest events of each row's past, as many as `max_tokens` pieces hold, marks counted; the oldest of them
        is cut where the text ends."""
        size, room = np.diff(self.starts), max_tokens - 2
        least = max(1, int(size[AGE:KIND].min() + size[KIND:AMOUNT].min() + size[END]))
        offsets, place = cut.newest(-(-room // least))
        row = np.repeat(np.arange(len(cut)), np.diff(offsets))
        phrases = self._phrases_of(cut, row, cut.index[place])
        phrases[:, SAID], starts, pieces = self._said(cut, cut.index[place])
        size = np.diff(starts)
        names = phrases[:, NAMES]
        names[_from_newest(size[names].sum(1), offsets, row) > room // 2] = 0
        length = size[phrases].sum(1)
        kept = np.clip(room - (_from_newest(length, offsets, row) - length), 0, length)
        shown = np.flatnonzero(kept)
        whole = pieces[ranges(starts[phrases[shown]].ravel(), starts[phrases[shown] + 1].ravel())]
        before = np.append(0, np.cumsum(length[shown]))[:-1]
        return TextArrays(
            np.append(0, np.cumsum(np.bincount(row[shown], minlength=len(cut)))),
            np.append(0, np.cumsum(kept[shown])),
            whole[ranges(before, before + kept[shown])],
            self.marks,
        )

    def _phrases_of(self, cut: Cut, row: Ints, index: Ints) -> Ints:
        """(E, SAID + 2) phrases of the events `index` as seen from the origin of their rows."""
        h = cut.histories
        days = np.clip((cut.origin[row] - h.time[index]) // DAY_US, 0, LONGEST_DAYS)
        kind = np.minimum(h.type[index].astype(np.int64), len(TYPES))
        out = np.zeros((len(index), SAID + 2), np.int64)
        out[:, 0] = AGE + days
        out[:, 1] = KIND + kind
        out[:, 2] = np.where(np.isnan(h.amount[index]), 0, AMOUNT + amount_code(np.nan_to_num(h.amount[index])))
        out[:, 3] = LINES + np.minimum(h.lines[index], MOST_LINES)
        start, stop = h.item_offsets[index], h.item_offsets[index + 1]
        named = position(self.item_keys, h.items[ranges(start, stop)])
        event = np.repeat(np.arange(len(index)), stop - start)[named > 0]
        rank = np.arange(len(event)) - np.searchsorted(event, event)
        first = rank < MAX_ITEMS
        out[event[first], NAMES.start + rank[first]] = self.item_phrase[named[named > 0][first] - 1]
        out[:, -1] = END
        return out

    def _said(self, cut: Cut, index: Ints) -> tuple[Ints, Ints, NDArray[np.int32]]:
        """Phrase of what was written at each event, 0 where nothing was; and the table with these phrases behind."""
        said, out = cut.histories.said, np.zeros(len(index), np.int64)
        if said is None:
            return out, self.starts, self.pieces
        texts = pc.utf8_slice_codeunits(said.take(pa.array(index)), 0, SAID_LETTERS)
        written = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
        encoded = texts.take(pa.array(written)).dictionary_encode()
        given = [f" {text}" for text in encoded.dictionary.to_pylist()]
        ids = [one.ids[:SAID_PIECES] for one in self._tokenizer.encode_batch(given, add_special_tokens=False)]
        out[written] = len(self.starts) - 1 + encoded.indices.to_numpy()
        starts = np.append(self.starts, self.starts[-1] + np.cumsum([len(found) for found in ids], dtype=np.int64))
        return out, starts, np.append(self.pieces, np.fromiter(chain.from_iterable(ids), np.int32))

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        found = Tokenizer.from_str(self.tokenizer)
        found.no_truncation()
        found.no_padding()
        return found

    def describe(self) -> str:
        return f"{len(self.item_keys):,} items in words, {len(np.unique(self.item_phrase)):,} distinct texts"

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """(JSON-able part, array part); `from_arrays` is the inverse."""
        names = ("starts", "pieces", "item_keys", "item_phrase")
        plain = {"checkpoint": self.checkpoint, "marks": list(self.marks), "tokenizer": self.tokenizer}
        return plain, {name: getattr(self, name) for name in names}

    @classmethod
    def from_arrays(cls, plain: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        opening, closing, padding = plain["marks"]
        marks = (opening, closing, padding)
        return cls(checkpoint=plain["checkpoint"], marks=marks, tokenizer=plain["tokenizer"], **arrays)


def amount_code(amounts: NDArray[np.float64]) -> Ints:
    """Index of each amount, rounded to two significant digits, among the phrases of amounts."""
    size = np.abs(amounts)
    power = np.clip(np.floor(np.log10(np.maximum(size, 1e-9))), SMALLEST, LARGEST).astype(np.int64)
    digits = np.round(size / 10.0 ** (power - 1)).astype(np.int64)
    over = digits > 99
    power, digits = power + over, np.where(over, 10, digits)
    digits = np.where(power > LARGEST, 99, digits)
    code = 1 + (np.minimum(power, LARGEST) - SMALLEST) * MANTISSAS + digits - 10
    return np.where(digits < 10, 0, code) + np.where(amounts < 0, AMOUNTS, 0)


def _from_newest(pieces: Ints, offsets: Ints, row: Ints) -> Ints:
    """Pieces of each event and of all newer ones of its row."""
    total = np.append(0, np.cumsum(pieces))
    return total[offsets[1:]][row] - total[:-1]


def _phrases() -> list[str]:
    """All phrases but those of items, in the order of the table."""
    amounts = ["0"]
    for power in range(SMALLEST, LARGEST + 1):
        shifted = (Decimal(digits).scaleb(power - 1).normalize() for digits in range(10, 100))
        amounts += [format(number, "f") for number in shifted]
    lines = [f"{num} items" if num > 1 else "" for num in range(MOST_LINES + 1)]
    ages = [_age(days) for days in range(LONGEST_DAYS + 1)]
    return ["", *ages, *TYPES, "event", *amounts, *(f"minus {a}" for a in amounts), *lines, "."]


def _age(days: int) -> str:
    if days < 2:
        return ("today", "yesterday")[days]
    if days < 60:
        return f"{days} days ago"
    return f"{days // 30} months ago" if days < 730 else f"{days // 365} years ago"


def _named(keys: Ints, texts: pa.Array | None, seen: Ints) -> tuple[Ints, Ints, Sequence[str]]:
    """(sorted keys of the items seen that have a text, row of each one's text, the distinct texts)."""
    if texts is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), []
    valid = texts.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(np.isin(keys, seen) & valid)
    rows = rows[np.argsort(keys[rows], kind="stable")]
    encoded = texts.take(pa.array(rows)).dictionary_encode()
    return keys[rows], encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
