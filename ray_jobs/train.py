"""Train: histories in, bundle out. `python -m ray_jobs.train --histories HISTORIES --origin DATE --out BUNDLE`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ray_jobs import record
from ray_jobs.command import execute, say
from ray_jobs.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Options(TrainSettings):
    """Fits anchor, level and model on what was known before the origin; the bundle holds everything to score with."""

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    out: Path
    """Bundle folder to write; checkpoints, scalars and run.json lie beside it, in OUT.run."""
    origin: str | None = None
    """Training cut: nothing known at or after it is used (local midnight of the shop); default: the end of the log."""
    workers: int = 2
    """Training workers; each holds the histories and a copy of the model (ZeRO shards the rest)."""
    gpu: bool = False
    """Give every worker a GPU."""
    storage: str | None = None
    """Folder or URI that all nodes reach, for checkpoints; default: OUT.run."""
    min_workers: int | None = None
    """Go on with as few as these where nodes are lost, and grow again; by default wait for all."""
    max_failures: int = 2
    """Worker deaths that the run survives."""
    checkpoint_steps: int = 0
    """Save every so many steps, beside every epoch's end; 0: never."""
    checkpoint_minutes: float = 10.0
    """Save every so many minutes within an epoch; 0: never."""
    keep_checkpoints: int = 2
    """Checkpoints that stay: the best by held-out score, and always the newest."""
    object_store_mb: int = 512
    """Object store of a Ray started here."""


def run(options: Options) -> None:
    """Raises ValueError for an impossible origin or setting, RuntimeError when the workers fail for good."""
    begun = datetime.now(UTC)
    from clv import bundle
    from clv.cluster import session, training
    from clv.data.prepared import Prepared
    from clv.train import export, fit, tracking, zero

    for name in ("workers", "accumulation", "keep_checkpoints"):
        if (given := getattr(options, name)) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {given} must be at least 1")
    if options.min_workers is not None and not 1 <= options.min_workers <= options.workers:
        raise ValueError(f"--min-workers {options.min_workers} must lie between 1 and --workers {options.workers}")
    for name in ("checkpoint_steps", "checkpoint_minutes"):
        if (given := getattr(options, name)) < 0:
            raise ValueError(f"--{name.replace('_', '-')} {given} must not be negative")
    tracking.check(options.track)
    prepared = Prepared.open(options.histories)
    cutoff = prepared.origin(options.origin)
    config = options.config()
    # Everything that a wrong argument can cause is found before Ray starts.
    zero.deepspeed_config(config, "fp32", options.workers)
    bundle.check_target(options.out.absolute())
    shop = training.read_shop(options.histories)
    say(f"{prepared.spec.name}: {len(shop.histories):,} customers, cut at {prepared.clock.format(cutoff)}")
    phases = fit.plan(shop, cutoff, config)
    for notice in phases.notices:
        say(f"notice: {notice}")
    out = options.out.absolute()
    aside = out.with_name(out.name + ".run")
    board = options.tracking(aside, begun, config)
    cluster = training.Cluster(
        num_workers=options.workers,
        use_gpu=options.gpu,
        min_workers=options.min_workers,
        max_failures=options.max_failures,
        checkpoint_steps=options.checkpoint_steps,
        checkpoint_minutes=options.checkpoint_minutes,
        keep_checkpoints=options.keep_checkpoints,
        storage=options.storage or str(aside),
    )
    with session.ray_session(num_cpus=options.workers + 1, object_store_mb=options.object_store_mb):
        fitted = training.train(options.histories.absolute(), phases, config, cluster, board, say)
    facts = training.dataset_facts(prepared)
    result = export.to_bundle(shop, phases, config, fitted, facts, list(phases.notices))
    version = bundle.save(result, out)
    aside.mkdir(parents=True, exist_ok=True)
    record.write(aside, options, begun, seed=options.seed, bundle=version)
    say(result.texts["card.md"])
    say(f"wrote bundle {version} to {options.out} in {(datetime.now(UTC) - begun).total_seconds():.0f} s")


def main() -> None:
    execute("train", Options, run, __doc__)


if __name__ == "__main__":
    main()
