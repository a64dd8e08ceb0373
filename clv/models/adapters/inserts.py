"""Modules that stand around a module of a frozen transformer layer and stay there; what is trained is `adapter_*`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Prefix(nn.Module):
    """Self-attention that also sees `length` learned keys and values (Li & Liang 2021, in every layer).

    They come to it as a past would; its mask is widened here, since models that read both ways expect no past. Not
    silent at the start: even keys that mean nothing take their share of the attention.
    """

    def __init__(self, attention: nn.Module, width: int, length: int) -> None:
        super().__init__()
        self.base_layer = attention
        self.adapter_keys = nn.Parameter(torch.empty(length, width).normal_(std=0.02))
        self.adapter_values = nn.Parameter(torch.empty(length, width).normal_(std=0.02))

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        mask, num_tokens = attention_mask, x.shape[1]
        if mask is None and getattr(self.base_layer, "is_causal", False):
            mask = torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool, device=x.device).tril()
        if mask is not None:
            shape = (*mask.shape[:-1], len(self.adapter_keys))
            seen = mask.new_ones(shape) if mask.dtype == torch.bool else mask.new_zeros(shape)
            mask = torch.cat([seen, mask], -1)
        others["past_key_values"] = _Past(self.adapter_keys, self.adapter_values)
        return self.base_layer(x, attention_mask=mask, **others)


class _Past:
    """What attention asks of a cache: keys and values (B, heads, T, head) with those of before in front."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        return _in_front(self.keys, keys), _in_front(self.values, values)


def _in_front(learned: Tensor, own: Tensor) -> Tensor:
    num, heads, _, size = own.shape
    split = learned.to(own.dtype).view(len(learned), heads, size).transpose(0, 1)
    return torch.cat([split.expand(num, -1, -1, -1), own], 2)


class Bottleneck(nn.Module):
    """A projection back to the width of the layer, and a small network with a residual after it (Houlsby et al. 2019,
    section 2.1; layer norms stay frozen here). Silent at the start: what leads up is zero."""

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
