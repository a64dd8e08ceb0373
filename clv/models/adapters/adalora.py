"""AdaLoRA's budget (Zhang et al. 2023, section 3): ranks start many and alike, and stay where they matter most.

An update is B diag(E) A; a rank is an entry of E with its row of A and column of B. What is known of it lies in buffers
beside it, which travel with the weights: a run that goes on from a checkpoint prunes as if it had never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("lora_E", "lora_A", "lora_B")
SMOOTHING = 0.85  # of importance and of its spread, both as in the paper
START, END = 0.1, 0.5  # epochs: a fit may end after any epoch, so all is decided within the first
SKEW_WEIGHT = 0.1  # of `skew` in the loss


def initial(rank: int) -> int:
    """Rank that every matrix starts with, where `rank` is what they have on average in the end."""
    return math.ceil(1.5 * rank)


def register(model: nn.Module, rank: int) -> None:
    """Buffers beside every update of `model` (peft's AdaLoRA layers); `rank` a matrix are to stay on average."""
    layer: Any
    for layer in [m for m in model.modules() if hasattr(m, "lora_E")]:
        for part in PARTS:
            like = getattr(layer, part)["default"]
            layer.register_buffer(f"rank_mean_{part}", torch.zeros_like(like.detach()))
            layer.register_buffer(f"rank_spread_{part}", torch.zeros_like(like.detach()))
        layer.rank_target = rank
        layer.register_buffer("rank_kept", torch.ones_like(layer.lora_E["default"], dtype=torch.bool))


def _layers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "rank_kept")]


def budget(epochs: float, total: int, target: int) -> int:
    """Ranks of all matrices after so many epochs: `total` until START, falling by a cubic law, `target` from END on
    (section 3.3)."""
    left = 1 - min(max((epochs - START) / (END - START), 0.0), 1.0)
    return target + int((total - target) * left**3)


@torch.no_grad()
def observe(model: nn.Module) -> None:
    """Notes how much each number matters: |weight x gradient|, smoothed, and how much that varies
    (section 3.2). To be called before the optimizer's step, with whole gradients."""
    for layer in _layers(model):
        for part in PARTS:
            parameter = getattr(layer, part)["default"]
            if parameter.grad is None:
                continue
            mean, spread = getattr(layer, f"rank_mean_{part}"), getattr(layer, f"rank_spread_{part}")
            now = (parameter * parameter.grad).abs()
            mean.lerp_(now, 1 - SMOOTHING)
            spread.lerp_((now - mean).abs(), 1 - SMOOTHING)


@torch.no_grad()
def prune(model: nn.Module, epochs: float) -> None:
    """Sets E of all but the most important ranks to nothing, after the optimizer's step; which they are does not change
    any more once the budget is reached."""
    layers = _layers(model)
    total, target = sum(len(layer.rank_kept) for layer in layers), sum(layer.rank_target for layer in layers)
    if (num := budget(epochs, total, target)) == total:
        return
    if sum(int(layer.rank_kept.sum()) for layer in layers) > target:
        scores = torch.cat([_importance(layer) for layer in layers])
        kept = torch.zeros_like(scores, dtype=torch.bool)
        kept[scores.argsort(descending=True, stable=True)[:num]] = True
        for layer, part in zip(layers, kept.split([len(layer.rank_kept) for layer in layers]), strict=True):
            layer.rank_kept.copy_(part[:, None])
    for layer in layers:
        layer.lora_E["default"].mul_(layer.rank_kept)


def _importance(layer: Any) -> Tensor:
    """(ranks,) of one matrix: that of E, and the mean of those of its row of A and its column of B (section 3.2)."""
    e, a, b = (getattr(layer, f"rank_mean_{part}") * getattr(layer, f"rank_spread_{part}") for part in PARTS)
    return e[:, 0] + a.mean(1) + b.mean(0)


def skew(model: nn.Module) -> Tensor:
    """How far rows of A and columns of B are from orthonormal: the mean Frobenius norm of what is missing (section
    3.1; the mean of norms is peft's). It keeps ranks from saying the same, so that they can be judged one by one."""
    norms = []
    for layer in _layers(model):
        for p in (layer.lora_A["default"], layer.lora_B["default"].T):
            norms.append((p @ p.T - torch.eye(len(p), device=p.device)).norm())
    return torch.stack(norms).mean()


def settled(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what an average over steps still holds of ranks that were pruned meanwhile."""
    out = dict(weights)
    for name, kept in weights.items():
        if name.endswith(".rank_kept"):
            values = name.removesuffix("rank_kept") + "lora_E.default"
            out[values] = weights[values] * kept
    return out
