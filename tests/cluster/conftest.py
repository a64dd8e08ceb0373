"""A small training run, whole: a simulated shop, prepared, its phases and settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clv.cluster import training
from clv.cluster.options import Cluster
from clv.data.dataset import PreparedDataset
from clv.data.prepare import partition
from clv.data.sources import reading
from clv.data.spec.models import DatasetSpec
from clv.train import fitting
from clv.train.config import TrainConfig
from clv.train.tracking import Tracking
from tests.cluster.dirty_shop import write_shop
from tests.log_lines import each_line
from tests.prepared_shop import prepared_shop


@dataclass(frozen=True)
class Task:
    """`train` calls `call` with every line that the run logs."""

    histories: Path
    phases: fitting.Phases
    config: TrainConfig

    def train(
        self,
        storage: Path | str,
        call: Callable[[str], None],
        steps: int = 0,
        workers: int = 2,
        scalars: Path | None = None,
        **changes: Any,
    ) -> Any:
        cluster = Cluster(
            workers=workers, max_failures=1, storage=str(storage), checkpoint_steps=steps, checkpoint_minutes=0
        )
        tracking = Tracking(folder=str(scalars or Path(storage) / "scalars"), run="run")
        config = replace(self.config, **changes)
        with each_line(call):
            return training.train(self.histories, self.phases, config, cluster, tracking)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    out = prepared_shop(tmp_path_factory.mktemp("shop"), 2, 150, "2023-01-01", "2024-01-01", seed=1)
    config = TrainConfig()
    backbone = replace(config.model.backbone, architecture="gru")
    config = replace(config, model=replace(config.model, backbone=backbone), num_origins=4)
    config = replace(config, epochs=3, samples_per_epoch=480, batch_size=32, seed=11)
    phases = fitting.plan(training.read_dataset(out), PreparedDataset.open(out).origin(None), config)
    assert phases.holdout is not None
    return Task(out, phases, config)


@pytest.fixture
def shop(tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> DatasetSpec:
    """A dirty log that is read in many small units and written to many small row files."""
    monkeypatch.setattr(reading, "UNIT_ROWS", 400)
    monkeypatch.setattr(reading, "BATCH_ROWS", 128)
    monkeypatch.setattr(partition, "FLUSH_ROWS", 300)
    return write_shop(tmp_path, rng)
