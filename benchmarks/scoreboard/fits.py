"""One task of the scoreboard: our model with one seed, or all baselines, at one origin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clv.train import backtest
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset


def fit(kind: str, shop: Dataset, origin: int, horizon: int, config: TrainConfig, seed: int) -> Any:
    """`baselines`: (truth, predictions by name). `ours`: the prediction, rows as in the truth."""
    if kind == "baselines":
        known = backtest.outcomes(shop, origin, horizon)
        return known, backtest.predict_baselines(shop, origin, horizon, seed)
    return backtest.predict(shop, origin, horizon, replace(config, seed=seed)).customers
