"""Tune training settings with Optuna and ASHA on a Ray cluster; `train --config OUT/best.yaml` uses the best ones.

Reads HISTORIES, the folder that ray_jobs.prepare wrote. Writes best.yaml, trials.csv, report.html, run.json and the
state of the search into OUT. Optuna proposes settings around those that are given, ASHA stops a trial early that is
worse than the others, and every trial has its own --workers. An interrupted search continues when it is started again
with the same --out.

    python -m ray_jobs.tune --histories out/histories --trials 16 --out out/tuned
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import yaml
from tyro.conf import OmitArgPrefixes

from clv.cluster.options import Cluster, TuningOptions
from clv.train.settings import flatten
from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.options import TrainingOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Options of a search."""

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    out: Path
    """Folder for best.yaml, trials.csv, report.html, run.json, and the state of the search."""
    origin: str | None = None
    """The --origin of the training that will use the settings, by default the end of the log. The window that this
    training holds out is left out here, so that the settings are evaluated on another one."""
    tuning: OmitArgPrefixes[TuningOptions] = field(default_factory=TuningOptions)
    cluster: OmitArgPrefixes[Cluster] = field(default_factory=Cluster)


def run(options: Options) -> None:
    """Raises ValueError for an impossible origin or setting, RuntimeError when every trial fails."""
    begun = datetime.now(UTC)
    from clv.cluster import session, training, tuning
    from clv.data.dataset import PreparedDataset
    from clv.evaluate.report import tuning_page
    from clv.train import fitting, search, tracking
    from clv.train.engines import deepspeed_engine

    out = options.out.absolute()
    cluster = options.cluster.with_storage(out / "checkpoints")
    base = options.training.with_checkpoint()
    tracking.check(options.track)
    deepspeed_engine.deepspeed_config(base, "fp32", cluster.workers)
    search.space(options.tuning.search, base)
    prepared = PreparedDataset.open(options.histories)
    dataset, clock = training.read_dataset(options.histories, config=base), prepared.clock
    later = fitting.plan(dataset, prepared.origin(options.origin), base)
    phases = fitting.plan(dataset, (later.holdout or later.final).cutoff, base)
    training.check_loader(phases.final.source(dataset, base), base, cluster.workers)
    if later.holdout is None or phases.holdout is None:
        raise ValueError(
            f"the log is too short for tuning: it must have two windows of {later.primary} days to hold out, one for "
            "choosing settings and one for the training; choose a later --origin, or train with a preset"
        )
    window = f"{clock.format(phases.holdout.cutoff)}, {phases.primary} days"
    LOG.info(
        f"{dataset.name}: {len(dataset.histories):,} customers; {options.tuning.trials} trials, evaluated at {window}"
    )
    out.mkdir(parents=True, exist_ok=True)
    cpus = cluster.workers * options.tuning.concurrent + 1
    with session.ray_session(num_cpus=cpus, object_store_mb=cluster.object_store_mb):
        found = tuning.tune(options.histories.absolute(), phases, base, options.tuning, cluster, out, options.track)
    best = found[0]
    header = f"# Held-out score {best.best:+.4f} at {window}: `train --config`.\n"
    settings = yaml.safe_dump(flatten(search.chosen(base, best.setting)), sort_keys=False)
    (out / "best.yaml").write_text(header + settings, encoding="utf-8")
    rows = [{"trial": t.name, **t.setting, "scores": t.scores, "best": t.best, "failed": t.failed} for t in found]
    tuning_page.write(out, rows, title=f"{dataset.name}: settings evaluated at {window}")
    record.write(out, options, begun, seed=base.seed, best=best.setting, score=best.best)
    chosen = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in best.setting.items()
    )
    LOG.info(f"best of {len(found)} trials: {chosen}; held-out score {best.best:+.4f} against the BTYD model")
    LOG.info(f"wrote {options.out / 'best.yaml'} in {(datetime.now(UTC) - begun).total_seconds():.0f} s")


def main() -> None:
    execute("tune", Options, run, __doc__)


if __name__ == "__main__":
    main()
