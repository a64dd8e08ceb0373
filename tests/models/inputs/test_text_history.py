"""Text histories against a tokenizer on plain sentences; no future events; texts are cut at the limit."""

import json
from dataclasses import replace
from math import floor, log10

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer

from clv.data.clock import DAY_US
from clv.data.cutoff import Cut, cut
from clv.data.events import TYPES
from clv.models.backbones import text_backbone
from clv.models.inputs import text_history
from clv.models.inputs.text_history import AMOUNTS, ITEM_PIECES, MESSAGE_PIECES, TextSpace, amount_code
from clv.models.inputs.tokens import TextArrays

LIMIT = 60


@pytest.fixture(scope="module")
def texts(shop) -> pa.Array:
    """Texts of the items; every third item has none."""
    names = shop.items.category_names
    found = [f"{names[c - 1]} no {i % 7}" if i % 3 else None for i, c in enumerate(shop.items.category)]
    return pa.array(found, pa.string())


@pytest.fixture(scope="module")
def space(shop, texts: pa.Array, text_checkpoint: str) -> TextSpace:
    return TextSpace.fit(shop.past, shop.items.keys, texts, text_backbone.backbone_config(text_checkpoint, LIMIT))


def rows_of(arrays: TextArrays) -> list[list[int]]:
    """Each row of a batch of all rows, without padding."""
    index = np.arange(len(arrays.piece_offsets) - 1)
    row = np.repeat(np.arange(len(arrays.offsets) - 1), np.diff(arrays.offsets))
    padded = arrays.pad(index, row, len(arrays.offsets) - 1)
    return [codes[mask > 0].tolist() for codes, mask in zip(padded["codes"][..., 0], padded["mask"], strict=True)]


