"""The training loop: optimizer steps over epochs, averaged weights, checkpoints, resuming. It yields events.

A caller iterates over the events of a run and acts on them: it writes a checkpoint, logs a loss, or stops the run by
leaving the iteration.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clv.models import losses
from clv.models.adapters import adalora
from clv.models.inputs.batch import Batch
from clv.train.config import OptimizerConfig, TrainConfig
from clv.train.engines.torch_engine import Engine
from clv.train.examples.loader import ExampleSource, ahead, loader

T = TypeVar("T")
Row = dict[str, float | int | str]
Save = Callable[[Path], None]
"""Writes a checkpoint of the run as it is at the event into a folder; every worker calls it before the next event."""
PREEMPTION_CHECK_SECONDS = 2.0


@dataclass(frozen=True)
class StepDone:
    """An optimizer step. `row`: epoch (epochs completed before it), step (from 1), loss, learning_rate."""

    row: Row
    save: Save


@dataclass(frozen=True)
class EpochDone:
    """The end of an epoch. `row`: epoch (from 1), step, mean loss, seconds, waiting (share spent on the data loader).

    weights: the averaged weights at that point, on the device of the model.
    """

    row: Row
    save: Save
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class Finished(Generic[T]):
    """The last event of a run, with its result."""

    result: T


Events = Generator[StepDone | EpochDone | Finished[T], None, None]


def finish(events: Events[T]) -> T:
    """Runs to the end without acting on any event before the last; returns the result."""
    for event in events:
        if isinstance(event, Finished):
            return event.result
    raise AssertionError("the run ended without a result")


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Linear warm-up, then a cosine decay to a twentieth of the peak over `num_steps` optimizer steps."""
    warm = max(1, int(config.warmup * num_steps))
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    share = (step - warm) / max(1, num_steps - warm)
    return config.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


@dataclass
class Average:
    """Exponential moving average of the weights, started from a plain mean so that early steps do not linger."""

    decay: float
    weights: dict[str, Tensor] = field(default_factory=dict)
    count: int = 0

    def update(self, weights: dict[str, Tensor]) -> None:
        self.count += 1
        keep = min(self.decay, 1 - 1 / self.count)
        if not self.weights:
            # Full precision, whatever the model trains in: a small step would be lost in half precision. On the model's
            # device: a copy of all weights to the CPU would cost more than the step.
            self.weights = {name: _copy(value) for name, value in weights.items()}
            return
        for name, value in weights.items():
            if value.is_floating_point():
                self.weights[name].mul_(keep).add_(value.detach().float(), alpha=1 - keep)
            else:
                self.weights[name].copy_(value)


def _copy(value: Tensor) -> Tensor:
    return value.detach().to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)


