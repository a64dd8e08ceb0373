"""Token arrays: padding, selection and vocabularies on small arrays that are checked by hand."""

import numpy as np
import pytest

from clv.models.inputs.tokens import TextArrays, TokenArrays, token_batches, vocabulary_index


@pytest.fixture
def tokens() -> TokenArrays:
    """Two rows of two and three tokens; token t has the scalar t and t items."""
    return TokenArrays(
        offsets=np.array([0, 2, 5]),
        scalars=np.tile(np.arange(5, dtype=np.float32)[:, None], (1, 9)),
        codes=np.tile(np.arange(5)[:, None] + 10, (1, 6)),
        item_offsets=np.array([0, 0, 1, 3, 6, 10]),
        item=np.arange(10) + 100,
    )


def test_padding_puts_the_tokens_first_and_links_items_to_their_token(tokens: TokenArrays) -> None:
    padded = tokens.pad(np.array([0, 1, 2, 3, 4]), np.array([0, 0, 1, 1, 1]), 3)
    np.testing.assert_array_equal(padded["mask"], [[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(padded["scalars"][..., 0], [[0, 1, 0], [2, 3, 4], [0, 0, 0]])
    np.testing.assert_array_equal(padded["codes"][..., 5], [[10, 11, 0], [12, 13, 14], [0, 0, 0]])
    # Token 1 is column 1 of row 0; tokens 2, 3 and 4 are the columns of row 1.
    np.testing.assert_array_equal(padded["item_token"], [1, 3, 3, 4, 4, 4, 5, 5, 5, 5])
    np.testing.assert_array_equal(padded["item"], np.arange(10) + 100)


def test_a_selection_keeps_the_items_of_its_tokens(tokens: TokenArrays) -> None:
    selected = tokens.select(np.array([3, 1]), np.array([0, 1, 2]))
    assert selected.lengths.tolist() == [1, 1]
    assert selected.scalars[:, 0].tolist() == [3, 1]
    assert selected.item.tolist() == [103, 104, 105, 100]
    assert selected.item_offsets.tolist() == [0, 3, 4]


def test_a_text_begins_with_the_newest_event_between_its_special_pieces() -> None:
    texts = TextArrays(np.array([0, 2, 3]), np.array([0, 2, 3, 6]), np.array([5, 6, 7, 8, 9, 10], np.int32), (1, 2, 0))
    assert texts.lengths.tolist() == [5, 5]
    padded = texts.pad(np.array([0, 1, 2]), np.array([0, 0, 2]), 3)
    np.testing.assert_array_equal(padded["codes"][..., 0], [[1, 7, 5, 6, 2], [1, 2, 0, 0, 0], [1, 8, 9, 10, 2]])
    np.testing.assert_array_equal(padded["mask"], [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert padded["scalars"].shape == (3, 5, 0)


def test_the_index_of_a_value_is_one_more_than_its_rank_and_zero_if_unknown() -> None:
    vocabulary = np.array([2, 5, 9])
    assert vocabulary_index(vocabulary, np.array([9, 2, 3, 99, 5])).tolist() == [3, 1, 0, 0, 2]
    assert vocabulary_index(vocabulary[:0], np.array([9, 2])).tolist() == [0, 0]


def test_batches_hold_every_row_once_within_the_limit_of_tokens(rng: np.random.Generator) -> None:
    length = rng.integers(1, 60, 300)
    length[7] = 500
    order = np.argsort(length, kind="stable")
    batches = token_batches(order, length, 128)
    np.testing.assert_array_equal(np.concatenate(batches), order)
    padded = [len(rows) * length[rows].max() for rows in batches]
    assert all(count <= 128 for count, rows in zip(padded, batches, strict=True) if len(rows) > 1)
    assert len(batches[-1]) == 1
    assert np.mean(padded[:-1]) > 100
