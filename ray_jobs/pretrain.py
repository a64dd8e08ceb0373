"""Pretrain an event encoder without labels, on the histories of one shop or several.

`train --pretrained ENCODER` starts from it. Reads folders that ray_jobs.prepare wrote; samples per epoch are drawn in
equal parts from all of them. Writes the folder ENCODER, and ENCODER.run with checkpoints, tracked metrics and run.json.

    python -m ray_jobs.pretrain --histories out/shop-a out/shop-b --origin 2011-06-12 --out out/encoder
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tyro.conf import OmitArgPrefixes

from clv.cluster.options import Cluster
from clv.models.config import LossConfig
from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.options import TrainingOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Options of a pretraining."""

    histories: tuple[Path, ...]
    """Folders that ray_jobs.prepare wrote: one shop, or several for an encoder that another shop will use."""
    out: Path
    """Encoder folder to write; checkpoints, tracked metrics and run.json are written beside it, into OUT.run."""
    origin: str | None = None
    """The --origin of the training that will use the encoder, by default the end of each log. The window that this
    training holds out is left out here, so that the encoder has not seen it."""
    objectives: tuple[Literal["masked", "next_event", "coles", "autoencoder"], ...] = ("masked", "next_event", "coles")
    """Pretraining tasks: masked events, the next event, slices of one customer (CoLES), the past from one vector."""
    cluster: OmitArgPrefixes[Cluster] = field(default_factory=Cluster)


def run(options: Options) -> None:
    """Raises ValueError for an impossible origin or setting, RuntimeError when the workers fail for good."""
    begun = datetime.now(UTC)
    from clv.cluster import pretraining, session, training
    from clv.data.dataset import PreparedDataset
    from clv.models.pretraining import transfer
    from clv.models.pretraining.pretrainer import Objectives
    from clv.train import pretraining as plans
    from clv.train import tracking
    from clv.train.engines import deepspeed_engine

    config = options.training
    if config.model.encoder == "text":
        raise ValueError("--encoder text: a text encoder is pretrained already; give it to train")
    if config.loss != LossConfig():
        raise ValueError(
            f"--loss {config.loss.name} is a loss of value, which pretraining does not use: leave it to train"
        )
    if config.model.ensemble_size != 1:
        raise ValueError(f"--ensemble-size {config.model.ensemble_size}: pretraining has no heads; leave it to train")
    if config.model.adapters.method is not None:
        raise ValueError(
            f"--peft {config.model.adapters.method} freezes the backbone that pretraining trains; leave it out"
        )
    out = options.out.absolute()
    run_folder = out.with_name(out.name + ".run")
    cluster = options.cluster.with_storage(run_folder)
    tracking.check(options.track)
    transfer.check_target(out)
    objectives = Objectives.from_names(*options.objectives)
    deepspeed_engine.deepspeed_config(config, "fp32", cluster.workers)
    datasets = pretraining.read_datasets(options.histories, config)
    origins = [PreparedDataset.open(folder).origin(options.origin) for folder in options.histories]
    planned = plans.plan(datasets, origins, objectives, config)
    training.check_loader(planned.source(config), config, cluster.workers)
    for ground in planned.grounds:
        dataset = ground.dataset
        LOG.info(
            f"{dataset.name}: {len(dataset.histories):,} customers, known until {dataset.clock.format(ground.cutoff)}"
        )
        if dataset.shards:
            LOG.info(f"{dataset.name}: the other customers stay on storage, and the encoder reads them shard by shard")
    tracked = options.tracking(run_folder, begun, config)
    with session.ray_session(num_cpus=cluster.workers + 1, object_store_mb=cluster.object_store_mb):
        done = pretraining.pretrain(planned, config, cluster, tracked)
    seen = [transfer.SeenDataset(ground.dataset.name, ground.cutoff) for ground in planned.grounds]
    facts = plans.facts(planned, config, done.history)
    sha256 = transfer.save(out, config.model.backbone, planned.space, done.weights, seen, facts)
    run_folder.mkdir(parents=True, exist_ok=True)
    record.write(run_folder, options, begun, seed=config.seed, encoder=sha256, history=done.history)
    LOG.info(f"wrote encoder {sha256[:12]} to {options.out} in {(datetime.now(UTC) - begun).total_seconds():.0f} s")


def main() -> None:
    execute("pretrain", Options, run, __doc__)


if __name__ == "__main__":
    main()
