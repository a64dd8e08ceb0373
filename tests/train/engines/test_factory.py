"""The engine of a configuration, and options that are refused before it is built."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clv.models.model import CustomerModel
from clv.train import loop
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.engines.torch_engine import Engine
from clv.train.fitting import Setup


def test_recomputing_is_refused_where_there_are_no_transformer_layers(setup: Setup, config: TrainConfig) -> None:
    backbone = replace(config.model.backbone, architecture="gru")
    changed = replace(config, model=replace(config.model, backbone=backbone)).with_engine(activation_checkpointing=True)
    model = CustomerModel(changed.model, setup.assembler.space, 2)
    with pytest.raises(ValueError, match=r"engine\.activation_checkpointing needs a transformer backbone"):
        make_engine(model, loop.sum_loss(changed, True), changed, torch.device("cpu"))


def test_an_option_without_effect_on_the_device_is_refused(setup: Setup, config: TrainConfig) -> None:
    changed = config.with_engine(kind="deepspeed", precision="fp16")
    with pytest.raises(ValueError, match=r"engine\.precision fp16 needs a GPU"):
        make_engine(setup.model(config), loop.sum_loss(changed, True), changed, torch.device("cpu"))


def test_the_torch_engine_trains_the_given_model(setup: Setup, config: TrainConfig) -> None:
    model, chosen = setup.model(config), config.with_engine(kind="torch")
    engine = make_engine(model, loop.sum_loss(chosen, True), chosen, torch.device("cpu"))
    assert type(engine) is Engine
    assert engine.module is model
