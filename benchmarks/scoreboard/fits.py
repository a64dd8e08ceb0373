"""One task of the scoreboard: our model with one seed, or all peers, at one origin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clv.train import backtest
from clv.train.config import TrainConfig
from clv.train.fitting import Shop


def fit(kind: str, shop: Shop, origin: int, horizon: int, config: TrainConfig, seed: int) -> Any:
    """`peers`: (truth, predictions by name). `ours`: the prediction, rows as in the truth."""
    if kind == "peers":
        known = backtest.truth(shop, origin, horizon)
        return known, backtest.peers(shop, origin, horizon, seed)
    return backtest.refit(shop, origin, horizon, replace(config, seed=seed))[0].customers
