"""Training settings on the command line: shared by every job that trains."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from clv.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What of a training run can be set; None leaves the preset's value."""

    preset: Literal["tiny", "minilm", "base", "large"] = "tiny"
    """Size of the backbone."""
    architecture: Literal["bert", "gpt2", "lstm", "bilstm", "gru", "mlp"] | None = None
    """Backbone architecture, by default that of the preset."""
    pretrained: str | None = None
    """Folder, pkg://PACKAGE or hub id of a BERT encoder; every encoder tensor must fit."""
    epochs: int | None = None
    samples_per_epoch: int | None = None
    """(customer, origin) pairs drawn per epoch."""
    batch_size: int | None = None
    """Customers per step over all workers."""
    learning_rate: float | None = None
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] | None = None
    loss: Literal["mixture", "ziln", "tweedie", "mse"] | None = None
    """Loss of the value."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulation: int = 1
    """Micro-batches per step and worker."""
    seed: int = 0

    def config(self) -> TrainConfig:
        """The preset with the settings that were given."""
        from clv.train.config import TrainConfig

        def given(*names: str, **renamed: str) -> dict[str, object]:
            chosen = {name: getattr(self, name) for name in names}
            chosen |= {theirs: getattr(self, ours) for theirs, ours in renamed.items()}
            return {name: value for name, value in chosen.items() if value is not None}

        config = TrainConfig.preset(self.preset)
        backbone = replace(config.model.backbone, **given("architecture", "pretrained"))
        return replace(
            config,
            model=replace(config.model, backbone=backbone),
            optimizer=replace(config.optimizer, **given("learning_rate", name="optimizer")),
            loss=replace(config.loss, **given(name="loss")),
            engine=replace(config.engine, **given("zero_stage", "precision", "accumulation")),
            **given("epochs", "samples_per_epoch", "batch_size", "seed"),
        )
