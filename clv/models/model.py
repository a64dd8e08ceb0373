"""The model: token embedding, backbone, wide part, heads. Architecture only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from clv.models import adapters, encoders, text_backbone
from clv.models.adapters import AdapterConfig
from clv.models.batch import Batch
from clv.models.embed import TokenEmbedding
from clv.models.encoders import BackboneConfig
from clv.models.features import FeatureSpace
from clv.models.heads import MAX_CORRECTION, MAX_DEPARTURE, Heads, Outputs, mean_of


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """encoder: events as vectors of our own making, or the past as text through a pretrained text encoder, which
    `backbone` then describes. `adapters`: what is trained in its place. `use_wide`, `use_sequence` and `starts` switch
    parts off for ablations."""

    encoder: Literal["events", "text"] = "events"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    adapters: AdapterConfig = field(default_factory=AdapterConfig)
    hidden: int = 128
    dropout: float = 0.3
    num_components: int = 3
    use_wide: bool = True
    use_sequence: bool = True
    starts: Literal["both", "anchor", "typical"] = "both"

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


class CustomerModel(nn.Module):
    """Batch -> Outputs. `encode` alone gives the customer's vector z.

    Two heads read z, and the forecast is their mean: one corrects the anchor of this customer, the other starts from
    the typical customer. The first knows what a rhythm implies; the second need not unlearn it where it misleads.
    """

    def __init__(self, config: ModelConfig, space: FeatureSpace, num_horizons: int) -> None:
        super().__init__()
        self.config = config
        width = config.backbone.width
        self.embedding: nn.Module
        if config.encoder == "text":
            assert space.text is not None, "a text encoder needs a space of texts"
            self.embedding = text_backbone.Pieces()
            self.backbone: nn.Module = text_backbone.TextBackbone(space.text.checkpoint, config.backbone)
        else:
            self.embedding = TokenEmbedding(space, width, config.backbone.dropout)
            self.backbone = encoders.build(config.backbone)
        if not (config.use_wide or config.use_sequence):
            raise ValueError("use_wide and use_sequence are both off: the model would see nothing")
        hidden = config.hidden
        self.pool = nn.Sequential(nn.Linear(2 * width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        # Beside the features, the wide part sees the three curves of the anchor.
        num_wide = space.width + 3 * num_horizons
        self.wide = nn.Sequential(
            nn.Linear(num_wide, hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(hidden, hidden)
        )
        # Not normalised: how far a customer lies from the others is what tells the largest apart.
        self.join = nn.Sequential(nn.ReLU(), nn.Dropout(config.dropout))
        if config.use_wide:
            # The sequence starts as a silent addition: the features, quick to learn from, are not drowned at first.
            nn.init.zeros_(self.pool[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.pool[-1].bias)  # type: ignore[arg-type]
        limits = {"anchor": MAX_CORRECTION, "typical": MAX_DEPARTURE}
        self.starts = list(limits) if config.starts == "both" else [config.starts]
        self.heads = nn.ModuleDict(
            {name: Heads(hidden, num_horizons, config.num_components, limits[name]) for name in self.starts}
        )
        if config.adapters.method:
            adapters.inject(self, config.adapters, config.backbone)

    def encode(self, batch: Batch) -> Tensor:
        parts = []
        if self.config.use_sequence:
            x = self.backbone(self.embedding(batch), batch.mask)
            mask = batch.mask.unsqueeze(-1)
            mean = (x * mask).sum(1) / mask.sum(1).clamp(min=1)
            # Events end with the newest; a text begins with [CLS], which was trained to stand for all of it.
            text = self.config.encoder == "text"
            place = (batch.mask.sum(1).long() - 1).clamp(min=0) * (not text)
            chosen = x[torch.arange(len(x), device=x.device), place]
            parts.append(self.pool(torch.cat([mean, chosen], 1)))
        if self.config.use_wide:
            parts.append(self.wide(batch.wide))
        return self.join(torch.stack(parts).sum(0))

    def forward(self, batch: Batch) -> Outputs:
        z = self.encode(batch)
        return mean_of([self.heads[name](z, *batch.starts[name]) for name in self.starts])
