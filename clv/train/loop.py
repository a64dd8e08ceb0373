"""The training loop: steps the engine, averages weights, watches a held-out origin, saves, resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from clv.models import losses
from clv.models.adapters import adalora
from clv.models.inputs.batch import Batch
from clv.train.config import OptimizerConfig, TrainConfig
from clv.train.engines.torch_engine import Engine
from clv.train.examples.loader import ExampleSource, ahead, loader

NOTICE_SECONDS = 2.0


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
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
class EpochEnd:
    """What `on_epoch` is told: the epoch (from 1), mean loss, weights to keep, seconds."""

    epoch: int
    step: int
    loss: float
    weights: dict[str, Tensor]
    seconds: float
    waiting: float


@dataclass(frozen=True)
class Position:
    """Where a run stands: whole epochs done, steps done of the next, the sum of their losses.

    random: the states of the generators that dropout draws from, one per worker; none at the start of an epoch.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    random: tuple[Tensor, ...] = ()


@dataclass
class Saving:
    """When a run is saved between the ends of its epochs: every `steps`, every `seconds`, or on `notice`; 0 is never.

    notice: whether machines are about to be taken away; every worker asks at the same step, every few seconds.
    """

    steps: int = 0
    seconds: float = 0.0
    notice: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        self._saved = self._asked = time.monotonic()

    def due(self, engine: Engine) -> bool:
        """Whether to save now, the same answer on every worker; each must ask after each step."""
        now = time.monotonic()
        due = bool(self.steps) and engine.step_count % self.steps == 0
        if self.seconds or self.notice:
            late = bool(self.seconds) and now - self._saved >= self.seconds
            # Clocks differ: what any worker wants, all do.
            vote = engine.highest(2 if late else int(self.notice is not None and now - self._asked >= NOTICE_SECONDS))
            due = due or vote == 2
            if self.notice is not None and vote == 1:
                self._asked = now
                due = self.notice() or due
        if due:
            self._saved = now
        return due


def run(
    engine: Engine,
    source: ExampleSource,
    config: TrainConfig,
    *,
    num_epochs: int | None = None,
    schedule_epochs: int | None = None,
    start: Position = Position(),
    average: Average | None = None,
    saving: Saving | None = None,
    on_step: Callable[[int, float, float], None] = lambda step, loss, rate: None,
    on_save: Callable[[Position, Average], None] = lambda position, average: None,
    on_epoch: Callable[[EpochEnd, Average], bool] = lambda end, average: True,
) -> dict[str, Tensor]:
    """Train for `num_epochs` of a learning-rate schedule over `schedule_epochs` (both `config.epochs` by default).

    Stops early when `on_epoch` returns False. Returns the averaged weights.

    Raises FloatingPointError when the loss is no longer finite.
    """
    schedule, saving = schedule_epochs or config.epochs, saving or Saving()
    planned = schedule * max(1, config.samples_per_epoch // config.batch_size)
    average = average or Average(config.ema_decay)
    epochs = range(start.epoch, num_epochs or config.epochs)
    batches = ahead(loader(source, config, engine.rank, engine.world_size, epochs, start.step), config.prefetch)
    with closing(batches):
        for epoch in epochs:
            here = start if epoch == start.epoch else Position(epoch)
            began, waited, loss_sum, num = time.perf_counter(), 0.0, here.loss_sum, here.step
            torch.manual_seed(config.seed * 1000 + epoch)  # dropout: the same after a resume
            if here.random:
                engine.set_random(here.random)
            engine.module.train()
            while True:
                mark = time.perf_counter()
                step = next(batches)
                waited += time.perf_counter() - mark
                if step is None:
                    break
                at, of = engine.step_count, planned
                if config.batch_tokens:  # how many steps an epoch has is known when it is cut
                    at, of = epoch * step.num_steps + step.number, schedule * step.num_steps
                rate = learning_rate(at, of, config.optimizer)
                loss = engine.train_step(step.batches, rate, epoch + step.number / step.num_steps)
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"loss is {loss} at step {engine.step_count}: lower optimizer.learning_rate"
                    )
                if config.ema_decay:
                    average.update(engine.live())
                on_step(engine.step_count, loss, rate)
                loss_sum, num = loss_sum + loss, num + 1
                if saving.due(engine):
                    on_save(Position(epoch, num, loss_sum, engine.random()), average)
            weights = engine.whole(average.weights) if config.ema_decay else engine.weights()
            seconds = time.perf_counter() - began
            end = EpochEnd(epoch + 1, engine.step_count, loss_sum / max(num, 1), weights, seconds, waited / seconds)
            if not on_epoch(end, average):
                break
    return to_cpu(engine.whole(average.weights)) if config.ema_decay else engine.weights()


def to_cpu(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights in the host's memory, those that lie there already as they are."""
    return {name: value.cpu() for name, value in weights.items()}


def sum_loss(config: TrainConfig, has_value: bool) -> Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]:
    def loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.targets is not None
        total, weight = losses.total(model(batch), batch.targets, config.loss, has_value)
        if config.prunes:
            total = total + weight * adalora.SKEW_WEIGHT * adalora.skew(model)
        return total, weight

    return loss


def save(engine: Engine, folder: Path, position: Position, average: Average) -> None:
    """Checkpoint at `position`; every worker calls it."""
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(folder)
    whole = engine.whole(average.weights)
    if engine.rank == 0:
        state = {"position": position.__dict__, "average": whole, "count": average.count}
        torch.save(state, folder / "loop.pt")


def resume(engine: Engine, folder: Path, config: TrainConfig) -> tuple[Position, Average]:
    """(position, averaged weights) of a checkpoint, loaded into the engine; also one of other workers' number."""
    engine.load(folder)
    found = torch.load(folder / "loop.pt", map_location="cpu", weights_only=True)
    average = Average(config.ema_decay, engine.share(found["average"]), int(found["count"]))
    return Position(**found["position"]), average
