"""Do the 80 % bands hold? Persons and sums of 100 customers, on simulated shops at two origins each.

    python -m benchmarks.bands [--shops 8] [--customers 1500]

Season, drift, regularity, life changes and browsing of each shop are drawn at random; the log is three years long, the
origins lie half a year apart, with and without the season before them. Every fit is `train`'s, with a small backbone.
Targets: persons .75 to .85 by the randomised PIT in every shop, sums .75 to .85 over all. Prints a Markdown table.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro

from clv.data.clock import Clock
from clv.data.histories import Histories, build
from clv.evaluate import probabilistic
from clv.forecast import distributions, portfolio
from clv.models.config import BackboneConfig
from clv.models.inputs.feature_space import Items
from clv.simulate.small import simulate
from clv.train import backtest
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset

START, END, HORIZON = "2022-01-01", "2025-01-01", 90
ORIGINS = ("2023-09-20", "2024-03-18")


@dataclass(frozen=True, kw_only=True)
class Options:
    shops: int = 8
    customers: int = 1_500


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    print("| shop | origin | season, drift | total | persons | sums of 100 |\n|---|---|---|---|---|---|", flush=True)
    rows = []
    for seed in range(options.shops):
        shop, kind = make(seed, options.customers)
        for origin in ORIGINS:
            found = judged(shop, origin, seed)
            rows.append(found)
            numbers = " | ".join(f"{number:.2f}" for number in found)
            print(f"| {seed} | {origin} | {kind} | {numbers} |", flush=True)
    mean = np.mean(rows, axis=0)
    print(f"| mean | | | | {mean[1]:.2f} | {mean[2]:.2f} |")


def make(seed: int, customers: int) -> tuple[Dataset, str]:
    """A shop drawn at random, and what it is in words."""
    rng, clock = np.random.default_rng((seed, 11)), Clock("UTC")
    season, drift = rng.uniform(0, 0.5), rng.normal(0, 0.25)
    settings: dict[str, Any] = {
        "season": season,
        "drift": drift,
        "regularity": int(rng.integers(1, 5)),
        "changes_per_year": rng.uniform(0, 2),
        "sessions": rng.choice([0.0, 2.0]),
        "tastes": rng.uniform(0, 0.4),
    }
    events = simulate(customers, START, END, seed, **settings).events
    histories = Histories.from_table(build(events, clock))
    shop = Dataset(histories, clock, "gross", (30, HORIZON), Items.empty(), clock.parse(END))
    return shop, f"{season:.2f}, {drift:+.2f}"


def judged(shop: Dataset, origin: str, seed: int) -> tuple[float, float, float]:
    """(predicted ÷ actual total, coverage of persons, coverage of sums)."""
    backbone = BackboneConfig(architecture="gru", width=64, num_layers=1, max_tokens=48)
    config = TrainConfig(samples_per_epoch=6_000, epochs=4, seed=seed).with_engine(kind="torch")
    config = replace(config, model=replace(config.model, backbone=backbone))
    at = shop.clock.parse(origin)
    real = backtest.outcomes(shop, at, HORIZON).value
    ours = backtest.predict(shop, at, HORIZON, config).customers
    assert ours.quantiles is not None
    persons = probabilistic.pit80(distributions.pit(real, ours.quantiles, seed))
    return float(ours.value.sum() / real.sum()), persons, portfolio.group_coverage(real, ours, seed=seed)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
