"""Pretraining inside one group of workers: random pasts of one shop or several, no labels of value. Knows no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clv.data.clock import DAY_US, Clock
from clv.data.cutoff import Value, cut, search_segments
from clv.data.histories import Histories
from clv.models.backbones import encoders
from clv.models.inputs.batch import Batch
from clv.models.inputs.feature_space import FeatureSpace
from clv.models.inputs.tokens import TokenArrays
from clv.models.pretraining import transfer
from clv.models.pretraining.pretrainer import EventSamples, NextEvents, Objectives, Pretrainer
from clv.train import fitting, loop
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.examples.in_memory import first_days
from clv.train.examples.loader import ExampleSource, Whole
from clv.train.examples.on_storage import Piece, Sharded, read_shard
from clv.train.fitting import Dataset
from clv.train.loop import EpochDone, Events, Finished, Row, Save


@dataclass(frozen=True)
class EncoderFit:
    """How pasts of one shop are drawn: what it was known to hold before `cutoff` (us), and how its tokens are read."""

    clock: Clock
    value: Value
    cutoff: int
    space: FeatureSpace

    def draw(self, h: Histories, rng: np.random.Generator, num: int, max_tokens: int) -> tuple[TokenArrays, NextEvents]:
        """Pasts of `num` random customers at a random day of their life before the cut, and their next events."""
        first = first_days(h, self.cutoff)
        cutoff_day = int(self.clock.local_day(np.array([self.cutoff]))[0])
        known = np.flatnonzero(first < cutoff_day)
        if len(known) == 0:
            raise ValueError(f"nobody is known before {self.clock.format(self.cutoff)}; choose a later --origin")
        customers = np.sort(rng.choice(known, num))
        days = first[customers] + 1 + (rng.random(num) * (cutoff_day - first[customers])).astype(np.int64)
        origins = self.clock.day_start(days.astype(np.int32))
        past = cut(h, origins, (), self.clock, value=self.value, customers=customers)
        return self.space.event_tokens(past, max_tokens), self.following(h, past.customer, past.origin)

    def following(self, h: Histories, customers: NDArray[np.int64], origins: NDArray[np.int64]) -> NextEvents:
        """The first event known before the cut at or after each customer's origin (us)."""
        seen = np.flatnonzero((h.time < self.cutoff) & (h.known_at < self.cutoff))
        start = search_segments(h.time, h.offsets[customers], h.offsets[customers + 1], origins)
        token = np.append(seen, len(h.time))[np.searchsorted(seen, start)]
        known = token < h.offsets[customers + 1]
        at = np.where(known, token, 0)
        wait = np.where(known, h.time[at] - origins, self.cutoff - origins) / DAY_US
        codes = self.space.event_codes(h.type[at], h.amount[at], wait)
        kind, amount, bins = codes
        return NextEvents(np.where(known, kind, 0), np.where(known, amount, 0), bins, known)


@dataclass(frozen=True)
class Ground:
    """One shop's past before `cutoff` (us), in the words of `space`."""

    dataset: Dataset
    cutoff: int
    space: FeatureSpace

    @property
    def reader(self) -> EncoderFit:
        return EncoderFit(self.dataset.clock, self.dataset.value, self.cutoff, self.space)


