"""Builds the training engine of a configuration: plain torch or DeepSpeed."""

from __future__ import annotations

import torch
from torch import nn

from clv.train.config import TrainConfig
from clv.train.engines.precision import check_options, choose_precision
from clv.train.engines.torch_engine import Engine, LossSum


def make_engine(model: nn.Module, loss: LossSum, config: TrainConfig, device: torch.device) -> Engine:
    """The engine that `config.engine` names. Raises ValueError for an option that would have no effect here."""
    check_options(config.engine, device)
    if config.prunes and config.engine.kind == "deepspeed" and choose_precision(config.engine, device) != "fp32":
        raise ValueError(
            "adapters.method adalora prunes weights, of which DeepSpeed keeps copies in half precision: use precision "
            "fp32, or engine.kind torch"
        )
    if config.engine.kind == "torch":
        return Engine(model, loss, config, device)
    from clv.train.engines.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(model, loss, config, device)
