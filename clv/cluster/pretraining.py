"""The pretraining of `clv.train.pretraining` on Ray Train: one encoder from the histories of one shop or several."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clv.cluster import training, workers
from clv.cluster.options import Cluster
from clv.data.dataset import PreparedDataset
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset
from clv.train.loop import Row
from clv.train.pretraining import Pretrained, PretrainingPlan
from clv.train.tracking import Tracking


def read_datasets(folders: Sequence[Path], config: TrainConfig) -> list[Dataset]:
    """The datasets of several histories folders, or as much of each as `config` lets a process hold; all are fed in
    one way. ValueError where two have one name."""
    loaders = {training.choose_loader(PreparedDataset.open(folder), config) for folder in folders}
    (loader,) = loaders if len(loaders) == 1 else loaders - {"memory"}
    datasets = [training.read_dataset(folder, config=replace(config, loader=loader)) for folder in folders]
    names = [dataset.name for dataset in datasets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"dataset {twice[0]!r} is given twice; name each histories folder once")
    return datasets


def pretrain(planned: PretrainingPlan, config: TrainConfig, cluster: Cluster, tracking: Tracking) -> Pretrained:
    """Pretrain on a group of workers; a killed one costs the steps since the last checkpoint.

    Raises RuntimeError when the loss is no longer finite, when the disk of the checkpoints is full, or when workers
    failed more than `max_failures` times.
    """
    import ray

    arguments = {"plan": ray.put(planned), "config": config, "tracking": tracking}
    result = workers.run_group(worker, arguments, cluster, tracking.run)
    assert isinstance(result, Pretrained)
    return result


def worker(arguments: dict[str, Any]) -> None:
    """The function that every worker runs."""
    import ray

    from clv.train import pretraining

    if workers.failed_permanently(arguments):
        return
    config: TrainConfig = arguments["config"]
    rank, world_size = workers.join_group(config, arguments["cluster"].gpu)
    planned: PretrainingPlan = ray.get(arguments["plan"])
    arguments["lines"].put(
        f"worker rank {rank} of {world_size}: {len(planned.grounds)} shops, engine {config.engine.kind}, "
        f"pid {os.getpid()}"
    )
    workers.run_worker(
        arguments,
        config,
        lambda device, start: pretraining.train(planned, config, device=device, checkpoint=start),
        describe_epoch=describe_epoch,
    )


def describe_epoch(row: Row) -> str:
    """The log line of an epoch."""
    parts = [f"{name} {row[name]:.3f}" for name in ("masked", "next_event", "coles", "autoencoder") if name in row]
    return f"pretrain, epoch {row['epoch']}: loss {row['loss']:.4f} ({', '.join(parts)}), {row['seconds']:.0f} s"
