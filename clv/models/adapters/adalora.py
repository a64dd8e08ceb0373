"""AdaLoRA's rank budget (Zhang et al. 2023, section 3): matrices start with equal ranks, the important ones remain.

An update is B diag(E) A; a rank is an entry of E with its row of A and column of B. Its importance is kept in buffers
of the layer, which are part of the weights: a run that resumes from a checkpoint prunes as if it had never stopped.
The caller of `update_importance` and `prune` is the training engine, around each step of the optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MATRICES = ("lora_E", "lora_A", "lora_B")
SMOOTHING = 0.85  # of importance and of its spread, both as in the paper
START, END = 0.1, 0.5  # epochs: a fit may end after any epoch, so all is decided within the first
ORTHOGONALITY_WEIGHT = 0.1  # of `orthogonality_penalty` in the loss


def initial_rank(rank: int) -> int:
    """Rank with which every matrix starts, where `rank` is their average in the end."""
    return math.ceil(1.5 * rank)


def register_importance(model: nn.Module, rank: int) -> None:
    """Adds the buffers of importance to every AdaLoRA layer of peft in `model`; `rank` is the average to end with."""
    layer: Any
    for layer in [m for m in model.modules() if hasattr(m, "lora_E")]:
        for name in MATRICES:
            parameter = getattr(layer, name)["default"]
            layer.register_buffer(f"rank_mean_{name}", torch.zeros_like(parameter.detach()))
            layer.register_buffer(f"rank_spread_{name}", torch.zeros_like(parameter.detach()))
        layer.rank_target = rank
        layer.register_buffer("rank_kept", torch.ones_like(layer.lora_E["default"], dtype=torch.bool))


def _layers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if hasattr(m, "rank_kept")]


def budget(epochs: float, total: int, target: int) -> int:
    """Ranks of all matrices after `epochs`: `total` until START, falling by a cubic law, `target` from END on
    (section 3.3)."""
    remainder = 1 - min(max((epochs - START) / (END - START), 0.0), 1.0)
    return target + int((total - target) * remainder**3)


@torch.no_grad()
def update_importance(model: nn.Module) -> None:
    """Updates the importance of each weight, smoothed |weight x gradient|, and its spread (section 3.2).

    Must run before the optimizer's step, on gradients of the whole global batch.
    """
    for layer in _layers(model):
        for name in MATRICES:
            parameter = getattr(layer, name)["default"]
            if parameter.grad is None:
                continue
            mean, spread = getattr(layer, f"rank_mean_{name}"), getattr(layer, f"rank_spread_{name}")
            now = (parameter * parameter.grad).abs()
            mean.lerp_(now, 1 - SMOOTHING)
            spread.lerp_((now - mean).abs(), 1 - SMOOTHING)


@torch.no_grad()
def prune(model: nn.Module, epochs: float) -> None:
    """Sets E of all but the most important ranks to zero; must run after the optimizer's step.

    The choice is final once the budget has fallen to its target.
    """
    layers = _layers(model)
    total, target = sum(len(layer.rank_kept) for layer in layers), sum(layer.rank_target for layer in layers)
    if (num := budget(epochs, total, target)) == total:
        return
    if sum(int(layer.rank_kept.sum()) for layer in layers) > target:
        importance = torch.cat([_importance(layer) for layer in layers])
        kept = torch.zeros_like(importance, dtype=torch.bool)
        kept[importance.argsort(descending=True, stable=True)[:num]] = True
        for layer, own in zip(layers, kept.split([len(layer.rank_kept) for layer in layers]), strict=True):
            layer.rank_kept.copy_(own[:, None])
    for layer in layers:
        layer.lora_E["default"].mul_(layer.rank_kept)


def _importance(layer: Any) -> Tensor:
    """(ranks,) importance of E plus the means over its row of A and its column of B (section 3.2)."""
    e, a, b = (getattr(layer, f"rank_mean_{name}") * getattr(layer, f"rank_spread_{name}") for name in MATRICES)
    return e[:, 0] + a.mean(1) + b.mean(0)


def orthogonality_penalty(model: nn.Module) -> Tensor:
    """Mean Frobenius norm of the differences of A A' and B' B from the identity (section 3.1; the mean is peft's).

    It keeps ranks from overlapping, so that their importance can be judged one by one.
    """
    norms = []
    for layer in _layers(model):
        for p in (layer.lora_A["default"], layer.lora_B["default"].T):
            norms.append((p @ p.T - torch.eye(len(p), device=p.device)).norm())
    return torch.stack(norms).mean()


def without_pruned_ranks(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with E set to zero at pruned ranks: an average over steps still contains them."""
    out = dict(weights)
    for name, kept in weights.items():
        if name.endswith(".rank_kept"):
            values = name.removesuffix("rank_kept") + "lora_E.default"
            out[values] = weights[values] * kept
    return out
