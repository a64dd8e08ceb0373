"""Settings of the customer model: backbone, adapters, heads and loss. This module imports neither torch nor Ray.

Every field is also an option of the training jobs and a key of their YAML files; the text below a field is its help.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from typing import Annotated, Any, Literal, Self

from tyro.conf import OmitArgPrefixes, arg

Architecture = Literal["bert", "gpt2", "lstm", "bilstm", "gru", "mlp"]
AdapterMethod = Literal["lora", "adalora", "ia3", "prefix", "bottleneck"]
LossName = Literal["mixture", "ziln", "tweedie", "mse"]

# The options of each adapter method and their defaults.
ADAPTER_OPTIONS: dict[AdapterMethod, dict[str, Any]] = {
    "lora": {"rank": 8, "alpha": 16.0},
    "adalora": {"rank": 4, "alpha": 16.0},
    "ia3": {},
    "prefix": {"length": 8},
    "bottleneck": {"width": 16},
}
MERGEABLE = ("lora", "adalora", "ia3")  # package peft can merge these into the backbone's weights
ADAPTED_ARCHITECTURES = ("bert", "gpt2")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Shape of the backbone, the encoder that reads a customer's events or text."""

    architecture: Architecture = "bert"
    """Architecture of the backbone."""
    width: int = 128
    """Width of the token vectors."""
    num_layers: int = 4
    """Number of layers."""
    num_heads: int = 4
    """Attention heads per layer; the width must be a multiple of them."""
    intermediate: int = 512
    """Hidden units of the feed-forward part of a layer."""
    dropout: Annotated[float, arg(name="backbone-dropout")] = 0.1
    """Dropout within the backbone."""
    max_tokens: int = 64
    """Newest events (with the text encoder: word pieces) of a customer that the backbone reads."""
    pretrained: str | None = None
    """Source of the backbone's weights: a folder of ray_jobs.pretrain, or a folder, pkg://PACKAGE or hub id of a BERT
    encoder. Every tensor of the encoder must fit."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Adapters, trained in place of a frozen pretrained backbone. An option of another method is refused.

    lora (Hu et al. 2021): low-rank additions, `rank` columns scaled by `alpha` / rank. adalora (Zhang et al. 2023): the
    same, `rank` on average, more where it matters. ia3 (Liu et al. 2022): scales of keys, values and the feed-forward
    layer. prefix (Li & Liang 2021): `length` learned keys and values in every layer's attention. bottleneck (Houlsby et
    al. 2019): a small network of `width` hidden units after attention and feed-forward of every layer.
    """

    method: Annotated[AdapterMethod | None, arg(name="peft")] = None
    """Adapter method; None trains the whole backbone. All methods need a pretrained bert or gpt2 backbone; adalora also
    needs ZeRO stage 0."""
    rank: Annotated[int | None, arg(name="peft-rank")] = None
    """Rank of lora (default 8), average rank of adalora (default 4)."""
    alpha: Annotated[float | None, arg(name="peft-alpha")] = None
    """Scale of lora and adalora (default 16)."""
    length: Annotated[int | None, arg(name="peft-length")] = None
    """Learned keys and values of prefix in every layer (default 8)."""
    width: Annotated[int | None, arg(name="peft-width")] = None
    """Hidden units of bottleneck (default 16)."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "method" or value is None:
                continue
            if self.method is None or name not in ADAPTER_OPTIONS[self.method]:
                takers = " or ".join(method for method, options in ADAPTER_OPTIONS.items() if name in options)
                raise ValueError(f"adapters.{name} {value} needs adapters.method {takers}, not {self.method}")
            if value <= 0:
                raise ValueError(f"adapters.{name} must be positive, not {value}")

    @property
    def with_defaults(self) -> Self:
        """The same settings with a value for every option of the method."""
        if self.method is None:
            return self
        absent = {name: value for name, value in ADAPTER_OPTIONS[self.method].items() if getattr(self, name) is None}
        return replace(self, **absent)

    @property
    def after_merging(self) -> Self:
        """The adapters that remain when all that can be merged are part of the backbone's weights."""
        return type(self)() if self.method in MERGEABLE else self.with_defaults

    def check_backbone(self, backbone: BackboneConfig) -> None:
        """Raises ValueError for a backbone that these adapters cannot be inserted into."""
        if self.method is None:
            return
        if self.method in MERGEABLE and find_spec("peft") is None:
            raise ValueError(f"adapters.method {self.method} needs the package peft: pip install 'clv[peft]'")
        if backbone.architecture not in ADAPTED_ARCHITECTURES:
            wanted = " or ".join(ADAPTED_ARCHITECTURES)
            raise ValueError(f"adapters.method {self.method} needs a {wanted} backbone, not {backbone.architecture}")
        if backbone.pretrained is None:
            raise ValueError(
                f"adapters.method {self.method} freezes the backbone, which is random without "
                "model.backbone.pretrained: name a pretrained encoder (--pretrained)"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The customer model: input, backbone and heads. A model without heads or without input is refused."""

    encoder: Literal["events", "text"] = "events"
    """events: events are embedded as vectors. text: a customer's past is written as a text for a pretrained text
    encoder; --preset text chooses it with its learning rates."""
    backbone: OmitArgPrefixes[BackboneConfig] = field(default_factory=BackboneConfig)
    adapters: OmitArgPrefixes[AdapterConfig] = field(default_factory=AdapterConfig)
    ensemble_size: int = 1
    """Number of heads on the backbone, each trained by itself; the forecast is their mean."""
    hidden: int = 128
    """Hidden units of every head."""
    dropout: float = 0.3
    """Dropout of the wide features and of the heads."""
    num_components: int = 3
    """Lognormal components of the mixture of value."""
    use_wide: bool = True
    """Use the window features."""
    use_sequence: bool = True
    """Use the sequence of events."""
    start_curves: Literal["both", "btyd", "population_average"] = "both"
    """Curves that the heads correct: those of the customer's BTYD model, the population average, or one head each."""

    def __post_init__(self) -> None:
        if self.ensemble_size < 1:
            raise ValueError(f"model.ensemble_size must be at least 1, not {self.ensemble_size}")
        if not (self.use_wide or self.use_sequence):
            raise ValueError("model.use_wide and model.use_sequence are both off: switch one on, or there is no input")

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Reads the settings from a bundle's JSON; bundles written before 0.1 have no adapters."""
        backbone, adapters = BackboneConfig(**plain["backbone"]), AdapterConfig(**plain.get("adapters", {}))
        return cls(**{**plain, "backbone": backbone, "adapters": adapters})

    @property
    def without_adapters(self) -> Self:
        """The same model before adapters are inserted."""
        return replace(self, adapters=AdapterConfig())

    @property
    def with_merged_adapters(self) -> Self:
        """The model of a bundle: adapters that can be merged are part of the backbone's weights."""
        return replace(self, adapters=self.adapters.after_merging)


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The loss of value and the weights of the losses."""

    name: Annotated[LossName, arg(name="loss")] = "mixture"
    """Loss of value: the density of a mixture of lognormals with the Tweedie deviance of its mean, the density alone
    (ziln), the Tweedie deviance alone, or the squared error of the mean."""
    purchase_weight: float = 1.0
    """Weight of the loss of buying at all."""
    orders_weight: float = 0.3
    """Weight of the loss of the number of orders."""
    value_weight: float = 0.5
    """Weight of the density of value."""
    mean_weight: float = 1.0
    """Weight of the loss of the mean value."""
