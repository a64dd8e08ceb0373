"""Pretrain: histories in, encoder out. `python -m ray_jobs.pretrain --histories A B --origin DATE --out ENCODER`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.settings import ClusterSettings, TrainSettings

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(TrainSettings, ClusterSettings):
    """Teaches an encoder, without labels, what events look like; `train --pretrained ENCODER` starts from it.

    Samples per epoch are drawn in equal parts from all shops.
    """

    histories: tuple[Path, ...]
    """Folders that ray_jobs.prepare wrote: one shop, or several for an encoder that is taken to another."""
    out: Path
    """Folder to write; checkpoints, scalars and run.json lie beside it, in OUT.run."""
    origin: str | None = None
    """The --origin of the training to come (default: the end of each log). What is known of the window that training
    holds out before it is left out here, so that the encoder is judged honestly."""
    objectives: tuple[Literal["masked", "next_event", "coles", "autoencoder"], ...] = ("masked", "next_event", "coles")
    """What to learn: hidden events, the next event, which slices are one customer's, the past from one vector."""


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

    if options.encoder == "text":
        raise ValueError("--encoder text: a text encoder is pretrained already; give it to train")
    if options.loss is not None:
        raise ValueError(f"--loss {options.loss} is a loss of value: pretraining has no labels; leave it to train")
    if options.members is not None:
        raise ValueError(f"--members {options.members} read the backbone: pretraining has none; leave it to train")
    if options.peft is not None:
        raise ValueError(f"--peft {options.peft} freezes the backbone, which is what pretraining teaches; leave it out")
    out = options.out.absolute()
    aside = out.with_name(out.name + ".run")
    cluster = options.cluster(aside)
    tracking.check(options.track)
    transfer.check_target(out)
    config, objectives = options.settings(), Objectives.from_names(*options.objectives)
    deepspeed_engine.deepspeed_config(config, "fp32", options.workers)
    datasets = pretraining.read_datasets(options.histories, config)
    origins = [PreparedDataset.open(folder).origin(options.origin) for folder in options.histories]
    planned = plans.plan(datasets, origins, objectives, config)
    training.check_loader(planned.source(config), config, options.workers)
    for ground in planned.grounds:
        dataset = ground.dataset
        LOG.info(
            f"{dataset.name}: {len(dataset.histories):,} customers, known until {dataset.clock.format(ground.cutoff)}"
        )
        if dataset.shards:
            LOG.info(f"{dataset.name}: others stay on storage and are read shard by shard")
    board = options.tracking(aside, begun, config)
    with session.ray_session(num_cpus=options.workers + 1, object_store_mb=options.object_store_mb):
        done = pretraining.pretrain(planned, config, cluster, board)
    seen = [transfer.SeenDataset(ground.dataset.name, ground.cutoff) for ground in planned.grounds]
    facts = plans.facts(planned, config, done.history)
    sha256 = transfer.save(out, config.model.backbone, planned.space, done.weights, seen, facts)
    aside.mkdir(parents=True, exist_ok=True)
    record.write(aside, options, begun, seed=options.seed, encoder=sha256, history=done.history)
    LOG.info(f"wrote encoder {sha256[:12]} to {options.out} in {(datetime.now(UTC) - begun).total_seconds():.0f} s")


def main() -> None:
    execute("pretrain", Options, run, __doc__)


if __name__ == "__main__":
    main()
