"""One task of the scoreboard: our model with one seed, or all peers, at one origin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from clv.cluster import backtesting
from clv.train.config import TrainConfig
from clv.train.fit import Shop


def fit(kind: str, shop: Shop, origin: int, horizon: int, config: TrainConfig, seed: int) -> Any:
    """`peers`: (truth, predictions by name). `ours`: the prediction, rows as in the truth."""
    if kind == "peers":
        known = backtesting.truth(shop, origin, horizon)
        return known, backtesting.peers(shop, origin, horizon, seed)
    return backtesting.refit(shop, origin, horizon, replace(config, seed=seed))[0].customers
