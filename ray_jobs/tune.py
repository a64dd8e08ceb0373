"""Tune: histories in, the best settings out. `python -m ray_jobs.tune --histories HISTORIES --out OUT`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.settings import ClusterSettings, TrainSettings

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(TrainSettings, ClusterSettings):
    """Looks for the settings that score best at a held-out window; `train --config OUT/best.yaml` uses them.

    Optuna proposes, ASHA stops a trial early that is behind the others. Every trial has --workers of its own. An
    interrupted search goes on where it stood when it is started again with the same --out.
    """

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    out: Path
    """Folder for best.yaml, trials.csv, report.html, run.json, and the state of the search."""
    origin: str | None = None
    """The --origin of the training to come (default: the end of the log). What is known of the window that training
    holds out before it is left out here, so that the settings are judged honestly."""
    trials: int = 16
    concurrent: int = 1
    """Trials at a time; each needs --workers CPUs or GPUs."""
    search: tuple[Literal["learning_rate", "batch_size", "epochs", "weight_decay", "dropout", "size"], ...] = (
        "learning_rate",
        "batch_size",
        "epochs",
        "weight_decay",
        "dropout",
        "size",
    )
    """What to tune, around the settings that are given."""


def run(options: Options) -> None:
    """Raises ValueError for an impossible origin or setting, RuntimeError when every trial fails."""
    begun = datetime.now(UTC)
    import yaml

    from clv.bundle import plain_json
    from clv.cluster import session, training, tuning
    from clv.data.dataset import PreparedDataset
    from clv.evaluate.report import tuning_page
    from clv.train import fitting, search, tracking
    from clv.train.engines import deepspeed_engine

    for name in ("trials", "concurrent"):
        if (given := getattr(options, name)) < 1:
            raise ValueError(f"--{name} {given} must be at least 1")
    out = options.out.absolute()
    cluster, base = options.cluster(out / "checkpoints"), options.settings()
    tracking.check(options.track)
    deepspeed_engine.deepspeed_config(base, "fp32", options.workers)
    space = search.space(options.search, base)
    prepared = PreparedDataset.open(options.histories)
    dataset, clock = training.read_dataset(options.histories, config=base), prepared.clock
    judged = fitting.plan(dataset, prepared.origin(options.origin), base)
    phases = fitting.plan(dataset, (judged.holdout or judged.final).cutoff, base)
    training.check_loader(phases.final.source(dataset, base), base, options.workers)
    if judged.holdout is None or phases.holdout is None:
        raise ValueError(
            f"the log is too short to tune by: it must hold out two windows of {judged.primary} days, one to choose "
            "settings by and one for training to judge itself; choose a later --origin, or train with the preset"
        )
    place = f"{clock.format(phases.holdout.cutoff)}, {phases.primary} days"
    LOG.info(f"{dataset.name}: {len(dataset.histories):,} customers; {options.trials} trials, judged at {place}")
    out.mkdir(parents=True, exist_ok=True)
    plan = tuning.TuningOptions(
        space=space, trials=options.trials, concurrent=options.concurrent, seed=options.seed, track=options.track
    )
    cpus = options.workers * options.concurrent + 1
    with session.ray_session(num_cpus=cpus, object_store_mb=options.object_store_mb):
        found = tuning.tune(options.histories.absolute(), phases, base, plan, cluster, out)
    best = found[0]
    header = f"# Held-out score {best.best:+.4f} at {place}: `train --config`.\n"
    settings = yaml.safe_dump(plain_json(search.chosen(base, best.setting)), sort_keys=False)
    (out / "best.yaml").write_text(header + settings, encoding="utf-8")
    rows = [{"trial": t.name, **t.setting, "scores": t.scores, "best": t.best, "failed": t.failed} for t in found]
    tuning_page.write(out, rows, title=f"{dataset.name}: settings judged at {place}")
    record.write(out, options, begun, seed=options.seed, best=best.setting, score=best.best)
    told = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in best.setting.items()
    )
    LOG.info(f"best of {len(found)} trials: {told}; held-out score {best.best:+.4f} against the BTYD model")
    LOG.info(f"wrote {options.out / 'best.yaml'} in {(datetime.now(UTC) - begun).total_seconds():.0f} s")


def main() -> None:
    execute("tune", Options, run, __doc__)


if __name__ == "__main__":
    main()
