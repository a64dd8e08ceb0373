"""Training the value model: a fit that holds an origin out and stops early, then the final fit. No Ray.

The holdout fit ends before the calibration origin: it chooses the number of epochs, the blend weights and the
adjustment. The final fit uses the whole log. Both yield the events of `clv.train.loop`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from clv.evaluate.metrics import evaluate
from clv.evaluate.panel import Panel
from clv.forecast.adjustment import Adjustment
from clv.forecast.network import forecast_samples
from clv.models.adapters import adalora, methods
from clv.models.config import MERGEABLE
from clv.models.model import CustomerModel
from clv.train import loop
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.fitting import Dataset, Phases, Setup
from clv.train.held_out import HeldOut, choose_blend_weights, fit_adjustment, held_out_panel, match_totals
from clv.train.loop import EpochDone, Events, Finished, Row, Save, StepDone

DEFAULT_BLEND_WEIGHT = 0.5
PATIENCE = 2  # epochs without a better held-out score, after which the holdout fit stops


@dataclass
class Progress:
    """What a checkpoint holds beside weights and optimizer, for a resumed run."""

    phase: str = "holdout"
    epoch: int = 0
    best_epoch: int = 0
    best_score: float = -np.inf
    blend_weight: tuple[float, float] = (DEFAULT_BLEND_WEIGHT, DEFAULT_BLEND_WEIGHT)
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)

    @property
    def stopped(self) -> bool:
        """Whether the holdout fit stops here: the last epochs brought no better score."""
        return self.epoch - self.best_epoch >= PATIENCE


@dataclass(frozen=True)
class Fitted:
    """The result of a training run.

    weights: of the final fit, adapters merged where their method allows it. adjustment: fitted at the held-out origin.
    history: one row per epoch. panel: predictions and outcomes at the held-out origin, None without one. adapters: the
    trained tensors alone, where adapters were trained (see `clv.models.adapters.methods`).
    """

    weights: dict[str, Tensor]
    adjustment: Adjustment
    history: list[Row]
    panel: Panel | None = None
    adapters: dict[str, Tensor] = field(default_factory=dict)

    def metrics(self) -> dict[str, dict[str, float | None]]:
        """Metrics of each model at the held-out origin; empty without one."""
        if self.panel is None:
            return {}
        return {name: evaluate(self.panel.y, self.panel.orders, p) for name, p in self.panel.models().items()}


def train(
    dataset: Dataset, phases: Phases, config: TrainConfig, *, device: str = "cpu", checkpoint: Path | None = None
) -> Events[Fitted]:
    """Run the holdout fit, where the log allows one, and the final fit; yields their events, rows with the phase.

    Every worker of a process group calls it and takes the same events; without a group this process trains alone. A
    run continues from a checkpoint that an event's `save` wrote. `clv.train.loop.finish` returns the result.

    Raises FloatingPointError when the loss is no longer finite.
    """
    progress = _read_progress(checkpoint)
    held_out: HeldOut | None = None
    epochs = config.epochs
    if phases.holdout is None:
        progress.phase = "final"
    else:
        held_out = _hold_out(dataset, phases.holdout, phases.final, phases.primary)
        if progress.phase == "holdout":
            yield from _run_phase(dataset, phases.holdout, config, device, progress, checkpoint, held_out)
            progress.phase, progress.epoch, checkpoint = "final", 0, None
        epochs = max(progress.best_epoch, 1)
    final = replace(config, epochs=epochs)
    trained = yield from _run_phase(dataset, phases.final, final, device, progress, checkpoint, None, config.epochs)
    weights = merged(phases.final, config, trained)
    adapters = methods.trained_tensors(trained) if config.model.adapters.method else {}

    adjustment, panel = Adjustment.identity(len(dataset.horizons), blend_weight=DEFAULT_BLEND_WEIGHT), None
    if held_out is not None and phases.holdout is not None:
        model = load_model(phases.holdout, config, progress.best_weights, device)
        raw = forecast_samples(model, held_out.rows.samples, phases.holdout.assembler.value_scale, device=device)
        adjustment, adjusted = fit_adjustment(held_out, raw, progress.blend_weight)
        origin = dataset.clock.format(phases.holdout.cutoff)
        panel = held_out_panel(held_out, adjusted, origin, dataset.first_day_known(phases.holdout.cutoff))
    adjustment = adjustment.limit_to_observed(phases.final.num_observed)
    rows = phases.final.assembler.assemble(dataset.histories, phases.final.cutoff)
    model = load_model(phases.final, config, weights, device)
    raw = forecast_samples(model, rows.samples, phases.final.assembler.value_scale, device=device)
    yield Finished(Fitted(weights, match_totals(raw, rows, adjustment), progress.history, panel, adapters))


def fit_holdout(
    dataset: Dataset, phases: Phases, config: TrainConfig, *, device: str = "cpu", checkpoint: Path | None = None
) -> Events[list[Row]]:
    """Run the holdout fit alone, to compare settings; called as `train` is. The result is one row per epoch with its
    `held_out_score`."""
    assert phases.holdout is not None, "without an origin to hold out there is nothing to choose by"
    progress = _read_progress(checkpoint)
    held_out = _hold_out(dataset, phases.holdout, phases.final, phases.primary)
    yield from _run_phase(dataset, phases.holdout, config, device, progress, checkpoint, held_out)
    yield Finished(progress.history)


def _run_phase(
    dataset: Dataset,
    setup: Setup,
    config: TrainConfig,
    device: str,
    progress: Progress,
    checkpoint: Path | None,
    held_out: HeldOut | None,
    schedule_epochs: int | None = None,
) -> Generator[StepDone | EpochDone, None, dict[str, Tensor]]:
    """Train one fit; returns its weights, none where it stopped early. With `held_out`, score every epoch and keep the
    best one's number, weights and blend weights in `progress`."""
    if held_out is not None and progress.stopped:
        return {}  # The checkpoint is of the last epoch of a fit that stopped early.
    objective = loop.sum_loss(config, dataset.value != "none")
    engine = make_engine(setup.model(config), objective, config, torch.device(device))
    start, average = loop.resume(engine, checkpoint, config) if checkpoint else (loop.Position(), None)
    source = setup.source(dataset, config)
    run = loop.run(engine, source, config, schedule_epochs=schedule_epochs, start=start, average=average)
    with closing(run):
        for event in run:
            if isinstance(event, Finished):
                return event.result
            row: Row = {"phase": progress.phase, **event.row}
            if isinstance(event, EpochDone):
                progress.epoch = int(row["epoch"])
                if held_out is not None:
                    row |= _score_epoch(held_out, setup, config, event.weights, progress, engine.rank, device)
                progress.history.append(row)
            yield replace(event, row=row, save=partial(_save, event.save, progress, engine.rank))
            if isinstance(event, EpochDone) and held_out is not None and progress.stopped:
                break
    return {}


