"""A model of step time against the number of workers, and its check on this machine: `python -m benchmarks.scaling`.

    step(N) = compute + max(0, exchange(N) - overlap x compute)
    exchange(N) = 2 (N - 1) / N x gradient bytes / bandwidth + 2 (N - 1) x latency      (ring all-reduce)

Every worker computes the same number of tokens whatever N is. Compute, bandwidth and latency are measured here, with
gloo between processes of this machine; the model is then checked on two workers. For GPUs nothing was measured: the
table for 8, 64 and 512 of them follows from the constants on the command line, and is as good as these.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import tyro

from benchmarks.train_step import example
from clv.train import estimate
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.loop import sum_loss
from ray_jobs.options import read_preset

OVERLAP = 2 / 3  # gradients are exchanged during the backward pass, two thirds of the work


@dataclass(frozen=True, kw_only=True)
class Options:
    steps: int = 15
    """Steps that are timed; the median counts."""
    peak_tflops: float = 990.0
    """Of a GPU, dense bf16: an H100's data sheet. Not measured."""
    mfu: float = 0.4
    """Share of the peak that training reaches: the target, not measured."""
    bandwidth_gb_s: float = 40.0
    """Of the network, per GPU: 400 Gbit/s less its overhead. Not measured."""
    latency_us: float = 15.0
    """Of one hop. Not measured."""
    tokens: int = 16_384
    """Of one GPU in a step."""


@dataclass(frozen=True)
class Machine:
    """Seconds of one worker's own work in a step, and what lies between two workers (bytes per second, seconds)."""

    compute: float
    bandwidth: float
    latency: float
    overlap: float = OVERLAP


def exchange(machine: Machine, num_bytes: float, workers: int) -> float:
    """Seconds of a ring all-reduce."""
    if workers == 1:
        return 0.0
    return 2 * (workers - 1) / workers * num_bytes / machine.bandwidth + 2 * (workers - 1) * machine.latency


def step(machine: Machine, num_bytes: float, workers: int) -> float:
    """Seconds of a step of so many workers."""
    return machine.compute + max(0.0, exchange(machine, num_bytes, workers) - machine.overlap * machine.compute)


def efficiency(machine: Machine, num_bytes: float, workers: int) -> float:
    """Throughput of so many workers against as many times one."""
    return step(machine, num_bytes, 1) / step(machine, num_bytes, workers)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    print("GPUs, by the model alone (constants: see --help)\n")
    print("| preset | gradients | 8 | 64 | 512 |\n|---|---|---|---|---|")
    for preset in ("base", "large"):
        backbone = read_preset(preset).model.backbone
        layers = backbone.num_layers * (4 * backbone.width**2 + 2 * backbone.width * backbone.intermediate)
        compute = options.tokens * estimate.flops_per_token(backbone) / (options.peak_tflops * 1e12 * options.mfu)
        gpu = Machine(compute, options.bandwidth_gb_s * 1e9, options.latency_us * 1e-6)
        cells = [
            f"{efficiency(gpu, 2 * layers, n):.0%} of {n} x, {step(gpu, 2 * layers, n):.3f} s" for n in (8, 64, 512)
        ]
        print(f"| {preset} | {2 * layers / 1e9:.2f} GB | " + " | ".join(cells) + " |")
    here(options)


def here(options: Options) -> None:
    """The same on this machine, measured, with `tiny` on plain torch and one thread a worker."""
    with mp.get_context("spawn").Manager() as manager:
        found = manager.dict()
        for workers in (1, 2):
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29_640 + workers)}
            mp.spawn(_worker, (workers, options.steps, found), nprocs=workers)
        machine, num_bytes = Machine(found["step", 1], found["bandwidth"], found["latency"]), found["bytes"]
    told = step(machine, num_bytes, 2)
    rates = f"{machine.bandwidth / 1e9:.2f} GB/s, {machine.latency * 1e6:.0f} us"
    print(f"\nthis machine: {machine.compute:.3f} s a step, {rates}")
    print(f"two workers: {told:.3f} s predicted, {found['step', 2]:.3f} s measured; ", end="")
    print(f"{2 * found['step', 1] / found['step', 2]:.2f} times the throughput of one")


def _worker(rank: int, workers: int, steps: int, found: dict[object, float]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=workers)
    config = replace(TrainConfig().with_engine(kind="torch"), batch_size=32, token_dropout=0.0)
    setup, batch = example(config)
    engine = make_engine(setup.model(config), sum_loss(config, True), config, torch.device("cpu"))
    engine.module.train()
    engine.train_step([batch], 1e-4)
    seconds = []
    for _ in range(steps):
        dist.barrier()
        start = time.perf_counter()
        engine.train_step([batch], 1e-4)
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        found["step", workers] = statistics.median(seconds)
        found["bytes"] = 4.0 * sum(p.numel() for p in engine.module.parameters() if p.requires_grad)
    if workers == 2:
        size = int(4e6)
        small, large = _all_reduce(1, steps), _all_reduce(size, steps)
        if rank == 0:  # for two workers an all-reduce carries its bytes once, in two hops
            found["latency"], found["bandwidth"] = small / 2, 4 * size / max(large - small, 1e-9)
    dist.destroy_process_group()


def _all_reduce(size: int, repeats: int) -> float:
    value, seconds = torch.ones(size), []
    for _ in range(repeats):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(value)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
