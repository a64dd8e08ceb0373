"""A group of workers on Ray Train: starting it, its checkpoints, its faults, and what it tells the driver."""

from __future__ import annotations

import errno
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clv.cluster import session
from clv.train.config import TrainConfig
from clv.train.trainer import Hooks, Row

LOG = logging.getLogger(__name__)

Work = Callable[[Hooks, str, Path | None], Any]
"""(hooks, device, checkpoint) -> what the group is for; called alike by every worker."""
DIVERGED, RESULT, PLACE = "diverged.txt", "fitted.pt", "place.json"


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


def run_group(
    loop: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    cluster: Cluster,
    name: str,
    callbacks: Sequence[Any] = (),
) -> Any:
    """Run `loop` on a group of workers; returns what the first of them saved as RESULT in its last checkpoint.

    To the arguments it adds `cluster`; `lines`, a queue for what workers tell, which Ray's own forwarding of their
    output would bury; and `stop`, a queue for why another try is in vain. Raises RuntimeError when the group fails for
    good.
    """
    import ray
    import torch
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On the driver's own node: a queue on a node that is lost would take the workers of the others with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lines, stop = (Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}) for _ in range(2))
    fewest = cluster.min_workers or cluster.num_workers
    trainer = TorchTrainer(
        loop,
        train_loop_config=arguments | {"cluster": cluster, "lines": lines, "stop": stop},
        torch_config=TorchConfig(backend="nccl" if cluster.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers if fewest == cluster.num_workers else (fewest, cluster.num_workers),
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=cluster.storage,
            callbacks=[*callbacks, _saved(lines)],
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=cluster.keep_checkpoints, checkpoint_score_attribute="held_out_score"
            ),
        ),
    )
    try:
        with _printing(lines):
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
        return torch.load(Path(folder) / RESULT, weights_only=False)


def failed_permanently(arguments: dict[str, Any]) -> bool:
    """Whether this try would end as the one before."""
    return not arguments["stop"].empty()


def join_group(config: TrainConfig, use_gpu: bool) -> tuple[int, int]:
    """The threads and the process group of a worker, before anything else of it; returns its rank and their number."""
    import ray.train
    import torch

    from clv.train.engines.deepspeed_engine import import_deepspeed

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if config.engine.kind == "deepspeed":
        backend = "nccl" if use_gpu else "gloo"
        import_deepspeed(dynamo=config.engine.compile).init_distributed(dist_backend=backend)
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def run_worker(
    arguments: dict[str, Any],
    config: TrainConfig,
    work: Work,
    *,
    line: Callable[[Row], str],
    metrics: Callable[[Any], dict[str, Any]] = lambda result: {},
) -> None:
    """One worker's part in `work`: resumes, saves, tracks, tells; the first worker hands the result to the driver.

    line: an epoch for people. metrics: of the result, for the trackers.
    """
    import ray.train
    import torch

    from clv.train.engines.precision import slow_precision
    from clv.train.loop import Saving

    cluster: Cluster = arguments["cluster"]
    first = ray.train.get_context().get_world_rank() == 0
    board = arguments["tracking"].open() if first else None

    def tell(text: str) -> None:
        if first:
            arguments["lines"].put(text)

    def on_step(row: Row) -> None:
        if board is not None:
            board.step(row)

    def deliver(row: Row, save: Callable[[Path], None]) -> None:
        """Saves and reports; the driver hears of it when all workers have (see `_saved`)."""
        with tempfile.TemporaryDirectory() as folder, _stopping_when_full(arguments["stop"], cluster.storage):
            save(Path(folder))
            if first:
                (Path(folder) / PLACE).write_text(json.dumps(row))
            ray.train.report(dict(row), checkpoint=ray.train.Checkpoint.from_directory(folder))

    def on_epoch(row: Row, save: Callable[[Path], None]) -> None:
        deliver(row, save)
        if board is not None:
            board.epoch(row)
        tell(line(row))

    warned: list[str] = []

    def notice() -> bool:
        info = ray.train.get_preemption_info()
        if info is None or warned == (nodes := list(info.preempted_node_ids)):
            return False
        warned[:] = nodes
        tell(f"notice: {len(nodes)} nodes will be taken away; saving")
        return True

    checkpoint = ray.train.get_checkpoint()
    device = str(ray.train.torch.get_device())
    saving = Saving(cluster.checkpoint_steps, 60 * cluster.checkpoint_minutes, notice)
    hooks = Hooks(on_step=on_step, on_epoch=on_epoch, on_save=deliver, saving=saving)
    if slow := slow_precision(config.engine, torch.device(device)):
        tell(f"notice: {slow}")
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        start = Path(folder) if folder else None
        if start is not None:
            place = json.loads((start / PLACE).read_text())
            tell(f"resuming from {checkpoint.path}: {place['phase']}, step {place['step']}")
        try:
            result, diverged = work(hooks, device, start), ""
        except FloatingPointError as error:
            # All workers see the same loss, so all end here; raised, it would be tried again from the checkpoint.
            result, diverged = None, str(error)
    if board is not None:
        board.end(metrics(result) if result is not None else None, failed=bool(diverged))
    with tempfile.TemporaryDirectory() as folder, _stopping_when_full(arguments["stop"], cluster.storage):
        if first and diverged:
            (Path(folder) / DIVERGED).write_text(diverged)
        elif first:
            torch.save(result, Path(folder) / RESULT)
        ray.train.report({"done": 1}, checkpoint=ray.train.Checkpoint.from_directory(folder))


@contextmanager
def _stopping_when_full(stop: Any, storage: str) -> Iterator[None]:
    """Tells `stop` when the block fails because a disk is full: the next try would fill it again."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        text = str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text
        if full or "PytorchStreamWriter failed" in text:  # how torch puts it
            stop.put(f"no space left for checkpoints, in {storage} or {tempfile.gettempdir()}: free some, or --storage")
        raise


def _saved(lines: Any) -> Any:
    from ray.train import UserCallback

    class Saved(UserCallback):
        """A line for a checkpoint within an epoch once the run would resume from it: a worker knows only that its own
        part is written, seconds before."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            row = metrics[0]
            if "step" in row and "loss" not in row:
                lines.put(f"{row['phase']}, epoch {row['epoch']}: saved at step {row['step']}")

    return Saved()


def _reason(error: BaseException) -> str:
    """What the first failing worker died of, in one line."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, first = min(failures.items())
    # Ray Train gives a worker's own exception as the text of its traceback, whose last line says what it was.
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    own = any(line.startswith("Traceback") for line in lines)
    return f"worker rank {rank}: {lines[-1] if own else session.first_line(first)}"


@contextmanager
def _printing(lines: Any) -> Iterator[None]:
    """Prints what arrives in the queue until the block ends."""
    done = threading.Event()

    def pump() -> None:
        while not done.is_set() or not lines.empty():
            for line in lines.get_nowait_batch(lines.qsize()):
                LOG.info(line)
            done.wait(0.5)

    thread = threading.Thread(target=pump, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)