def _score_epoch(
    held_out: HeldOut,
    setup: Setup,
    config: TrainConfig,
    live: dict[str, Tensor],
    progress: Progress,
    rank: int,
    device: str,
) -> Row:
    """The held-out score and blend weights of an epoch, chosen by the first worker for all; updates `progress`."""
    weights, found = merged(setup, config, live), None
    if rank == 0:
        model = load_model(setup, config, weights, device)
        raw = forecast_samples(model, held_out.rows.samples, setup.assembler.value_scale, device=device)
        found = choose_blend_weights(held_out, raw)
    purchase, value, score = _broadcast(found)
    if score > progress.best_score:
        progress.best_score, progress.best_epoch, progress.blend_weight = score, progress.epoch, (purchase, value)
        progress.best_weights = {name: w.to("cpu", copy=True) for name, w in weights.items()}
    return {"held_out_score": score, "blend_purchase": purchase, "blend_value": value}


def _hold_out(dataset: Dataset, holdout: Setup, final: Setup, primary: int) -> HeldOut:
    rows = holdout.assembler.assemble(dataset.histories, holdout.cutoff, known_before=final.cutoff)
    return HeldOut(rows, dataset.horizons.index(primary))


def load_model(setup: Setup, config: TrainConfig, weights: dict[str, Tensor], device: str = "cpu") -> CustomerModel:
    """The model of a setup with the given weights, adapters merged."""
    model = CustomerModel(config.model.with_merged_adapters, setup.assembler.space, len(setup.assembler.horizons))
    model.load_state_dict(weights)
    return model.to(device)


def merged(setup: Setup, config: TrainConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a bundle holds: adapters are merged, on the CPU, where their method allows it."""
    if config.model.adapters.method not in MERGEABLE:
        return weights
    model = CustomerModel(config.model, setup.assembler.space, len(setup.assembler.horizons))
    model.load_state_dict(adalora.without_pruned_ranks(weights))
    methods.merge(model)
    return dict(model.state_dict())


def _broadcast(value: tuple[float, float, float] | None) -> tuple[float, float, float]:
    """The first worker's value, on every worker: all must take the same decision."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        value = box[0]
    assert value is not None
    return value


def _save(save: Save, progress: Progress, rank: int, folder: Path) -> None:
    save(folder)
    if rank == 0:
        torch.save(progress, folder / "progress.pt")


def _read_progress(checkpoint: Path | None) -> Progress:
    if checkpoint is None:
        return Progress()
    found = torch.load(checkpoint / "progress.pt", weights_only=False)
    assert isinstance(found, Progress)
    return found
