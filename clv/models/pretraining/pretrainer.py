"""Pretraining objectives of event encoders: masked events, the next event, CoLES and an autoencoder, without labels.

Every objective computes one loss per row (a customer at an origin), a mean over the row's tokens where there are
several, so the weight of a batch is its number of rows.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clv.data.histories import ranges
from clv.models.backbones import encoders
from clv.models.config import BackboneConfig
from clv.models.embedding import TokenEmbedding
from clv.models.inputs.batch import Batch, Samples, Targets
from clv.models.inputs.feature_space import NUM_TIME_BINS, FeatureSpace
from clv.models.inputs.tokens import TokenArrays

TYPE, AMOUNT, GAP, WEEKDAY = 0, 1, 2, 4  # the columns of the codes that are predicted
PREDICTED = (TYPE, AMOUNT, GAP, WEEKDAY)
MEAN_SPAN = 2.0  # tokens masked together: between two visible neighbours the gap would be a subtraction
MARGIN = 0.5  # of CoLES
HARD_NEGATIVES = 5  # of CoLES, for each slice


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """Weights of the objectives in the loss; 0 leaves one out. mask_share: share of a row's tokens that are masked."""

    masked: float = 1.0
    next_event: float = 1.0
    coles: float = 1.0
    autoencoder: float = 0.0
    mask_share: float = 0.2

    @classmethod
    def from_names(cls, *names: str) -> Self:
        """Weight 1 for the named objectives, 0 for all others; ValueError for an unknown name and for none."""
        known = [f.name for f in fields(cls) if f.name != "mask_share"]
        if not names or (unknown := sorted(set(names) - set(known))):
            problem = f"objective {unknown[0]!r} is unknown" if names else "no objective is given"
            raise ValueError(f"{problem}: choose among {', '.join(known)}")
        return cls(**{name: float(name in names) for name in known})


@dataclass(frozen=True)
class NextEvents:
    """The first event after each row's origin that was known at the cutoff, (S,) each: its type and amount bin.

    wait: bin of the days until the event; where `known` is False there was none, and it is the bin of the days until
    the cutoff.
    """

    type: NDArray[np.int64]
    amount: NDArray[np.int64]
    wait: NDArray[np.int64]
    known: NDArray[np.bool_]

    def codes(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, 4): type, amount bin, wait bin, 1 where the event is known."""
        columns = (self.type, self.amount, self.wait, self.known)
        return torch.from_numpy(np.stack([column[rows].astype(np.int64) for column in columns], axis=1))


@dataclass(frozen=True)
class EventBatch(Batch):
    """A batch with the masks, next events and slices of the objectives."""

    masked: Tensor = field(default_factory=lambda: torch.zeros(0))  # Shape: (B, T), 1 where a token is masked
    next_event: Tensor = field(default_factory=lambda: torch.zeros(0))  # Shape: (B, 4), see NextEvents.codes
    slices: tuple[Batch, ...] = ()  # two slices of each row, for CoLES

    def to(self, device: torch.device | str) -> EventBatch:
        """The batch on another device."""
        plain = Batch(**{f.name: getattr(self, f.name) for f in fields(Batch)}).to(device)
        return EventBatch(
            **{f.name: getattr(plain, f.name) for f in fields(Batch)},
            masked=self.masked.to(device),
            next_event=self.next_event.to(device),
            slices=tuple(part.to(device) for part in self.slices),
        )


@dataclass(frozen=True)
class EventSamples(Samples):
    """Samples without labels; their batches hold next events, and masks and slices drawn from the seed."""

    next_events: NextEvents | None = None
    objectives: Objectives = field(default_factory=Objectives)

    @classmethod
    def from_tokens(cls, tokens: TokenArrays, next_events: NextEvents, objectives: Objectives) -> Self:
        """Samples of S rows of tokens and the next events of these rows."""
        return cls(**_tokens_only(tokens), next_events=next_events, objectives=objectives)

    def batch(
        self,
        rows: NDArray[np.int64],
        *,
        drop: float = 0.0,
        seed: int | None = None,
        part: tuple[int, int] | None = None,
    ) -> EventBatch:
        """See `Samples.batch`."""
        assert self.next_events is not None
        first, num_parts = part or (0, 1)
        rng = np.random.default_rng((seed or 0, 2) if first == 0 else (seed or 0, 2, first))
        plain = super().batch(rows, drop=drop, seed=seed, part=part)
        rows = rows[first::num_parts]
        slices: tuple[Batch, ...] = ()
        if self.objectives.coles:
            slices = tuple(random_slices(self, rows, rng) for _ in range(2))
        ones = torch.ones(len(rows), 1)
        return EventBatch(
            **{f.name: getattr(plain, f.name) for f in fields(Batch) if f.name != "targets"},
            targets=Targets(ones, ones, ones),
            masked=masked_tokens(plain.mask, self.objectives.mask_share, rng),
            next_event=self.next_events.codes(rows),
            slices=slices,
        )


def masked_tokens(mask: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """(B, T) with 1 at about `share` of each row's tokens, in runs of MEAN_SPAN on average, and at least at one."""
    shape = mask.shape
    starts = rng.random(shape) < share / MEAN_SPAN
    length = rng.geometric(1 / MEAN_SPAN, shape)
    column = np.arange(shape[1])
    # The furthest end of all runs that begin at a column or before it.
    reach = np.maximum.accumulate(np.where(starts, column + length, 0), axis=1)
    masked = reach > column
    num = mask.sum(1).numpy().astype(np.int64)
    masked &= column < num[:, None]
    one = (rng.random(shape[0]) * num).astype(np.int64)
    unmasked = np.flatnonzero((~masked.any(1)) & (num > 0))
    masked[unmasked, one[unmasked]] = True
    return torch.from_numpy(masked.astype(np.float32))