@dataclass(frozen=True)
class RandomPasts(Whole):
    """Samples of an epoch: as many of each shop, whatever its size; `num_samples` in all."""

    grounds: Sequence[Ground]
    objectives: Objectives
    num_samples: int
    max_tokens: int
    seed: int

    def epoch(self, epoch: int) -> EventSamples:
        rng = np.random.default_rng((self.seed, epoch, 3))
        share = -(-self.num_samples // len(self.grounds))
        drawn = [g.reader.draw(g.dataset.histories, rng, share, self.max_tokens) for g in self.grounds]
        following = [nexts for _, nexts in drawn]
        joined = NextEvents(*(np.concatenate([getattr(n, name) for n in following]) for name in NEXT_FIELDS))
        return EventSamples.from_tokens(_concat([tokens for tokens, _ in drawn]), joined, self.objectives)


NEXT_FIELDS = ("type", "amount", "wait", "known")


@dataclass(frozen=True, kw_only=True)
class ShardPasts(Sharded):
    """The same of histories that stay on storage. `readers`: of each shard, that of its shop."""

    readers: Mapping[str, EncoderFit]
    objectives: Objectives
    max_tokens: int

    @classmethod
    def of(cls, grounds: Sequence[Ground], objectives: Objectives, config: TrainConfig) -> Self:
        """As many shards of each shop, so that each gives as many samples: those of a small one come repeatedly."""
        most = max(len(ground.dataset.shards) for ground in grounds)
        return cls(
            shards=tuple(path for ground in grounds for path in islice(cycle(ground.dataset.shards), most)),
            num_samples=config.samples_per_epoch,
            seed=config.seed,
            load=grounds[0].dataset.load,
            readers={path: ground.reader for ground in grounds for path in ground.dataset.shards},
            objectives=objectives,
            max_tokens=config.model.backbone.max_tokens,
        )

    def assemble(self, piece: Piece) -> EventSamples:
        """A shard in which nobody is known before the cut raises ValueError."""
        rng, reader = np.random.default_rng(piece.seed), self.readers[piece.shard]
        drawn = reader.draw(read_shard(piece.shard), rng, piece.num, self.max_tokens)
        return EventSamples.from_tokens(*drawn, self.objectives)


@dataclass(frozen=True)
class PretrainingPlan:
    """What is fitted before pretraining: a joint vocabulary, and each shop's ground."""

    grounds: tuple[Ground, ...]
    space: FeatureSpace
    objectives: Objectives

    def source(self, config: TrainConfig) -> ExampleSource:
        """From all shards where the shops stay on storage."""
        if any(ground.dataset.shards for ground in self.grounds):
            return ShardPasts.of(self.grounds, self.objectives, config)
        return self.in_memory(config, config.samples_per_epoch)

    def in_memory(self, config: TrainConfig, num_samples: int) -> RandomPasts:
        """From what the process holds of the shops."""
        return RandomPasts(self.grounds, self.objectives, num_samples, config.model.backbone.max_tokens, config.seed)

    def model(self, config: TrainConfig) -> Pretrainer:
        """A fresh model, seeded; it goes on from the encoder that the backbone names."""
        torch.manual_seed(config.seed)
        model = Pretrainer(config.model.backbone, self.space, self.objectives)
        if source := config.model.backbone.pretrained:
            transfer.warm_start(model, self.space, config.model.backbone, source)
        return model


def plan(
    datasets: Sequence[Dataset], origins: Sequence[int], objectives: Objectives, config: TrainConfig
) -> PretrainingPlan:
    """Grounds that end where `train` at the same origins (us) holds out its last window, so that nothing there is
    known to the encoder that is judged by it. Raises ValueError for an origin that leaves too little log."""
    encoders.build(config.model.backbone)  # raises for an impossible shape before any work
    setups = []
    for dataset, origin in zip(datasets, origins, strict=True):
        phases = fitting.plan(dataset, origin, config)
        setups.append(phases.holdout or phases.final)
    joint = transfer.joint_space([setup.assembler.space for setup in setups])
    grounds = tuple(
        Ground(dataset, setup.cutoff, transfer.with_amount_scale(joint, setup.assembler.space))
        for dataset, setup in zip(datasets, setups, strict=True)
    )
    return PretrainingPlan(grounds, joint, objectives)


@dataclass(frozen=True)
class Pretrained:
    """The end of a run: weights of embedding and backbone (and decoders), one row per epoch."""

    weights: dict[str, Tensor]
    history: list[Row]


def train(
    planned: PretrainingPlan, config: TrainConfig, *, device: str = "cpu", checkpoint: Path | None = None
) -> Events[Pretrained]:
    """Pretrain the encoder; yields the events of `clv.train.loop`, epochs with the mean loss of each objective.

    Every worker of a process group calls it; without a group this process trains alone. A run continues from a
    checkpoint that an event's `save` wrote. Raises FloatingPointError when the loss is no longer finite.
    """
    engine = make_engine(planned.model(config), sum_loss, config, torch.device(device))
    start, average = loop.resume(engine, checkpoint, config) if checkpoint else (loop.Position(), None)
    history: list[Row] = torch.load(checkpoint / HISTORY, weights_only=True) if checkpoint else []
    samples = planned.in_memory(config, EVALUATION_ROWS).epoch(2**31)

    def save_with_history(save: Save, folder: Path) -> None:
        save(folder)
        if engine.rank == 0:
            torch.save(history, folder / HISTORY)

    for event in loop.run(engine, planned.source(config), config, start=start, average=average):
        if isinstance(event, Finished):
            yield Finished(Pretrained(event.result, history))
            return
        row: Row = {"phase": "pretrain", **event.row}
        if isinstance(event, EpochDone):
            if engine.rank == 0:
                row |= objective_losses(planned, config, event.weights, samples)
            history.append(row)
        yield replace(event, row=row, save=partial(save_with_history, event.save))


HISTORY = "history.pt"
EVALUATION_ROWS = 1024


def sum_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = model(batch)
    return out


@torch.inference_mode()
def objective_losses(
    planned: PretrainingPlan, config: TrainConfig, weights: dict[str, Tensor], samples: EventSamples
) -> dict[str, float]:
    """Mean loss of each objective over `samples`, by the model with these weights."""
    model = Pretrainer(config.model.backbone, planned.space, planned.objectives)
    model.load_state_dict(weights)
    model.eval()
    rows = np.arange(len(samples))
    parts = [model.losses(samples.batch(part, seed=0)) for part in np.array_split(rows, -(-len(rows) // 128))]
    return {name: float(torch.cat([part[name] for part in parts]).mean()) for name in parts[0]}


def facts(planned: PretrainingPlan, config: TrainConfig, history: Sequence[Row]) -> dict[str, Any]:
    """What the folder keeps for people."""
    from clv.bundle import plain_json

    return {"objectives": plain_json(planned.objectives), "train": plain_json(config), "history": list(history)}


def _concat(parts: Sequence[TokenArrays]) -> TokenArrays:
    """Rows of several token arrays, one after the other."""
    return TokenArrays(
        offsets=_joined_offsets([part.offsets for part in parts]),
        scalars=np.concatenate([part.scalars for part in parts]),
        codes=np.concatenate([part.codes for part in parts]),
        item_offsets=_joined_offsets([part.item_offsets for part in parts]),
        item=np.concatenate([part.item for part in parts]),
    )


def _joined_offsets(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.append(0, np.cumsum(np.concatenate([np.diff(part) for part in parts])))
