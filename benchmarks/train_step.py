"""CPU seconds per training step: the engine (plain torch and DeepSpeed) against a bare torch loop, in the same run.

`python -m benchmarks.train_step [--preset minilm] [--zero-stage 1]`. One process; blocks of steps of the baselines are
interleaved, so that a busy machine slows all of them; medians of the blocks and their ratios are printed.
Then two workers of one thread each against one such worker, DeepSpeed and plain torch, in turns (read it on an idle
machine of two cores or more); then what Ray Train takes to start and end two workers that do nothing.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
import tyro
from torch import nn

from clv.data.clock import Clock
from clv.data.histories import Histories, build
from clv.models.inputs.batch import Batch
from clv.models.inputs.feature_space import Items
from clv.simulate.small import simulate
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.fitting import Dataset, Setup, prepare
from clv.train.loop import sum_loss
from clv.train.optimizers import make_optimizer
from ray_jobs.options import read_preset


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: Literal["tiny", "minilm"] = "minilm"
    zero_stage: Literal[0, 1, 2, 3] = 1
    batch_size: int = 32
    blocks: int = 5
    steps: int = 4
    """Steps per block."""
    threads: int = 1
    rounds: int = 3
    """Of one worker and two in turns; 0 leaves them out, and Ray's start."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29571"}
    dist.init_process_group("gloo")
    config = replace(read_preset(options.preset), batch_size=options.batch_size, token_dropout=0.0)
    setup, batch = example(config)
    steppers = {"plain loop": plain(setup, config, batch), "engine, torch": engine(setup, config, batch, "torch", 0)}
    name = f"engine, DeepSpeed ZeRO-{options.zero_stage}"
    steppers[name] = engine(setup, config, batch, "deepspeed", options.zero_stage)
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for step in steppers.values():
        step()  # first-call costs belong to nobody
    for _ in range(options.blocks):
        for name, step in steppers.items():
            start = time.process_time()
            for _ in range(options.steps):
                step()
            seconds[name].append((time.process_time() - start) / options.steps)
    baseline = statistics.median(seconds["plain loop"])
    print(f"{options.preset}, batch {len(batch)} x {batch.mask.shape[1]} tokens, {options.threads} thread(s)")
    for name, taken in seconds.items():
        print(
            f"{name:28} {statistics.median(taken):7.3f} CPU-s per step, "
            f"{statistics.median(taken) / baseline:5.2f} x plain"
        )
    dist.destroy_process_group()
    if options.rounds:
        scaling(options, config)
        print(f"{'Ray Train: start and end':28} {ray_start():7.1f} s")


def scaling(options: Options, config: TrainConfig) -> None:
    """Prints how many times one worker's steps per second two of them do, the global batch being the same."""
    for kind in ("torch", "deepspeed"):
        taken: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(options.rounds):
            for size, found in taken.items():
                found.append(group_seconds(size, kind, options, config))
        one, two = statistics.median(taken[1]), statistics.median(taken[2])
        print(f"two workers, {kind:15} {two:7.3f} s per step, one {one:.3f}: {one / two:.2f} x", flush=True)


def group_seconds(size: int, kind: str, options: Options, config: TrainConfig) -> float:
    """Seconds per step of a group of so many processes."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = (size, kind, options, config, Path(folder))
        torch.multiprocessing.spawn(group_member, arguments, nprocs=size)  # type: ignore[no-untyped-call]
        return float((Path(folder) / "seconds").read_text())


def group_member(
    rank: int, size: int, kind: Literal["torch", "deepspeed"], options: Options, config: TrainConfig, folder: Path
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_SIZE": str(size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    setup, batch = example(config, (rank, size))
    step = engine(setup, config, batch, kind, options.zero_stage if kind == "deepspeed" else 0)
    step()
    dist.barrier()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    if rank == 0:
        (folder / "seconds").write_text(str((time.perf_counter() - start) / options.steps))
    dist.destroy_process_group()


def ray_start() -> float:
    """Seconds of a run on two workers that do nothing, the local cluster's start left out."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from clv.cluster import session

    with session.ray_session(num_cpus=3, object_store_mb=256), tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            lambda: None,
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(num_workers=2),
            run_config=RunConfig(storage_path=folder),
        )
        start = time.perf_counter()
        trainer.fit()
        return time.perf_counter() - start


def example(config: TrainConfig, part: tuple[int, int] | None = None) -> tuple[Setup, Batch]:
    """A setup and one full batch, or a worker's part of it, of long histories of a simulated shop."""
    clock = Clock("UTC")
    table = build(simulate(400, "2022-01-01", "2023-12-31", seed=0).events, clock)
    shop = Dataset(Histories.from_table(table), clock, "gross", (30, 90), Items.empty(), clock.parse("2024-01-01"))
    setup = prepare(shop, shop.data_through, config, 30)
    samples = setup.source(shop, config).epoch(0)
    return setup, samples.batch(np.argsort(-samples.lengths)[: config.batch_size], part=part)


def plain(setup: Setup, config: TrainConfig, batch: Batch) -> Callable[[], None]:
    """What anybody would write by hand."""
    model, loss = setup.model(config).train(), sum_loss(config, True)
    optimizer = make_optimizer(config.optimizer, model)

    def step() -> None:
        total, weight = loss(model, batch)
        (total / weight).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def engine(
    setup: Setup, config: TrainConfig, batch: Batch, kind: Literal["torch", "deepspeed"], stage: int
) -> Callable[[], None]:
    built = make_engine(
        setup.model(config),
        sum_loss(config, True),
        config.with_engine(kind=kind, zero_stage=stage),
        torch.device("cpu"),
    )
    built.module.train()

    def step() -> None:
        built.train_step([batch], config.optimizer.learning_rate)

    return step


if __name__ == "__main__":
    main()
