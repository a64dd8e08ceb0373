"""The training run of `clv.train` on Ray Train: workers, checkpoints, faults, logs."""

from __future__ import annotations

import errno
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
from clv.train.tracking import Board, Tracking

Say = Callable[[str], None]
DIVERGED = "diverged.txt"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where the workers run. storage: folder or URI that every node reaches, for checkpoints.

    min_workers: fewer than `num_workers` lets the run go on with those that are left, and grow again.
    checkpoint_*: when it is saved within an epoch (0 is never), beside every epoch's end and before a preemption.
    keep_checkpoints: how many stay, best held-out score first; the newest always does.
    """

    num_workers: int = 2
    min_workers: int | None = None
    use_gpu: bool = False
    cpus_per_worker: int = 1
    max_failures: int = 2
    checkpoint_steps: int = 0
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
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
        name=spec.name,
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
    histories: Path, phases: Phases, config: TrainConfig, cluster: Cluster, tracking: Tracking, say: Say = print
) -> Any:
    """Run both phases on a group of workers; returns `clv.train.run.Fitted`.

    Raises RuntimeError when the loss is no longer finite, when the disk of the checkpoints is full, or when workers
    failed more than `max_failures` times.

    A killed worker or node costs the steps since the last checkpoint; the loss curve is the undisturbed one.
    """
    import ray

    arguments = {"histories": str(histories), "phases": ray.put(phases), "config": config, "tracking": tracking}
    arguments |= {"cluster": cluster}
    return run_group(worker, arguments, cluster, tracking.run, say)


def run_group(
    loop: Callable[[dict[str, Any]], None], arguments: dict[str, Any], cluster: Cluster, name: str, say: Say
) -> Any:
    """Run `loop` on a group of workers; returns what the first of them saved as `fitted.pt` in its last checkpoint.

    To the arguments it adds `use_gpu`; `lines`, a queue for what workers tell, which Ray's own forwarding of their
    output would bury; and `stop`, a queue for why another try is in vain. Raises RuntimeError when the group fails for
    good.
    """
    import torch
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    lines, stop = Queue(actor_options={"num_cpus": 0}), Queue(actor_options={"num_cpus": 0})
    fewest = cluster.min_workers or cluster.num_workers
    trainer = TorchTrainer(
        loop,
        train_loop_config=arguments | {"use_gpu": cluster.use_gpu, "lines": lines, "stop": stop},
        torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers if fewest == cluster.num_workers else (fewest, cluster.num_workers),
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=cluster.storage,
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=cluster.keep_checkpoints, checkpoint_score_attribute="held_out_score"
            ),
        ),
    )
    try:
        with _printing(lines, say):
            result = trainer.fit()
        if not stop.empty():
            raise RuntimeError(f"training failed: {stop.get()}")
    except TrainingFailedError as error:
        if not stop.empty():
            raise RuntimeError(f"training failed: {stop.get()}") from error
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

    from clv.train.engine import slow_precision
    from clv.train.loop import Saving
    from clv.train.run import Hooks, Row, train

    if not arguments["stop"].empty():
        return  # this try would end as the one before
    cluster: Cluster = arguments["cluster"]
    context = ray.train.get_context()
    config: TrainConfig = arguments["config"]
    rank, world_size = context.get_world_rank(), context.get_world_size()
    join_group(config, arguments["use_gpu"])
    shop = read_shop(arguments["histories"])
    shards = len(Prepared.open(arguments["histories"]).shards)
    arguments["lines"].put(
        f"worker rank {rank} of {world_size}: {shards} shards, {len(shop.histories):,} customers, "
        f"engine {config.engine.kind}, ZeRO stage {config.engine.stage}, pid {os.getpid()}"
    )
    board: Board | None = arguments["tracking"].open() if rank == 0 else None

    def on_step(row: Row) -> None:
        if board is not None:
            board.step(row)

    def deliver(row: Row, save: Any) -> None:
        with tempfile.TemporaryDirectory() as folder, stopping_when_full(arguments["stop"], cluster.storage):
            save(Path(folder))
            ray.train.report(dict(row), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def on_save(row: Row, save: Any) -> None:
        deliver(row, save)
        if rank == 0:
            arguments["lines"].put(f"{row['phase']}, epoch {row['epoch']}: saved at step {row['step']}")

    def on_epoch(row: Row, save: Any) -> None:
        deliver(row, save)
        if board is not None:
            board.epoch(row)
            arguments["lines"].put(_line(row))

    warned: list[str] = []

    def notice() -> bool:
        info = ray.train.get_preemption_info()
        if info is None or warned == (nodes := list(info.preempted_node_ids)):
            return False
        warned[:] = nodes
        if rank == 0:
            arguments["lines"].put(f"notice: {len(nodes)} nodes will be taken away; saving")
        return True

    checkpoint = ray.train.get_checkpoint()
    phases = ray.get(arguments["phases"])
    device = str(ray.train.torch.get_device())
    saving = Saving(cluster.checkpoint_steps, 60 * cluster.checkpoint_minutes, notice)
    hooks = Hooks(on_step=on_step, on_epoch=on_epoch, on_save=on_save, saving=saving)
    if rank == 0 and (slow := slow_precision(config.engine, torch.device(device))):
        arguments["lines"].put(f"notice: {slow}")
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        start = Path(folder) if folder else None
        if start is not None and rank == 0:
            arguments["lines"].put(f"resuming from {checkpoint.path}")
        try:
            fitted, diverged = train(shop, phases, config, device=device, hooks=hooks, checkpoint=start), ""
        except FloatingPointError as error:
            # All workers see the same loss, so all end here; raised, it would be tried again from the checkpoint.
            fitted, diverged = None, str(error)
    if board is not None:
        board.end({"held_out": fitted.metrics()} if fitted else None, failed=bool(diverged))
    with tempfile.TemporaryDirectory() as folder:
        if rank == 0 and diverged:
            (Path(folder) / DIVERGED).write_text(diverged)
        elif rank == 0:
            torch.save(fitted, Path(folder) / "fitted.pt")
        ray.train.report({"done": 1}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def join_group(config: TrainConfig, use_gpu: bool) -> None:
    """The threads and the process group of a worker, before anything else of it."""
    import torch

    from clv.train.zero import import_deepspeed

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if config.engine.kind == "deepspeed":
        backend = "nccl" if use_gpu else "gloo"
        import_deepspeed(dynamo=config.engine.compile).init_distributed(dist_backend=backend)


@contextmanager
def stopping_when_full(stop: Any, storage: str) -> Iterator[None]:
    """Tells `stop` when the block fails because a disk is full: the next try would fill it again."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        text = str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text
        if full or "PytorchStreamWriter failed" in text:  # how torch puts it
            stop.put(f"no space left for checkpoints, in {storage} or {tempfile.gettempdir()}: free some, or --storage")
        raise


def _reason(error: BaseException) -> str:
    """What the first failing worker died of, in one line."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, first = min(failures.items())
    # Ray Train gives a worker's own exception as the text of its traceback, whose last line says what it was.
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    own = any(line.startswith("Traceback") for line in lines)
    return f"worker rank {rank}: {lines[-1] if own else session.first_line(first)}"


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
