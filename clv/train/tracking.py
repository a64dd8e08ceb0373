"""Where the scalars of a run go: TensorBoard, MLflow, Weights & Biases; one writer, on the first worker only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

Name = Literal["tensorboard", "mlflow", "wandb"]
PACKAGES: dict[str, str] = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
EXPERIMENT = "clv"
UNSCALAR = ("phase", "epoch", "step")


class Tracker(Protocol):
    """One place that scalars go to. A run that resumes opens it again and goes on in it."""

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self, failed: bool = False) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """names: the trackers in use. folder: theirs, reached by the node of the first worker. settings: of the run."""

    folder: str
    run: str
    names: tuple[Name, ...] = ("tensorboard",)
    settings: Any = None

    def open(self) -> Board:
        """Every tracker, opened. Raises ValueError for one whose package is missing."""
        check(self.names)
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        return Board([_OPEN[name](self) for name in self.names])


def check(names: Sequence[str]) -> None:
    """ValueError for an unknown tracker, one given twice, or one that is not installed."""
    for i, name in enumerate(names):
        if name not in PACKAGES:
            raise ValueError(f"tracker {name!r} is unknown: choose among {', '.join(PACKAGES)}")
        if name in names[:i]:
            raise ValueError(f"tracker {name!r} is given twice")
        if find_spec(PACKAGES[name]) is None:
            raise ValueError(f"tracker {name!r} needs the package {PACKAGES[name]}: pip install 'clv[tracking]'")


class Board:
    """All trackers of a run as one; rows are those of `StepDone` and `EpochDone`."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = trackers

    def step(self, row: Mapping[str, Any]) -> None:
        """Loss and learning rate of a step."""
        self._log(row, ("loss", "learning_rate"))

    def epoch(self, row: Mapping[str, Any]) -> None:
        """What an epoch adds to its steps."""
        self._log(row, [name for name in row if name not in (*UNSCALAR, "loss")])

    def end(self, metrics: Mapping[str, Any] | None = None, *, failed: bool = False) -> None:
        """Final metrics (nested names are joined by /), then everything is written out."""
        flat = {name: value for name, value in flatten(metrics or {}).items() if isinstance(value, int | float)}
        for tracker in self.trackers:
            if flat:
                tracker.scalars({name: float(value) for name, value in flat.items()}, 0)
            tracker.close(failed)

    def _log(self, row: Mapping[str, Any], names: Sequence[str]) -> None:
        values = {f"{row['phase']}/{name}": float(row[name]) for name in names if name in row}
        for tracker in self.trackers:
            tracker.scalars(values, int(row["step"]))


def flatten(nested: Any, before: str = "", joint: str = "/") -> dict[str, Any]:
    """Leaves of nested mappings and dataclasses by their path."""
    if is_dataclass(nested) and not isinstance(nested, type):
        nested = asdict(nested)
    if not isinstance(nested, Mapping):
        return {before: nested}
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flatten(value, f"{before}{joint}{name}" if before else str(name), joint)
    return found


class TensorBoard:
    """Event files in the folder."""

    def __init__(self, tracking: Tracking) -> None:
        from tensorboardX import SummaryWriter

        # A file of its own for a resumed run, also within the second that a name holds.
        self._writer = SummaryWriter(tracking.folder, flush_secs=30, filename_suffix=f".{time.time_ns()}")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool = False) -> None:
        self._writer.close()


class MLflow:
    """A run of the experiment `clv` at MLFLOW_TRACKING_URI; without it in the folder's mlflow.db."""

    def __init__(self, tracking: Tracking) -> None:
        from mlflow.entities import Param, RunTag
        from mlflow.tracking import MlflowClient

        folder = Path(tracking.folder)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db"
        self._client = MlflowClient(tracking_uri=uri)
        known = folder / "mlflow_run_id"
        if known.exists():  # the run goes on after a fault
            self._run = known.read_text()
            return
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        number = experiment.experiment_id if experiment else self._client.create_experiment(EXPERIMENT)
        run = self._client.create_run(number, run_name=tracking.run)
        self._run = run.info.run_id
        settings = flatten(tracking.settings or {}, joint=".")
        parameters = [Param(name, str(value)[:500]) for name, value in settings.items()]
        for start in range(0, len(parameters), 100):
            self._client.log_batch(self._run, params=parameters[start : start + 100])
        self._client.log_batch(self._run, tags=[RunTag("clv.run", tracking.run)])
        known.write_text(self._run)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, failed: bool = False) -> None:
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


class WandB:
    """A run of the project `clv`; offline, in the folder, unless WANDB_MODE or WANDB_API_KEY is set."""

    def __init__(self, tracking: Tracking) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run = wandb.init(
            project=EXPERIMENT,
            name=tracking.run,
            id=tracking.run,
            resume="allow" if mode == "online" else None,  # offline, `wandb sync` joins runs of one id
            dir=tracking.folder,
            mode=mode,
            config=flatten(tracking.settings or {}, joint="."),
            settings=wandb.Settings(console="off", silent=True, quiet=True),
        )
        self._run.define_metric("*", step_metric="step")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def close(self, failed: bool = False) -> None:
        self._run.finish(exit_code=int(failed))


_OPEN: dict[str, Callable[[Tracking], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
