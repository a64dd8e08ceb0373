"""How far the seasonal factor moves totals of simulated shops, towards the actual total or away from it.

    python -m benchmarks.seasonal_factor --shops 300 --out out/seasonal_factor.jsonl --record

Each shop has a log of 300 to 1,100 days, and a future of which nothing is fitted: subscriptions that renew every week,
month, half year or year, a marketplace where few buy twice, a growing and a dying shop, one-time buyers, a yearly
season, and none. Compared are |log(predicted / actual)| of the total over 30, 90 and 365 days by the BTYD model alone
and with its seasonal factor, where at least ten orders followed. An interrupted run continues with --out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import tyro

from benchmarks.output import reserve
from benchmarks.results import record
from clv.btyd.seasonal_btyd import SeasonalBTYD
from clv.data import histories
from clv.data.clock import DAY_US, Clock
from clv.data.cutoff import cut
from clv.data.events import EVENTS
from clv.data.features import purchase_frame
from clv.data.histories import Histories
from clv.models.inputs.assemble import origin_grid

COMMAND = "python -m benchmarks.seasonal_factor --shops 300 --out out/seasonal_factor.jsonl --record"
CLOCK = Clock("UTC")
FIRST_DAY = int(CLOCK.local_day([CLOCK.parse("2022-01-01")])[0])
HORIZONS = (30, 90, 365)
MIN_ORDERS = 10
PERIODS = {"weekly": 7.0, "monthly": 30.4, "half-yearly": 182.6, "yearly": 365.25}  # days between renewals
KINDS = (*PERIODS, "marketplace", "growing", "dying", "one-timers", "season", "plain")


@dataclass(frozen=True)
class Options:
    """How many shops, and where the rows are kept."""

    out: Path
    shops: int = 300
    seed: int = 0
    record: bool = False
    """write the figures into benchmarks/results.json"""


@dataclass(frozen=True)
class Shop:
    """Purchases (customer, day as a fraction, amount) of a log of `log_days` days and of the year after it."""

    purchases: pd.DataFrame
    log_days: int


def simulate(kind: str, seed: int) -> Shop:
    """A shop of one of KINDS."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    log_days, size = int(rng.integers(300, 1_100)), int(rng.integers(150, 900))
    span = log_days + 365
    if kind in PERIODS:
        rows = _renewals(rng, PERIODS[kind], size, log_days, span)
    elif kind == "marketplace":
        rows = _marketplace(rng, 3 * size, log_days)
    else:
        rows = _buyers(rng, kind, size, log_days, span)
    price = rng.lognormal(3, 0.5, 3 * size)
    table = pd.DataFrame(rows, columns=["customer", "day"])
    spread = 0.0 if kind in PERIODS else 0.3
    table["amount"] = price[table["customer"]] * rng.lognormal(0, spread, len(table))
    return Shop(table[table["day"] < span], log_days)


def _renewals(rng: np.random.Generator, period: float, size: int, log_days: int, span: int) -> list[tuple[int, float]]:
    together = rng.random() < 0.4  # all subscribed within a season
    start = np.abs(rng.normal(rng.uniform(20, 200), 30, size)) if together else rng.uniform(0, log_days, size)
    churn = rng.uniform(0.03, 0.3) if period > 100 else rng.uniform(0.005, 0.08)
    rows = []
    for customer, day in enumerate(start):
        while day < span:
            rows.append((customer, float(day)))
            if rng.random() < churn:
                break
            day += period + rng.normal(0, min(2, period / 10))
    return rows


def _marketplace(rng: np.random.Generator, size: int, log_days: int) -> list[tuple[int, float]]:
    again = rng.uniform(0.01, 0.05)
    rows = []
    for customer, day in enumerate(log_days * rng.random(size) ** (1 / (1 + rng.uniform(0, 2.5)))):
        rows.append((customer, float(day)))
        while rng.random() < again:
            day += rng.exponential(120)
            rows.append((customer, float(day)))
    return rows


