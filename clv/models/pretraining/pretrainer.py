"""What an encoder can learn without labels: masked events, the next event, whose slice this is (CoLES), a whole past.

Every objective gives one number per row (a customer at an origin), a mean over the row's tokens where there are
several, so the weight of a batch is its number of rows.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from clv.data.histories import ranges
from clv.models.backbones import encoders
from clv.models.backbones.encoders import BackboneConfig
from clv.models.embedding import TokenEmbedding
from clv.models.inputs.batch import Batch, Samples, Targets
from clv.models.inputs.feature_space import NUM_TIME_BINS, FeatureSpace
from clv.models.inputs.tokens import TokenArrays

TYPE, AMOUNT, GAP, WEEKDAY = 0, 1, 2, 4  # columns of the codes that are worth predicting
PREDICTED = (TYPE, AMOUNT, GAP, WEEKDAY)
MEAN_SPAN = 2.0  # tokens hidden together: a gap between two visible neighbours would be a subtraction
MARGIN = 0.5
HARD_NEGATIVES = 5


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """Weights of the objectives; 0 leaves one out. mask_share: of a row's tokens that are hidden."""

    masked: float = 1.0
    next_event: float = 1.0
    coles: float = 1.0
    autoencoder: float = 0.0
    mask_share: float = 0.2

    @classmethod
    def only(cls, *names: str) -> Self:
        """Weight 1 for these, 0 for the others."""
        known = [f.name for f in fields(cls) if f.name != "mask_share"]
        if not names or (unknown := sorted(set(names) - set(known))):
            wrong = f"objective {unknown[0]!r} is unknown" if names else "no objective is given"
            raise ValueError(f"{wrong}: choose among {', '.join(known)}")
        return cls(**{name: float(name in names) for name in known})


@dataclass(frozen=True)
class NextEvents:
    """The first event after each row's origin that was known at the cut, (S,).

    wait: bin of the days until then; where `known` is 0 nothing had come by the cut, and it is the bin of that time.
    """

    type: NDArray[np.int64]
    amount: NDArray[np.int64]
    wait: NDArray[np.int64]
    known: NDArray[np.bool_]

    def codes(self, rows: NDArray[np.int64]) -> Tensor:
        """(B, 4): type, amount bin, wait bin, whether it is known."""
        columns = (self.type, self.amount, self.wait, self.known)
        return torch.from_numpy(np.stack([column[rows].astype(np.int64) for column in columns], axis=1))


@dataclass(frozen=True)
class EventBatch(Batch):
    """A batch with what the objectives ask of it."""

    hidden: Tensor = field(default_factory=lambda: torch.zeros(0))  # (B, T), 1 where a token is masked
    following: Tensor = field(default_factory=lambda: torch.zeros(0))  # (B, 4), see NextEvents.codes
    slices: tuple[Batch, ...] = ()  # two of each row, for CoLES

    def to(self, device: torch.device | str) -> EventBatch:
        plain = Batch(**{f.name: getattr(self, f.name) for f in fields(Batch)}).to(device)
        moved = {f.name: getattr(plain, f.name) for f in fields(Batch)}
        return EventBatch(
            **moved,
            hidden=self.hidden.to(device),
            following=self.following.to(device),
            slices=tuple(part.to(device) for part in self.slices),
        )


@dataclass(frozen=True)
class EventSamples(Samples):
    """Pasts without labels of value; batches carry masks, next events and slices drawn from the seed."""

    following: NextEvents | None = None
    objectives: Objectives = field(default_factory=Objectives)

    @classmethod
    def of(cls, tokens: TokenArrays, following: NextEvents, objectives: Objectives) -> Self:
        return cls(**_bare(tokens), following=following, objectives=objectives)

    def batch(
        self,
        rows: NDArray[np.int64],
        *,
        drop: float = 0.0,
        seed: int | None = None,
        part: tuple[int, int] | None = None,
    ) -> EventBatch:
        assert self.following is not None
        first, num_parts = part or (0, 1)
        rng = np.random.default_rng((seed or 0, 2) if first == 0 else (seed or 0, 2, first))
        plain = super().batch(rows, drop=drop, seed=seed, part=part)
        rows = rows[first::num_parts]
        slices: tuple[Batch, ...] = ()
        if self.objectives.coles:
            slices = tuple(random_slices(self, rows, rng) for _ in range(2))
        each = torch.ones(len(rows), 1)
        return EventBatch(
            **{f.name: getattr(plain, f.name) for f in fields(Batch) if f.name != "targets"},
            targets=Targets(each, each, each),
            hidden=hidden_places(plain.mask, self.objectives.mask_share, rng),
            following=self.following.codes(rows),
            slices=slices,
        )