def random_slices(samples: Samples, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
    """A batch of one random run of tokens of each row: a quarter to three quarters of the row, at least one token."""
    t = samples.tokens
    assert isinstance(t, TokenArrays), "only events can be sliced, not texts"
    start, stop = t.offsets[rows], t.offsets[rows + 1]
    length = np.maximum(1, np.round((stop - start) * rng.uniform(0.25, 0.75, len(rows)))).astype(np.int64)
    length = np.minimum(length, stop - start)
    begin = start + (rng.random(len(rows)) * (stop - start - length + 1)).astype(np.int64)
    index = ranges(begin, begin + length)
    slices = t.select(index, np.append(0, np.cumsum(length)))
    return Samples(**_tokens_only(slices)).batch(np.arange(len(rows)))


def _tokens_only(tokens: TokenArrays) -> dict[str, Any]:
    """Arguments of `Samples` of tokens alone: every other required field is an array without columns."""
    empty = np.zeros((len(tokens.offsets) - 1, 0), np.float32)
    required = (f.name for f in fields(Samples) if f.default is MISSING)
    return {name: tokens if name == "tokens" else empty for name in required}


class Decoder(nn.Module):
    """(…, W) -> one tensor of logits (…, size) for each of `sizes`."""

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.outputs = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.hidden(x)
        return [output(x) for output in self.outputs]


class Pretrainer(nn.Module):
    """EventBatch -> (sum of the losses, number of rows); embedding and backbone are named as in `CustomerModel`."""

    def __init__(self, config: BackboneConfig, space: FeatureSpace, objectives: Objectives) -> None:
        super().__init__()
        self.objectives = objectives
        width = config.width
        self.embedding = TokenEmbedding(space, width, config.dropout)
        self.backbone = encoders.build(config)
        self.num_categories = len(space.category_names) + 1
        code_sizes = tuple(len(self.embedding.codes.get_submodule(str(i)).get_parameter("weight")) for i in PREDICTED)
        sizes = (*code_sizes, self.num_categories)
        self.mask_vector = nn.Parameter(torch.randn(width) * 0.1)
        # Only the decoders that an objective uses: parameters without a gradient would stop distributed training.
        self.masked_decoder = Decoder(width, sizes) if objectives.masked else None
        self.next_decoder = (
            Decoder(2 * width, (code_sizes[0], code_sizes[1], NUM_TIME_BINS)) if objectives.next_event else None
        )
        if objectives.autoencoder:
            self.bottleneck: nn.Module | None = nn.Linear(width, max(width // 4, 1))
            self.positions = nn.Embedding(config.max_tokens, width)
            self.widen = nn.Linear(max(width // 4, 1), width)
            self.past_decoder = Decoder(width, sizes)
        else:
            self.bottleneck = None
        if not objectives.masked:
            self.mask_vector.requires_grad_(False)

    def forward(self, batch: EventBatch) -> tuple[Tensor, Tensor]:
        rows = self.losses(batch)
        weights = {name: getattr(self.objectives, name) for name in rows}
        total = torch.stack([weights[name] * loss.sum() for name, loss in rows.items()]).sum()
        return total, batch.mask.new_tensor(float(len(batch.mask)))

    def losses(self, batch: EventBatch) -> dict[str, Tensor]:
        """Loss per row, (B,), of each objective in use."""
        losses: dict[str, Tensor] = {}
        x = self.embedding(batch)  # Shape: (B, T, W)
        if self.masked_decoder is not None:
            masked = batch.masked.unsqueeze(-1)
            states = self.backbone(x * (1 - masked) + self.mask_vector * masked, batch.mask)
            losses["masked"] = self._token_nll(self.masked_decoder(states), batch, batch.masked)
        if self.next_decoder is not None or self.bottleneck is not None:
            states = self.backbone(x, batch.mask)
            mean = masked_mean(states, batch.mask)
            if self.next_decoder is not None:
                last = (batch.mask.sum(1).long() - 1).clamp(min=0)
                newest = states[torch.arange(len(states), device=states.device), last]
                decoded = self.next_decoder(torch.cat([mean, newest], 1))
                losses["next_event"] = next_event_nll(decoded, batch.next_event)
            if self.bottleneck is not None:
                losses["autoencoder"] = self._token_nll(self._decode_past(mean, batch.mask), batch, batch.mask)
        if self.objectives.coles:
            first, second = (masked_mean(self.backbone(self.embedding(s), s.mask), s.mask) for s in batch.slices)
            losses["coles"] = coles_loss(first, second)
        return losses

    def _decode_past(self, mean: Tensor, mask: Tensor) -> list[Tensor]:
        """Logits of every token's codes from one narrow vector of the row and the token's position from the newest."""
        assert self.bottleneck is not None
        num = mask.sum(1, keepdim=True)
        position = (num - 1 - torch.arange(mask.shape[1], device=mask.device)).clamp(min=0).long()
        z = self.widen(torch.tanh(self.bottleneck(mean)))
        return self.past_decoder(z.unsqueeze(1) + self.positions(position))

    def _token_nll(self, decoded: list[Tensor], batch: Batch, where: Tensor) -> Tensor:
        """(B,) mean, over the tokens with 1 in `where` (B, T), of the summed cross-entropies of their codes."""
        nll = batch.mask.new_zeros(batch.mask.shape)
        for logits, column in zip(decoded, PREDICTED, strict=False):
            nll = nll + F.cross_entropy(logits.transpose(1, 2), batch.codes[..., column], reduction="none")
        if self.num_categories > 1:
            nll = nll - (self._category_shares(batch) * torch.log_softmax(decoded[-1], -1)).sum(-1)
        return (nll * where).sum(1) / where.sum(1).clamp(min=1)

    def _category_shares(self, batch: Batch) -> Tensor:
        """(B, T, C) share of each category among the items of a token; zero where a token has no items."""
        category = self.embedding.item_category[batch.item]
        flat = batch.mask.new_zeros(batch.mask.numel() * self.num_categories)
        flat.index_add_(0, batch.item_token * self.num_categories + category, batch.mask.new_ones(len(category)))
        counts = flat.view(*batch.mask.shape, self.num_categories)
        return counts / counts.sum(-1, keepdim=True).clamp(min=1)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """(B, T, W) states and (B, T) mask -> (B, W) mean over the tokens."""
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def next_event_nll(decoded: list[Tensor], next_event: Tensor) -> Tensor:
    """(B,) -log P of the wait (discrete-time hazards, censored where unknown), type and amount of the next event.

    decoded: logits of types, amount bins and hazards of the wait bins. next_event (B, 4): see `NextEvents.codes`.
    """
    kind, amount, hazard = decoded
    known, wait = next_event[:, 3] > 0, next_event[:, 2]
    bins = torch.arange(hazard.shape[1], device=hazard.device)
    survived = (F.softplus(hazard) * (bins < wait.unsqueeze(1))).sum(1)
    event = F.softplus(-hazard.gather(1, wait.unsqueeze(1)).squeeze(1))
    codes = F.cross_entropy(kind, next_event[:, 0], reduction="none")
    codes = codes + F.cross_entropy(amount, next_event[:, 1], reduction="none")
    return survived + torch.where(known, event + codes, torch.zeros_like(event))


def coles_loss(first: Tensor, second: Tensor, margin: float = MARGIN) -> Tensor:
    """(B,) contrastive loss between slices (B, W) of customers (Babaev et al. 2022, section 3.2).

    Slices of one customer cost d², slices of two customers max(0, margin - d)², over the HARD_NEGATIVES nearest. The
    vectors are scaled to unit length. Negatives are the other customers of the same micro-batch.
    """
    a, b = F.normalize(first, dim=1), F.normalize(second, dim=1)
    squared = (2 - 2 * a @ b.T).clamp(min=1e-6)
    positive = squared.diagonal()
    negatives = squared.masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), float("inf"))
    num = min(HARD_NEGATIVES, len(a) - 1)
    if num == 0:
        return positive
    nearest = negatives.topk(num, dim=1, largest=False).values.sqrt()
    return positive + (margin - nearest).clamp(min=0).square().sum(1) / num