def _buyers(rng: np.random.Generator, kind: str, size: int, log_days: int, span: int) -> list[tuple[int, float]]:
    """Poisson buyers who drop out; in a season their rate swings over the year."""
    rate = rng.gamma(0.8, 1 / 0.8, size) * rng.uniform(0.004, 0.03)
    life = rng.exponential(rng.uniform(150, 700), size)
    start = span * rng.random(size)
    if kind == "growing":
        start = span * rng.random(size) ** (1 / (1 + rng.uniform(1, 3)))
    elif kind == "dying":
        start = 0.7 * log_days * rng.random(size)
    elif kind == "one-timers":
        start, rate = log_days * rng.random(size), rate * (rng.random(size) < 0.08)
    swing = rng.uniform(0.2, 0.7) if kind == "season" else 0.0
    peak, decline = rng.uniform(0, 365), log_days * rng.uniform(0.7, 0.95) if kind == "dying" else np.inf
    rows = []
    for customer, day in enumerate(start):
        end = min(day + life[customer], span)
        rows.append((customer, float(day)))
        while (day := day + rng.exponential(1 / (rate[customer] * (1 + swing) + 1e-9))) < end:
            level = (1 + swing * np.cos(2 * np.pi * (day - peak) / 365.25)) / (1 + swing)
            if rng.random() < level * np.exp(-max(day - decline, 0) / 60):
                rows.append((customer, float(day)))
    return rows


def to_histories(shop: Shop) -> Histories:
    """The whole log of a shop, its future included."""
    table = shop.purchases
    times = pa.array(((FIRST_DAY + table["day"]) * DAY_US).astype("int64"), pa.timestamp("us", "UTC"))
    columns = {
        "customer_id": pa.array("c" + table["customer"].astype(str)),
        "event_time": times,
        "known_at": times,
        "event_type": pa.array(["purchase"] * len(table)),
        "order_id": pa.array(np.arange(len(table)).astype(str)),
        "quantity": pa.array(np.ones(len(table))),
        "amount": pa.array(table["amount"].to_numpy()),
        "amount_filled": pa.array(np.zeros(len(table), bool)),
    }
    arrays = [columns[f.name] if f.name in columns else pa.nulls(len(table), f.type) for f in EVENTS]
    return Histories.from_table(histories.build(pa.table(arrays, schema=EVENTS), CLOCK))


def forecast(kind: str, seed: int) -> list[dict[str, float | int | str]]:
    """A row per horizon: actual total and orders, the BTYD model's total, and the factor on it."""
    shop = simulate(kind, seed)
    h, cutoff_day = to_histories(shop), FIRST_DAY + shop.log_days
    cutoff = int(CLOCK.day_start([cutoff_day])[0])
    grid = origin_grid(int(h.day.min()), cutoff_day, 40, 28)
    btyd = SeasonalBTYD.fit(h, cutoff, HORIZONS, CLOCK, origin_days=grid)
    buyers = purchase_frame(cut(h, cutoff, HORIZONS, CLOCK, known_before=cutoff + 500 * DAY_US))
    buyers = buyers[buyers["has_purchase"].to_numpy()]
    plain, factor = btyd.curves(buyers), btyd.forecast_factor(cutoff_day)[1]
    return [
        {
            "kind": kind, "seed": seed, "days": days, "actual": float(buyers[f"value_{days}"].sum()),
            "orders": int(buyers[f"orders_{days}"].sum()), "btyd": float(plain.value[:, i].sum()),
            "factor": float(factor[i]),
        }
        for i, days in enumerate(HORIZONS)
    ]  # fmt: skip


def log_errors(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with enough orders, with |log error| of the BTYD model alone and with the factor."""
    rows = rows[rows["orders"] >= MIN_ORDERS]
    alone = np.log(rows["btyd"] / rows["actual"])
    return rows.assign(alone=alone.abs(), with_factor=(alone + np.log(rows["factor"])).abs())


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    reserve(options.out)
    done = pd.read_json(options.out, lines=True) if options.out.exists() and options.out.stat().st_size else None
    known = set() if done is None else set(zip(done["kind"], done["seed"], strict=True))
    for number in range(options.shops):
        key = KINDS[number % len(KINDS)], options.seed + number // len(KINDS)
        if key not in known:
            with options.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in forecast(*key))
    found = log_errors(pd.read_json(options.out, lines=True))
    worse = found["with_factor"] - found["alone"]
    table = found.assign(worse=worse).groupby(["kind", "days"], sort=False)
    print(table[["alone", "with_factor"]].mean().join(table["worse"].max().rename("most worse")).round(3).to_string())
    gain = 1 - found["with_factor"].mean() / found["alone"].mean()
    print(f"mean gain {gain:.1%}, worse by more than .15 in {(worse > 0.15).mean():.1%}, at most by {worse.max():.2f}")
    if options.record:
        note = f"{len(found)} totals over 30 to 365 days of {options.shops} simulated shops, seed {options.seed}"
        record("experts.factor_gain", round(gain, 4), ">= 0.25", unit="share of the mean log error of the BTYD model",
               command=COMMAND, note=note)  # fmt: skip
        record("experts.factor_worst", round(float(worse.max()), 4), "<= 0.15", unit="log error added to a total",
               command=COMMAND, note=note)  # fmt: skip


if __name__ == "__main__":
    main()
