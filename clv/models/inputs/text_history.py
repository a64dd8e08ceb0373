"""Text histories (experimental): a customer's past as a text for a pretrained text encoder, newest event first.

    [CLS] 3 days ago purchase 25 4 items , fluid milk , white bread , … . 2 months ago view , … . [SEP]

Each event lists when it happened, its type, its amount (two significant digits, in currency), the number of its items,
the names of some of them (item text, else category) and the customer's own message. Items are named from the newest
event on until their names fill half of the text, so that the rhythm before them keeps room. Each phrase is tokenised
once, when the space is fitted: a text is then a run of rows of one table, and training and scoring tokenise nothing but
customers' messages. docs/experimental/text-histories.md has the benchmarks: as good as events at fifty times the cost.
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
from clv.models.config import BackboneConfig
from clv.models.inputs.tokens import Ints, TextArrays, vocabulary_index

MAX_ITEMS = 3  # named of a basket
ITEM_PIECES = 6  # word pieces of an item's text, without the comma before it
MESSAGE_PIECES = 32  # word pieces of a message or review
MESSAGE_CHARACTERS = 1000  # of a message that the tokenizer processes to find them
MAX_DAYS = 1500
MAX_COUNT = 100  # largest number of items that has a phrase
MIN_POWER, MAX_POWER = -2, 8  # powers of ten of an amount; a smaller one is 0
MANTISSAS = 90  # 10 to 99
AMOUNTS = 1 + (MAX_POWER - MIN_POWER + 1) * MANTISSAS  # phrases of one sign

# First row of each kind of phrase in the table; phrase 0 is empty.
AGE = 1
TYPE = AGE + MAX_DAYS + 1
AMOUNT = TYPE + len(TYPES) + 1
COUNT = AMOUNT + 2 * AMOUNTS
END = COUNT + MAX_COUNT + 1
ITEM = END + 1
# Columns of an event's phrases: age, type, amount, count of items, names of items, message, end.
ITEM_COLUMNS = slice(4, 4 + MAX_ITEMS)
MESSAGE_COLUMN = ITEM_COLUMNS.stop
NUM_COLUMNS = MESSAGE_COLUMN + 2


@dataclass(frozen=True)
class TextSpace:
    """Word pieces of every phrase, with the encoder's configuration and tokenizer.

    It is fitted on the pasts before the training cutoff and travels in the bundle. checkpoint: the encoder's own
    configuration; tokenizer: its `tokenizer.json`. item_phrase[i]: phrase of the item with key item_keys[i].
    """

    checkpoint: dict[str, Any] = field(repr=False)
    special_pieces: tuple[int, int, int]  # that begin a text, end it and pad it: [CLS], [SEP], [PAD]
    starts: Ints  # phrase p is pieces[starts[p]:starts[p + 1]]
    pieces: NDArray[np.int32]
    item_keys: Ints
    item_phrase: Ints
    tokenizer: str = field(repr=False)

    @classmethod
    def fit(cls, cut: Cut, keys: Ints, texts: pa.Array | None, backbone: BackboneConfig) -> Self:
        """Tokenises all phrases, with the names of the items (keys, with their texts) in the pasts of `cut`.

        Raises ValueError where `backbone` names no pretrained encoder or has another shape than the encoder it names.
        """
        source = backbone.pretrained
        if source is None:
            raise ValueError("model.encoder text needs a pretrained encoder: name one in model.backbone.pretrained")
        text_backbone.check_shape(source, backbone)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the tokenizer warns in every forked process
        tokenizer = text_backbone.load_tokenizer(source)
        h = cut.histories
        past = np.unique(cut.index)
        seen = np.unique(h.items[ranges(h.item_offsets[past], h.item_offsets[past + 1])])
        item_keys, item_name, names = _item_names(keys, texts, seen)
        phrases = [*_phrases(), *(f", {name}" for name in names)]
        # The blank before each phrase marks the start of a word for tokenizers such as RoBERTa's.
        ids = tokenizer([f" {phrase}" for phrase in phrases], add_special_tokens=False)["input_ids"]
        ids[0] = []
        comma = len(tokenizer(" ,", add_special_tokens=False)["input_ids"])
        ids[ITEM:] = [phrase[: comma + ITEM_PIECES] for phrase in ids[ITEM:]]
        return cls(
            checkpoint=text_backbone.checkpoint_config(source),
            special_pieces=(tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id),
            starts=np.append(0, np.cumsum([len(phrase) for phrase in ids])),
            pieces=np.array([piece for phrase in ids for piece in phrase], np.int32),
            item_keys=item_keys,
            item_phrase=item_name + ITEM,
            tokenizer=tokenizer.backend_tokenizer.to_str(),
        )

    def tokens(self, cut: Cut, max_tokens: int) -> TextArrays:
        """The newest events of each row's past, as many as `max_tokens` word pieces hold, [CLS] and [SEP] included; the
        oldest of them is cut where the text ends."""
        size, room = np.diff(self.starts), max_tokens - 2
        shortest_event = max(1, int(size[AGE:TYPE].min() + size[TYPE:AMOUNT].min() + size[END]))
        offsets, past_index = cut.newest(-(-room // shortest_event))
        row = np.repeat(np.arange(len(cut)), np.diff(offsets))
        phrases = self._event_phrases(cut, row, cut.index[past_index])  # Shape: (E, NUM_COLUMNS)
        phrases[:, MESSAGE_COLUMN], starts, pieces = self._message_phrases(cut, cut.index[past_index])
        size = np.diff(starts)
        names = phrases[:, ITEM_COLUMNS]
        names[_pieces_since(size[names].sum(1), offsets, row) > room // 2] = 0
        length = size[phrases].sum(1)
        kept = np.clip(room - (_pieces_since(length, offsets, row) - length), 0, length)
        event = np.flatnonzero(kept)
        whole = pieces[ranges(starts[phrases[event]].ravel(), starts[phrases[event] + 1].ravel())]
        begin = np.append(0, np.cumsum(length[event]))[:-1]
        return TextArrays(
            np.append(0, np.cumsum(np.bincount(row[event], minlength=len(cut)))),
            np.append(0, np.cumsum(kept[event])),
            whole[ranges(begin, begin + kept[event])],
            self.special_pieces,
        )

    def _event_phrases(self, cut: Cut, row: Ints, index: Ints) -> Ints:
        """(E, NUM_COLUMNS) phrases of the events `index`, with ages at the origins of their rows."""
        h = cut.histories
        days = np.clip((cut.origin[row] - h.time[index]) // DAY_US, 0, MAX_DAYS)
        out = np.zeros((len(index), NUM_COLUMNS), np.int64)
        out[:, 0] = AGE + days
        out[:, 1] = TYPE + np.minimum(h.type[index].astype(np.int64), len(TYPES))
        out[:, 2] = np.where(np.isnan(h.amount[index]), 0, AMOUNT + amount_code(np.nan_to_num(h.amount[index])))
        out[:, 3] = COUNT + np.minimum(h.lines[index], MAX_COUNT)
        start, stop = h.item_offsets[index], h.item_offsets[index + 1]
        named = vocabulary_index(self.item_keys, h.items[ranges(start, stop)])
        event = np.repeat(np.arange(len(index)), stop - start)[named > 0]
        rank = np.arange(len(event)) - np.searchsorted(event, event)
        first = rank < MAX_ITEMS
        out[event[first], ITEM_COLUMNS.start + rank[first]] = self.item_phrase[named[named > 0][first] - 1]
        out[:, -1] = END
        return out

    def _message_phrases(self, cut: Cut, index: Ints) -> tuple[Ints, Ints, NDArray[np.int32]]:
        """(E,) phrase of each event's message, 0 for none; `starts` and `pieces` with these phrases appended."""
        messages, out = cut.histories.raw_text, np.zeros(len(index), np.int64)
        if messages is None:
            return out, self.starts, self.pieces
        texts = pc.utf8_slice_codeunits(messages.take(pa.array(index)), 0, MESSAGE_CHARACTERS)
        written = np.flatnonzero(texts.is_valid().to_numpy(zero_copy_only=False))
        encoded = texts.take(pa.array(written)).dictionary_encode()
        phrases = [f" {text}" for text in encoded.dictionary.to_pylist()]
        ids = [one.ids[:MESSAGE_PIECES] for one in self._tokenizer.encode_batch(phrases, add_special_tokens=False)]
        out[written] = len(self.starts) - 1 + encoded.indices.to_numpy()
        starts = np.append(self.starts, self.starts[-1] + np.cumsum([len(phrase) for phrase in ids], dtype=np.int64))
        return out, starts, np.append(self.pieces, np.fromiter(chain.from_iterable(ids), np.int32))

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def describe(self) -> str:
        """Counts for the log: items with a name and distinct names."""
        return f"{len(self.item_keys):,} items with a name, {len(np.unique(self.item_phrase)):,} distinct names"

    def to_arrays(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """(JSON part, arrays) of the space for a bundle; `from_arrays` is the inverse."""
        names = ("starts", "pieces", "item_keys", "item_phrase")
        special_pieces = list(self.special_pieces)
        plain = {"checkpoint": self.checkpoint, "special_pieces": special_pieces, "tokenizer": self.tokenizer}
        return plain, {name: getattr(self, name) for name in names}

    @classmethod
    def from_arrays(cls, plain: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """Builds the space from what `to_arrays` returned."""
        first, last, padding = plain["special_pieces"]
        settings = {**plain, "special_pieces": (first, last, padding)}
        return cls(**settings, **dict[str, Any](arrays))


def amount_code(amounts: NDArray[np.float64]) -> Ints:
    """Index among the phrases of amounts of each amount in currency, rounded to two significant digits."""
    size = np.abs(amounts)
    power = np.clip(np.floor(np.log10(np.maximum(size, 1e-9))), MIN_POWER, MAX_POWER).astype(np.int64)
    digits = np.round(size / 10.0 ** (power - 1)).astype(np.int64)
    over = digits > 99
    power, digits = power + over, np.where(over, 10, digits)
    digits = np.where(power > MAX_POWER, 99, digits)
    code = 1 + (np.minimum(power, MAX_POWER) - MIN_POWER) * MANTISSAS + digits - 10
    return np.where(digits < 10, 0, code) + np.where(amounts < 0, AMOUNTS, 0)


def _pieces_since(pieces: Ints, offsets: Ints, row: Ints) -> Ints:
    """(E,) word pieces of each event and of all newer events of its row."""
    total = np.append(0, np.cumsum(pieces))
    return total[offsets[1:]][row] - total[:-1]


def _phrases() -> list[str]:
    """All phrases except the names of items, in the order of the table."""
    amounts = ["0"]
    for power in range(MIN_POWER, MAX_POWER + 1):
        shifted = (Decimal(digits).scaleb(power - 1).normalize() for digits in range(10, 100))
        amounts += [format(number, "f") for number in shifted]
    counts = [f"{num} items" if num > 1 else "" for num in range(MAX_COUNT + 1)]
    ages = [_age(days) for days in range(MAX_DAYS + 1)]
    return ["", *ages, *TYPES, "event", *amounts, *(f"minus {a}" for a in amounts), *counts, "."]


def _age(days: int) -> str:
    if days < 2:
        return ("today", "yesterday")[days]
    if days < 60:
        return f"{days} days ago"
    return f"{days // 30} months ago" if days < 730 else f"{days // 365} years ago"


def _item_names(keys: Ints, texts: pa.Array | None, seen: Ints) -> tuple[Ints, Ints, Sequence[str]]:
    """(sorted keys of the items in `seen` that have a text, index of each one's name, the distinct names)."""
    if texts is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), []
    valid = texts.is_valid().to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(np.isin(keys, seen) & valid)
    rows = rows[np.argsort(keys[rows], kind="stable")]
    encoded = texts.take(pa.array(rows)).dictionary_encode()
    return keys[rows], encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()
