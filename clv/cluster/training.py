"""The training run of `clv.train` on Ray Train: workers, checkpoints, faults, logs."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clv.cluster import session
from clv.data.histories import Histories
from clv.data.prepared import Prepared
from clv.models.features import Items
from clv.train.config import TrainConfig
from clv.train.fit import Phases, Shop

Say = Callable[[str], None]
DIVERGED = "diverged.txt"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the workers run. storage: folder or URI that every node reaches, for checkpoints."""

    num_workers: int = 2
    use_gpu: bool = False
    cpus_per_worker: int = 1
    max_failures: int = 2
    storage: str


def read_shop(folder: Path | str, horizons: tuple[int, ...] | None = None) -> Shop:
    """The dataset of a histories folder, in memory."""
    prepared = Prepared.open(folder)
    spec = prepared.spec
    return Shop(
        histories=Histories.from_table(prepared.histories()),
        clock=prepared.clock,
        value=spec.value,
        horizons=tuple(horizons or spec.horizons_days),
        items=Items.from_tables(*prepared.items()),
        data_through=prepared.data_through,
    )


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
    histories: Path, phases: Phases, config: TrainConfig, cluster: Cluster, name: str, log_dir: Path, say: Say = print
) -> Any:
    """Run both phases on a group of workers; returns `clv.train.run.Fitted`.

    Raises RuntimeError when the loss is no longer finite, or when workers failed more than `max_failures` times.

    A killed worker costs the epochs since the last checkpoint; the loss curve is the undisturbed one. What workers
    tell comes through a queue: Ray's own forwarding of their output would bury it.
    """
    import ray
    import torch
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    lines = Queue(actor_options={"num_cpus": 0})
    arguments = {"histories": str(histories), "phases": ray.put(phases), "config": config}
    arguments |= {"use_gpu": cluster.use_gpu, "log_dir": str(log_dir), "lines": lines}
    trainer = TorchTrainer(
        worker,
        train_loop_config=arguments,
        torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=cluster.storage,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        with _printing(lines, say):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise RuntimeError(f"training failed: {_reason(error)}") from error
    if result.error is not None or result.checkpoint is None:
        raise RuntimeError(f"training failed: {_reason(result.error) if result.error else 'no result'}")
    with result.checkpoint.as_directory() as folder:
        if (Path(folder) / DIVERGED).exists():
            raise RuntimeError(f"training failed: {(Path(folder) / DIVERGED).read_text()}")
        return torch.load(Path(folder) / "fitted.pt", weights_only=False)


def worker(arguments: dict[str, Any]) -> None:
    """What every worker runs."""
    import ray
    import ray.train
    import torch

    from clv.train.engine import import_deepspeed
    from clv.train.run import Hooks, Row, train

    context = ray.train.get_context()
    config: TrainConfig = arguments["config"]
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if config.engine.kind == "deepspeed":
        import_deepspeed().init_distributed(dist_backend="nccl" if arguments["use_gpu"] else "gloo")
    shop = read_shop(arguments["histories"])
    shards = len(Prepared.open(arguments["histories"]).shards)
    stage = config.engine.zero_stage if config.engine.kind == "deepspeed" else None
    arguments["lines"].put(
        f"worker rank {rank} of {world_size}: {shards} shards, {len(shop.histories):,} customers, "
        f"engine {config.engine.kind}, ZeRO stage {stage}, pid {os.getpid()}"
    )
    scalars = _scalars(arguments["log_dir"]) if rank == 0 else None

    def on_step(row: Row) -> None:
        if scalars is not None:
            for name in ("loss", "learning_rate"):
                scalars.add_scalar(f"{row['phase']}/{name}", row[name], row["step"])

    def on_epoch(row: Row, save: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            ray.train.report(dict(row), checkpoint=ray.train.Checkpoint.from_directory(folder))
        if scalars is not None:
            for name in ("held_out_score", "seconds", "waiting"):
                if name in row:
                    scalars.add_scalar(f"{row['phase']}/{name}", row[name], row["step"])
            scalars.flush()
            arguments["lines"].put(_line(row))

    checkpoint = ray.train.get_checkpoint()
    phases = ray.get(arguments["phases"])
    device = str(ray.train.torch.get_device())
    hooks = Hooks(on_step=on_step, on_epoch=on_epoch)
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        start = Path(folder) if folder else None
        try:
            fitted, diverged = train(shop, phases, config, device=device, hooks=hooks, checkpoint=start), ""
        except FloatingPointError as error:
            # All workers see the same loss, so all end here; raised, it would be tried again from the checkpoint.
            fitted, diverged = None, str(error)
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0 and diverged:
            (Path(folder) / DIVERGED).write_text(diverged)
        elif rank == 0:
            torch.save(fitted, Path(folder) / "fitted.pt")
        ray.train.report({"done": 1}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _reason(error: BaseException) -> str:
    """What the first failing worker died of, in one line."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, first = min(failures.items())
    # Ray Train gives a worker's own exception as the text of its traceback, whose last line says what it was.
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    own = any(line.startswith("Traceback") for line in lines)
    return f"worker rank {rank}: {lines[-1] if own else session.first_line(first)}"


def _scalars(log_dir: str) -> Any:
    from tensorboardX import SummaryWriter

    return SummaryWriter(log_dir, flush_secs=30)


def _line(row: dict[str, Any]) -> str:
    text = f"{row['phase']}, epoch {row['epoch']}: loss {row['loss']:.4f}, {row['seconds']:.0f} s"
    if "held_out_score" in row:
        text += f", held-out score {row['held_out_score']:+.4f} against the anchor, gate {row['gate_value']:.2f}"
    return text


@contextmanager
def _printing(lines: Any, say: Say) -> Iterator[None]:
    """Prints what arrives in the queue until the block ends."""
    done = threading.Event()

    def pump() -> None:
        while not done.is_set() or not lines.empty():
            for line in lines.get_nowait_batch(lines.qsize()):
                say(line)
            done.wait(0.5)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)
