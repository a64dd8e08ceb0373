"""Options of training and tuning on a Ray cluster: workers, checkpoints, trials. It imports neither Ray nor torch.

Every field is an option of the jobs and a key of their YAML files; the text below a field is its help.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from clv.train.search import NAMES, SearchName


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The workers of a training run and their checkpoints. A number out of range is refused."""

    workers: int = 2
    """Number of workers, each with a share of every batch."""
    min_workers: int | None = None
    """Continue with as few workers as these where nodes are lost, and grow again; by default wait for all workers."""
    gpu: bool = False
    """Give every worker a GPU."""
    cpus_per_worker: int = 1
    """CPUs of every worker."""
    max_failures: int = 2
    """Worker deaths that the run survives."""
    storage: str | None = None
    """Folder or URI for checkpoints that every node reaches; by default beside the output."""
    checkpoint_steps: int = 0
    """Save a checkpoint every so many steps, beside that of every epoch and before a preemption; 0: never."""
    checkpoint_minutes: float = 10.0
    """Save a checkpoint every so many minutes within an epoch; 0: never."""
    keep_checkpoints: int = 2
    """Number of checkpoints that are kept: the best by held-out score, and always the newest."""
    object_store_mb: int = 512
    """Size in MiB of the object store of a Ray that the job starts."""

    def __post_init__(self) -> None:
        for name in ("workers", "cpus_per_worker", "keep_checkpoints"):
            if (given := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, not {given}")
        for name in ("checkpoint_steps", "checkpoint_minutes"):
            if (given := getattr(self, name)) < 0:
                raise ValueError(f"{name} must not be negative, not {given}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ValueError(f"min_workers {self.min_workers} must lie between 1 and workers {self.workers}")

    def with_storage(self, folder: Path) -> Self:
        """The same options with checkpoints in `folder`, unless a storage is given."""
        return replace(self, storage=self.storage or str(folder))


@dataclass(frozen=True, kw_only=True)
class TuningOptions:
    """A search for training settings. A number out of range is refused."""

    trials: int = 16
    """Number of trials."""
    concurrent: int = 1
    """Trials that run at a time; each needs CPUs or GPUs for all of its workers."""
    grace: int = 1
    """Epochs of every trial before it may be stopped."""
    search: tuple[SearchName, ...] = NAMES
    """Settings to tune, around the values that are given."""

    def __post_init__(self) -> None:
        for name in ("trials", "concurrent", "grace"):
            if (given := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, not {given}")
