"""Training examples from histories on storage, shard by shard, in the same global batches for any number of workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clv.data.histories import Histories
from clv.models.inputs.batch import Samples
from clv.train.config import TrainConfig
from clv.train.examples.loader import WINDOW, Step

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """The request for `num` examples from one shard: those of one part of the global batch for WINDOW steps."""

    shard: str
    num: int
    seed: tuple[int, ...]


Load = Callable[[Callable[[Piece], Samples], Iterable[Piece]], Iterator[Samples]]
"""(function that assembles a piece, pieces) -> their samples, in order."""


def load_here(assemble: Callable[[Piece], Samples], pieces: Iterable[Piece]) -> Iterator[Samples]:
    """Assembles the pieces in this process, with at most two shards in memory."""
    return map(assemble, pieces)


@dataclass(frozen=True, kw_only=True)
class Sharded:
    """A source of `num_samples` examples per epoch from histories on storage.

    Every epoch assigns the shards anew to the parts of the global batch (workers times micro-batches), so a worker
    reads only its own shards, one after the other. The examples of a part depend on the number of parts, not on the
    worker that computes it.
    """

    shards: tuple[str, ...]
    num_samples: int
    seed: int
    load: Load = load_here

    def assemble(self, piece: Piece) -> Samples:
        """Exactly `piece.num` examples of its shard."""
        raise NotImplementedError

    def steps(self, config: TrainConfig, rank: int, world_size: int, epoch: int, first: int = 0) -> Iterator[Step]:
        """The steps of one worker; raises the errors of `check`."""
        num_parts = world_size * config.engine.accumulation
        self.check(config, num_parts)
        mine = range(rank, num_parts, world_size)
        num_rows = config.batch_size // num_parts
        num_steps = max(1, self.num_samples // config.batch_size)
        windows = range(first // WINDOW, -(-num_steps // WINDOW))
        order = np.random.default_rng((self.seed, epoch, 4)).permutation(len(self.shards))

        def piece(window: int, part: int) -> Piece:
            own = order[part::num_parts]
            shard = own[window * len(own) // windows.stop]
            return Piece(self.shards[shard], num_rows * WINDOW, (self.seed, epoch, part, window))

        loaded = self.load(self.assemble, (piece(window, part) for window in windows for part in mine))
        for window in windows:
            # The parts of a step hold rows of similar length, so that no worker waits for another's longer batch.
            turns = np.random.default_rng((self.seed, epoch, 5, window)).permutation(WINDOW)
            parts = [(part, next(loaded)) for part in mine]
            rows = {part: by_length(samples, num_rows) for part, samples in parts}
            for index, turn in enumerate(turns):
                number = window * WINDOW + index
                if first <= number < num_steps:
                    batches = [
                        samples.batch(
                            rows[part][turn],
                            drop=config.token_dropout,
                            seed=hash((config.seed, epoch, number, part)) % 2**32,
                        )
                        for part, samples in parts
                    ]
                    yield Step(number, num_steps, batches)

    def check(self, config: TrainConfig, num_parts: int) -> None:
        """Raises ValueError where the shards or the batch cannot be divided among the parts."""
        if config.batch_tokens:
            raise ValueError("batch_tokens needs the histories in memory: set batch_size, or loader memory")
        if config.batch_size % num_parts:
            raise ValueError(
                f"batch_size {config.batch_size} cannot be divided evenly among workers x accumulation = {num_parts}"
            )
        if len(self.shards) < num_parts:
            raise ValueError(
                f"{len(self.shards)} shards are too few for workers x accumulation = {num_parts}: "
                f"prepare with --partitions {num_parts} or more, or use loader memory"
            )


@lru_cache(maxsize=2)
def read_shard(path: str) -> Histories:
    """The histories of a shard; the last two shards stay in memory."""
    return Histories.from_table(pq.read_table(path))


def by_length(samples: Samples, num_rows: int) -> Ints:
    """Row numbers (WINDOW, num_rows) in ascending order of length; short samples repeat some rows."""
    order = np.argsort(samples.lengths, kind="stable")
    places = np.sort(np.resize(np.arange(len(order)), WINDOW * num_rows))
    return order[places].reshape(WINDOW, num_rows)
