"""Training examples of the value model: random (customer, past origin) pairs, from memory or shard by shard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clv.data.clock import Clock
from clv.data.histories import Histories
from clv.models.inputs.assemble import Assembler
from clv.models.inputs.batch import Samples
from clv.train.examples.loader import Whole
from clv.train.examples.on_storage import Piece, Sharded, read_shard

Ints = NDArray[np.int64]
SEASON_DAYS = 30


@dataclass(frozen=True)
class RandomOrigins(Whole):
    """Random (customer, origin) pairs of the past origins; origins in the season of the cut are drawn more often."""

    assembler: Assembler
    histories: Histories
    days: NDArray[np.int32]
    cutoff: int
    num_samples: int
    seed: int
    season_bonus: float = 1.0

    def epoch(self, epoch: int) -> Samples:
        rng = np.random.default_rng((self.seed, epoch))
        pairs = draw(
            self.histories, self.days, self.cutoff, self.assembler.clock, rng, self.num_samples, self.season_bonus
        )
        return assemble_pairs(self.assembler, self.histories, self.days, self.cutoff, np.unique(pairs))


@dataclass(frozen=True, kw_only=True)
class ShardOrigins(Sharded):
    """The same pairs, drawn from histories that stay on storage."""

    assembler: Assembler
    days: NDArray[np.int32]
    cutoff: int
    season_bonus: float = 1.0

    def assemble(self, piece: Piece) -> Samples:
        """Exactly `piece.num` samples; raises ValueError for a shard without a customer known at any origin."""
        histories, rng = read_shard(piece.shard), np.random.default_rng(piece.seed)
        pairs = draw(histories, self.days, self.cutoff, self.assembler.clock, rng, piece.num, self.season_bonus)
        return assemble_pairs(self.assembler, histories, self.days, self.cutoff, np.sort(pairs))


def draw(
    h: Histories,
    days: NDArray[np.int32],
    cutoff: int,
    clock: Clock,
    rng: np.random.Generator,
    num: int,
    season_bonus: float,
) -> Ints:
    """`num` random pairs (num,), coded as customer * len(days) + index of the day.

    The origin is drawn in proportion to its known customers, times 1 + `season_bonus` in the season of the cut; then
    one of those customers. Raises ValueError where no customer is known at any origin.
    """
    first = first_days(h, cutoff)
    by_first = np.argsort(first, kind="stable")
    known = np.searchsorted(first[by_first], days)  # customers known at each origin
    cutoff_day = int(clock.local_day(np.array([cutoff]))[0])
    off_season = np.abs((cutoff_day - days + 182) % 365 - 182)
    weight = known * (1 + season_bonus * (off_season <= SEASON_DAYS))
    if weight.sum() == 0:
        raise ValueError("no past origin has a fully observed label: the log is too short for the horizons of the spec")
    origin = rng.choice(len(days), num, p=weight / weight.sum())
    customer = by_first[(rng.random(num) * known[origin]).astype(np.int64)]
    return np.asarray(customer * len(days) + origin)


def assemble_pairs(assembler: Assembler, h: Histories, days: NDArray[np.int32], cutoff: int, pairs: Ints) -> Samples:
    """Examples of the pairs that `draw` returns, in their order, with labels known before `cutoff` (us)."""
    return assembler.training_samples(h, pairs // len(days), days[pairs % len(days)], cutoff)


def first_days(h: Histories, cutoff: int) -> Ints:
    """Local day of each customer's first event known before `cutoff` (us); the largest integer without one."""
    seen = np.flatnonzero((h.time < cutoff) & (h.known_at < cutoff))
    token = np.append(seen, len(h.time))[np.searchsorted(seen, h.offsets[:-1])]
    return np.where(token < h.offsets[1:], np.append(h.day, 0)[token].astype(np.int64), np.iinfo(np.int64).max)
