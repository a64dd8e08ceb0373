"""The customer model: token embedding, backbone, wide features and an ensemble of heads. Architecture only.

Shapes in comments: B customers of a batch, T tokens, W width of the backbone, Z hidden units, F wide features,
H horizons, K mixture components.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clv.models.adapters import methods
from clv.models.backbones import encoders, text_backbone
from clv.models.config import ModelConfig
from clv.models.embedding import TokenEmbedding
from clv.models.heads import MAX_CORRECTION, MAX_DEPARTURE, CurveHead, Outputs, ensemble_mean
from clv.models.inputs.batch import Batch
from clv.models.inputs.feature_space import FeatureSpace


class EnsembleHead(nn.Module):
    """One head of the ensemble: backbone states and wide features -> the customer's vector z -> Outputs.

    z feeds two curve heads: one corrects the customer's BTYD model, the other starts from the population average. The
    first knows what a rhythm implies; the second need not unlearn it where it misleads.
    """

    def __init__(self, config: ModelConfig, num_features: int, num_horizons: int) -> None:
        super().__init__()
        self.build_layers(config, num_features, num_horizons)

    def build_layers(self, config: ModelConfig, num_features: int, num_horizons: int) -> None:
        """Creates the layers of the head; `num_features` counts the feature space's columns (`FeatureSpace.width`)."""
        self.config, hidden = config, config.hidden
        self.pool = nn.Sequential(nn.Linear(2 * config.backbone.width, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        # Beside the features, the wide part reads the three curves of the BTYD model.
        num_wide = num_features + 3 * num_horizons
        self.wide = nn.Sequential(
            nn.Linear(num_wide, hidden), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(hidden, hidden)
        )
        # No layer norm: the length of the sum distinguishes the largest customers.
        self.activation = nn.Sequential(nn.ReLU(), nn.Dropout(config.dropout))
        if config.use_wide:
            # The sequence starts at zero, so that it does not drown the features, which are quicker to learn from.
            nn.init.zeros_(self.pool[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.pool[-1].bias)  # type: ignore[arg-type]
        limits = {"btyd": MAX_CORRECTION, "population_average": MAX_DEPARTURE}
        self.start_curves = list(limits) if config.start_curves == "both" else [config.start_curves]
        self.heads = nn.ModuleDict(
            {name: CurveHead(hidden, num_horizons, config.num_components, limits[name]) for name in self.start_curves}
        )

    def customer_vector(self, states: Tensor | None, batch: Batch) -> Tensor:
        """(B, Z) z of each customer from the backbone's states (B, T, W); None leaves the sequence out."""
        parts = []
        if states is not None:
            mask = batch.mask.unsqueeze(-1)  # Shape: (B, T, 1)
            mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)  # Shape: (B, W)
            # Events end with the newest; a text begins with [CLS], which was pretrained to summarise the whole text.
            is_text = self.config.encoder == "text"
            index = (batch.mask.sum(1).long() - 1).clamp(min=0) * (not is_text)
            summary = states[torch.arange(len(states), device=states.device), index]  # Shape: (B, W)
            parts.append(self.pool(torch.cat([mean, summary], 1)))
        if self.config.use_wide:
            parts.append(self.wide(batch.wide))
        return self.activation(torch.stack(parts).sum(0))

    def outputs(self, states: Tensor | None, batch: Batch) -> list[Outputs]:
        """Outputs of each curve head."""
        z = self.customer_vector(states, batch)
        return [self.heads[name](z, *batch.start_curves[name]) for name in self.start_curves]


class CustomerModel(EnsembleHead):
    """Batch -> Outputs: the mean over the ensemble, of which this module is the first head and owns the backbone.

    `further_heads` are the other heads; all of them read the same backbone states and learn each by itself. `encode`
    returns the vector z of the first head.
    """

    def __init__(self, config: ModelConfig, space: FeatureSpace, num_horizons: int) -> None:
        nn.Module.__init__(self)
        self.embedding: nn.Module
        if config.encoder == "text":
            assert space.text is not None, "a text encoder needs a feature space with texts"
            self.embedding = text_backbone.PieceIds()
            self.backbone: nn.Module = text_backbone.TextBackbone(space.text.checkpoint, config.backbone)
        else:
            self.embedding = TokenEmbedding(space, config.backbone.width, config.backbone.dropout)
            self.backbone = encoders.build(config.backbone)
        self.build_layers(config, space.width, num_horizons)
        self.further_heads = nn.ModuleList(
            EnsembleHead(config, space.width, num_horizons) for _ in range(config.ensemble_size - 1)
        )
        if config.adapters.method:
            methods.inject(self, config.adapters, config.backbone)

    def states(self, batch: Batch) -> Tensor | None:
        """(B, T, W) states of the backbone; None where the model does without the sequence."""
        return self.backbone(self.embedding(batch), batch.mask) if self.config.use_sequence else None

    def encode(self, batch: Batch) -> Tensor:
        """(B, Z) vector z of each customer."""
        return self.customer_vector(self.states(batch), batch)

    def forward(self, batch: Batch) -> Outputs:
        states = self.states(batch)
        ensemble: list[Any] = [self, *self.further_heads]
        return ensemble_mean([out for head in ensemble for out in head.outputs(states, batch)])
