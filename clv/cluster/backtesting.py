"""Back-test on Ray: every model, ours and the baselines, refitted at every origin on what was known there."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from clv.cluster import session
from clv.evaluate.panel import Panel, Visitors
from clv.train.backtest import Ours, Outcomes, _ours, baselines, mean_of
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset

LOG = logging.getLogger(__name__)


def run(
    dataset: Dataset,
    facts: Mapping[int, Outcomes],
    horizon: int,
    config: TrainConfig,
    *,
    seeds: int = 1,
    bundle: Path | None = None,
) -> list[Panel]:
    """One panel per origin of `facts` (see `outcomes`), all models on the same customers.

    Ray must be running; each fit is a task of one CPU. Raises what a fit raises, RuntimeError when a task dies.
    With several seeds our value and probability are the means over seeds (the bundle's where one is given).
    """
    import ray

    dataset_ref = ray.put(dataset)
    baseline_task, model_task = ray.remote(_quiet(baselines)), ray.remote(_quiet(_ours))
    waiting = {origin: baseline_task.remote(dataset_ref, origin, horizon, config.seed) for origin in facts}
    chosen = [config.seed] if bundle else range(config.seed, config.seed + seeds)
    ours = {
        origin: [model_task.remote(dataset_ref, origin, horizon, replace(config, seed=s), bundle) for s in chosen]
        for origin in facts
    }
    panels = []
    for origin, known in facts.items():
        label = dataset.clock.format(origin)
        fits: list[Ours] = session.get(ours[origin])
        predictions = {"clv": mean_of([fit.customers for fit in fits])} | session.get(waiting[origin])
        visitors = {"clv": mean_of([f.visitors for f in fits]), "conversion": mean_of([f.conversion for f in fits])}
        LOG.info(f"origin {label}: {len(known.value):,} customers, {len(predictions)} models")
        panels.append(
            Panel(
                origin=label,
                horizon_days=horizon,
                y=known.value,
                orders=known.orders,
                predictions=predictions,
                cohort=known.cohort,
                cell=known.cell,
                orders_past=known.orders_past,
                log_days=known.log_days,
                visitors=Visitors(y=known.visitors[0], orders=known.visitors[1], predictions=visitors),
            )
        )
    return panels


def _quiet(function: Any) -> Any:
    """A task that keeps to one thread: the cluster's CPUs are counted in tasks."""

    def task(*arguments: Any) -> Any:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        import torch

        torch.set_num_threads(1)
        return function(*arguments)

    task.__name__ = function.__name__
    return task
