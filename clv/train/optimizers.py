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
    """Biases, norms and embeddings are not decayed; the backbone learns at its own share of the rate (see `share`)."""
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
    """Layer of a backbone's parameter, from 1; 0 for what lies below the first."""
    found = LAYER.search(name)
    return int(found[1] or found[2]) + 1 if found else 0


def shares(names: list[str], config: OptimizerConfig, epochs: float) -> list[float]:
    """Share of the learning rate of each group of `make_optimizer`, by name, after so many epochs.

    A layer learns at `layer_decay` of the rate of the one above it (Howard & Ruder 2018, section 3.2); while the
    backbone is being unfrozen, those that wait at none.
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
