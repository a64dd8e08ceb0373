"""Adapters (package peft) in a pretrained backbone: few weights are trained beside the frozen ones, and can be merged.

adapters.json         method, rank, which layers; what the frozen backbone is
adapters.safetensors  every tensor that was trained: adapters, and what lies outside the backbone
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clv.models.encoders import BackboneConfig

Method = Literal["lora", "ia3"]
FACTS, TENSORS = "adapters.json", "adapters.safetensors"
# Attention's projections, and for (IA)3 the feed-forward layer it scales as well.
TARGETS: dict[str, dict[Method, list[str]]] = {
    "bert": {"lora": ["query", "value"], "ia3": ["key", "value", "output.dense"]},
    "gpt2": {"lora": ["c_attn"], "ia3": ["c_attn", "mlp.c_proj"]},
}
FEED_FORWARD = {"bert": ["output.dense"], "gpt2": ["mlp.c_proj"]}


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """method: None trains the backbone whole. lora (Hu et al. 2021): low-rank additions, `rank` columns scaled by
    `alpha` / rank. ia3 (Liu et al. 2022): scales of keys, values and the feed-forward layer, without a rank."""

    method: Method | None = None
    rank: int = 8
    alpha: float = 16.0


def check(config: AdapterConfig, backbone: BackboneConfig) -> None:
    """ValueError where adapters would do nothing useful."""
    if config.method is None:
        return
    if find_spec("peft") is None:
        raise ValueError(f"adapters.method {config.method} needs the package peft: pip install 'clv[peft]'")
    if backbone.architecture not in TARGETS:
        raise ValueError(f"adapters.method {config.method} needs a bert or gpt2 backbone, not {backbone.architecture}")
    if backbone.pretrained is None:
        raise ValueError(
            f"adapters.method {config.method} freezes the backbone, which is random without --pretrained: give one"
        )
    if config.rank < 1:
        raise ValueError(f"adapters.rank must be at least 1, not {config.rank}")


def inject(model: nn.Module, config: AdapterConfig, backbone: BackboneConfig) -> None:
    """Freezes the backbone of `model` and puts adapters into it, in place; they change nothing until trained."""
    from peft import IA3Config, LoraConfig, inject_adapter_in_model

    assert config.method is not None
    targets = TARGETS[backbone.architecture][config.method]
    options: dict[str, Any] = {"target_modules": targets, "fan_in_fan_out": backbone.architecture == "gpt2"}
    made: Any
    if config.method == "lora":
        made = LoraConfig(r=config.rank, lora_alpha=config.alpha, **options)  # type: ignore[arg-type]
    else:
        made = IA3Config(feedforward_modules=FEED_FORWARD[backbone.architecture], **options)
    inner: Any = model.get_submodule("backbone.model")
    inject_adapter_in_model(made, inner)
    for name, parameter in inner.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def is_adapter(name: str) -> bool:
    return ".lora_" in name or ".ia3_" in name


def merge(model: nn.Module) -> None:
    """Works the adapters of `model` into its weights, in place: the architecture is the plain one again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer.get_base_layer())


def apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the weights of a model with adapters, those that were trained."""
    return {name: t for name, t in weights.items() if is_adapter(name) or not name.startswith("backbone.")}


def save(folder: Path, config: AdapterConfig, backbone: BackboneConfig, trained: Mapping[str, Tensor]) -> None:
    """Writes what was trained; beside the pretrained backbone it is the whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in trained.items()}, str(folder / TENSORS))
    facts = {"adapters": asdict(config), "backbone": asdict(backbone)}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def load(model: nn.Module, folder: Path) -> None:
    """Adapters of a folder into a model whose backbone is the pretrained one it names. ValueError for another shape."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    config, backbone = AdapterConfig(**facts["adapters"]), BackboneConfig(**facts["backbone"])
    inject(model, config, backbone)
    found, wanted = load_file(str(folder / TENSORS)), apart(model.state_dict())
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            there = tuple(found[name].shape) if name in found else "nothing"
            raise ValueError(f"{folder}: tensor {name!r} has shape {tuple(tensor.shape)} here, {there} there")
    with torch.no_grad():
        model.load_state_dict(found, strict=False)
