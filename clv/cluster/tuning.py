"""Hyperparameter search with Ray Tune: Optuna proposes settings, ASHA stops weak trials, each runs a worker group."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clv.cluster import training, workers
from clv.cluster.options import Cluster, TuningOptions
from clv.train import search
from clv.train.config import TrainConfig
from clv.train.fitting import Phases
from clv.train.search import Choice, SearchRange
from clv.train.tracking import Name as TrackerName
from clv.train.tracking import Tracking

LOG = logging.getLogger(__name__)

SCORE, EPOCH = "held_out_score", "epoch"
NAME = "tune"


@dataclass(frozen=True)
class TuneTrial:
    """A trial: its number from 1, its setting, the held-out score after each epoch, and the error if it failed."""

    name: str
    number: int
    setting: dict[str, Any]
    scores: tuple[float, ...]
    failed: str = ""

    @property
    def best(self) -> float:
        return max(self.scores, default=float("-inf"))


def tune(
    histories: Path,
    phases: Phases,
    base: TrainConfig,
    options: TuningOptions,
    cluster: Cluster,
    folder: Path,
    trackers: Sequence[TrackerName] = (),
) -> list[TuneTrial]:
    """Runs the trials, or the remaining ones where `folder` holds an interrupted search; returns them, the best first.

    Raises ValueError for a setting that cannot be tuned, RuntimeError where every trial failed.
    """
    from ray import tune as ray_tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    space = search.space(options.search, base)
    trainable: Any = ray_tune.with_resources(
        ray_tune.with_parameters(
            run_trial,
            histories=str(histories),
            phases=phases,
            base=base,
            cluster=cluster,
            tracking=Tracking(folder=str(folder.absolute() / "tracking"), run="tune", names=tuple(trackers)),
        ),
        # The trial's function only waits for its workers, which request their own resources.
        {"CPU": 0.001},
    )
    path = str(folder.absolute() / NAME)
    if ray_tune.Tuner.can_restore(path):
        LOG.info(f"continuing the trials in {path}")
        tuner = ray_tune.Tuner.restore(path, trainable, resume_unfinished=True, restart_errored=True)
    else:
        tuner = ray_tune.Tuner(
            trainable,
            param_space={name: _domain(kind) for name, kind in space.items()},
            tune_config=ray_tune.TuneConfig(
                metric=SCORE,
                mode="max",
                num_samples=options.trials,
                search_alg=ConcurrencyLimiter(OptunaSearch(seed=base.seed), max_concurrent=options.concurrent),
                scheduler=ASHAScheduler(time_attr=EPOCH, max_t=_longest(space, base), grace_period=options.grace),
            ),
            run_config=ray_tune.RunConfig(
                name=NAME, storage_path=str(folder.absolute()), verbose=0, callbacks=[_log_epochs()]
            ),
        )
    found = _ranked(_trial(result) for result in tuner.fit())
    if not any(trial.scores for trial in found):
        raise RuntimeError(f"every trial failed: {found[0].failed if found else 'there were none'}")
    return found


def run_trial(
    setting: dict[str, Any], *, histories: str, phases: Phases, base: TrainConfig, cluster: Cluster, tracking: Tracking
) -> None:
    """Run a trial: a worker group whose epochs are reported to Ray Tune."""
    import os

    import ray
    from ray import tune as ray_tune

    trial, config = str(ray_tune.get_context().get_trial_id()), search.chosen(base, setting)
    tracking = replace(tracking, folder=os.path.join(tracking.folder, trial), run=trial, settings=config)
    arguments = {"histories": histories, "phases": ray.put(phases), "config": config, "tracking": tracking}
    workers.run_group(training.worker, arguments | {"holdout_only": True}, cluster, trial, callbacks=[_reporter()])


def _reporter() -> Any:
    from ray.tune.integration.ray_train import TuneReportCallback

    class Epochs(TuneReportCallback):
        """Reports the ends of epochs, and no checkpoints between them."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            if SCORE in metrics[0]:
                super().after_report(run_context, metrics, checkpoint)

    return Epochs()


def _log_epochs() -> Any:
    from ray.tune import Callback

    class LogEpochs(Callback):
        """Logs every epoch of a trial, and a trial that fails."""

        def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
            if SCORE in result:
                LOG.info(f"trial {trial.trial_id}, epoch {result[EPOCH]}: held-out score {result[SCORE]:+.4f}")

        def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            LOG.info(f"trial {trial.trial_id} failed")

    return LogEpochs()


def _longest(space: Mapping[str, SearchRange | Choice], base: TrainConfig) -> int:
    epochs = space.get("epochs")
    return max(epochs.values) if isinstance(epochs, Choice) else base.epochs


def _domain(kind: SearchRange | Choice) -> Any:
    from ray import tune as ray_tune

    if isinstance(kind, Choice):
        return ray_tune.choice(list(kind.values))
    return ray_tune.loguniform(kind.low, kind.high) if kind.log else ray_tune.uniform(kind.low, kind.high)


def _ranked(trials: Iterable[TuneTrial]) -> list[TuneTrial]:
    """The best trial first, and of equal ones the earliest: Ray Tune returns the trials of a resumed search in another
    order."""
    return sorted(trials, key=lambda trial: (-trial.best, trial.number))


def _trial(result: Any) -> TuneTrial:
    frame = result.metrics_dataframe
    scores = tuple(float(s) for s in frame[SCORE]) if frame is not None and SCORE in frame else ()
    failed = str(result.error).strip().splitlines()[-1] if result.error else ""
    # The folder of a trial is run_trial_ID_NUMBER_SETTING.
    name, number = Path(result.path).name.split("_")[2:4]
    return TuneTrial(name, int(number), dict(result.config), scores, failed)
