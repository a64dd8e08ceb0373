"""A whole training run inside one group of workers: trial, judgement, final fit. Knows no Ray; hooks do the talking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from clv.evaluate.metrics import evaluate
from clv.evaluate.panel import Panel
from clv.forecast.adjustment import Adjustment
from clv.forecast.network import forecast
from clv.models.adapters import adalora, methods
from clv.models.model import CustomerModel
from clv.train import loop
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.engines.torch_engine import Engine
from clv.train.fitting import Dataset, Phases, Setup
from clv.train.held_out import HeldOut, choose_blend_weights, held_out_panel, judge, scaled

Row = dict[str, float | int | str]
DEFAULT_BLEND_WEIGHT = 0.5
PATIENCE = 2


@dataclass
class Hooks:
    """What the surroundings do with a run's events; every worker calls them."""

    on_step: Callable[[Row], None] = lambda row: None
    on_epoch: Callable[[Row, Callable[[Path], None]], None] = lambda row, save: None
    on_save: Callable[[Row, Callable[[Path], None]], None] = lambda row, save: None
    saving: loop.Saving = field(default_factory=loop.Saving)


@dataclass
class Progress:
    """What a resumed run must know; travels in every checkpoint."""

    phase: str = "holdout"
    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -np.inf
    blend_weight: tuple[float, float] = (DEFAULT_BLEND_WEIGHT, DEFAULT_BLEND_WEIGHT)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Fitted:
    """The end of a run: weights of the final fit, its adjustment, one row per epoch, what was said and what happened
    at the held-out origin (None where there was none); where adapters were trained, these apart (see
    `clv.models.adapters.methods`; `weights` has them merged, where they can be)."""

    weights: dict[str, Tensor]
    adjustment: Adjustment
    history: list[Row]
    panel: Panel | None = None
    adapters: dict[str, Tensor] = field(default_factory=dict)

    def metrics(self) -> dict[str, dict[str, float | None]]:
        """Of each model at the held-out origin; none where there was none."""
        if self.panel is None:
            return {}
        return {name: evaluate(self.panel.y, self.panel.orders, p) for name, p in self.panel.models().items()}


def train(
    dataset: Dataset,
    phases: Phases,
    config: TrainConfig,
    *,
    device: str = "cpu",
    hooks: Hooks | None = None,
    checkpoint: Path | None = None,
) -> Fitted:
    """Train both phases; called alike by every worker of a process group, or without one. Resumes a checkpoint."""
    hooks = hooks or Hooks()
    progress = _read_progress(checkpoint)
    has_value = dataset.value != "none"
    held_out: HeldOut | None = None
    epochs = config.epochs
    if phases.holdout is not None:
        held_out = _hold_out(dataset, phases.holdout, phases.final, phases.primary)
        if progress.phase == "holdout":
            _run_phase(dataset, phases.holdout, config, has_value, device, hooks, progress, checkpoint, held_out)
            progress.phase, progress.epoch, checkpoint = "final", 0, None
        epochs = max(progress.best_epoch, 1)
    else:
        progress.phase = "final"
    final_config = replace(config, epochs=epochs)
    trained = _run_phase(
        dataset, phases.final, final_config, has_value, device, hooks, progress, checkpoint, None, config
    )
    weights = merged(phases.final, config, trained)
    apart = methods.apart(trained) if config.model.adapters.method else {}

    num = len(dataset.horizons)
    adjustment, panel = Adjustment.none(num, blend_weight=DEFAULT_BLEND_WEIGHT), None
    if held_out is not None and phases.holdout is not None:
        model = load_model(phases.holdout, config, progress.best_weights, device)
        raw = forecast(model, held_out.rows.samples, phases.holdout.assembler.value_scale, device=device)
        adjustment, outlook = judge(held_out, raw, progress.blend_weight)
        place = dataset.clock.format(phases.holdout.cutoff)
        panel = held_out_panel(held_out, outlook, place, dataset.first_day_known(phases.holdout.cutoff))
    adjustment = adjustment.limited(phases.final.num_matured)
    adjustment = _scaled_at_cut(dataset, phases.final, config, weights, adjustment, device)
    return Fitted(weights, adjustment, progress.history, panel, apart)


def fit_holdout(
    dataset: Dataset,
    phases: Phases,
    config: TrainConfig,
    *,
    device: str = "cpu",
    hooks: Hooks | None = None,
    checkpoint: Path | None = None,
) -> list[Row]:
    """The trial phase alone, for choosing settings: a row per epoch with its held-out score. Called as `train` is."""
    assert phases.holdout is not None, "without an origin to hold out there is nothing to choose by"
    progress = _read_progress(checkpoint)
    held_out = _hold_out(dataset, phases.holdout, phases.final, phases.primary)
    has_value = dataset.value != "none"
    _run_phase(dataset, phases.holdout, config, has_value, device, hooks or Hooks(), progress, checkpoint, held_out)
    return progress.history


