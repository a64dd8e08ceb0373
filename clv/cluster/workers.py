"""A group of workers on Ray Train: start, checkpoints, faults, and the log lines that workers send to the driver."""

from __future__ import annotations

import errno
import json
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from clv.cluster import session
from clv.cluster.options import Cluster
from clv.train.config import TrainConfig
from clv.train.loop import CheckpointSchedule, EpochDone, Events, Finished, Row, Save, StepDone

LOG = logging.getLogger(__name__)

Work = Callable[[str, Path | None], Events[Any]]
"""(device, checkpoint) -> the events of a training run; every worker calls it."""
DIVERGED, RESULT, POSITION = "diverged.txt", "fitted.pt", "position.json"


def run_group(
    loop: Callable[[dict[str, Any]], None],
    arguments: dict[str, Any],
    cluster: Cluster,
    name: str,
    callbacks: Sequence[Any] = (),
) -> Any:
    """Run `loop` on a group of workers; returns the object that the first worker saved in its last checkpoint.

    Adds to the arguments: `cluster`; `lines`, a queue of log lines for the driver, which Ray's own forwarding of the
    workers' output would bury; and `stop`, a queue of reasons why a retry would fail again. Raises RuntimeError when
    the group fails permanently.
    """
    import ray
    import torch
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # The queues run on the driver's node: one on a lost node would take the workers of the other nodes with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    lines, stop = (Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}) for _ in range(2))
    fewest = cluster.min_workers or cluster.workers
    trainer = TorchTrainer(
        loop,
        train_loop_config=arguments | {"cluster": cluster, "lines": lines, "stop": stop},
        torch_config=TorchConfig(backend="nccl" if cluster.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=cluster.workers if fewest == cluster.workers else (fewest, cluster.workers),
            use_gpu=cluster.gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=cluster.storage,
            callbacks=[*callbacks, _log_saved(lines)],
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=cluster.keep_checkpoints, checkpoint_score_attribute="held_out_score"
            ),
        ),
    )
    try:
        with _logging(lines):
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
    """Whether an earlier attempt of this run failed with an error that a retry would cause again."""
    return not arguments["stop"].empty()


def join_group(config: TrainConfig, gpu: bool) -> tuple[int, int]:
    """Set up a worker's threads and process group, before anything else; returns its rank and the world size."""
    import ray.train
    import torch

    from clv.train.engines.deepspeed_engine import import_deepspeed

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if config.engine.kind == "deepspeed":
        backend = "nccl" if gpu else "gloo"
        import_deepspeed(dynamo=config.engine.compile).init_distributed(dist_backend=backend)
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def run_worker(
    arguments: dict[str, Any],
    config: TrainConfig,
    work: Work,
    *,
    describe_epoch: Callable[[Row], str],
    metrics: Callable[[Any], dict[str, Any]] = lambda result: {},
) -> None:
    """Run one worker's part of `work`: resume, save checkpoints, track scalars, log epochs. The first worker hands the
    result to the driver.

    describe_epoch: a row of an epoch as a log line. metrics: of the result, for the trackers.
    """
    import ray.train
    import torch

    from clv.train.engines.precision import slow_precision

    cluster: Cluster = arguments["cluster"]
    first = ray.train.get_context().get_world_rank() == 0
    board = arguments["tracking"].open() if first else None
    device = str(ray.train.torch.get_device())

    def log(text: str) -> None:
        if first:
            arguments["lines"].put(text)

    def report(row: Row, save: Save) -> None:
        """Hand a checkpoint to Ray Train, which keeps it once every worker has reported (see `_log_saved`)."""
        with tempfile.TemporaryDirectory() as folder, _stopping_when_full(arguments["stop"], cluster.storage):
            save(Path(folder))
            if first:
                (Path(folder) / POSITION).write_text(json.dumps(row))
            ray.train.report(dict(row), checkpoint=ray.train.Checkpoint.from_directory(folder))

    announced: list[str] = []

    def warned() -> bool:
        info = ray.train.get_preemption_info()
        if info is None or announced == (nodes := list(info.preempted_node_ids)):
            return False
        announced[:] = nodes
        log(f"notice: {len(nodes)} nodes will be taken away; saving")
        return True

    checkpoint = ray.train.get_checkpoint()
    schedule = CheckpointSchedule(cluster.checkpoint_steps, 60 * cluster.checkpoint_minutes, warned, device)
    if slow := slow_precision(config.engine, torch.device(device)):
        log(f"notice: {slow}")
    result, diverged = None, ""
    with checkpoint.as_directory() if checkpoint else nullcontext() as folder:
        start = Path(folder) if folder else None
        if start is not None:
            position = json.loads((start / POSITION).read_text())
            log(f"resuming from {checkpoint.path}: {position['phase']}, step {position['step']}")
        try:
            for event in work(device, start):
                match event:
                    case StepDone(row, save):
                        if board is not None:
                            board.step(row)
                        if schedule.due(int(row["step"])):
                            report({name: row[name] for name in ("phase", "epoch", "step")}, save)
                    case EpochDone(row, save):
                        report(row, save)
                        if board is not None:
                            board.epoch(row)
                        log(describe_epoch(row))
                    case Finished(result):
                        pass
        except FloatingPointError as error:
            # Every worker has the same loss and ends here; raised, the error would cause a retry from the checkpoint.
            diverged = str(error)
    if board is not None:
        board.end(None if diverged else metrics(result), failed=bool(diverged))
    with tempfile.TemporaryDirectory() as folder, _stopping_when_full(arguments["stop"], cluster.storage):
        if first and diverged:
            (Path(folder) / DIVERGED).write_text(diverged)
        elif first:
            torch.save(result, Path(folder) / RESULT)
        ray.train.report({"done": 1}, checkpoint=ray.train.Checkpoint.from_directory(folder))


@contextmanager
def _stopping_when_full(stop: Any, storage: str | None) -> Iterator[None]:
    """Puts a reason into `stop` when the block fails because a disk is full: a retry would fill it again."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        text = str(error)
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text
        if full or "PytorchStreamWriter failed" in text:  # torch reports a full disk so
            stop.put(f"no space left for checkpoints, in {storage} or {tempfile.gettempdir()}: free some, or --storage")
        raise


def _log_saved(lines: Any) -> Any:
    from ray.train import UserCallback

    class Saved(UserCallback):
        """Logs a checkpoint within an epoch once the run can resume from it; a worker only knows, seconds earlier, that
        its own part is written."""

        def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
            row = metrics[0]
            if "step" in row and "loss" not in row:
                lines.put(f"{row['phase']}, epoch {row['epoch']}: saved at step {row['step']}")

    return Saved()


def _reason(error: BaseException) -> str:
    """The error of the first worker that failed, in one line."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    rank, first = min(failures.items())
    # Ray Train gives a worker's own exception as the text of its traceback; its last line holds type and message.
    lines = [line.strip() for line in str(first).splitlines() if line.strip()]
    own = any(line.startswith("Traceback") for line in lines)
    return f"worker rank {rank}: {lines[-1] if own else session.first_line(first)}"


@contextmanager
def _logging(lines: Any) -> Iterator[None]:
    """Logs the lines of the queue until the block ends."""
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
