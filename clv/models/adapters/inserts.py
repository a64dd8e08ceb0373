"""Prefix and bottleneck adapters: modules around a module of a frozen transformer layer; only `adapter_*` is trained.

They stay in the model, also in a bundle, because they cannot be merged into the frozen weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Prefix(nn.Module):
    """Self-attention with `length` learned keys and values before those of the tokens (Li & Liang 2021, every layer).

    The attention receives them as a cached past; the mask is widened here, because bidirectional models expect no past.
    A fresh prefix changes the output already: even keys without meaning take a share of the attention.
    """

    def __init__(self, attention: nn.Module, width: int, length: int) -> None:
        super().__init__()
        self.base_layer = attention
        self.adapter_keys = nn.Parameter(torch.empty(length, width).normal_(std=0.02))
        self.adapter_values = nn.Parameter(torch.empty(length, width).normal_(std=0.02))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
        mask, num_tokens = attention_mask, x.shape[1]
        if mask is None and getattr(self.base_layer, "is_causal", False):
            mask = torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            shape = (*mask.shape[:-1], len(self.adapter_keys))
            visible = mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)
            mask = torch.cat([visible, mask], -1)
        options["past_key_values"] = _PrefixCache(self.adapter_keys, self.adapter_values)
        return self.base_layer(x, attention_mask=mask, **options)


class _PrefixCache:
    """The part of a transformers cache that attention calls: puts the learned keys and values before the tokens'."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return _prepend(self.keys, keys), _prepend(self.values, values)


def _prepend(learned: Tensor, own: Tensor) -> Tensor:
    """learned (P, W) before own (B, heads, T, W / heads) -> (B, heads, P + T, W / heads)."""
    num, heads, _, size = own.shape
    split = learned.to(own.dtype).view(len(learned), heads, size).transpose(0, 1)
    return torch.cat([split.expand(num, -1, -1, -1), own], 2)


class Bottleneck(nn.Module):
    """A projection of a layer, followed by a small network with a residual (Houlsby et al. 2019, section 2.1).

    Layer norms stay frozen here. A fresh bottleneck changes nothing, because its upward projection is zero.
    """

    def __init__(self, projection: nn.Module, width: int, hidden: int) -> None:
        super().__init__()
        self.base_layer = projection
        self.adapter_down = nn.Linear(width, hidden)
        self.adapter_up = nn.Linear(hidden, width)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base_layer(x)
        return out + self.adapter_up(nn.functional.gelu(self.adapter_down(out)))
