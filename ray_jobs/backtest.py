"""Back-test: every model refitted at past origins, judged on what came.

`python -m ray_jobs.backtest --histories HISTORIES --origins 2011-03-14,2011-06-12 --horizon-days 90 --out DIR`
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ray_jobs import record
from ray_jobs.command import execute, say
from ray_jobs.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Options(TrainSettings):
    """Writes metrics.json and report.html: our model against every peer, with bootstrap intervals."""

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    origins: str
    """Dates separated by commas; nothing known at or after a date is used for its forecast."""
    out: Path
    horizon_days: int = 90
    seeds: int = 1
    """Fits of our model per origin, averaged."""
    bundle: Path | None = None
    """Judge this bundle instead of refitting ours; its cut must not lie after an origin."""
    workers: int | None = None
    """Fits at a time, by default one per CPU of the cluster."""
    object_store_mb: int = 512


def run(options: Options) -> None:
    """Raises ValueError for an origin outside the log or without a future to judge by."""
    begun = datetime.now(UTC)
    from clv.cluster import backtesting, session, training
    from clv.data.prepared import Prepared
    from clv.evaluate import report

    prepared = Prepared.open(options.histories)
    origins = [prepared.origin(text.strip()) for text in options.origins.split(",") if text.strip()]
    if not origins:
        raise ValueError("--origins names no date; write for example --origins 2011-03-14,2011-06-12")
    if options.horizon_days < 1 or options.seeds < 1:
        raise ValueError(f"--horizon-days {options.horizon_days} and --seeds {options.seeds} must be at least 1")
    config = options.config()
    # Everything that a wrong argument can cause is found before Ray starts.
    shop = training.read_shop(options.histories)
    facts = {origin: backtesting.truth(shop, origin, options.horizon_days) for origin in origins}
    if options.bundle:
        backtesting.check_bundle(options.bundle, origins)
    options.out.mkdir(parents=True, exist_ok=True)
    with session.ray_session(num_cpus=options.workers, object_store_mb=options.object_store_mb):
        panels = backtesting.run(
            shop,
            facts,
            options.horizon_days,
            config,
            seeds=options.seeds,
            bundle=options.bundle.absolute() if options.bundle else None,
            say=say,
        )
    found = report.metrics_of(panels, options.seed)
    (options.out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    title = f"{prepared.spec.name}: back-test over {options.horizon_days} days"
    report.write(options.out / "report.html", panels, title=title, currency=prepared.spec.currency, seed=options.seed)
    record.write(options.out, options, begun, seed=options.seed)
    for line in ladder(found):
        say(line)
    say(f"report: {options.out / 'report.html'}, {(datetime.now(UTC) - begun).total_seconds():.0f} s")


LADDER = ("ngini", "spearman", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape", "crps", "pit80")


def ladder(found: dict[str, dict[str, dict[str, dict[str, object]]]]) -> list[str]:
    """metrics.json as lines of text, a table per origin and horizon."""
    lines = []
    for origin, horizons in found.items():
        for horizon, models in horizons.items():
            lines += ["", f"origin {origin}, {horizon} days"]
            lines.append(f"{'model':18}" + "".join(f"{name.removesuffix('_over_mean'):>13}" for name in LADDER))
            for name, metrics in models.items():
                if "not_run" in metrics:
                    lines.append(f"{name:18} not run: {metrics['not_run']}")
                    continue
                cells = (metrics.get(metric) for metric in LADDER)
                lines.append(
                    f"{name:18}" + "".join(f"{c:13.3f}" if isinstance(c, float) else f"{'-':>13}" for c in cells)
                )
    return lines


def main() -> None:
    execute("backtest", Options, run, __doc__)


if __name__ == "__main__":
    main()
