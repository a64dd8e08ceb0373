"""Settings of a training run. Presets are values; the command line is made from these fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, Self, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from clv.models import adapters, encoders, text_backbone
from clv.models.losses import LossConfig
from clv.models.model import ModelConfig
from clv.models.text import DEFAULT_ENCODER

OptimizerName = Literal["adamw", "adam", "rmsprop", "sgd"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Learning rates rise linearly over `warmup` of the steps and fall to 5 % along a cosine.

    The backbone, deep and slow to settle, learns at `backbone_share` of the rate; each of its layers at `layer_decay`
    of the one above. unfreeze_epochs: over so many epochs its layers, all frozen at first, join in from the top.
    """

    name: OptimizerName = "adamw"
    learning_rate: float = 2e-3
    backbone_share: float = 0.3
    weight_decay: float = 0.02
    warmup: float = 0.1
    clip_norm: float = 1.0
    layer_decay: float = 1.0
    unfreeze_epochs: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optimizer.layer_decay must lie in (0, 1], not {self.layer_decay}")
        if self.unfreeze_epochs < 0:
            raise ValueError(f"optimizer.unfreeze_epochs must not be negative, not {self.unfreeze_epochs}")

    @property
    def layered(self) -> bool:
        """Whether the layers of the backbone learn at rates of their own."""
        return self.layer_decay < 1 or self.unfreeze_epochs > 0


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a step is computed. An option that would do nothing is refused.

    kind: torch needs nothing but torch; deepspeed shards optimizer (stage 1), gradients (2) and parameters (3).
    zero_stage: None is the stage of the DeepSpeed JSON, or 1. offload_*: kept in the host's memory.
    activation_checkpointing: layers run again in the backward pass instead of keeping what they computed.
    compile: the backbone through `torch.compile`. deepspeed: a DeepSpeed JSON that is merged with these settings.
    """

    kind: Literal["torch", "deepspeed"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] | None = None
    precision: Precision = "auto"
    accumulation: int = 1
    activation_checkpointing: bool = False
    offload_optimizer: bool = False
    offload_parameters: bool = False
    compile: bool = False
    deepspeed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.accumulation < 1:
            raise ValueError(f"engine.accumulation must be at least 1, not {self.accumulation}")
        if self.kind == "torch":
            for name in ("zero_stage", "offload_optimizer", "offload_parameters", "deepspeed"):
                if given := getattr(self, name):
                    raise ValueError(f"engine.{name} {given} needs engine.kind deepspeed: plain torch would ignore it")
            if self.precision == "fp16":
                raise ValueError("engine.precision fp16 needs engine.kind deepspeed (it scales the loss)")
        if self.offload_optimizer and self.stage == 0:
            raise ValueError("engine.offload_optimizer needs engine.zero_stage 1, 2 or 3: stage 0 would ignore it")
        if self.offload_parameters and self.stage != 3:
            raise ValueError(f"engine.offload_parameters needs engine.zero_stage 3, not {self.stage}")
        if self.compile and self.stage == 3:
            raise ValueError("engine.compile needs engine.zero_stage 0, 1 or 2: stage 3 swaps parameters under it")

    @property
    def stage(self) -> int:
        """The ZeRO stage in force."""
        if self.kind == "torch":
            return 0
        if self.zero_stage is not None:
            return self.zero_stage
        return int(self.deepspeed.get("zero_optimization", {}).get("stage", 1))


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run.

    batch_size: customers per step over all workers; batch_tokens: tokens instead, padding included, where it is not 0;
    prefetch: batches made ahead of their step. samples_per_epoch: (customer, origin) pairs drawn per epoch.
    ema_decay: decay per step of the averaged weights that are kept; 0 turns averaging off.
    feed: where samples come from. memory: histories that every worker holds; shards: histories on storage, read shard
    by shard; ray: the same, made by Ray Data on any node; auto: memory where they have no more tokens than
    memory_events, else shards. memory_events: tokens that a process holds at most where they are not all in memory;
    anchor, features and the held-out judgement then rest on a random share of the customers.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    epochs: int = 6
    samples_per_epoch: int = 16_000
    batch_size: int = 128
    batch_tokens: int = 0
    prefetch: int = 2
    feed: Literal["auto", "memory", "shards", "ray"] = "auto"
    memory_events: int = 50_000_000
    token_dropout: float = 0.1
    ema_decay: float = 0.99
    num_origins: int = 40
    min_history_days: int = 28
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "samples_per_epoch", "batch_size", "num_origins", "memory_events"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("batch_tokens", "prefetch"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if 0 < self.batch_tokens < (longest := self.model.backbone.max_tokens):
            raise ValueError(f"batch_tokens {self.batch_tokens} is less than one customer's max_tokens {longest}")
        adapters.check(self.model.adapters, self.model.backbone)
        if self.model.adapters.method and not self.model.use_sequence:
            raise ValueError(
                f"adapters.method {self.model.adapters.method} would do nothing without model.use_sequence"
            )
        if self.prunes and self.engine.stage > 0:
            raise ValueError(
                f"adapters.method adalora weighs whole gradients, which engine.zero_stage {self.engine.stage} shards: "
                "use zero_stage 0, or engine.kind torch"
            )
        if self.optimizer.layered and self.model.backbone.architecture == "mlp":
            raise ValueError("optimizer.layer_decay and unfreeze_epochs need a backbone of several layers, not an mlp")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}")

    @property
    def prunes(self) -> bool:
        """Whether ranks of the adapters are given up during training (see `clv.models.ranks`)."""
        return self.model.adapters.method == "adalora"

    @classmethod
    def preset(cls, name: str) -> Self:
        """Settings for a backbone of `clv.models.encoders.PRESETS`."""
        backbone = encoders.resolve_preset(name)
        rate = {"tiny": 2e-3, "minilm": 5e-4, "base": 3e-4, "large": 2e-4}[name]
        return cls(model=ModelConfig(backbone=backbone), optimizer=OptimizerConfig(learning_rate=rate))

    @classmethod
    def for_text(cls, source: str = DEFAULT_ENCODER, max_tokens: int = 128) -> Self:
        """Settings for pasts read as text by the encoder `source` (a folder, `pkg://PACKAGE` or a hub id).

        It knows language already: it learns slowly and briefly, by the rates, batches and epochs that BERT was
        fine-tuned with (Devlin et al. 2019, appendix A.3), the heads faster. Raises ValueError for a checkpoint that is
        no text encoder.
        """
        backbone = text_backbone.shape_of(source, max_tokens)
        rates = OptimizerConfig(learning_rate=1e-3, backbone_share=0.05)
        return cls(model=ModelConfig(encoder="text", backbone=backbone), optimizer=rates, batch_size=32, epochs=3)

    def with_engine(self, **changes: object) -> Self:
        return replace(self, engine=replace(self.engine, **changes))  # type: ignore[arg-type]


def overlaid(config: T, given: Mapping[str, Any], source: str, where: str = "") -> T:
    """`config` with what `given`, nested alike, sets of it. ValueError names source, key and remedy."""
    kinds, changes = get_type_hints(type(config)), {}
    for key, value in given.items():
        place = f"{where}{key}"
        if key not in (known := [f.name for f in fields(config)]):  # type: ignore[arg-type]
            near = get_close_matches(str(key), known, n=1)
            meant = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{source}: {place}: unknown setting ({meant})")
        current = getattr(config, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ValueError(f"{source}: {place} holds settings of its own, not {value!r}")
            changes[key] = overlaid(current, value, source, f"{place}.")
            continue
        try:
            changes[key] = TypeAdapter(kinds[key]).validate_python(value)
        except ValidationError as error:
            raise ValueError(f"{source}: {place} {value!r}: {error.errors()[0]['msg']}") from None
    try:
        return replace(config, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
