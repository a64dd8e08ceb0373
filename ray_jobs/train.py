"""Train: histories in, bundle out. `python -m ray_jobs.train --histories HISTORIES --origin DATE --out BUNDLE`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.settings import ClusterSettings, TrainSettings

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(TrainSettings, ClusterSettings):
    """Fits BTYD model, level and model on what was known before the origin; the bundle holds everything to score with."""

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    out: Path
    """Bundle folder to write; checkpoints, scalars and run.json lie beside it, in OUT.run."""
    plan: bool = False
    """Print weights, memory per worker, steps and checkpoint size, and stop before anything is started."""
    gpu_memory_gib: float | None = None
    """With --plan: memory of a GPU, to be told the smallest setting that fits."""
    origin: str | None = None
    """Training cut: nothing known at or after it is used (local midnight of the shop); default: the end of the log."""


def run(options: Options) -> None:
    """Raises ValueError for an impossible origin or setting, RuntimeError when the workers fail for good."""
    begun = datetime.now(UTC)
    from clv import bundle
    from clv.cluster import session, training
    from clv.data.dataset import PreparedDataset
    from clv.models.adapters import methods
    from clv.models.pretraining import transfer
    from clv.train import estimate, export, fitting, tracking
    from clv.train.engines import deepspeed_engine

    out = options.out.absolute()
    aside = out.with_name(out.name + ".run")
    cluster = options.cluster(aside)
    if options.gpu_memory_gib is not None and not options.plan:
        raise ValueError("--gpu-memory-gib belongs to --plan: a run takes what it needs")
    tracking.check(options.track)
    prepared = PreparedDataset.open(options.histories)
    cutoff = prepared.origin(options.origin)
    config = options.settings()
    # Everything that a wrong argument can cause is found before Ray starts.
    deepspeed_engine.deepspeed_config(config, "fp32", options.workers)
    bundle.check_target(out)
    dataset = training.read_dataset(options.histories, config=config)
    LOG.info(f"{prepared.spec.name}: {len(dataset.histories):,} customers, cut at {prepared.clock.format(cutoff)}")
    if dataset.shards:
        LOG.info(
            f"notice: {prepared.manifest['num_customers']:,} customers stay on storage: the network is fed from "
            f"{len(dataset.shards)} shards in turn; BTYD model, features and the held-out judgement rest on those above"
        )
    phases = fitting.plan(dataset, cutoff, config)
    training.check_loader(phases.final.source(dataset, config), config, options.workers)
    for notice in phases.notices:
        LOG.info(f"notice: {notice}")
    if source := config.model.backbone.pretrained:
        LOG.info(transfer.describe(phases.final.assembler.space, config.model.backbone, source))
    if options.plan:
        LOG.info(training.describe_loader(prepared, config))
        for line in estimate.report(
            config,
            phases.final.assembler.space,
            len(dataset.horizons),
            options.workers,
            gpu=options.gpu or options.gpu_memory_gib is not None,
            gpu_gib=options.gpu_memory_gib,
        ):
            LOG.info(line)
        return
    board = options.tracking(aside, begun, config)
    with session.ray_session(num_cpus=options.workers + 1, object_store_mb=options.object_store_mb):
        fitted = training.train(options.histories.absolute(), phases, config, cluster, board)
    facts = training.dataset_facts(prepared)
    result = export.to_bundle(dataset, phases, config, fitted, facts, list(phases.notices))
    version = bundle.save(result, out)
    aside.mkdir(parents=True, exist_ok=True)
    if fitted.adapters:
        methods.save(aside / "adapters", config.model.adapters, config.model.backbone, fitted.adapters)
    record.write(aside, options, begun, seed=options.seed, bundle=version)
    LOG.info(result.texts["card.md"])
    LOG.info(f"wrote bundle {version} to {options.out} in {(datetime.now(UTC) - begun).total_seconds():.0f} s")


def main() -> None:
    execute("train", Options, run, __doc__)


if __name__ == "__main__":
    main()
