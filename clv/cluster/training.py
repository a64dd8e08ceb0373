"""The training run of `clv.train` on Ray Train."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from clv.cluster import session, workers
from clv.cluster.options import Cluster
from clv.data.dataset import PreparedDataset
from clv.data.histories import Histories
from clv.models.inputs.batch import Samples
from clv.models.inputs.feature_space import Items
from clv.train.config import TrainConfig
from clv.train.examples.loader import ExampleSource
from clv.train.examples.on_storage import Piece, Sharded, load_here
from clv.train.fitting import Dataset, Phases
from clv.train.loop import Row
from clv.train.tracking import Tracking

TOKEN_BYTES, LINE_BYTES = 74, 8  # of a token's fields and offset, of an item key


def read_dataset(
    folder: Path | str, horizons: tuple[int, ...] | None = None, config: TrainConfig | None = None
) -> Dataset:
    """The dataset of a histories folder: all in memory or, by `config.loader`, some shards and the paths of all."""
    prepared = PreparedDataset.open(folder)
    spec = prepared.spec
    loader = "memory" if config is None else choose_loader(prepared, config)
    num_shards = None if config is None or loader == "memory" else prepared.shards_within(config.memory_events)
    return Dataset(
        histories=Histories.from_table(prepared.histories(num_shards)),
        shards=() if loader == "memory" else tuple(str(path) for path in prepared.shards),
        load=stream_examples if loader == "ray" else load_here,
        clock=prepared.clock,
        value=spec.value,
        horizons=tuple(horizons or spec.horizons_days),
        items=Items.from_tables(*prepared.items()),
        data_through=prepared.data_through,
        name=spec.name,
    )


def choose_loader(prepared: PreparedDataset, config: TrainConfig) -> Literal["memory", "shards", "ray"]:
    """The data loader of a run: `config.loader`, or for `auto` the one that fits the size of the histories."""
    if config.loader != "auto":
        return config.loader
    return "memory" if prepared.manifest["num_tokens"] <= config.memory_events else "shards"


def describe_loader(prepared: PreparedDataset, config: TrainConfig) -> str:
    """A log line: the size of the histories in memory and the data loader."""
    m, loader = prepared.manifest, choose_loader(prepared, config)
    size = m["num_tokens"] * TOKEN_BYTES + m["num_lines"] * LINE_BYTES
    whole = f"histories: {m['num_tokens']:,} events, {size / 2**30:.3g} GiB in memory"
    if loader == "memory":
        return f"{whole}: every worker holds them (loader memory)"
    num, of = prepared.shards_within(config.memory_events), len(prepared.shards)
    customers = sum(part["customers"] for part in m["shards"][:num])
    share = customers / max(m["num_customers"], 1)
    return (
        f"{whole}: a process holds {num} of {of} shards, {customers:,} customers, {share * size / 2**30:.3g} GiB, and "
        f"a worker up to two shards more, {2 * size / of / 2**30:.3g} GiB; training reads all of them (loader {loader})"
    )


def check_loader(source: ExampleSource, config: TrainConfig, workers: int) -> None:
    """Raises ValueError for settings by which the shards cannot be divided among the workers."""
    if isinstance(source, Sharded):
        source.check(config, workers * config.engine.accumulation)


def dataset_facts(prepared: PreparedDataset) -> dict[str, Any]:
    """The facts of a dataset that a bundle stores."""
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


def train(histories: Path, phases: Phases, config: TrainConfig, cluster: Cluster, tracking: Tracking) -> Any:
    """Run the holdout fit and the final fit on a group of workers; returns `clv.train.trainer.Fitted`.

    Raises RuntimeError when the loss is no longer finite, when the disk of the checkpoints is full, or when workers
    failed more than `max_failures` times.

    A killed worker or node costs the steps since the last checkpoint; the loss curve stays that of an undisturbed run.
    """
    import ray

    arguments = {"histories": str(histories), "phases": ray.put(phases), "config": config, "tracking": tracking}
    return workers.run_group(worker, arguments | {"holdout_only": False}, cluster, tracking.run)


def worker(arguments: dict[str, Any]) -> None:
    """The function that every worker runs."""
    import ray

    from clv.train import trainer

    if workers.failed_permanently(arguments):
        return
    config: TrainConfig = arguments["config"]
    rank, world_size = workers.join_group(config, arguments["cluster"].gpu)
    dataset = read_dataset(arguments["histories"], config=config)
    shards = len(PreparedDataset.open(arguments["histories"]).shards)
    arguments["lines"].put(
        f"worker rank {rank} of {world_size}: {shards} shards, {len(dataset.histories):,} customers, "
        f"engine {config.engine.kind}, ZeRO stage {config.engine.stage}, pid {os.getpid()}"
    )
    phases, holdout_only = ray.get(arguments["phases"]), arguments["holdout_only"]
    work: Any = trainer.fit_holdout if holdout_only else trainer.train
    workers.run_worker(
        arguments,
        config,
        lambda device, start: work(dataset, phases, config, device=device, checkpoint=start),
        describe_epoch=describe_epoch,
        metrics=lambda fitted: {} if holdout_only else {"held_out": fitted.metrics()},
    )


def describe_epoch(row: Row) -> str:
    """The log line of an epoch."""
    text = f"{row['phase']}, epoch {row['epoch']}: loss {row['loss']:.4f}, {row['seconds']:.0f} s"
    if "held_out_score" in row:
        text += f", held-out score {row['held_out_score']:+.4f} against the BTYD model, "
        text += f"blend weight {row['blend_value']:.2f}"
    return text


def stream_examples(assemble: Callable[[Piece], Samples], pieces: Iterable[Piece]) -> Iterator[Samples]:
    """Yields what `clv.train.examples.on_storage.load_here` yields, assembled by Ray Data on any node of the cluster.

    It is for workers whose own cores are busy or few; each worker has its own stream.
    """
    import ray

    session.quiet_data()
    # By default blocks arrive in the order in which they are ready.
    ray.data.DataContext.get_current().execution_options.preserve_order = True

    def make(row: dict[str, Any]) -> dict[str, Any]:
        return {"samples": pickle.dumps(assemble(pickle.loads(row["piece"])))}

    rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
    made = ray.data.from_items(rows, override_num_blocks=len(rows)).map(make)
    for row in made.iter_rows():
        yield pickle.loads(row["samples"])
