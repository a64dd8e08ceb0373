"""A worker on Ray Train: checkpoints, log lines and result; the error that a failed group reports, and a full disk."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch

from clv.cluster import workers
from clv.cluster.options import Cluster
from clv.train import loop
from clv.train.config import TrainConfig
from clv.train.loop import EpochDone, Finished, StepDone


class GroupFailed(Exception):
    """As Ray Train raises it: the texts of the workers' errors by rank."""

    def __init__(self, failures: dict[int, str]) -> None:
        super().__init__("the group failed")
        self.worker_failures = failures


def test_the_first_failed_worker_gives_the_reason() -> None:
    own = 'Traceback (most recent call last):\n  File "loop.py", line 1\nValueError: batch_size 3 is odd\n\n'
    assert workers._reason(GroupFailed({2: "lost", 1: own})) == "worker rank 1: ValueError: batch_size 3 is odd"
    assert workers._reason(GroupFailed({0: "The actor died.\nMore text"})) == "worker rank 0: The actor died."


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed writing file"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_a_full_disk_alone_stops_the_retries(error: Exception, full: bool) -> None:
    stop: SimpleQueue[str] = SimpleQueue()
    with pytest.raises(type(error), match=r"."), workers._stopping_when_full(stop, "/storage"):
        raise error
    assert stop.empty() != full
    assert workers.failed_permanently({"stop": stop}) == full
    if full:
        assert stop.get().startswith("no space left for checkpoints, in /storage or ")


class Board:
    """Takes the place of the trackers of a run."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def open(self) -> Board:
        return self

    def step(self, row: dict[str, Any]) -> None:
        self.rows.append(("step", row["step"]))

    def epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(("epoch", row["epoch"]))

    def end(self, metrics: dict[str, Any] | None, *, failed: bool) -> None:
        self.rows.append(("end", metrics, failed))


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Takes the place of Ray Train: the rank and checkpoint of a worker, and its reports (metrics, content by file)."""
    state = SimpleNamespace(rank=0, checkpoint=None, preempted=None, reports=[])

    def report(metrics: dict[str, Any], checkpoint: Any) -> None:
        with checkpoint.as_directory() as folder:
            paths = sorted(Path(folder).iterdir())
            content = {
                path.name: torch.load(path) if path.suffix == ".pt" else path.read_text(encoding="utf-8")
                for path in paths
            }
        state.reports.append((metrics, content))

    context = SimpleNamespace(get_world_rank=lambda: state.rank, get_world_size=lambda: 2)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: state.checkpoint)
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: state.preempted)
    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr("ray.train.torch.get_device", lambda: torch.device("cpu"))
    return state


def save(folder: Path) -> None:
    torch.save("weights", folder / "progress.pt")


def five_steps(device: str, start: Path | None) -> Iterator[Any]:
    row: dict[str, Any] = {"phase": "holdout", "epoch": 0}
    for step in range(1, 6):
        yield StepDone(row | {"step": step, "loss": 1.0}, save)
    yield EpochDone(row | {"epoch": 1, "step": 5, "loss": 0.5}, save, {})
    yield Finished("fitted")


def run(cluster: Cluster, work: Any = five_steps) -> tuple[list[str], Board]:
    """Runs one worker; returns its log lines and what it gave to the trackers."""
    lines: SimpleQueue[str] = SimpleQueue()
    board = Board()
    arguments = {"cluster": cluster, "tracking": board, "lines": lines, "stop": SimpleQueue()}
    workers.run_worker(
        arguments,
        TrainConfig(),
        work,
        describe_epoch=lambda row: f"epoch {row['epoch']}",
        metrics=lambda result: {"result": result},
    )
    return [lines.get() for _ in range(lines.qsize())], board