def in_words(past: Cut, row: int, names: dict[int, list[str]]) -> str:
    """The past of a row as a sentence for each event, newest first; names (pieces) until they fill half of it."""
    h, sentences, num_pieces = past.histories, [], 0
    for token in reversed(past.index[past.offsets[row] : past.offsets[row + 1]].tolist()):
        days = int((past.origin[row] - h.time[token]) // DAY_US)
        if days < 2:
            when = ["today", "yesterday"][days]
        elif days < 60:
            when = f"{days} days ago"
        else:
            when = f"{days // 30} months ago" if days < 730 else f"{days // 365} years ago"
        what = {code: name for name, code in TYPES.items()}.get(int(h.type[token]), "event")
        lines = f"{h.lines[token]} items" if h.lines[token] > 1 else ""
        items = h.items[h.item_offsets[token] : h.item_offsets[token + 1]].tolist()
        shown = [names[item] for item in items if item in names][:3]
        num_pieces += sum(1 + len(pieces) for pieces in shown)
        shown = shown if num_pieces <= (LIMIT - 2) // 2 else []
        words = [f", {' '.join(pieces).replace(' ##', '')}" for pieces in shown]
        message = (h.raw_text[token].as_py() if h.raw_text is not None else None) or ""
        sentences.append(" ".join([when, what, rounded(float(h.amount[token])), lines, *words, message, "."]))
    return " ".join(sentences)


def rounded(amount: float) -> str:
    if np.isnan(amount):
        return ""
    size = abs(amount)
    if size < 0.01:
        return "0"
    power = 10.0 ** (floor(log10(size)) - 1)
    number = round(size / power) * power
    return ("minus " if amount < 0 else "") + f"{number:.3f}".rstrip("0").rstrip(".")


def test_a_text_history_equals_the_tokenised_sentences(
    shop, texts: pa.Array, space: TextSpace, text_checkpoint: str
) -> None:
    tokenizer = text_backbone.load_tokenizer(text_checkpoint)
    known = zip(shop.items.keys.tolist(), texts.to_pylist(), strict=True)
    # Of an item's text the first pieces: in this vocabulary letters, so that their beginning is a text again.
    names = {key: tokenizer.tokenize(text)[:ITEM_PIECES] for key, text in known if text is not None}
    found = rows_of(space.tokens(shop.past, LIMIT))
    wanted = [
        tokenizer(in_words(shop.past, row, names), truncation=True, max_length=LIMIT)["input_ids"]
        for row in range(len(shop.past))
    ]
    assert found == wanted
    lengths = [len(row) for row in found]
    assert max(lengths) == LIMIT
    assert min(lengths) < LIMIT / 2
    assert lengths == space.tokens(shop.past, LIMIT).lengths.tolist()
    words = tokenizer.convert_ids_to_tokens(np.concatenate(found))
    assert {"view", "return", "purchase", "items", ",", "months"} <= set(words)


def test_each_kind_of_phrase_begins_at_its_row_of_the_table(space: TextSpace) -> None:
    phrases = text_history._phrases()
    assert phrases[text_history.AGE] == "today"
    assert phrases[text_history.AGE + 400] == "13 months ago"
    assert phrases[text_history.TYPE + TYPES["view"]] == "view"
    assert phrases[text_history.COUNT + 7] == "7 items"
    assert phrases[text_history.END] == "."
    assert len(phrases) == text_history.ITEM
    assert len(space.starts) > text_history.ITEM


def test_amounts_keep_two_significant_digits(rng: np.random.Generator) -> None:
    phrases = text_history._phrases()[text_history.AMOUNT : text_history.COUNT]
    amounts = np.exp(rng.uniform(np.log(0.01), np.log(9.9e8), 2000))
    rounded_amounts = np.array([float(phrases[code]) for code in amount_code(amounts)])
    assert (np.abs(rounded_amounts / amounts - 1) <= 0.05 + 1e-12).all()
    assert (np.diff(rounded_amounts[np.argsort(amounts)]) >= 0).all()
    exact = {
        0.0: "0",
        0.004: "0",
        0.25: "0.25",
        1: "1",
        9.96: "10",
        99.6: "100",
        1250: "1200",
        -3.5: "minus 3.5",
        1e12: "990000000",
    }
    assert [phrases[code] for code in amount_code(np.array(list(exact)))] == list(exact.values())
    assert len(phrases) == 2 * AMOUNTS


def test_events_at_or_after_the_origin_change_no_text(shop, texts: pa.Array, text_checkpoint: str) -> None:
    h, rng = shop.histories, np.random.default_rng(1)
    origin = int(shop.past.origin.min())
    future = (h.time >= origin) | (h.known_at >= origin)
    tokens = np.repeat(future, np.diff(h.item_offsets))
    scrambled = replace(
        h,
        amount=np.where(future, rng.uniform(1, 999, len(h.time)), h.amount),
        type=np.where(future, rng.permutation(h.type), h.type).astype(h.type.dtype),
        lines=np.where(future, 9, h.lines).astype(h.lines.dtype),
        items=np.where(tokens, 4711, h.items),
    )
    assert future.mean() > 0.1
    # The item of the scrambled future has a text, which no past shows.
    keys, texts = np.append(shop.items.keys, 4711), pa.array([*texts.to_pylist(), "never seen"])
    made = []
    for source in (h, scrambled):
        past = cut(source, origin, (30, 90), shop.clock)
        fitted = TextSpace.fit(past, keys, texts, text_backbone.backbone_config(text_checkpoint, LIMIT))
        made.append((fitted, fitted.tokens(past, LIMIT)))
    (space, arrays), (other_space, other) = made
    for name in ("starts", "pieces", "item_keys", "item_phrase"):
        np.testing.assert_array_equal(getattr(space, name), getattr(other_space, name))
    for name in ("offsets", "piece_offsets", "pieces"):
        np.testing.assert_array_equal(getattr(arrays, name), getattr(other, name))


def test_event_dropout_leaves_whole_events_and_always_the_newest(shop, space: TextSpace) -> None:
    samples = replace(shop.samples, tokens=space.tokens(shop.past, LIMIT))
    rows = np.random.default_rng(0).permutation(len(samples))[:40]
    whole, thinned = samples.batch(rows), samples.batch(rows, drop=0.5, seed=3)
    assert thinned.mask.sum() < 0.8 * whole.mask.sum()
    t = samples.tokens
    assert isinstance(t, TextArrays)
    opening, closing, padding = t.special_pieces
    for i, row in enumerate(rows):
        events = [
            t.pieces[t.piece_offsets[e] : t.piece_offsets[e + 1]].tolist() for e in range(*t.offsets[row : row + 2])
        ]
        text = thinned.codes[i, :, 0][thinned.mask[i] > 0].tolist()
        assert (text[0], text[-1]) == (opening, closing)
        assert (thinned.codes[i, :, 0][thinned.mask[i] == 0] == padding).all()
        body = text[1:-1]
        assert body[: len(events[-1])] == events[-1]
        for event in events[::-1]:
            body = body[len(event) :] if body[: len(event)] == event else body
        assert body == []
    parts = [samples.batch(rows, drop=0.5, seed=3, part=(i, 2)) for i in range(2)]
    for i, part in enumerate(parts):
        width = part.codes.shape[1]
        np.testing.assert_array_equal(part.codes, thinned.codes[i::2, :width])


def test_batches_are_ordered_by_the_length_of_the_text(shop, space: TextSpace) -> None:
    samples = replace(shop.samples, tokens=space.tokens(shop.past, LIMIT))
    widths = [samples.batch(rows).mask.sum(1).numpy() for rows in samples.batches_by_length(16)]
    assert (np.diff(np.concatenate(widths)) >= 0).all()


def test_the_space_survives_as_json_and_arrays(shop, texts: pa.Array, space: TextSpace) -> None:
    whole = replace(shop.space, text=space)
    plain, arrays = whole.to_arrays()
    back = type(whole).from_arrays(json.loads(json.dumps(plain)), arrays)
    assert back.text is not None
    assert (back.text.special_pieces, back.text.checkpoint) == (space.special_pieces, space.checkpoint)
    ours, theirs = whole.tokens(shop.past, LIMIT), back.tokens(shop.past, LIMIT)
    np.testing.assert_array_equal(ours.pieces, theirs.pieces)
    np.testing.assert_array_equal(ours.piece_offsets, theirs.piece_offsets)
    assert type(shop.space).from_arrays(*shop.space.to_arrays()).text is None


def test_messages_are_part_of_the_text_word_for_word_even_if_no_fit_has_seen_them(
    shop, space: TextSpace, text_checkpoint: str
) -> None:
    h = shop.histories
    letters = np.array(["late again", "thank you!", "where is my order 4711?"])
    messages = pa.array(letters[np.arange(len(h.time)) % 3], mask=np.arange(len(h.time)) % 5 > 0)
    past = replace(shop.past, histories=replace(h, raw_text=messages))
    tokenizer = text_backbone.load_tokenizer(text_checkpoint)
    silent = replace(space, item_keys=space.item_keys[:0], item_phrase=space.item_phrase[:0])
    # The tokenizers of some checkpoints truncate and pad by themselves.
    truncating = Tokenizer.from_str(space.tokenizer)
    truncating.enable_truncation(3)
    truncating.enable_padding(length=20)
    silent = replace(silent, tokenizer=truncating.to_str())
    found = rows_of(TextSpace.from_arrays(*silent.to_arrays()).tokens(past, LIMIT))
    wanted = [
        tokenizer(in_words(past, row, {}), truncation=True, max_length=LIMIT)["input_ids"] for row in range(len(past))
    ]
    assert found == wanted
    assert found != rows_of(silent.tokens(shop.past, LIMIT))


def test_a_long_message_is_cut_and_a_column_without_messages_changes_nothing(shop, space: TextSpace) -> None:
    messages = pa.array(["x y " * 20_000] * len(shop.histories.time))
    long = replace(shop.past, histories=replace(shop.histories, raw_text=messages))
    arrays = space.tokens(long, 96)
    plain = space.tokens(shop.past, 96)
    newest = arrays.offsets[1:] - 1, plain.offsets[1:] - 1
    more = np.diff(arrays.piece_offsets)[newest[0]] - np.diff(plain.piece_offsets)[newest[1]]
    assert (more == MESSAGE_PIECES).all()
    none = pa.nulls(len(messages), pa.string())
    quiet = space.tokens(replace(shop.past, histories=replace(shop.histories, raw_text=none)), 96)
    np.testing.assert_array_equal(quiet.pieces, plain.pieces)


def test_without_item_texts_the_text_holds_times_and_types(shop, text_checkpoint: str) -> None:
    space = TextSpace.fit(shop.past, shop.items.keys, None, text_backbone.backbone_config(text_checkpoint, LIMIT))
    tokenizer = text_backbone.load_tokenizer(text_checkpoint)
    wanted = tokenizer(in_words(shop.past, 3, {}), truncation=True, max_length=LIMIT)["input_ids"]
    assert rows_of(space.tokens(shop.past, LIMIT))[3] == wanted
    assert len(space.starts) == text_history.ITEM + 1


def test_a_backbone_of_another_shape_or_without_a_source_is_refused(shop, text_checkpoint: str) -> None:
    shape = text_backbone.backbone_config(text_checkpoint, LIMIT)
    with pytest.raises(
        ValueError, match=r"model\.backbone\.width is 32, that of the text encoder .* is 16; leave it out"
    ):
        TextSpace.fit(shop.past, shop.items.keys, None, replace(shape, width=32))
    with pytest.raises(ValueError, match="encoder text needs a pretrained encoder: name one"):
        TextSpace.fit(shop.past, shop.items.keys, None, replace(shape, pretrained=None))
