"""Settings of a training run: optimizer, engine, batches, samples, and the model's. This module imports no torch.

Every field is an option of the training jobs (`--learning-rate`) and a key of their YAML files (`learning_rate`); the
text below a field is its help. `read_config` reads such a file; those in ray_jobs/presets are there to be copied.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import OmitArgPrefixes, arg
from tyro.constructors import PrimitiveConstructorSpec

from clv.models.config import BackboneConfig, LossConfig, ModelConfig
from clv.train.settings import overlay, read_json, read_yaml

OptimizerName = Literal["adamw", "adam", "rmsprop", "sgd"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
# On the command line the name of a JSON file, in a YAML file its content.
JsonFile = PrimitiveConstructorSpec[dict[str, Any]](
    nargs=1,
    metavar="FILE.json",
    instance_from_str=lambda names: read_json(Path(names[0])),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer and its learning rates.

    The rate rises linearly to `learning_rate` over the share `warmup` of the planned steps, at least one, and then
    falls along a cosine towards 5 % of it. Planned are all epochs with all their samples: a run that stops early, or
    whose epochs have fewer samples, ends higher on the cosine.
    """

    name: Annotated[OptimizerName, arg(name="optimizer")] = "adamw"
    """Optimizer."""
    learning_rate: float = 2e-3
    """Largest learning rate."""
    backbone_share: float = 0.3
    """Share of the learning rate at which the top layer of the backbone learns."""
    weight_decay: float = 0.02
    """Decoupled weight decay."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises."""
    clip_norm: float = 1.0
    """Largest norm of the gradient of all weights together; 0: gradients are not clipped."""
    layer_decay: float = 1.0
    """Each layer of the backbone learns at this share of the rate of the layer above; 1: all layers learn alike."""
    unfreeze_epochs: float = 0.0
    """The layers of the backbone are frozen at first and unfrozen from the top over so many epochs; 0: all layers learn
    from the first step."""

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
    """How a training step is computed. An option that would do nothing is refused."""

    kind: Annotated[Literal["torch", "deepspeed"], arg(name="engine")] = "deepspeed"
    """torch: every worker holds the whole model and optimizer. deepspeed: the optimizer is sharded from ZeRO stage 1
    on, gradients from stage 2 on, parameters at stage 3."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; by default that of the DeepSpeed JSON, or 1."""
    precision: Precision = "auto"
    """auto: the fastest precision of the device, bf16 or fp16 on a GPU, fp32 on a CPU."""
    accumulation: int = 1
    """Micro-batches into which each worker cuts its part of a step."""
    activation_checkpointing: bool = False
    """Compute the layers again in the backward pass instead of keeping their activations: less memory, more time."""
    offload_optimizer: bool = False
    """Keep the optimizer in the host's memory; needs a GPU and ZeRO."""
    offload_parameters: bool = False
    """Keep the parameters in the host's memory; needs a GPU and ZeRO stage 3."""
    compile: bool = False
    """Compile the backbone with torch.compile; needs a C++ compiler."""
    deepspeed: Annotated[dict[str, Any], JsonFile] = field(default_factory=dict)
    """A DeepSpeed configuration that is merged with these settings; conflicts are refused."""

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
    """One training run. A sample is a customer at a past origin; in pretraining, a customer's past."""

    model: OmitArgPrefixes[ModelConfig] = field(default_factory=ModelConfig)
    loss: OmitArgPrefixes[LossConfig] = field(default_factory=LossConfig)
    optimizer: OmitArgPrefixes[OptimizerConfig] = field(default_factory=OptimizerConfig)
    engine: OmitArgPrefixes[EngineConfig] = field(default_factory=EngineConfig)
    epochs: int = 6
    """Epochs of the holdout fit, which may stop earlier; the final fit has as many as the best epoch of the holdout
    fit, or all where the log is too short for one. The learning rates of both are planned for all."""
    samples_per_epoch: int = 16_000
    """Samples drawn per epoch. Where histories are in memory, a pair of customer and origin that is drawn twice is used
    once, so an epoch of a small dataset has fewer samples and steps."""
    batch_size: int = 128
    """Samples per step over all workers and micro-batches."""
    batch_tokens: int = 0
    """Tokens per step over all workers, padding included, in place of the batch size; 0: the batch size counts. Needs
    histories in memory."""
    prefetch: int = 2
    """Steps whose batches a thread of the worker prepares ahead; 0: each batch is prepared when its step begins."""
    loader: Literal["auto", "memory", "shards", "ray"] = "auto"
    """memory: every worker holds all histories. shards: each worker reads its shards of the histories on storage in
    turn. ray: the same, read by Ray Data on any node. auto: memory where the histories have no more tokens than
    memory_events, else shards."""
    memory_events: int = 50_000_000
    """Tokens of the histories that a process holds with loader shards or ray, in whole shards, at least one. BTYD
    model, features and the evaluation at the held-out origin use these customers, a random share of all. A worker that
    reads shards holds up to two more. Loader memory is not limited."""
    token_dropout: float = 0.1
    """Probability that an event of a sample is left out in training; the newest event always stays."""
    ema_decay: float = 0.99
    """Decay per step of the moving average of the weights, which starts as their plain mean and is evaluated and saved;
    0: the weights of the last step are used."""
    num_origins: int = 40
    """Largest number of past origins, whole weeks apart, from which samples are drawn."""
    min_history_days: int = 28
    """Days of the log before the first origin."""
    seed: int = 0
    """Seed of the initial weights, of the samples and of dropout."""

    def __post_init__(self) -> None:
        for name in ("epochs", "samples_per_epoch", "batch_size", "num_origins", "memory_events"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("batch_tokens", "prefetch"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, not {getattr(self, name)}")
        if 0 < self.batch_tokens < (longest := self.model.backbone.max_tokens):
            raise ValueError(f"batch_tokens {self.batch_tokens} is less than one customer's max_tokens {longest}")
        if self.model.encoder == "text" and self.model.backbone.pretrained is None:
            raise ValueError(
                "model.encoder text needs a pretrained text encoder: choose --preset text, or --pretrained"
            )
        self.model.adapters.check_backbone(self.model.backbone)
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
        """Whether adapter ranks are pruned during training (see `clv.models.adapters.adalora`)."""
        return self.model.adapters.method == "adalora"

    def with_engine(self, **changes: object) -> Self:
        """The same settings with other fields of `engine`."""
        return replace(self, engine=replace(self.engine, **changes))  # type: ignore[arg-type]

    def with_checkpoint(self) -> Self:
        """The same settings with the absolute path of a pretrained checkpoint that is a local folder, since workers run
        in other folders, and with the shape of a text encoder's checkpoint in place of default values.

        Raises ValueError for a checkpoint that is no text encoder where the model reads texts.
        """
        given, default = self.model.backbone, BackboneConfig()
        if given.pretrained and Path(given.pretrained).is_dir():
            given = replace(given, pretrained=str(Path(given.pretrained).absolute()))
        if self.model.encoder == "events":
            return replace(self, model=replace(self.model, backbone=given))
        from clv.models.backbones.text_backbone import backbone_config

        assert given.pretrained is not None, "checked above"
        shape = backbone_config(given.pretrained, given.max_tokens)
        names = ("width", "num_layers", "num_heads", "intermediate")
        unset = {name: getattr(shape, name) for name in names if getattr(given, name) == getattr(default, name)}
        return replace(self, model=replace(self.model, backbone=replace(given, **unset)))


def read_config(path: Path) -> TrainConfig:
    """The settings of a YAML file; what the file leaves out has its default. Raises ValueError for a wrong setting.

    config = read_config(Path("ray_jobs/presets/base.yaml"))
    """
    return overlay(TrainConfig(), read_yaml(path), str(path)).with_checkpoint()
