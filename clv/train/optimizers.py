"""The optimizer, and the rate that each part of the model learns at."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

from clv.train.config import OptimizerConfig

BACKBONE = "backbone"
# Transformer layers (bert, gpt2) by their place in a list, recurrent ones by the suffix of their weights.
LAYER = re.compile(r"\.(?:layer|h)\.(\d+)\.|_l(\d+)(?:_reverse)?$")


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `config` over the parameters of `model` that are trained, in named groups.

    Weight decay applies to parameters of two and more dimensions, unless `embedding` is in their name: not to biases,
    norms and what turns events into vectors. GPT-2 names its positions `wpe`, so they are decayed. adamw decays the
    weights themselves; the others add the decay to the gradient. sgd has a momentum of 0.9.

    All groups start at `config.learning_rate`; the engine sets the rate of each at every step (see `shares`). Backbone
    parameters are in groups of their own, one per layer where `config.layered`.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    num_layers = max((depth_of(name) for name, _ in trained), default=0)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, p in trained:
        part = "rest"
        if "backbone." in name:
            depth = num_layers if ".ln_f." in name else depth_of(name)
            part = f"{BACKBONE}.{depth:03d}" if config.layered else BACKBONE
        decays = p.ndim >= 2 and "embedding" not in name
        groups.setdefault((part, decays), []).append(p)
    order = sorted(groups, key=lambda key: (key[0] != "rest", key))
    parameters: list[dict[str, Any]] = [
        {
            "params": groups[part, decays],
            "weight_decay": config.weight_decay if decays else 0.0,
            "name": f"{part}-{'decayed' if decays else 'plain'}",
        }
        for part, decays in order
    ]
    rate = config.learning_rate
    match config.name:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate)
        case "adam":
            return torch.optim.Adam(parameters, lr=rate)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=rate)
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def depth_of(name: str) -> int:
    """Layer of a backbone's parameter, from 1; 0 for a parameter of no numbered layer, such as the embeddings."""
    found = LAYER.search(name)
    return int(found[1] or found[2]) + 1 if found else 0


def shares(names: list[str], config: OptimizerConfig, epochs: float) -> list[float]:
    """Share of the learning rate of each group of `make_optimizer`, in the order of `names`, after so many epochs.

    It is 1 outside the backbone and `backbone_share` in its top layer. Every other layer has `layer_decay` times the
    share of the one above it (Howard & Ruder 2018, section 3.2); layers that are still frozen have 0 (section 3.3).
    """
    depths = [int(name[len(BACKBONE) + 1 :].split("-")[0]) if name.startswith(f"{BACKBONE}.") else 0 for name in names]
    top = max(depths, default=0)
    awake = (top + 1) * (min(1.0, epochs / config.unfreeze_epochs) if config.unfreeze_epochs else 1.0)

    def share(name: str, depth: int) -> float:
        if not name.startswith(BACKBONE):
            return 1.0
        if not config.layered:
            return config.backbone_share
        return config.backbone_share * config.layer_decay ** (top - depth) * (top - depth + 1 <= awake)

    return [share(name, depth) for name, depth in zip(names, depths, strict=True)]
