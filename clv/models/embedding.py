"""Token embedding: the vector of an event is the sum over its type, amount, times, channel and basket."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from clv.models.inputs.batch import Batch
from clv.models.inputs.feature_space import NUM_AMOUNT_BINS, NUM_TIME_BINS, FeatureSpace
from clv.models.inputs.tokens import NUM_SCALARS


class TokenEmbedding(nn.Module):
    """Batch -> (B, T, W) vectors of its tokens, layer-normed."""

    text_vectors: Tensor
    item_rank: Tensor
    item_category: Tensor

    def __init__(self, space: FeatureSpace, width: int, dropout: float) -> None:
        super().__init__()
        sizes = (len(space.types) + 1, NUM_AMOUNT_BINS + 1, NUM_TIME_BINS, NUM_TIME_BINS, 7, len(space.channels) + 1)
        self.codes = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.scalars = nn.Linear(NUM_SCALARS, width)
        self.items = nn.Embedding(space.num_learned_items, width, padding_idx=0)
        self.categories = nn.Embedding(len(space.category_names) + 1, width, padding_idx=0)
        # The item tables are frozen: as buffers they move with the module, and no optimizer holds state for them.
        self.register_buffer("text_vectors", torch.from_numpy(space.text_vectors.copy()), persistent=False)
        self.register_buffer("item_rank", torch.from_numpy(np.append(0, space.item_rank)), persistent=False)
        self.register_buffer("item_category", torch.from_numpy(space.item_category.copy()), persistent=False)
        self.text = nn.Linear(space.text_vectors.shape[1], width, bias=False) if space.text_vectors.shape[1] else None
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        for table in (*self.codes, self.items, self.categories):
            nn.init.normal_(table.weight, std=0.1)
            if table.padding_idx is not None:
                nn.init.zeros_(table.weight[table.padding_idx])

    def forward(self, batch: Batch) -> Tensor:
        x: Tensor = self.scalars(batch.scalars)  # Shape: (B, T, W)
        for i, table in enumerate(self.codes):
            x = x + table(batch.codes[..., i])
        x = x + self._baskets(batch).view_as(x)
        x = self.norm(x)
        return self.dropout(x)

    def _baskets(self, batch: Batch) -> Tensor:
        """(B * T, W) mean over each token's items of learned vector + category vector + projected text vector."""
        num_tokens = batch.mask.numel()
        learned = self.items(self.item_rank[batch.item]) + self.categories(self.item_category[batch.item])
        baskets = _mean_by_token(learned, batch.item_token, num_tokens)
        if self.text is not None:
            baskets = baskets + self.text(_mean_by_token(self.text_vectors[batch.item], batch.item_token, num_tokens))
        return baskets


def _mean_by_token(values: Tensor, token: Tensor, num_tokens: int) -> Tensor:
    """(L, W) values of the items, each of token[i] -> (num_tokens, W) means; 0 for a token without items."""
    total = values.new_zeros(num_tokens, values.shape[1]).index_add_(0, token, values)
    count = values.new_zeros(num_tokens).index_add_(0, token, values.new_ones(len(token)))
    return total / count.clamp(min=1).unsqueeze(1)
