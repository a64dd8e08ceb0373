"""Options of the jobs: defaults, preset, YAML file and command line, in this order; the later one wins."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime
from io import StringIO
from pathlib import Path
from traceback import walk_tb
from typing import Literal, TypeVar, get_args

import tyro
from tyro.conf import OmitArgPrefixes

from clv.train.config import TrainConfig, read_config
from clv.train.settings import overlay, read_yaml
from clv.train.tracking import Name as TrackerName
from clv.train.tracking import Tracking

PresetName = Literal["tiny", "minilm", "base", "large", "text"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)
T = TypeVar("T", bound="JobOptions")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of every job."""

    config: Path | None = None
    """YAML file of these options, named with underscores; the command line wins over it."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(JobOptions):
    """Options of every job that trains."""

    preset: PresetName = "tiny"
    """Training settings to start from: a file of ray_jobs/presets. The file of --config wins over it."""
    training: OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)
    track: tuple[TrackerName, ...] = ("tensorboard",)
    """Trackers of the run's metrics; they write to OUT.run/tracking, mlflow and wandb also to MLFLOW_TRACKING_URI and,
    with WANDB_API_KEY, to the service."""

    def tracking(self, folder: Path, begun: datetime, config: TrainConfig) -> Tracking:
        """The tracking of a run that began at `begun`, in a folder of its own within `folder`/tracking."""
        run = begun.strftime("%Y%m%d-%H%M%S")
        return Tracking(folder=str(folder / "tracking" / run), run=run, names=self.track, settings=config)


def read_preset(name: str) -> TrainConfig:
    """The training settings of a preset. Raises ValueError for an unknown name.

    config = read_preset("base")
    """
    if name not in PRESETS:
        raise ValueError(f"preset {name!r} is unknown: choose one of {', '.join(PRESETS)}")
    return read_config(_preset_file(name))


def parse_options(kind: type[T], arguments: Sequence[str] | None = None, description: str | None = None) -> T:
    """The options of a job from its preset, its YAML file and the command line (by default that of the process).

    Raises ValueError for a wrong value, and SystemExit with code 2 for an unknown or missing option.

        options = parse_options(train.Options, ["--histories", "out/histories", "--out", "out/bundle", "--epochs", "3"])
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    required = {f.name: tyro.MISSING for f in fields(kind) if f.default is f.default_factory is MISSING}
    default = kind(**required)
    files = ArgumentParser(add_help=False, allow_abbrev=False)
    files.add_argument("--config", type=Path, nargs="?")
    files.add_argument("--preset", nargs="?")
    given, _ = files.parse_known_args(arguments)
    values = read_yaml(given.config) if given.config else {}
    if isinstance(default, TrainingOptions):
        preset = given.preset or values.get("preset", default.preset)
        if preset in PRESETS:  # any other is refused below, where the choices are named
            default = overlay(default, read_yaml(_preset_file(preset)), str(_preset_file(preset)))
    default = overlay(default, values, str(given.config))
    text = StringIO()
    try:
        with redirect_stderr(text):
            return tyro.cli(kind, args=arguments, default=default, description=description)
    except SystemExit as stop:
        cause = stop.__context__
        while cause is not None and not _raised_by_settings(cause):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(text.getvalue())
        raise


def _preset_file(name: str) -> Path:
    return Path(__file__).parent / "presets" / f"{name}.yaml"


def _raised_by_settings(error: BaseException) -> bool:
    """Whether a settings class of ours raised the error, and not the parser of the command line."""
    modules = (str(frame.f_globals["__name__"]) for frame, _ in walk_tb(error.__traceback__))
    return isinstance(error, ValueError) and any(module.startswith("clv.") for module in modules)
