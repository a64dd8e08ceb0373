"""Train: histories in, bundle out. `python -m ray_jobs.train --histories HISTORIES --origin 2011-06-12 --out BUNDLE`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import tyro

from clv.data.spec import SpecError
from ray_jobs import record


@dataclass(frozen=True, kw_only=True)
class Options:
    """Fits anchor, level and model on what was known before the origin; the bundle holds everything to score with."""

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    out: Path
    """Bundle folder to write."""
    origin: str | None = None
    """Training cut: nothing known at or after it is used (local midnight of the shop); default: the end of the log."""
    preset: Literal["tiny", "minilm", "base", "large"] = "tiny"
    """Size of the backbone."""
    workers: int = 2
    """Training workers; each holds the histories and a copy of the model (ZeRO shards the rest)."""
    gpu: bool = False
    """Give every worker a GPU."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    accumulation: int = 1
    """Micro-batches per step and worker."""
    epochs: int | None = None
    samples_per_epoch: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    optimizer: Literal["adamw", "adam", "rmsprop", "sgd"] | None = None
    loss: Literal["mixture", "ziln", "tweedie", "mse"] | None = None
    architecture: Literal["bert", "gpt2", "lstm", "bilstm", "gru", "mlp"] | None = None
    """Backbone architecture, by default that of the preset."""
    pretrained: str | None = None
    """Folder, pkg://PACKAGE or hub id of a BERT encoder; every encoder tensor must fit."""
    seed: int = 0
    storage: str | None = None
    """Folder or URI that all nodes reach, for checkpoints; default: beside the bundle."""
    max_failures: int = 2
    """Worker deaths that the run survives."""
    object_store_mb: int = 512
    """Object store of a Ray started here."""


def run(options: Options) -> dict[str, object]:
    """Returns the bundle's config. Raises ValueError for an impossible origin or setting."""
    begun = datetime.now(UTC)
    from clv import bundle
    from clv.cluster import session, training
    from clv.data.prepared import Prepared
    from clv.train import export, fit

    prepared = Prepared.open(options.histories)
    cutoff = prepared.origin(options.origin)
    config = settings(options)
    shop = training.read_shop(options.histories)
    say(f"{prepared.spec.name}: {len(shop.histories):,} customers, cut at {prepared.clock.format(cutoff)}")
    phases = fit.plan(shop, cutoff, config)
    for notice in phases.notices:
        say(f"notice: {notice}")
    out = options.out.absolute()
    storage = options.storage or str(out.with_name(out.name + ".checkpoints"))
    with session.ray_session(num_cpus=options.workers + 1, object_store_mb=options.object_store_mb):
        cluster = training.Cluster(
            num_workers=options.workers, use_gpu=options.gpu, max_failures=options.max_failures, storage=storage
        )
        name = begun.strftime("train-%Y%m%d-%H%M%S")
        log_dir = out.with_name(out.name + ".tensorboard") / name
        fitted = training.train(options.histories.absolute(), phases, config, cluster, name, log_dir)
    result = export.to_bundle(shop, phases, config, fitted, training.dataset_facts(prepared), list(phases.notices))
    version = bundle.save(result, out)
    record.write(out.with_name(out.name + ".checkpoints"), options, begun, seed=options.seed)
    say(export.card(result.config, fitted, result.metrics["held_out"]))
    say(f"bundle {version} in {options.out}, {(datetime.now(UTC) - begun).total_seconds():.0f} s")
    return result.config


def settings(options: Options) -> TrainConfig:  # type: ignore[name-defined]  # noqa: F821 - imported late
    """The preset with the options that were given."""
    from dataclasses import replace

    from clv.train.config import TrainConfig

    config = TrainConfig.preset(options.preset)
    given = {name: getattr(options, name) for name in ("epochs", "samples_per_epoch", "batch_size")}
    config = replace(config, seed=options.seed, **{name: value for name, value in given.items() if value is not None})
    backbone = config.model.backbone
    if options.architecture is not None:
        backbone = replace(backbone, architecture=options.architecture)
    if options.pretrained is not None:
        backbone = replace(backbone, pretrained=options.pretrained)
    optimizer = config.optimizer
    if options.learning_rate is not None:
        optimizer = replace(optimizer, learning_rate=options.learning_rate)
    if options.optimizer is not None:
        optimizer = replace(optimizer, name=options.optimizer)
    if options.loss is not None:
        config = replace(config, loss=replace(config.loss, name=options.loss))
    config = replace(config, model=replace(config.model, backbone=backbone), optimizer=optimizer)
    return config.with_engine(
        zero_stage=options.zero_stage, precision=options.precision, accumulation=options.accumulation
    )


def say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    try:
        run(options)
    except SpecError as error:
        sys.exit(_fail(error, 2))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(_fail(error, 1))


def _fail(error: Exception, code: int) -> int:
    print(f"train: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
