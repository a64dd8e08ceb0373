"""Train a model on a Ray cluster: BTYD model, seasonal factor and encoder, fitted on what was known at the origin.

Reads HISTORIES, the folder that ray_jobs.prepare wrote. Writes BUNDLE, the folder that scores and serves, and
BUNDLE.run with checkpoints, tracked metrics, adapters and run.json.

    python -m ray_jobs.train --histories out/histories --origin 2011-06-12 --out out/bundle
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tyro.conf import OmitArgPrefixes

from clv.cluster.options import Cluster
from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.options import TrainingOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Options of a training run."""

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    out: Path
    """Bundle folder to write; checkpoints, tracked metrics and run.json are written beside it, into OUT.run."""
    plan: bool = False
    """Only log weights, memory per worker, steps and checkpoint size; nothing is started."""
    gpu_memory_gib: float | None = None
    """With --plan: memory of a GPU in GiB; the smallest setting that fits is logged."""
    origin: str | None = None
    """Training cut, local midnight of the shop: nothing known at or after it is used; by default the end of the log."""
    cluster: OmitArgPrefixes[Cluster] = field(default_factory=Cluster)


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
    run_folder = out.with_name(out.name + ".run")
    cluster = options.cluster.with_storage(run_folder)
    if options.gpu_memory_gib is not None and not options.plan:
        raise ValueError("--gpu-memory-gib belongs to --plan: a run takes what it needs")
    tracking.check(options.track)
    prepared = PreparedDataset.open(options.histories)
    cutoff = prepared.origin(options.origin)
    config = options.training.with_checkpoint()
    # Wrong arguments are refused before Ray starts.
    deepspeed_engine.deepspeed_config(config, "fp32", cluster.workers)
    bundle.check_target(out)
    dataset = training.read_dataset(options.histories, config=config)
    LOG.info(f"{prepared.spec.name}: {len(dataset.histories):,} customers, cut at {prepared.clock.format(cutoff)}")
    if dataset.shards:
        LOG.info(
            f"notice: {prepared.manifest['num_customers']:,} customers stay on storage: the encoder reads "
            f"{len(dataset.shards)} shards in turn; BTYD model, features and evaluation use the customers above"
        )
    phases = fitting.plan(dataset, cutoff, config)
    training.check_loader(phases.final.source(dataset, config), config, cluster.workers)
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
            cluster.workers,
            gpu=cluster.gpu or options.gpu_memory_gib is not None,
            gpu_gib=options.gpu_memory_gib,
        ):
            LOG.info(line)
        return
    tracked = options.tracking(run_folder, begun, config)
    with session.ray_session(num_cpus=cluster.workers + 1, object_store_mb=cluster.object_store_mb):
        fitted = training.train(options.histories.absolute(), phases, config, cluster, tracked)
    facts = training.dataset_facts(prepared)
    result = export.to_bundle(dataset, phases, config, fitted, facts, list(phases.notices))
    version = bundle.save(result, out)
    run_folder.mkdir(parents=True, exist_ok=True)
    if fitted.adapters:
        methods.save(run_folder / "adapters", config.model.adapters, config.model.backbone, fitted.adapters)
    record.write(run_folder, options, begun, seed=config.seed, bundle=version)
    LOG.info(result.texts["card.md"])
    LOG.info(f"wrote bundle {version} to {options.out} in {(datetime.now(UTC) - begun).total_seconds():.0f} s")


def main() -> None:
    execute("train", Options, run, __doc__)


if __name__ == "__main__":
    main()
