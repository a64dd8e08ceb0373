"""Adapters in a pretrained backbone: few weights are trained beside the frozen ones. Those of package peft can be
merged into them; prefixes and bottlenecks (see `clv.models.adapters.inserts`) stay.

adapters.json         method and its options; what the frozen backbone is
adapters.safetensors  every tensor that was trained: adapters, and what lies outside the backbone
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clv.models.adapters import adalora
from clv.models.adapters.inserts import Bottleneck, Prefix
from clv.models.backbones.encoders import BackboneConfig

Method = Literal["lora", "adalora", "ia3", "prefix", "bottleneck"]
FACTS, TENSORS = "adapters.json", "adapters.safetensors"
# What each method heeds, and what it takes where nothing is given.
OPTIONS: dict[Method, dict[str, Any]] = {
    "lora": {"rank": 8, "alpha": 16.0},
    "adalora": {"rank": 4, "alpha": 16.0},
    "ia3": {},
    "prefix": {"length": 8},
    "bottleneck": {"width": 16},
}
MERGED = ("lora", "adalora", "ia3")
# Ends of the names of the modules that are adapted. AdaLoRA has every matrix to choose from; (IA)3 scales the
# feed-forward layer beside attention's keys and values.
TARGETS: dict[str, dict[Method, tuple[str, ...]]] = {
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


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """method: None trains the backbone whole.

    lora (Hu et al. 2021): low-rank additions, `rank` columns scaled by `alpha` / rank. adalora (Zhang et al. 2023): the
    same, `rank` on average, more where it matters. ia3 (Liu et al. 2022): scales of keys, values and the feed-forward
    layer. prefix (Li & Liang 2021): `length` learned keys and values in every layer's attention. bottleneck (Houlsby et
    al. 2019): a small network of `width` hidden units after attention and feed-forward of every layer.

    An option of another method is refused.
    """

    method: Method | None = None
    rank: int | None = None
    alpha: float | None = None
    length: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "method" or value is None:
                continue
            if self.method is None or name not in OPTIONS[self.method]:
                takers = " or ".join(method for method, options in OPTIONS.items() if name in options)
                raise ValueError(f"adapters.{name} {value} needs adapters.method {takers}, not {self.method}")
            if value <= 0:
                raise ValueError(f"adapters.{name} must be positive, not {value}")

    @property
    def whole(self) -> Self:
        """With a value for every option of the method."""
        if self.method is None:
            return self
        absent = {name: value for name, value in OPTIONS[self.method].items() if getattr(self, name) is None}
        return replace(self, **absent)

    @property
    def left(self) -> Self:
        """What stays in the model when all that can be merged is."""
        return type(self)() if self.method in MERGED else self.whole


def check(config: AdapterConfig, backbone: BackboneConfig) -> None:
    """ValueError where adapters would do nothing useful."""
    if config.method is None:
        return
    if config.method in MERGED and find_spec("peft") is None:
        raise ValueError(f"adapters.method {config.method} needs the package peft: pip install 'clv[peft]'")
    if backbone.architecture not in TARGETS:
        raise ValueError(f"adapters.method {config.method} needs a bert or gpt2 backbone, not {backbone.architecture}")
    if backbone.pretrained is None:
        raise ValueError(
            f"adapters.method {config.method} freezes the backbone, which is random without --pretrained: give one"
        )


def inject(model: nn.Module, config: AdapterConfig, backbone: BackboneConfig) -> None:
    """Freezes the backbone of `model` and puts adapters into it, in place; all but prefixes change nothing until they
    are trained. ValueError where the backbone has no module to put them into."""
    assert config.method is not None
    inner, config = model.get_submodule("backbone.model"), config.whole
    if config.method in MERGED:
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
    made: Any
    rank: Any = config.rank
    alpha: Any = config.alpha
    match config.method:
        case "lora":
            made = LoraConfig(r=rank, lora_alpha=alpha, **options)
        case "adalora":
            # Its budget is kept by `ranks`, whose steps are the engine's: what peft is told of steps is of no use.
            made = AdaLoraConfig(init_r=adalora.initial(rank), lora_alpha=alpha, total_step=1, **options)
        case _:
            made = IA3Config(feedforward_modules=FEED_FORWARD[architecture], **options)
    inject_adapter_in_model(made, inner)
    if config.method == "adalora":
        adalora.register(inner, rank)


def _insert(inner: nn.Module, config: AdapterConfig, backbone: BackboneConfig) -> None:
    assert config.method is not None
    ends = tuple(f".{end}" for end in TARGETS[backbone.architecture][config.method])
    found = [name for name, _ in inner.named_modules() if name.endswith(ends)]
    if not found:
        raise ValueError(
            f"adapters.method {config.method} needs a backbone built like BERT: this one has no {', '.join(ends)}"
        )
    for name in found:
        layer = inner.get_submodule(name)
        if config.length is not None:
            inner.set_submodule(name, Prefix(layer, backbone.width, config.length))
        else:
            assert config.width is not None
            inner.set_submodule(name, Bottleneck(layer, backbone.width, config.width))


def is_adapter(name: str) -> bool:
    return any(part in name for part in (".lora_", ".ia3_", ".adapter_"))


def merge(model: nn.Module) -> None:
    """Works the adapters of `model` that can be merged into its weights, in place; those layers are plain again."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            layer: Any = module
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())


def apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the weights of a model with adapters, those that were trained."""
    weights = adalora.settled(weights)
    return {name: t for name, t in weights.items() if is_adapter(name) or not name.startswith("backbone.")}


def save(folder: Path, config: AdapterConfig, backbone: BackboneConfig, trained: Mapping[str, Tensor]) -> None:
    """Writes what was trained; beside the pretrained backbone it is the whole model."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in trained.items()}, str(folder / TENSORS))
    facts = {"adapters": asdict(config.whole), "backbone": asdict(backbone)}
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
