"""Indicators of customers: conversion, repurchase, purchase frequency and order value, per customer, cohort and in all.

Reads HISTORIES, which ray_jobs.prepare wrote, and optionally SCORES of ray_jobs.score. Writes customers/ (Parquet),
cohorts.csv, funnel.json and run.json into DIR; with scores also calibration.csv, which compares predictions with what
customers did where the horizon is over.

    python -m ray_jobs.indicators --histories out/histories --origin 2011-06-12 --scores out/scores --out out/indicators
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ray_jobs import record
from ray_jobs.command import execute
from ray_jobs.options import JobOptions

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Options(JobOptions):
    """Options of the indicators."""

    histories: Path
    """Folder that ray_jobs.prepare wrote."""
    out: Path
    """Folder to write; a folder that holds indicators is replaced."""
    origin: str | None = None
    """Nothing from this date on is counted; by default the day after the last event, or the origin of the scores."""
    scores: Path | None = None
    """Folder that ray_jobs.score wrote for the same histories."""


def run(options: Options) -> None:
    """Raises ValueError for an origin outside the log or scores of other histories."""
    begun = datetime.now(UTC)
    from clv.cluster import work_units
    from clv.data import indicators
    from clv.data.clock import to_us
    from clv.data.dataset import PreparedDataset
    from clv.data.workdir import check_output, write_json

    prepared = PreparedDataset.open(options.histories)
    prepared.check_shards()
    origin = prepared.origin(options.origin)
    scored = None
    if options.scores is not None:
        scored = json.loads((options.scores / "manifest.json").read_text(encoding="utf-8"))
        at = to_us(datetime.fromisoformat(scored["origin"]))
        if options.origin is not None and at != origin:
            raise ValueError(f"--origin {options.origin} is not that of {options.scores}, {scored['origin']}")
        if len(scored["parts"]) != len(prepared.shards):
            raise ValueError(
                f"{options.scores} has {len(scored['parts'])} parts, {options.histories} {len(prepared.shards)} shards:"
                " these are the scores of other histories"
            )
        origin = at
    out = options.out.absolute()
    check_output(out, "a folder of indicators", "funnel.json")
    shutil.rmtree(out, ignore_errors=True)
    (out / "customers").mkdir(parents=True)
    task = partial(write_shard, prepared, origin, options.scores, out)
    for done in work_units.run_here(task, len(prepared.shards)):
        LOG.info(f"shard {done['shard'] + 1}/{len(prepared.shards)}: {done['customers']:,} customers")
    table = pd.read_parquet(out / "customers")
    one = table.drop_duplicates("customer_id") if scored else table
    indicators.summary(one, "cohort").to_csv(out / "cohorts.csv")
    everybody = indicators.summary(one).iloc[0]
    write_json(out / "funnel.json", everybody.to_dict())
    for name in ("conversion_rate", "repurchase_rate", "purchase_frequency", "aov"):
        LOG.info(f"{name.replace('_', ' ')}: {everybody[name]:.4g}")
    if scored:
        _calibrate(table, out)
    record.write(out, options, begun)
    LOG.info(f"wrote the indicators of {len(one):,} customers to {options.out}")


def write_shard(prepared: Any, origin: int, scores: Path | None, out: Path, number: int) -> dict[str, Any]:
    """Indicators of one shard's customers; with scores a row per horizon, with actual orders and value."""
    import pyarrow.parquet as pq

    from clv.data import indicators
    from clv.data.cutoff import cut
    from clv.data.histories import Histories

    spec = prepared.spec
    histories = Histories.from_table(pq.read_table(prepared.shards[number]))
    horizons: tuple[int, ...] = ()
    predicted = None
    if scores is not None:
        predicted = pd.read_parquet(scores / f"part-{number:05d}.parquet")
        horizons = tuple(int(days) for days in sorted(predicted["horizon_days"].unique()))
    past = cut(histories, origin, horizons, spec.clock, value=spec.value, known_before=prepared.data_through)
    table = indicators.customer_indicators(past)
    if predicted is not None and past.labels is not None:
        parts = []
        for column, days in enumerate(horizons):
            real = {"orders_real": past.labels.orders[:, column], "value_real": past.labels.value[:, column]}
            parts.append(table.assign(horizon_days=days, **real))
        wanted = ["customer_id", "horizon_days", "p_purchase", "orders_mean", "aov", "value_mean", "clv_mean"]
        known = predicted[wanted].rename(columns={"aov": "aov_mean"})
        table = pd.concat(parts).merge(known, on=["customer_id", "horizon_days"], validate="one_to_one")
        if len(table) != len(predicted):
            raise ValueError(
                f"{scores} has other customers than shard {number}: these are the scores of other histories"
            )
    table.to_parquet(out / "customers" / f"part-{number:05d}.parquet", index=False)
    return {"shard": number, "customers": len(past)}


def _calibrate(table: pd.DataFrame, out: Path) -> None:
    from clv.evaluate import indicators

    parts = []
    for days, rows in table.groupby("horizon_days"):
        known = rows[rows["orders_real"].notna()].assign(visitor=lambda r: r["orders"] == 0)
        if not len(known):
            LOG.info(f"horizon {days} days is not over: predictions cannot be compared yet")
            continue
        for by in (None, "cohort"):
            found = indicators.calibration_table(known, by).assign(horizon_days=days, by=by or "prediction")
            parts.append(found if by is None else found[found["group"] != "all"])
        whole = parts[-2][parts[-2]["group"] == "all"].set_index("indicator")
        for name, row in whole.iterrows():
            LOG.info(
                f"{name} in {days} days: predicted {row['predicted']:.4g}, actual {row['actual']:.4g}"
                f" (± {row['standard_error']:.2g}), {int(row['customers']):,} customers"
            )
    if parts:
        pd.concat(parts).to_csv(out / "calibration.csv", index=False)


def main() -> None:
    execute("indicators", Options, run, __doc__)


if __name__ == "__main__":
    main()
