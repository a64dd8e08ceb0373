"""Settings of a training run. A preset is a value of them, a YAML file can set each of them (see `overlaid`), and the
command line names the common ones (`ray_jobs.settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, Self, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from clv.models.adapters import methods
from clv.models.backbones import encoders, text_backbone
from clv.models.backbones.text_encoder import DEFAULT_ENCODER
from clv.models.losses import LossConfig
from clv.models.model import ModelConfig

OptimizerName = Literal["adamw", "adam", "rmsprop", "sgd"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its learning rates.

    The rate rises linearly to `learning_rate` over the share `warmup` of the planned steps, at least one, and then
    falls along a cosine towards 5 % of it. Planned are all epochs with all their samples: a run that stops early, or
    whose epochs have fewer samples, ends higher on the cosine.

    The backbone learns at `backbone_share` of the rate: its top layer at exactly this share, every other layer at
    `layer_decay` of the one above. unfreeze_epochs: all layers of the backbone are frozen at first and join in from the
    top over so many epochs; 0: they learn from the first step.
    clip_norm: largest norm of the gradient of all weights together; 0: gradients are not clipped.
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

    kind: torch needs nothing but torch, and every worker holds everything; deepspeed shards the optimizer from stage 1
    on, gradients from 2 and parameters at 3, and nothing at 0.
    zero_stage: with deepspeed, None is the stage of the DeepSpeed JSON, or 1.
    precision: auto is the fastest that the device has (see `clv.train.engines.precision.choose_precision`).
    accumulation: micro-batches that each worker cuts its part of a step into.
    offload_optimizer, offload_parameters: these are kept in the host's memory, which needs a GPU.
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
    """One training run. A sample is a customer at a past origin; in pretraining, a customer's past.

    epochs: of the trial, which may stop earlier; the final fit has as many as the best epoch of the trial, or all
    where the log is too short for a trial. The learning rates of both are planned for all.
    samples_per_epoch: samples drawn per epoch. Where histories are in memory, a pair of customer and origin that is
    drawn twice is used once, so an epoch of a small dataset has fewer samples and steps.
    batch_size: samples per step over all workers and micro-batches; batch_tokens: tokens instead, padding included,
    where it is not 0, which needs histories in memory.
    prefetch: steps whose batches a thread of the worker makes ahead; 0: each is made when its step begins.
    feed: where samples are made. memory: every worker holds all histories; shards: each worker reads its shards of the
    histories on storage in turn; ray: the same, made by Ray Data on any node; auto: memory where the histories have no
    more tokens than memory_events, else shards.
    memory_events: with feed shards or ray, a process holds as many of the first shards as have about so many tokens,
    at least one; BTYD model, features and the evaluation at the held-out origin rest on their customers, a random share
    of all. With feed shards a worker holds up to two more, which it is reading. With feed memory it limits nothing.
    token_dropout: probability that an event of a sample is left out in training, the newest excepted.
    ema_decay: decay per step of the moving average of the weights, which starts as their plain mean; the average is
    what is evaluated and kept. 0: the weights of the last step are.
    num_origins: past origins to draw from at most, whole weeks apart; min_history_days: log before the first of them.
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
    loader: Literal["auto", "memory", "shards", "ray"] = "auto"
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
        methods.check(self.model.adapters, self.model.backbone)
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
        """Whether ranks of the adapters are given up during training (see `clv.models.adapters.adalora`)."""
        return self.model.adapters.method == "adalora"

    @classmethod
    def preset(cls, name: str) -> Self:
        """Settings for a backbone of `clv.models.backbones.encoders.PRESETS`."""
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
