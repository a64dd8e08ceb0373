"""Token embedding: a basket is the mean over its items, and unknown items add nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from clv.models.embedding import TokenEmbedding


@pytest.fixture
def embedding(shop) -> TokenEmbedding:
    torch.manual_seed(0)
    return TokenEmbedding(shop.space, 16, dropout=0.0).eval()


def test_a_basket_is_the_mean_over_its_items_of_item_category_and_text(shop, embedding: TokenEmbedding) -> None:
    batch, space = shop.samples.batch(np.arange(20)), shop.space
    with torch.no_grad():
        got = embedding._baskets(batch)
        rank = [0, *space.item_rank.tolist()]
        for token in range(0, batch.mask.numel(), 7):
            items = batch.item[batch.item_token == token].tolist()
            parts = [
                embedding.items.weight[rank[item]]
                + embedding.categories.weight[space.item_category[item]]
                + embedding.text.weight @ torch.from_numpy(space.text_vectors[item])
                for item in items
            ]
            expected = torch.stack(parts).mean(0) if parts else torch.zeros(16)
            torch.testing.assert_close(got[token], expected, atol=1e-6, rtol=1e-5)


def test_unknown_items_add_nothing(shop, embedding: TokenEmbedding) -> None:
    batch = shop.samples.batch(np.arange(20))
    unknown = replace(batch, item=torch.zeros_like(batch.item))
    bare = replace(batch, item=batch.item[:0], item_token=batch.item_token[:0])
    with torch.no_grad():
        torch.testing.assert_close(embedding(unknown), embedding(bare))
        assert (embedding(batch) - embedding(bare)).abs().max() > 0.01


def test_a_space_without_texts_or_items_embeds_too(shop) -> None:
    space = replace(
        shop.space,
        item_keys=shop.space.item_keys[:0],
        item_rank=shop.space.item_rank[:0],
        item_category=np.zeros(1, np.int64),
        text_vectors=np.zeros((1, 0), np.float32),
    )
    samples = replace(shop.samples, tokens=space.tokens(shop.past, 12))
    embedding = TokenEmbedding(space, 16, dropout=0.0)
    assert embedding.text is None
    out = embedding(samples.batch(np.arange(10)))
    assert out.shape[-1] == 16
    assert bool(out.isfinite().all())