def _run_phase(
    dataset: Dataset,
    setup: Setup,
    config: TrainConfig,
    has_value: bool,
    device: str,
    hooks: Hooks,
    progress: Progress,
    checkpoint: Path | None,
    held_out: HeldOut | None,
    schedule: TrainConfig | None = None,
) -> dict[str, Tensor]:
    """Train one phase; with `held_out`, watch it and note the best epoch, weights and blend weight in `progress`."""
    engine = make_engine(setup.model(config), loop.sum_loss(config, has_value), config, torch.device(device))
    start, average = loop.Position(), None
    if checkpoint is not None:
        start, average = loop.resume(engine, checkpoint, config)
        if held_out is not None and progress.epoch - progress.best_epoch >= PATIENCE:
            return loop.to_cpu(engine.whole(average.weights))  # it had stopped early when it was interrupted
    watcher = CustomerModel(config.model.merged, setup.assembler.space, len(dataset.horizons)) if held_out else None
    if watcher is not None:
        watcher.to(device)

    def on_step(step: int, loss: float, rate: float) -> None:
        hooks.on_step({"phase": progress.phase, "step": step, "loss": loss, "learning_rate": rate})

    def on_save(position: loop.Position, average: loop.Average) -> None:
        row: Row = {"phase": progress.phase, "epoch": position.epoch, "step": engine.step_count}
        hooks.on_save(row, lambda folder: _save(engine, folder, progress, position, average))

    def on_epoch(end: loop.EpochEnd, average: loop.Average) -> bool:
        row: Row = {"phase": progress.phase, "epoch": end.epoch, "step": end.step, "loss": end.loss}
        row |= {"seconds": end.seconds, "waiting": end.waiting}
        progress.epoch = end.epoch
        if held_out is not None and watcher is not None:
            blend_weight, weights = None, merged(setup, config, end.weights)
            if engine.rank == 0:
                watcher.load_state_dict(weights)
                blend_weight = choose_blend_weights(
                    held_out, forecast(watcher, held_out.rows.samples, setup.assembler.value_scale, device=device)
                )
            purchase, value, score = _broadcast(blend_weight)
            row |= {"held_out_score": score, "blend_purchase": purchase, "blend_value": value}
            if score > progress.best_score:
                progress.best_score, progress.best_epoch, progress.blend_weight = score, end.epoch, (purchase, value)
                progress.best_weights = {name: w.to("cpu", copy=True) for name, w in weights.items()}
        progress.history.append(row)
        hooks.on_epoch(row, lambda folder: _save(engine, folder, progress, loop.Position(end.epoch), average))
        return held_out is None or end.epoch - progress.best_epoch < PATIENCE

    return loop.run(
        engine,
        setup.source(dataset, config),
        config,
        num_epochs=config.epochs,
        schedule_epochs=(schedule or config).epochs,
        start=start,
        average=average,
        saving=hooks.saving,
        on_step=on_step,
        on_save=on_save,
        on_epoch=on_epoch,
    )


def _hold_out(dataset: Dataset, holdout: Setup, final: Setup, primary: int) -> HeldOut:
    rows = holdout.assembler.at(dataset.histories, holdout.cutoff, known_before=final.cutoff)
    day = int(dataset.clock.day_of(np.array([holdout.cutoff]))[0])
    _, _, error = holdout.assembler.btyd.forecast_factor(day)
    return HeldOut(rows, dataset.horizons.index(primary), error)


def _scaled_at_cut(
    dataset: Dataset, setup: Setup, config: TrainConfig, weights: dict[str, Tensor], adjustment: Adjustment, device: str
) -> Adjustment:
    rows = setup.assembler.at(dataset.histories, setup.cutoff)
    raw = forecast(load_model(setup, config, weights, device), rows.samples, setup.assembler.value_scale, device=device)
    return scaled(raw, rows, adjustment)


def load_model(setup: Setup, config: TrainConfig, weights: dict[str, Tensor], device: str = "cpu") -> CustomerModel:
    """The model of a setup with the given weights, adapters merged."""
    model = CustomerModel(config.model.merged, setup.assembler.space, len(setup.assembler.horizons))
    model.load_state_dict(weights)
    return model.to(device)


def merged(setup: Setup, config: TrainConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the model that a bundle holds; adapters are merged on the CPU."""
    if config.model.adapters.method not in methods.MERGED:
        return weights
    model = CustomerModel(config.model, setup.assembler.space, len(setup.assembler.horizons))
    model.load_state_dict(adalora.settled(weights))
    methods.merge(model)
    return dict(model.state_dict())


def _broadcast(value: tuple[float, float, float] | None) -> tuple[float, float, float]:
    """Rank 0's value, on every worker: all must take the same decision."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        value = box[0]
    assert value is not None
    return value


def _save(engine: Engine, folder: Path, progress: Progress, position: loop.Position, average: loop.Average) -> None:
    loop.save(engine, folder, position, average)
    if engine.rank == 0:
        torch.save(progress, folder / "progress.pt")


def _read_progress(checkpoint: Path | None) -> Progress:
    if checkpoint is None:
        return Progress()
    found = torch.load(checkpoint / "progress.pt", weights_only=False)
    assert isinstance(found, Progress)
    return found