def hidden_places(mask: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """(B, T) with 1 at about `share` of each row's tokens, in runs of MEAN_SPAN on average; one at least."""
    shape = mask.shape
    starts = rng.random(shape) < share / MEAN_SPAN
    length = rng.geometric(1 / MEAN_SPAN, shape)
    place = np.arange(shape[1])
    # The furthest end of all runs that have begun by a place.
    reach = np.maximum.accumulate(np.where(starts, place + length, 0), axis=1)
    hidden = reach > place
    num = mask.sum(1).numpy().astype(np.int64)
    hidden &= place < num[:, None]
    one = (rng.random(shape[0]) * num).astype(np.int64)
    bare = np.flatnonzero((~hidden.any(1)) & (num > 0))
    hidden[bare, one[bare]] = True
    return torch.from_numpy(hidden.astype(np.float32))


def random_slices(samples: Samples, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
    """One random run of consecutive tokens of each row, between a quarter and three quarters of it, one at least."""
    t = samples.tokens
    assert isinstance(t, TokenArrays), "texts are not sliced"
    start, stop = t.offsets[rows], t.offsets[rows + 1]
    length = np.maximum(1, np.round((stop - start) * rng.uniform(0.25, 0.75, len(rows)))).astype(np.int64)
    length = np.minimum(length, stop - start)
    begin = start + (rng.random(len(rows)) * (stop - start - length + 1)).astype(np.int64)
    index = ranges(begin, begin + length)
    taken = t.taken(index, np.append(0, np.cumsum(length)))
    return Samples(**_bare(taken)).batch(np.arange(len(rows)))


def _bare(tokens: TokenArrays) -> dict[str, Any]:
    """What makes samples of tokens alone: all else that is always there is empty."""
    nothing = np.zeros((len(tokens.offsets) - 1, 0), np.float32)
    always = (f.name for f in fields(Samples) if f.default is MISSING)
    return {name: tokens if name == "tokens" else nothing for name in always}


class Decoder(nn.Module):
    """(…, W) -> logits of each predicted code and of the categories of a basket."""

    def __init__(self, width: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width))
        self.outputs = nn.ModuleList(nn.Linear(width, size) for size in sizes)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.hidden(x)
        return [output(x) for output in self.outputs]


class Pretrainer(nn.Module):
    """Embedding and backbone, named as in `CustomerModel`, under the objectives: batch -> (sum of losses, weight)."""

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
        # Only what an objective needs: parameters without a gradient would stop distributed training.
        self.masked_decoder = Decoder(width, sizes) if objectives.masked else None
        self.next_decoder = (
            Decoder(2 * width, (code_sizes[0], code_sizes[1], NUM_TIME_BINS)) if objectives.next_event else None
        )
        if objectives.autoencoder:
            self.bottleneck: nn.Module | None = nn.Linear(width, max(width // 4, 1))
            self.places = nn.Embedding(config.max_tokens, width)
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
        found: dict[str, Tensor] = {}
        x = self.embedding(batch)
        if self.masked_decoder is not None:
            hidden = batch.hidden.unsqueeze(-1)
            states = self.backbone(x * (1 - hidden) + self.mask_vector * hidden, batch.mask)
            found["masked"] = self._tokens(self.masked_decoder(states), batch, batch.hidden)
        if self.next_decoder is not None or self.bottleneck is not None:
            states = self.backbone(x, batch.mask)
            mean = mean_of(states, batch.mask)
            if self.next_decoder is not None:
                last = (batch.mask.sum(1).long() - 1).clamp(min=0)
                newest = states[torch.arange(len(states), device=states.device), last]
                decoded = self.next_decoder(torch.cat([mean, newest], 1))
                found["next_event"] = next_event_nll(decoded, batch.following)
            if self.bottleneck is not None:
                found["autoencoder"] = self._tokens(self._unfold(mean, batch.mask), batch, batch.mask)
        if self.objectives.coles:
            views = [mean_of(self.backbone(self.embedding(part), part.mask), part.mask) for part in batch.slices]
            found["coles"] = coles_loss(views[0], views[1])
        return found

    def _unfold(self, mean: Tensor, mask: Tensor) -> list[Tensor]:
        """Every token's codes from one narrow vector and the token's place, counted from the newest."""
        assert self.bottleneck is not None
        num = mask.sum(1, keepdim=True)
        place = (num - 1 - torch.arange(mask.shape[1], device=mask.device)).clamp(min=0).long()
        z = self.widen(torch.tanh(self.bottleneck(mean)))
        return self.past_decoder(z.unsqueeze(1) + self.places(place))

    def _tokens(self, decoded: list[Tensor], batch: Batch, where: Tensor) -> Tensor:
        """(B,) mean over the tokens at `where` of the summed cross-entropies of their codes."""
        nll = batch.mask.new_zeros(batch.mask.shape)
        for logits, column in zip(decoded, PREDICTED, strict=False):
            nll = nll + F.cross_entropy(logits.transpose(1, 2), batch.codes[..., column], reduction="none")
        if self.num_categories > 1:
            nll = nll - (self._baskets(batch) * torch.log_softmax(decoded[-1], -1)).sum(-1)
        return (nll * where).sum(1) / where.sum(1).clamp(min=1)

    def _baskets(self, batch: Batch) -> Tensor:
        """(B, T, C) share of each category among the lines of a token; zero where a token has none."""
        category = self.embedding.item_category[batch.item]
        flat = batch.mask.new_zeros(batch.mask.numel() * self.num_categories)
        flat.index_add_(0, batch.item_bag * self.num_categories + category, batch.mask.new_ones(len(category)))
        counts = flat.view(*batch.mask.shape, self.num_categories)
        return counts / counts.sum(-1, keepdim=True).clamp(min=1)


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """(B, T, W), (B, T) -> (B, W) mean over the tokens."""
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def next_event_nll(decoded: list[Tensor], following: Tensor) -> Tensor:
    """(B,) -log P of wait (discrete-time hazards, censored where unknown), type and amount of the next event."""
    kind, amount, hazard = decoded
    known, wait = following[:, 3] > 0, following[:, 2]
    place = torch.arange(hazard.shape[1], device=hazard.device)
    survived = (F.softplus(hazard) * (place < wait.unsqueeze(1))).sum(1)
    event = F.softplus(-hazard.gather(1, wait.unsqueeze(1)).squeeze(1))
    what = F.cross_entropy(kind, following[:, 0], reduction="none")
    what = what + F.cross_entropy(amount, following[:, 1], reduction="none")
    return survived + torch.where(known, event + what, torch.zeros_like(event))


def coles_loss(first: Tensor, second: Tensor, margin: float = MARGIN) -> Tensor:
    """(B,) contrastive loss between slices of customers (Babaev et al. 2022, section 3.2).

    Slices of one customer are pulled together, d²; those of others pushed beyond the margin, max(0, m - d)², of which
    the HARD_NEGATIVES nearest count. Vectors are scaled to unit length. Negatives are those of the same micro-batch.
    """
    a, b = F.normalize(first, dim=1), F.normalize(second, dim=1)
    squared = (2 - 2 * a @ b.T).clamp(min=1e-6)
    pull = squared.diagonal()
    others = squared.masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), float("inf"))
    num = min(HARD_NEGATIVES, len(a) - 1)
    if num == 0:
        return pull
    nearest = others.topk(num, dim=1, largest=False).values.sqrt()
    return pull + (margin - nearest).clamp(min=0).square().sum(1) / num


def joint_space(spaces: list[FeatureSpace]) -> FeatureSpace:
    """One vocabulary for several shops; without item texts, whose axes differ from shop to shop and cut to cut.

    Scalers and clip points are those of the first: use `scaled_as` to read another shop's tokens in it.
    """
    first = spaces[0]
    names = sorted({name for space in spaces for name in space.category_names})
    keys, place = np.unique(np.concatenate([space.item_keys for space in spaces]), return_index=True)
    learned = np.concatenate([space.item_rank for space in spaces])[place] > 0
    category = []
    for space in spaces:
        to_joint = np.array([0, *(names.index(name) + 1 for name in space.category_names)])
        category.append(to_joint[space.item_category[1:]])
    return replace(
        first,
        types=np.unique(np.concatenate([space.types for space in spaces])),
        channels=np.unique(np.concatenate([space.channels for space in spaces])),
        item_keys=keys,
        item_rank=np.where(learned, np.cumsum(learned), 0),
        item_category=np.append(0, np.concatenate(category)[place]).astype(np.int64),
        category_names=tuple(names),
        text_vectors=np.zeros((len(keys) + 1, 0), np.float32),
    )


def scaled_as(joint: FeatureSpace, dataset: FeatureSpace) -> FeatureSpace:
    """The joint vocabulary with one shop's own scale of amounts: a dear basket is dear in its own shop."""
    return replace(
        joint,
        amount_edges=dataset.amount_edges,
        amount_center=dataset.amount_center,
        amount_scale=dataset.amount_scale,
    )
