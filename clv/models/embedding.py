"""A token's vector is the sum of what is known about it: type, amount, time, calendar and the items of its basket."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from clv.models.inputs.batch import Batch
from clv.models.inputs.feature_space import NUM_AMOUNT_BINS, NUM_TIME_BINS, FeatureSpace
from clv.models.inputs.tokens import NUM_SCALARS


class TokenEmbedding(nn.Module):
    """(B, T) tokens of a batch -> (B, T, width)."""

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
        # Frozen knowledge of the items travels with the module, not with the optimizer.
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
        x: Tensor = self.scalars(batch.scalars)
        for i, table in enumerate(self.codes):
            x = x + table(batch.codes[..., i])
        x = x + self._baskets(batch, x)
        x = self.norm(x)
        return self.dropout(x)

    def _baskets(self, batch: Batch, like: Tensor) -> Tensor:
        """Mean over the lines of each basket of (learned vector + category vector + projected text vector)."""
        num_places = batch.mask.numel()
        learned = self.items(self.item_rank[batch.item]) + self.categories(self.item_category[batch.item])
        bags = _bag_mean(learned, batch.item_bag, num_places)
        if self.text is not None:
            bags = bags + self.text(_bag_mean(self.text_vectors[batch.item], batch.item_bag, num_places))
        return bags.view_as(like)


def _bag_mean(values: Tensor, bag: Tensor, num_bags: int) -> Tensor:
    """(L, W) lines -> (num_bags, W) means; an empty bag is 0."""
    total = values.new_zeros(num_bags, values.shape[1]).index_add_(0, bag, values)
    count = values.new_zeros(num_bags).index_add_(0, bag, values.new_ones(len(bag)))
    return total / count.clamp(min=1).unsqueeze(1)
