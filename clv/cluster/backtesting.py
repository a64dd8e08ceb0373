"""Back-testing on Ray: one task per origin and model, for our model and all baselines."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clv.cluster import session
from clv.evaluate.panel import Panel
from clv.train.backtest import Outcomes, predict, predict_baselines
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset

LOG = logging.getLogger(__name__)


def run(
    dataset: Dataset,
    outcomes: Mapping[int, Outcomes],
    horizon: int,
    config: TrainConfig,
    *,
    seeds: int = 1,
    bundle: Path | None = None,
) -> list[Panel]:
    """One panel per origin (us) of `outcomes`, with all models on the same customers.

    Ray must be running; each fit is a task of one CPU. With several seeds the model's predictions are the means over
    the seeds; a bundle replaces the refits. Raises what a fit raises, RuntimeError when a task dies.
    """
    import ray

    dataset_ref = ray.put(dataset)
    baselines_task, model_task = ray.remote(_single_thread(predict_baselines)), ray.remote(_single_thread(predict))
    baselines = {origin: baselines_task.remote(dataset_ref, origin, horizon, config.seed) for origin in outcomes}
    chosen = [config.seed] if bundle else range(config.seed, config.seed + seeds)
    fits = {
        origin: [model_task.remote(dataset_ref, origin, horizon, replace(config, seed=s), bundle) for s in chosen]
        for origin in outcomes
    }
    panels = []
    for origin, actual in outcomes.items():
        panel = actual.panel(session.get(fits[origin]), session.get(baselines[origin]))
        LOG.info(f"origin {panel.origin}: {len(panel.y):,} customers, {len(panel.predictions)} models")
        panels.append(panel)
    return panels


def _single_thread(function: Any) -> Any:
    """The function as a task that keeps to one thread, as Ray counts one CPU for it."""

    def task(*arguments: Any) -> Any:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        import torch

        torch.set_num_threads(1)
        return function(*arguments)

    task.__name__ = function.__name__
    return task
