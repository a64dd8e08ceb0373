"""Batches against a loop in plain Python: padding, order, items, and event dropout that repeats with its seed."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from clv.models.inputs.batch import Batch


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    flat = {f.name: getattr(batch, f.name) for f in fields(batch) if f.name != "targets"}
    if batch.targets is not None:
        flat |= {f"targets.{f.name}": getattr(batch.targets, f.name) for f in fields(batch.targets)}
    return flat


def equal(a: Batch, b: Batch) -> bool:
    left, right = tensors(a), tensors(b)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def baskets(batch: Batch, row: int) -> list[list[int]]:
    """Items of each token of a row."""
    width = batch.mask.shape[1]
    found: list[list[int]] = [[] for _ in range(width)]
    for item, token in zip(batch.item.tolist(), batch.item_token.tolist(), strict=True):
        if token // width == row:
            found[token % width].append(item)
    return found


@pytest.fixture
def rows(shop, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(len(shop.samples))[:25]


def test_a_batch_equals_one_made_by_a_plain_loop(shop, rows: np.ndarray) -> None:
    samples, t = shop.samples, shop.samples.tokens
    batch = samples.batch(rows)
    width = max(samples.lengths[rows])
    assert batch.mask.shape == (25, width)
    assert len(batch) == 25
    for i, row in enumerate(rows):
        own = list(range(t.offsets[row], t.offsets[row + 1]))
        for column in range(width):
            token = own[column] if column < len(own) else None
            assert batch.mask[i, column] == (token is not None)
            expected = np.zeros(9) if token is None else t.scalars[token]
            np.testing.assert_array_equal(batch.scalars[i, column], expected)
            np.testing.assert_array_equal(batch.codes[i, column], np.zeros(6) if token is None else t.codes[token])
        lines = [t.item[t.item_offsets[token] : t.item_offsets[token + 1]].tolist() for token in own]
        assert baskets(batch, i) == lines + [[]] * (width - len(own))
        np.testing.assert_array_equal(batch.wide[i], samples.wide[row])
        np.testing.assert_array_equal(batch.base_value[i], samples.base_value[row])
        np.testing.assert_array_equal(batch.base_hazard[i], samples.base_hazard[row])
        np.testing.assert_array_equal(batch.base_repeats[i], samples.base_repeats[row])
        assert batch.targets is not None
        np.testing.assert_array_equal(batch.targets.value[i], samples.value[row])
        np.testing.assert_array_equal(batch.targets.orders[i], samples.orders[row])
        np.testing.assert_array_equal(batch.targets.observed[i], samples.observed[row])


def test_a_row_is_the_same_in_every_batch_up_to_padding(shop, rows: np.ndarray) -> None:
    together = shop.samples.batch(rows)
    for i, row in enumerate(rows[:8]):
        alone = shop.samples.batch(np.array([row]))
        length = int(alone.mask.sum())
        assert alone.mask.shape == (1, length)
        assert torch.equal(together.scalars[i, :length], alone.scalars[0])
        assert torch.equal(together.codes[i, :length], alone.codes[0])
        assert not together.scalars[i, length:].any()
        assert baskets(together, i)[:length] == baskets(alone, 0)


def test_dropout_keeps_the_newest_token_and_the_order(shop, rows: np.ndarray) -> None:
    whole, thinned = shop.samples.batch(rows), shop.samples.batch(rows, drop=0.5, seed=3)
    assert int(thinned.mask.sum()) < 0.7 * int(whole.mask.sum())
    assert thinned.mask.shape[1] == int(thinned.mask.sum(1).max())
    for i in range(len(rows)):
        before = whole.scalars[i][whole.mask[i] > 0].numpy()
        after = thinned.scalars[i][thinned.mask[i] > 0].numpy()
        np.testing.assert_array_equal(after[-1], before[-1])
        # A subsequence: each kept token is found after the one before it.
        start = 0
        for token in after:
            start += int(np.flatnonzero((before[start:] == token).all(1))[0]) + 1
        assert thinned.mask[i].sum() == thinned.mask[i].nonzero().max() + 1


def test_dropping_everything_leaves_the_newest_token_of_each_row(shop, rows: np.ndarray) -> None:
    batch = shop.samples.batch(rows, drop=1.0, seed=1)
    assert batch.mask.shape == (len(rows), 1)
    t = shop.samples.tokens
    np.testing.assert_array_equal(batch.scalars[:, 0], t.scalars[t.offsets[rows + 1] - 1])


def test_one_row_in_four_is_cut_to_its_newest_tokens(shop, rng: np.random.Generator) -> None:
    rows = rng.choice(np.flatnonzero(shop.samples.lengths >= 6), 800)
    kept = shop.samples.batch(rows, drop=1e-12, seed=2).mask.sum(1).numpy()
    whole = shop.samples.lengths[rows]
    assert 0.15 < np.mean(kept < whole) < 0.3
    assert kept.min() >= 1


def test_the_same_seed_gives_the_same_batch(shop, rows: np.ndarray) -> None:
    first = shop.samples.batch(rows, drop=0.3, seed=11)
    assert equal(first, shop.samples.batch(rows, drop=0.3, seed=11))
    assert not equal(first, shop.samples.batch(rows, drop=0.3, seed=12))
    assert equal(shop.samples.batch(rows), shop.samples.batch(rows, drop=0.0, seed=11))


def test_dropout_touches_tokens_only(shop, rows: np.ndarray) -> None:
    whole, thinned = tensors(shop.samples.batch(rows)), tensors(shop.samples.batch(rows, drop=0.5, seed=3))
    for name in set(whole) - {"scalars", "codes", "mask", "item", "item_token"}:
        assert torch.equal(whole[name], thinned[name]), name


def test_batches_in_order_of_length_hold_every_row_once(shop) -> None:
    batches = list(shop.samples.batches_by_length(32))
    assert sorted(np.concatenate(batches)) == list(range(len(shop.samples)))
    lengths = shop.samples.lengths[np.concatenate(batches)]
    assert (np.diff(lengths) >= 0).all()
    assert max(map(len, batches)) == 32


def test_without_labels_there_are_no_targets_and_a_move_keeps_everything(shop, rows: np.ndarray) -> None:
    assert replace(shop.samples, value=None, orders=None, observed=None).batch(rows).targets is None
    batch = shop.samples.batch(rows)
    moved = batch.to("cpu")
    assert equal(batch, moved)
