"""Adapters of a pretrained backbone: insertion, merging and files.

LoRA, AdaLoRA and (IA)3 are peft's and can be merged into the frozen weights; prefixes and bottlenecks (see
`clv.models.adapters.inserts`) stay. A folder of adapters has two files:

    adapters.json         the method with its options, and the shape and source of the frozen backbone
    adapters.safetensors  every trained tensor: the adapters, and all that lies outside the backbone
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clv.data.workdir import write_json
from clv.models.adapters import adalora
from clv.models.adapters.inserts import Bottleneck, Prefix
from clv.models.config import MERGEABLE, AdapterConfig, AdapterMethod, BackboneConfig

CONFIG, TENSORS = "adapters.json", "adapters.safetensors"
# Suffixes of the names of the adapted modules. AdaLoRA chooses among all matrices; (IA)3 scales the feed-forward layer
# beside attention's keys and values.
TARGETS: dict[str, dict[AdapterMethod, tuple[str, ...]]] = {
    "bert": {
        "lora": ("query", "value"),
        "adalora": ("query", "key", "value", "dense"),
        "ia3": ("key", "value", "output.dense"),
        "prefix": ("attention.self",),
        "bottleneck": ("output.dense",),
    },
    "gpt2": {
        "lora": ("c_attn",),
        "adalora": ("c_attn", "c_proj", "c_fc"),
        "ia3": ("c_attn", "mlp.c_proj"),
        "prefix": ("attn",),
        "bottleneck": ("c_proj",),
    },
}
FEED_FORWARD = {"bert": ["output.dense"], "gpt2": ["mlp.c_proj"]}


def inject(model: nn.Module, config: AdapterConfig, backbone: BackboneConfig) -> None:
    """Freezes the backbone of `model` and inserts adapters into it, in place.

    Fresh adapters other than prefixes change no output. Raises ValueError where the backbone has no module to adapt.
    """
    assert config.method is not None
    inner, config = model.get_submodule("backbone.model"), config.with_defaults
    if config.method in MERGEABLE:
        _inject_peft(inner, config, backbone.architecture)
    else:
        _insert(inner, config, backbone)
    for name, parameter in inner.named_parameters():
        parameter.requires_grad_(is_adapter(name))


def _inject_peft(inner: Any, config: AdapterConfig, architecture: str) -> None:
    from peft import AdaLoraConfig, IA3Config, LoraConfig, inject_adapter_in_model

    assert config.method is not None
    targets = list(TARGETS[architecture][config.method])
    options: dict[str, Any] = {"target_modules": targets, "fan_in_fan_out": architecture == "gpt2"}
    peft_config: Any
    rank: Any = config.rank
    alpha: Any = config.alpha
    match config.method:
        case "lora":
            peft_config = LoraConfig(r=rank, lora_alpha=alpha, **options)
        case "adalora":
            # `adalora` keeps the budget by the engine's steps; peft requires a number of steps that nothing uses.
            peft_config = AdaLoraConfig(init_r=adalora.initial_rank(rank), lora_alpha=alpha, total_step=1, **options)
        case _:
            peft_config = IA3Config(feedforward_modules=FEED_FORWARD[architecture], **options)
    inject_adapter_in_model(peft_config, inner)
    if config.method == "adalora":
        adalora.register_importance(inner, rank)


def _insert(inner: nn.Module, config: AdapterConfig, backbone: BackboneConfig) -> None:
    assert config.method is not None
    suffixes = tuple(f".{suffix}" for suffix in TARGETS[backbone.architecture][config.method])
    names = [name for name, _ in inner.named_modules() if name.endswith(suffixes)]
    if not names:
        raise ValueError(
            f"adapters.method {config.method} needs a backbone built like BERT: this one has no {', '.join(suffixes)}"
        )
    for name in names:
        layer = inner.get_submodule(name)
        if config.length is not None:
            inner.set_submodule(name, Prefix(layer, backbone.width, config.length))
        else:
            assert config.width is not None
            inner.set_submodule(name, Bottleneck(layer, backbone.width, config.width))


def is_adapter(name: str) -> bool:
    """Whether the tensor of that name belongs to an adapter."""
    return any(part in name for part in (".lora_", ".ia3_", ".adapter_"))


def merge(model: nn.Module) -> None:
    """Merges the mergeable adapters of `model` into its weights, in place; their layers are as before insertion."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())


def trained_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model with adapters that were trained: the adapters, and all outside the backbone."""
    weights = adalora.without_pruned_ranks(weights)
    return {name: t for name, t in weights.items() if is_adapter(name) or not name.startswith("backbone.")}


def save(folder: Path, config: AdapterConfig, backbone: BackboneConfig, trained: Mapping[str, Tensor]) -> None:
    """Writes the trained tensors and the settings; with the pretrained backbone they are the whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in trained.items()}, str(folder / TENSORS))
    write_json(folder / CONFIG, {"adapters": asdict(config.with_defaults), "backbone": asdict(backbone)})


def load(model: nn.Module, folder: Path) -> None:
    """Inserts the adapters of a folder into a model that holds the weights of the pretrained backbone it names.

    Raises ValueError where a tensor is missing or has another shape.
    """
    settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config, backbone = AdapterConfig(**settings["adapters"]), BackboneConfig(**settings["backbone"])
    inject(model, config, backbone)
    found, wanted = load_file(str(folder / TENSORS)), trained_tensors(model.state_dict())
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            stored = f"has the shape {tuple(found[name].shape)}" if name in found else "is missing"
            raise ValueError(
                f"{folder}: tensor {name!r} {stored}, the model needs {tuple(tensor.shape)}; load them into the model "
                "that they were trained in"
            )
    with torch.no_grad():
        model.load_state_dict(found, strict=False)
