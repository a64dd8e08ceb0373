"""Trackers keep what a run tells, through a resume, and each where its users look for it."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clv.train import tracking
from clv.train.config import TrainConfig
from clv.train.tracking import Name, Tracking


@pytest.fixture(autouse=True)
def nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def tell(folder: Path, name: Name) -> None:
    """A run of three steps that dies, and goes on for a fourth and an epoch's end."""
    settings = Tracking(folder=str(folder), run="r1", names=(name,), settings=TrainConfig())
    board = settings.open()
    for step in (1, 2, 3):
        board.step({"phase": "holdout", "step": step, "loss": 1.0 / step, "learning_rate": 0.1})
    for tracker in board.trackers:
        tracker.close(failed=True)
    board = settings.open()
    board.step({"phase": "holdout", "step": 4, "loss": 0.25, "learning_rate": 0.1})
    board.epoch({"phase": "holdout", "epoch": 1, "step": 4, "loss": 0.4, "waiting": 0.01, "seconds": 2.0})
    board.end({"held_out": {"clv": {"auc": 0.7, "crps": None}}})


LOSSES = [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25)]
NAMES = {"holdout/loss", "holdout/learning_rate", "holdout/waiting", "holdout/seconds", "held_out/clv/auc"}


def test_tensorboard_reads_one_curve_over_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(tmp_path, "tensorboard")
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert set(found.Tags()["scalars"]) == NAMES
    assert [(e.step, pytest.approx(e.value)) for e in found.Scalars("holdout/loss")] == LOSSES


def test_mlflow_keeps_one_run_with_settings_metrics_and_its_end(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    tell(tmp_path, "mlflow")
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("clv")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) == NAMES
    assert run.data.params["model.backbone.width"] == "128"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "holdout/loss")] == LOSSES


def test_wandb_writes_offline_files_of_one_id_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    tell(tmp_path, "wandb")
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-r1.wandb"))
    assert len(files) == 2
    rows: list[dict[str, Any]] = []
    for path in files:
        for data in records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("history"):
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): float(item.value_json) for item in items})
    assert [(row["step"], row["holdout/loss"]) for row in rows if "holdout/loss" in row] == LOSSES
    assert {key for row in rows for key in row if "/" in key} == NAMES


def records(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log behind a header of 7 bytes: blocks of 32 KiB; a record may be split over several."""
    parts, at = b"", 7
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # full, last
            yield parts
            parts = b""


def test_an_unknown_double_or_absent_tracker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="tracker 'paper' is unknown: choose among tensorboard, mlflow, wandb"):
        tracking.check(["paper"])
    with pytest.raises(ValueError, match="tracker 'wandb' is given twice"):
        tracking.check(["wandb", "wandb"])
    monkeypatch.setitem(tracking.PACKAGES, "wandb", "no_such_package")
    with pytest.raises(ValueError, match=r"needs the package no_such_package: pip install 'clv\[tracking\]'"):
        tracking.check(["tensorboard", "wandb"])