@dataclass(frozen=True)
class Position:
    """How far a run is: completed epochs, completed steps of the next one, and the sum of their losses.

    random: states of the random generators that dropout uses, one per worker; empty at the start of an epoch.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    random: tuple[Tensor, ...] = ()


class CheckpointSchedule:
    """When a run is saved within an epoch: every `steps` steps, every `seconds` seconds (0: never), or on a warning.

    warned: whether the cluster has announced the loss of machines. All workers call it at the same step, at most every
    PREEMPTION_CHECK_SECONDS.
    """

    def __init__(
        self, steps: int = 0, seconds: float = 0.0, warned: Callable[[], bool] | None = None, device: str = "cpu"
    ) -> None:
        self.steps, self.seconds, self.warned, self.device = steps, seconds, warned, device
        self._saved = self._checked = time.monotonic()

    def due(self, step: int) -> bool:
        """Whether to save after `step`, the same on every worker; every worker calls it after every step."""
        now = time.monotonic()
        due = bool(self.steps) and step % self.steps == 0
        if self.seconds or self.warned:
            late = bool(self.seconds) and now - self._saved >= self.seconds
            check = self.warned is not None and now - self._checked >= PREEMPTION_CHECK_SECONDS
            # The workers' clocks differ, so all of them follow the first whose time has passed.
            vote = _maximum_over_workers(2 if late else int(check), self.device)
            due = due or vote == 2
            if self.warned is not None and vote == 1:
                self._checked = now
                due = self.warned() or due
        if due:
            self._saved = now
        return due


def _maximum_over_workers(value: int, device: str) -> int:
    if not dist.is_initialized():
        return value
    shared = torch.tensor(value, device=device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return int(shared.item())


def run(
    engine: Engine,
    source: ExampleSource,
    config: TrainConfig,
    *,
    schedule_epochs: int | None = None,
    start: Position = Position(),
    average: Average | None = None,
) -> Events[dict[str, Tensor]]:
    """Train `config.epochs` epochs of a learning-rate schedule over `schedule_epochs` (by default as many), from
    `start` with the weights averaged by then. The result is the averaged weights, on the CPU.

    Raises FloatingPointError when the loss is no longer finite.
    """
    schedule = schedule_epochs or config.epochs
    planned = schedule * max(1, config.samples_per_epoch // config.batch_size)
    average = average or Average(config.ema_decay)
    epochs = range(start.epoch, config.epochs)
    weights: dict[str, Tensor] | None = None
    batches = ahead(loader(source, config, engine.rank, engine.world_size, epochs, start.step), config.prefetch)
    with closing(batches):
        for epoch in epochs:
            here = start if epoch == start.epoch else Position(epoch)
            began, waited, loss_sum, num = time.perf_counter(), 0.0, here.loss_sum, here.step
            torch.manual_seed(config.seed * 1000 + epoch)  # A resumed run repeats the dropout.
            if here.random:
                engine.set_random(here.random)
            engine.module.train()
            while True:
                mark = time.perf_counter()
                step = next(batches)
                waited += time.perf_counter() - mark
                if step is None:
                    break
                number, num_steps = engine.step_count, planned
                if config.batch_tokens:  # An epoch's number of steps is known once its batches are cut.
                    number, num_steps = epoch * step.num_steps + step.number, schedule * step.num_steps
                rate = learning_rate(number, num_steps, config.optimizer)
                loss = engine.train_step(step.batches, rate, epoch + step.number / step.num_steps)
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"loss is {loss} at step {engine.step_count}: lower optimizer.learning_rate"
                    )
                if config.ema_decay:
                    average.update(engine.live())
                loss_sum, num = loss_sum + loss, num + 1
                row: Row = {"epoch": epoch, "step": engine.step_count, "loss": loss, "learning_rate": rate}
                yield StepDone(row, partial(save, engine, average, Position(epoch, num, loss_sum)))
            weights = _averaged(engine, average)
            seconds = time.perf_counter() - began
            row = {"epoch": epoch + 1, "step": engine.step_count, "loss": loss_sum / max(num, 1)}
            row |= {"seconds": seconds, "waiting": waited / seconds}
            yield EpochDone(row, partial(save, engine, average, Position(epoch + 1)), weights)
    if weights is None:  # A run that resumes behind its last epoch has gathered nothing yet.
        weights = _averaged(engine, average)
    yield Finished({name: value.cpu() for name, value in weights.items()})


def _averaged(engine: Engine, average: Average) -> dict[str, Tensor]:
    return engine.whole(average.weights) if average.decay else engine.weights()


def sum_loss(config: TrainConfig, has_value: bool) -> Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]:
    """(model, batch) -> (sum of the losses, weight) of the value model; adalora adds its orthogonality penalty."""

    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.targets is not None
        total, weight = losses.total(model(batch), batch.targets, config.loss, has_value)
        if config.prunes:
            total = total + weight * adalora.ORTHOGONALITY_WEIGHT * adalora.orthogonality_penalty(model)
        return total, weight

    return loss


def save(engine: Engine, average: Average, position: Position, folder: Path) -> None:
    """Writes a checkpoint that `resume` loads; every worker calls it."""
    if position.step:
        position = replace(position, random=engine.random())
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(folder)
    whole = engine.whole(average.weights)
    if engine.rank == 0:
        state = {"position": position.__dict__, "average": whole, "count": average.count}
        torch.save(state, folder / "loop.pt")


def resume(engine: Engine, folder: Path, config: TrainConfig) -> tuple[Position, Average]:
    """Loads a checkpoint into the engine, also one of another number of workers; returns its position and average."""
    engine.load(folder)
    found = torch.load(folder / "loop.pt", map_location="cpu", weights_only=True)
    average = Average(config.ema_decay, engine.share(found["average"]), int(found["count"]))
    return Position(**found["position"]), average