def test_the_first_worker_saves_tracks_and_returns_the_result(group: SimpleNamespace) -> None:
    lines, board = run(Cluster(checkpoint_steps=2, checkpoint_minutes=0))
    assert lines == ["epoch 1"]
    assert board.rows == [*(("step", step) for step in range(1, 6)), ("epoch", 1), ("end", {"result": "fitted"}, False)]
    within = [{"phase": "holdout", "epoch": 0, "step": step} for step in (2, 4)]
    whole = {"phase": "holdout", "epoch": 1, "step": 5, "loss": 0.5}
    assert [metrics for metrics, _ in group.reports] == [*within, whole, {"done": 1}]
    for metrics, content in group.reports[:3]:
        assert content["progress.pt"] == "weights"
        assert json.loads(content["position.json"]) == metrics
    assert group.reports[3][1] == {"fitted.pt": "fitted"}


def test_the_other_workers_save_their_part_and_nothing_else(group: SimpleNamespace) -> None:
    group.rank = 1
    lines, board = run(Cluster(checkpoint_minutes=0))
    assert (lines, board.rows) == ([], [])
    assert [list(content) for _, content in group.reports] == [["progress.pt"], []]


def test_a_worker_resumes_from_the_checkpoint_of_the_group(group: SimpleNamespace, tmp_path: Path) -> None:
    starts: list[Path | None] = []

    def work(device: str, start: Path | None) -> Iterator[Any]:
        starts.append(start)
        yield Finished(device)

    (tmp_path / "position.json").write_text(json.dumps({"phase": "final", "step": 12}))
    run(Cluster(), work)
    group.checkpoint = ray.train.Checkpoint.from_directory(str(tmp_path))
    lines, _ = run(Cluster(), work)
    assert starts == [None, tmp_path]
    assert lines == [f"resuming from {tmp_path}: final, step 12"]
    assert group.reports[1][1] == {"fitted.pt": "cpu"}


def test_nodes_that_will_be_taken_away_cause_one_checkpoint(
    group: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "PREEMPTION_CHECK_SECONDS", 0.0)
    lines, _ = run(Cluster(checkpoint_minutes=0))
    assert [metrics["step"] for metrics, _ in group.reports[:-1]] == [5]
    assert lines == ["epoch 1"]
    group.reports.clear()
    group.preempted = SimpleNamespace(preempted_node_ids=["a", "b"])
    lines, _ = run(Cluster(checkpoint_minutes=0))
    assert [metrics["step"] for metrics, _ in group.reports[:-1]] == [1, 5]
    assert lines == ["notice: 2 nodes will be taken away; saving", "epoch 1"]


def test_a_loss_that_is_no_number_is_handed_over_and_not_raised(group: SimpleNamespace) -> None:
    def diverge(device: str, start: Path | None) -> Iterator[Any]:
        raise FloatingPointError("loss is nan at step 3")
        yield

    _, board = run(Cluster(), diverge)
    assert board.rows == [("end", None, True)]
    assert group.reports == [({"done": 1}, {"diverged.txt": "loss is nan at step 3"})]


@pytest.mark.parametrize(("gpu", "backend"), [(False, "gloo"), (True, "nccl")])
def test_deepspeed_communicates_by_nccl_on_gpus_only(
    group: SimpleNamespace, gpu: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backends: list[str] = []
    deepspeed = SimpleNamespace(init_distributed=lambda dist_backend: backends.append(dist_backend))
    monkeypatch.setattr("clv.train.engines.deepspeed_engine.import_deepspeed", lambda dynamo: deepspeed)
    config = TrainConfig()
    group.rank = 1
    assert workers.join_group(replace(config, engine=replace(config.engine, kind="deepspeed")), gpu) == (1, 2)
    assert workers.join_group(replace(config, engine=replace(config.engine, kind="torch")), gpu) == (1, 2)
    assert backends == [backend]


def test_a_checkpoint_within_an_epoch_is_logged_once_every_worker_has_saved() -> None:
    lines: SimpleQueue[str] = SimpleQueue()
    saved = workers._log_saved(lines)
    row = {"phase": "holdout", "epoch": 1, "step": 20}
    for metrics in (row, row | {"loss": 0.5}, {"done": 1}):
        saved.after_report(None, [metrics, {"other": 1}], None)
    assert [lines.get() for _ in range(lines.qsize())] == ["holdout, epoch 1: saved at step 20"]
