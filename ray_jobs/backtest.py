"""Back-test the model against every baseline: all are refitted at past origins and compared with the actual purchases.

Reads HISTORIES, the folder that ray_jobs.prepare wrote. Writes metrics.json, report.html, card.md (a sentence per
baseline), details.json (intervals, visitors, customers with one order) and run.json into DIR. Every comparison has a
bootstrap interval.

    python -m ray_jobs.backtest --histories out/histories --origins 2011-03-14,2011-06-12 --horizon-days 90 --out DIR
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.options import TrainingOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    """Options of a back-test."""

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    origins: str
    """Dates separated by commas; nothing known at or after a date is used for its forecast."""
    out: Path
    """Folder to write."""
    horizon_days: int = 90
    """Days from each origin over which forecasts and purchases are compared."""
    seeds: int = 1
    """Fits of the model per origin, whose forecasts are averaged."""
    bundle: Path | None = None
    """Evaluate this bundle instead of refitting the model; its cut must not lie after an origin."""
    workers: int | None = None
    """Fits that run at once; by default one per CPU of the cluster."""
    object_store_mb: int = 512
    """Size in MiB of the object store of a Ray that the job starts."""


def run(options: Options) -> None:
    """Raises ValueError for an origin outside the log or without a complete horizon after it."""
    begun = datetime.now(UTC)
    from clv.cluster import backtesting, session, training
    from clv.data.dataset import PreparedDataset
    from clv.data.workdir import write_json
    from clv.evaluate.report import html_page
    from clv.evaluate.report.card import evaluation_lines
    from clv.evaluate.report.findings import compare_over_origins, evaluate_panel
    from clv.train import backtest as arithmetic

    prepared = PreparedDataset.open(options.histories)
    origins = [prepared.origin(text.strip()) for text in options.origins.split(",") if text.strip()]
    if not origins:
        raise ValueError("--origins names no date; write for example --origins 2011-03-14,2011-06-12")
    if options.horizon_days < 1 or options.seeds < 1:
        raise ValueError(f"--horizon-days {options.horizon_days} and --seeds {options.seeds} must be at least 1")
    config = options.training.with_checkpoint()
    # Wrong arguments are refused before Ray starts.
    dataset = training.read_dataset(options.histories)
    facts = {origin: arithmetic.outcomes(dataset, origin, options.horizon_days) for origin in origins}
    if options.bundle:
        arithmetic.check_bundle(options.bundle, origins)
    options.out.mkdir(parents=True, exist_ok=True)
    with session.ray_session(num_cpus=options.workers, object_store_mb=options.object_store_mb):
        panels = backtesting.run(
            dataset,
            facts,
            options.horizon_days,
            config,
            seeds=options.seeds,
            bundle=options.bundle.absolute() if options.bundle else None,
        )
    found = [evaluate_panel(panel, seed=config.seed) for panel in panels]
    metrics = html_page.metrics_json(found)
    title = f"{prepared.spec.name}: back-test over {options.horizon_days} days"
    texts = {
        "card.md": "\n".join([f"# {title}", "", evaluated_model(options.bundle), "", *evaluation_lines(found)]) + "\n",
        "report.html": html_page.render(found, title=title, currency=prepared.spec.currency, seed=config.seed),
    }
    for name, text in texts.items():
        (options.out / name).write_text(text, encoding="utf-8")
    write_json(options.out / "metrics.json", metrics)
    write_json(options.out / "details.json", html_page.details_json(found), allow_nan=False)
    record.write(options.out, options, begun, seed=config.seed)
    for line in [*metric_tables(metrics), "", *(c.sentence for c in compare_over_origins(found))]:
        LOG.info(line)
    LOG.info(f"report: {options.out / 'report.html'}, {(datetime.now(UTC) - begun).total_seconds():.0f} s")


def evaluated_model(bundle: Path | None) -> str:
    """A sentence on the evaluated model: refitted at every origin, or a bundle."""
    if bundle is None:
        return "Every model was refitted at every origin on what was known then."
    from clv import bundle as bundles

    known = bundles.verify(bundle)
    return (
        f"This model is bundle {known['version']}, cut at {known['cut']}; every baseline was refitted at every origin."
    )


METRICS = ("ngini", "spearman", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape", "crps", "pit80")


def metric_tables(found: dict[str, dict[str, dict[str, dict[str, object]]]]) -> list[str]:
    """metrics.json as lines of text, a table per origin and horizon."""
    lines = []
    for origin, horizons in found.items():
        for horizon, models in horizons.items():
            lines += ["", f"origin {origin}, {horizon} days"]
            lines.append(f"{'model':18}" + "".join(f"{name.removesuffix('_over_mean'):>13}" for name in METRICS))
            for name, metrics in models.items():
                if "not_run" in metrics:
                    lines.append(f"{name:18} not run: {metrics['not_run']}")
                    continue
                cells = (metrics.get(metric) for metric in METRICS)
                lines.append(
                    f"{name:18}" + "".join(f"{c:13.3f}" if isinstance(c, float) else f"{'-':>13}" for c in cells)
                )
    return lines


def main() -> None:
    execute("backtest", Options, run, __doc__)


if __name__ == "__main__":
    main()
