"""Adapters in a backbone: which weights are trained, merging, and files that fit one model only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clv.models.adapters import methods
from clv.models.backbones import encoders
from clv.models.config import ADAPTER_OPTIONS, MERGEABLE, AdapterConfig, BackboneConfig

pytest.importorskip("peft")

BACKBONE = BackboneConfig(width=16, num_layers=2, num_heads=2, intermediate=24, dropout=0.0)
MASK = torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]])
METHODS: list[Any] = list(ADAPTER_OPTIONS)


def make(architecture: Any = "bert") -> Any:
    """A model of an event backbone and one layer outside it."""
    torch.manual_seed(1)
    model: Any = nn.Module()
    model.backbone = encoders.build(replace(BACKBONE, architecture=architecture))
    model.outside = nn.Linear(2, 2)
    return model.eval()


def random_adapters(model: nn.Module) -> None:
    """Random numbers in every tensor of an adapter: a trained adapter."""
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if methods.is_adapter(name):
            nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("method", METHODS)
def test_only_adapters_and_what_lies_outside_the_backbone_are_trained(method: Any, architecture: str) -> None:
    model, before = make(architecture), set(make(architecture).state_dict())
    methods.inject(model, AdapterConfig(method=method), replace(BACKBONE, architecture=architecture))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {"outside.weight", "outside.bias"} < trained
    inside = trained - {"outside.weight", "outside.bias"}
    assert inside
    assert not inside & before
    assert trained <= set(methods.trained_tensors(model.state_dict()))


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("method", MERGEABLE)
def test_a_merged_backbone_has_its_old_tensors_and_the_output_of_the_adapters(method: Any, architecture: str) -> None:
    model, x = make(architecture), torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(3))
    names = list(model.state_dict())
    with torch.no_grad():
        before = model.backbone(x, MASK)
        methods.inject(model, AdapterConfig(method=method), replace(BACKBONE, architecture=architecture))
        torch.testing.assert_close(model.backbone(x, MASK), before)  # fresh adapters change nothing
        random_adapters(model)
        adapted = model.backbone(x, MASK)
        methods.merge(model)
        torch.testing.assert_close(model.backbone(x, MASK), adapted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(adapted, before, atol=1e-2)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_of_adapters_restores_the_model_they_were_saved_from(method: Any, tmp_path: Path) -> None:
    model, config = make(), AdapterConfig(method=method)
    methods.inject(model, config, BACKBONE)
    random_adapters(model)
    nn.init.ones_(model.outside.weight)
    methods.save(tmp_path, config, BACKBONE, methods.trained_tensors(model.state_dict()))
    restored = make()
    methods.load(restored, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(restored.state_dict()[name], tensor), name


def test_adapters_of_another_shape_or_without_a_tensor_are_refused(tmp_path: Path) -> None:
    model = make()
    methods.inject(model, AdapterConfig(method="lora", rank=4), BACKBONE)
    tensors = methods.trained_tensors(model.state_dict())
    methods.save(tmp_path, AdapterConfig(method="lora", rank=8), BACKBONE, tensors)
    with pytest.raises(ValueError, match=r"lora_A.default.weight' has the shape \(4, 16\), the model needs \(8, 16\)"):
        methods.load(make(), tmp_path)
    del tensors["outside.bias"]
    methods.save(tmp_path, AdapterConfig(method="lora", rank=4), BACKBONE, tensors)
    with pytest.raises(
        ValueError, match=r"'outside.bias' is missing, the model needs \(2,\); load them into the model"
    ):
        methods.load(make(), tmp_path)


def test_a_backbone_without_such_modules_is_refused() -> None:
    model: Any = nn.Module()
    model.backbone = nn.Module()
    model.backbone.model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"prefix needs a backbone built like BERT: this one has no \.attention\.self"):
        methods.inject(model, AdapterConfig(method="prefix"), BACKBONE)
