"""The data loader: each epoch's batches, the same for any number of workers, made ahead of the training steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from clv.models.inputs.batch import Batch, Samples
from clv.models.inputs.tokens import token_batches
from clv.train.config import TrainConfig

T = TypeVar("T")
WINDOW = 16  # batches


class Step(NamedTuple):
    """One worker's micro-batches of step `number` of the `num_steps` of an epoch."""

    number: int
    num_steps: int
    batches: list[Batch]


class ExampleSource(Protocol):
    """A source of training steps.

    The same seed and epoch give the same steps, from step `first` on, and the same global batches to any number of
    workers that compute as many micro-batches together.
    """

    def steps(self, config: TrainConfig, rank: int, world_size: int, epoch: int, first: int = 0) -> Iterator[Step]: ...


class Whole:
    """A source that holds all examples of an epoch in memory, on every worker."""

    def epoch(self, epoch: int) -> Samples:
        """All examples of an epoch."""
        raise NotImplementedError

    def steps(self, config: TrainConfig, rank: int, world_size: int, epoch: int, first: int = 0) -> Iterator[Step]:
        return steps_of(self.epoch(epoch), config, rank, world_size, epoch, first)


def steps_of(
    samples: Samples, config: TrainConfig, rank: int, world_size: int, epoch: int, first: int = 0
) -> Iterator[Step]:
    """The steps of one worker, from step `first` on.

    A global batch and its dropped tokens depend on seed, epoch and step alone; each micro-batch of each worker takes
    every n-th row of it.
    """
    plan = global_batches(samples, config, epoch)
    num_parts = world_size * config.engine.accumulation
    for index in range(first, len(plan)):
        rows = plan[index]
        if len(rows) < num_parts:  # With only a handful of samples, some count twice.
            rows = np.resize(rows, num_parts)
        seed = hash((config.seed, epoch, index, 0)) % 2**32
        parts = range(rank, num_parts, world_size)
        micro = [samples.batch(rows, drop=config.token_dropout, seed=seed, part=(i, num_parts)) for i in parts]
        yield Step(index, len(plan), micro)


def global_batches(samples: Samples, config: TrainConfig, epoch: int) -> list[NDArray[np.int64]]:
    """Rows of each step of an epoch: `batch_size` of them, or as many as `batch_tokens` holds when padded.

    Rows are shuffled and sorted by length within large windows, so that little is padded.
    """
    rng = np.random.default_rng((config.seed, epoch, 1))
    order, size = rng.permutation(len(samples)), config.batch_size
    if not config.batch_tokens:
        # The rows that fill no batch are a random choice, not the longest ones.
        order = order[: max(len(order) // size, 1) * size]
    windows = [
        chunk[np.argsort(samples.lengths[chunk], kind="stable")]
        for chunk in np.split(order, range(size * WINDOW, len(order), size * WINDOW))
    ]
    if config.batch_tokens:
        lengths = np.maximum(samples.lengths, 1)
        batches = [batch for window in windows for batch in token_batches(window, lengths, config.batch_tokens)]
        return [batches[i] for i in rng.permutation(len(batches))]
    order = np.concatenate(windows)
    starts = rng.permutation(max(len(order) // size, 1)) * size
    return [order[start : start + size] for start in starts]


def loader(
    source: ExampleSource, config: TrainConfig, rank: int, world_size: int, epochs: range, first: int = 0
) -> Iterator[Step | None]:
    """The steps of all epochs, those of the first epoch from step `first` on; None ends each epoch."""
    for epoch in epochs:
        yield from source.steps(config, rank, world_size, epoch, first if epoch == epochs.start else 0)
        yield None


def ahead(items: Iterator[T], depth: int) -> Generator[T]:
    """The same items, up to `depth` of them prefetched by a thread, whose errors are raised here."""
    if depth == 0:
        yield from items
        return
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: T | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            if kind == "end":
                return
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
