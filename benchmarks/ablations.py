"""What the defaults rest on: one change at a time, on past origins of one shop that no result is reported for.

`python -m benchmarks.ablations [--only default,gru] [--seeds 2]`: Online Retail II at 2010-08-18 and 2010-09-15 (label
windows of 90 days that end before the first scoreboard origin), the final fit of `train` without a trial, so that every
change is judged at the same gate: the mean of half, three quarters and all of the model. Results go one by one into
--out, and a run that was interrupted goes on there. Prints a Markdown table.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.scoreboard.__main__ import ROOT, histories
from clv.cluster.training import read_shop
from clv.evaluate import metrics
from clv.models.features import Items
from clv.models.infer import forecast
from clv.train import fit, loop
from clv.train.config import TrainConfig
from clv.train.engine import make_engine
from clv.train.fit import Shop
from clv.train.run import load_model
from clv.train.selection import HeldOut, score

ORIGINS = ("2010-08-18", "2010-09-15")
HORIZON = 90
GATES = (0.5, 0.75, 1.0)

Change = Callable[[TrainConfig], TrainConfig]


def model(**changes: Any) -> Change:
    return lambda config: replace(config, model=replace(config.model, **changes))


def backbone(**changes: Any) -> Change:
    return lambda config: model(backbone=replace(config.model.backbone, **changes))(config)


def settings(**changes: Any) -> Change:
    return lambda config: replace(config, **changes)


def loss(**changes: Any) -> Change:
    return lambda config: replace(config, loss=replace(config.loss, **changes))


def optimizer(**changes: Any) -> Change:
    return lambda config: replace(config, optimizer=replace(config.optimizer, **changes))


CHANGES: dict[str, Change] = {
    "default": settings(),
    "encoder: GPT-2": backbone(architecture="gpt2"),
    "encoder: LSTM": backbone(architecture="lstm"),
    "encoder: bidirectional LSTM": backbone(architecture="bilstm"),
    "encoder: GRU": backbone(architecture="gru"),
    "encoder: MLP": backbone(architecture="mlp"),
    "without the sequence": model(use_sequence=False),
    "without the features": model(use_wide=False),
    "head on the anchor alone": model(starts="anchor"),
    "head on the typical customer alone": model(starts="typical"),
    "loss: ZILN": loss(name="ziln"),
    "loss: Tweedie": loss(name="tweedie"),
    "loss: squared error": loss(name="mse"),
    "few origins (13 weeks)": settings(num_origins=20),
    "no averaged weights": settings(ema_decay=0.0),
    "no event dropout": settings(token_dropout=0.0),
    "half the epochs": settings(epochs=3),
    "weight decay 0.2": optimizer(weight_decay=0.2),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    only: str = ""
    """Changes to run, separated by commas; all by default."""
    seeds: int = 2
    cache: Path = ROOT / "out/scoreboard"
    out: Path = ROOT / "out/ablations.json"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(1)
    os.environ.setdefault("CLV_DATA", str(ROOT.parent / "shared/data"))
    options.cache.mkdir(parents=True, exist_ok=True)
    names = [name.strip() for name in options.only.split(",") if name.strip()] or [*CHANGES, "without item text"]
    shop = read_shop(histories("online_retail_ii", options.cache))
    done: dict[str, dict[str, float]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in names:
        chosen = replace(shop, items=Items.empty()) if name == "without item text" else shop
        config = CHANGES.get(name, settings())(TrainConfig.preset("tiny"))
        for origin in ORIGINS:
            for seed in range(options.seeds):
                key = f"{name} | {origin} | {seed}"
                if key not in done:
                    done[key] = judged(chosen, origin, replace(config, seed=seed).with_engine(kind="torch"))
                    options.out.write_text(json.dumps(done, indent=1))
                    print(key, done[key], flush=True)
    print(table(done))


def judged(shop: Shop, origin: str, config: TrainConfig) -> dict[str, float]:
    """Score and metrics, means over GATES, of a fit at the origin on everybody who had bought before it."""
    begun, cutoff = time.process_time(), shop.clock.parse(origin)
    setup = fit.prepare(shop, cutoff, config, HORIZON)
    engine = make_engine(setup.model(config), loop.sum_loss(config, True), config, torch.device("cpu"))
    weights = loop.run(engine, setup.source(shop, config), config)
    seconds = time.process_time() - begun
    rows = setup.assembler.at(shop.histories, cutoff, known_before=shop.data_through)
    i = shop.horizons.index(HORIZON)
    held_out = HeldOut(rows, i, np.zeros(len(shop.horizons)))
    raw = forecast(load_model(setup, config, weights), rows.samples, setup.assembler.money)
    keep, (value, orders) = held_out.buyers, held_out.labels(i)
    found = []
    for gate in GATES:
        mixed = raw.gated(rows.base, gate, gate)
        ours, p = mixed.value[:, i], mixed.p_purchase[:, i]
        found.append(
            {
                "score": score(held_out, ours, p),
                "ngini": metrics.ngini(value[keep], ours[keep]),
                "spearman": metrics.spearman(value[keep], ours[keep]),
                "auc": metrics.auc(orders[keep] > 0, p[keep]),
            }
        )
    means = {name: round(float(np.mean([row[name] for row in found])), 4) for name in found[0]}
    return means | {"cpu_s": round(seconds)}


def table(done: dict[str, dict[str, float]]) -> str:
    """Means over origins and seeds; the spread is between seeds of one origin."""
    lines = ["| change | score | seeds ± | nGini | Spearman | AUC | CPU-s |", "|---|---|---|---|---|---|---|"]
    for name in dict.fromkeys(key.split(" | ")[0] for key in done):
        runs = {key: row for key, row in done.items() if key.split(" | ")[0] == name}
        mean = {m: np.mean([row[m] for row in runs.values()]) for m in ("score", "ngini", "spearman", "auc", "cpu_s")}
        spread = np.mean([np.std([r["score"] for k, r in runs.items() if origin in k]) for origin in ORIGINS])
        lines.append(
            f"| {name} | {mean['score']:+.4f} | {spread:.4f} | {mean['ngini']:.4f} | {mean['spearman']:.4f} | "
            f"{mean['auc']:.4f} | {mean['cpu_s']:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
