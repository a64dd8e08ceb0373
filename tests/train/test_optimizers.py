"""Parameter groups of the optimizer: weight decay and learning rates by layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from clv.models.model import CustomerModel
from clv.train import loop
from clv.train.config import OptimizerConfig, TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.examples.loader import steps_of
from clv.train.fitting import Dataset, Setup
from clv.train.optimizers import depth_of, make_optimizer, shares


def test_biases_norms_and_embeddings_are_not_decayed(setup: Setup, config: TrainConfig) -> None:
    model = CustomerModel(config.model, setup.assembler.space, 2)
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.3), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {group["name"]: [names[p] for p in group["params"]] for group in optimizer.param_groups}
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"backbone-decayed": 0.3, "backbone-plain": 0.0, "rest-decayed": 0.3, "rest-plain": 0.0}
    assert all(("backbone." in name) == key.startswith("backbone") for key, part in groups.items() for name in part)
    decayed = groups["backbone-decayed"] + groups["rest-decayed"]
    rest = groups["backbone-plain"] + groups["rest-plain"]
    assert all(model.get_parameter(name).ndim >= 2 and "embedding" not in name for name in decayed)
    assert all("bias" in name or "norm" in name.lower() or "embedding" in name or "." in name for name in rest)
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert len(decayed) + len(rest) + len(frozen) == len(names)


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "gru", "bilstm"])
def test_every_layer_has_a_rate_of_its_own_and_wakes_in_its_turn(
    architecture: str, setup: Setup, shop: Dataset, config: TrainConfig
) -> None:
    backbone = replace(config.model.backbone, architecture=architecture, num_layers=4, width=32)
    layers = OptimizerConfig(layer_decay=0.5, unfreeze_epochs=2.0, backbone_share=0.4, weight_decay=0.5)
    settings = replace(config, model=replace(config.model, backbone=backbone), optimizer=layers)
    engine = make_engine(settings_model(settings, setup), loop.sum_loss(config, True), settings, torch.device("cpu"))
    num = 2 if architecture in ("gru", "bilstm") else 4
    tensors = dict(engine.module.named_parameters())
    (step,) = list(steps_of(setup.source(shop, config).epoch(0), settings, 0, 1, 0))[:1]

    def moved(epochs: float) -> set[int]:
        """Depths of the layers that one step changes."""
        before = {name: p.detach().clone() for name, p in tensors.items()}
        engine.train_step(step.batches, 1e-3, epochs)
        changed = {name for name, p in tensors.items() if not torch.equal(p, before[name])}
        assert any("heads" in name for name in changed)
        return {num if ".ln_f." in name else depth_of(name) for name in changed if name.startswith("backbone.")}

    below = 0 if architecture in ("bert", "gpt2") else 1
    assert moved(0.0) == set()
    assert moved(1.0) == set(range(num, num - (num + 1) // 2, -1))
    assert moved(2.0) == set(range(below, num + 1))
    rates = {group["name"].split("-")[0]: group["lr"] for group in engine.optimizer.param_groups}
    assert rates["rest"] == 1e-3
    for depth in range(below, num + 1):
        assert rates[f"backbone.{depth:03d}"] == pytest.approx(1e-3 * 0.4 * 0.5 ** (num - depth))


def settings_model(config: TrainConfig, setup: Setup) -> CustomerModel:
    torch.manual_seed(0)
    return CustomerModel(config.model, setup.assembler.space, 2)


def test_without_layers_of_its_own_the_backbone_has_one_rate() -> None:
    names = ["rest-plain", "backbone-plain", "backbone-decayed"]
    assert shares(names, OptimizerConfig(backbone_share=0.2), 0.0) == [1.0, 0.2, 0.2]
