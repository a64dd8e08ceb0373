"""The model: token embedding, backbone, wide part, heads. Architecture only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from clv.models.adapters import methods
from clv.models.adapters.methods import AdapterConfig
from clv.models.backbones import encoders, text_backbone
from clv.models.backbones.encoders import BackboneConfig
from clv.models.embedding import TokenEmbedding
from clv.models.heads import MAX_CORRECTION, MAX_DEPARTURE, Heads, Outputs, mean_of
from clv.models.inputs.batch import Batch
from clv.models.inputs.feature_space import FeatureSpace


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """encoder: events as vectors of our own making, or the past as text through a pretrained text encoder, which
    `backbone` then describes. `adapters`: what is trained in its place. members: an ensemble of so many readers of what
    the backbone says, whose mean is the forecast. `use_wide`, `use_sequence` and `starts` switch parts off for
    ablations."""

    encoder: Literal["events", "text"] = "events"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    members: int = 1
    hidden: int = 128
    dropout: float = 0.3
    num_components: int = 3
    use_wide: bool = True
    use_sequence: bool = True
    starts: Literal["both", "btyd", "population_average"] = "both"

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"model.members must be at least 1, not {self.members}")
        if not (self.use_wide or self.use_sequence):
            raise ValueError("use_wide and use_sequence are both off: the model would see nothing")

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """Of a bundle; older ones know no adapters."""
        backbone, stay = BackboneConfig(**plain["backbone"]), AdapterConfig(**plain.get("adapters", {}))
        return cls(**{**plain, "backbone": backbone, "adapters": stay})

    @property
    def plain(self) -> Self:
        """Without adapters."""
        return replace(self, adapters=AdapterConfig())

    @property
    def merged(self) -> Self:
        """The model of a bundle: adapters that can be merged are."""
        return replace(self, adapters=self.adapters.left)


class EnsembleHead(nn.Module):
    """Tokens that the backbone has read (B, T, width), and features -> the customer's vector z, and Outputs by heads.

    Two heads read z: one corrects the BTYD model of this customer, the other starts from the population average. The first
    knows what a rhythm implies; the second need not unlearn it where it misleads.
    """

    def __init__(self, config: ModelConfig, num_features: int, num_horizons: int) -> None:
        super().__init__()
        self.build_layers(config, num_features, num_horizons)

    def build_layers(self, config: ModelConfig, num_features: int, num_horizons: int) -> None:
        """Makes the parts."""
        self.config, hidden = config, config.hidden
        self.pool = nn.Sequential(nn.Linear(2 * config.backbone.width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        # Beside the features, the wide part sees the three curves of the BTYD model.
        num_wide = num_features + 3 * num_horizons
        self.wide = nn.Sequential(
            nn.Linear(num_wide, hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(hidden, hidden)
        )
        # Not normalised: how far a customer lies from the others is what tells the largest apart.
        self.join = nn.Sequential(nn.ReLU(), nn.Dropout(config.dropout))
        if config.use_wide:
            # The sequence starts as a silent addition: the features, quick to learn from, are not drowned at first.
            nn.init.zeros_(self.pool[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.pool[-1].bias)  # type: ignore[arg-type]
        limits = {"btyd": MAX_CORRECTION, "population_average": MAX_DEPARTURE}
        self.starts = list(limits) if config.starts == "both" else [config.starts]
        self.heads = nn.ModuleDict(
            {name: Heads(hidden, num_horizons, config.num_components, limits[name]) for name in self.starts}
        )

    def read(self, tokens: Tensor | None, batch: Batch) -> Tensor:
        """(B, hidden) z."""
        parts = []
        if tokens is not None:
            mask = batch.mask.unsqueeze(-1)
            mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1)
            # Events end with the newest; a text begins with [CLS], which was trained to stand for all of it.
            text = self.config.encoder == "text"
            place = (batch.mask.sum(1).long() - 1).clamp(min=0) * (not text)
            chosen = tokens[torch.arange(len(tokens), device=tokens.device), place]
            parts.append(self.pool(torch.cat([mean, chosen], 1)))
        if self.config.use_wide:
            parts.append(self.wide(batch.wide))
        return self.join(torch.stack(parts).sum(0))

    def say(self, z: Tensor, batch: Batch) -> list[Outputs]:
        return [self.heads[name](z, *batch.starts[name]) for name in self.starts]


class CustomerModel(EnsembleHead):
    """Batch -> Outputs: the mean of what its own heads and those of `others` say, who read the same tokens and learn
    each by itself. `encode` alone gives the customer's vector z, of its own."""

    def __init__(self, config: ModelConfig, space: FeatureSpace, num_horizons: int) -> None:
        nn.Module.__init__(self)
        self.embedding: nn.Module
        if config.encoder == "text":
            assert space.text is not None, "a text encoder needs a space of texts"
            self.embedding = text_backbone.Pieces()
            self.backbone: nn.Module = text_backbone.TextBackbone(space.text.checkpoint, config.backbone)
        else:
            self.embedding = TokenEmbedding(space, config.backbone.width, config.backbone.dropout)
            self.backbone = encoders.build(config.backbone)
        self.build_layers(config, space.width, num_horizons)
        self.others = nn.ModuleList(EnsembleHead(config, space.width, num_horizons) for _ in range(config.members - 1))
        if config.adapters.method:
            methods.inject(self, config.adapters, config.backbone)

    def tokens(self, batch: Batch) -> Tensor | None:
        """(B, T, width), read by the backbone; None where the sequence is left out."""
        return self.backbone(self.embedding(batch), batch.mask) if self.config.use_sequence else None

    def encode(self, batch: Batch) -> Tensor:
        return self.read(self.tokens(batch), batch)

    def forward(self, batch: Batch) -> Outputs:
        tokens = self.tokens(batch)
        readers: list[Any] = [self, *self.others]
        return mean_of([out for reader in readers for out in reader.say(reader.read(tokens, batch), batch)])
