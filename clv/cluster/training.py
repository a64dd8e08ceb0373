"""The training run of `clv.train` on Ray Train."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from clv.cluster import streaming, workers
from clv.cluster.workers import Cluster, Say
from clv.data.dataset import Prepared
from clv.data.histories import Histories
from clv.models.inputs.feature_space import Items
from clv.train.config import TrainConfig
from clv.train.examples.loader import Source
from clv.train.examples.on_storage import Sharded, load_here
from clv.train.fitting import Phases, Shop
from clv.train.tracking import Tracking
from clv.train.trainer import Row

TOKEN_BYTES, LINE_BYTES = 74, 8  # of a token's fields and offset, of an item key


def read_shop(folder: Path | str, horizons: tuple[int, ...] | None = None, config: TrainConfig | None = None) -> Shop:
    """The dataset of a histories folder, in memory; by `config.feed`, a share of it and the way to the rest."""
    prepared = Prepared.open(folder)
    spec = prepared.spec
    feed = "memory" if config is None else feed_of(prepared, config)
    num_shards = None if config is None or feed == "memory" else prepared.shards_within(config.memory_events)
    return Shop(
        histories=Histories.from_table(prepared.histories(num_shards)),
        shards=() if feed == "memory" else tuple(str(path) for path in prepared.shards),
        load=streaming.load if feed == "ray" else load_here,
        clock=prepared.clock,
        value=spec.value,
        horizons=tuple(horizons or spec.horizons_days),
        items=Items.from_tables(*prepared.items()),
        data_through=prepared.data_through,
        name=spec.name,
    )


def feed_of(prepared: Prepared, config: TrainConfig) -> Literal["memory", "shards", "ray"]:
    """`config.feed`, `auto` decided."""
    if config.feed != "auto":
        return config.feed
    return "memory" if prepared.manifest["num_tokens"] <= config.memory_events else "shards"


def describe_feed(prepared: Prepared, config: TrainConfig) -> str:
    """How much of the histories a process will hold, and how the network is fed."""
    m, feed = prepared.manifest, feed_of(prepared, config)
    size = m["num_tokens"] * TOKEN_BYTES + m["num_lines"] * LINE_BYTES
    whole = f"histories: {m['num_tokens']:,} events, {size / 2**30:.3g} GiB in memory"
    if feed == "memory":
        return f"{whole}: every worker holds them (feed memory)"
    num, of = prepared.shards_within(config.memory_events), len(prepared.shards)
    customers = sum(part["customers"] for part in m["shards"][:num])
    share = customers / max(m["num_customers"], 1)
    return (
        f"{whole}: a process holds {num} of {of} shards, {customers:,} customers, {share * size / 2**30:.3g} GiB, and "
        f"a worker up to two shards more, {2 * size / of / 2**30:.3g} GiB; the network is fed from all (feed {feed})"
    )


def check_feed(source: Source, config: TrainConfig, workers: int) -> None:
    """ValueError for settings that shards cannot be dealt out by."""
    if isinstance(source, Sharded):
        source.check(config, workers * config.engine.accumulation)


def dataset_facts(prepared: Prepared) -> dict[str, Any]:
    """What a bundle remembers of its dataset."""
    spec = prepared.spec
    return {
        "name": spec.name,
        "currency": spec.currency,
        "timezone": spec.timezone,
        "value": spec.value,
        "horizons": list(spec.horizons_days),
        "discount_rate_annual": spec.discount_rate_annual,
        "spec_sha256": prepared.manifest["spec_sha256"],
        "shards": {part["file"]: part["sha256"] for part in prepared.manifest["shards"]},
    }


def train(
    histories: Path, phases: Phases, config: TrainConfig, cluster: Cluster, tracking: Tracking, say: Say = print
) -> Any:
    """Run both phases on a group of workers; returns `clv.train.trainer.Fitted`.

    Raises RuntimeError when the loss is no longer finite, when the disk of the checkpoints is full, or when workers
    failed more than `max_failures` times.

    A killed worker or node costs the steps since the last checkpoint; the loss curve is the undisturbed one.
    """
    import ray

    arguments = {"histories": str(histories), "phases": ray.put(phases), "config": config, "tracking": tracking}
    return workers.run_group(worker, arguments | {"trial_only": False}, cluster, tracking.run, say)


def worker(arguments: dict[str, Any]) -> None:
    """What every worker runs."""
    import ray

    from clv.train import trainer

    if workers.in_vain(arguments):
        return
    config: TrainConfig = arguments["config"]
    rank, world_size = workers.join_group(config, arguments["cluster"].use_gpu)
    shop = read_shop(arguments["histories"], config=config)
    shards = len(Prepared.open(arguments["histories"]).shards)
    arguments["lines"].put(
        f"worker rank {rank} of {world_size}: {shards} shards, {len(shop.histories):,} customers, "
        f"engine {config.engine.kind}, ZeRO stage {config.engine.stage}, pid {os.getpid()}"
    )
    phases, trial_only = ray.get(arguments["phases"]), arguments["trial_only"]
    work: Any = trainer.try_out if trial_only else trainer.train
    workers.attend(
        arguments,
        config,
        lambda hooks, device, start: work(shop, phases, config, device=device, hooks=hooks, checkpoint=start),
        line=line_of,
        metrics=lambda fitted: {} if trial_only else {"held_out": fitted.metrics()},
    )


def line_of(row: Row) -> str:
    """An epoch in one line."""
    text = f"{row['phase']}, epoch {row['epoch']}: loss {row['loss']:.4f}, {row['seconds']:.0f} s"
    if "held_out_score" in row:
        text += f", held-out score {row['held_out_score']:+.4f} against the anchor, gate {row['gate_value']:.2f}"
    return text
