"""What the defaults rest on: one change at a time, on past origins of one shop that no result is reported for.

`python -m benchmarks.ablations [--only "default; loss: ZILN"] [--seeds 2]`: Online Retail II at 2010-08-18 and
2010-09-15 (label windows of 90 days that end before the first scoreboard origin), the final fit of `train` without a
holdout fit, so that every change is judged at the same blend weights: the mean of a half, three quarters and all of the
model. Each result is appended to --out, and an interrupted run continues there. Prints a Markdown table.
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
from numpy.typing import NDArray

from benchmarks import ablation_parts as parts
from benchmarks.output import reserve
from benchmarks.scoreboard.__main__ import ROOT, histories
from clv.cluster import embedding
from clv.cluster.training import read_dataset
from clv.evaluate import metrics
from clv.forecast.network import forecast_samples
from clv.models.backbones.text_encoder import DEFAULT_ENCODER
from clv.models.inputs.batch import Samples
from clv.models.inputs.feature_space import Items
from clv.train import fitting, loop
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.examples.in_memory import RandomOrigins
from clv.train.fitting import Dataset, Setup
from clv.train.held_out import HeldOut, score
from clv.train.trainer import load_model

ORIGINS = ("2010-08-18", "2010-09-15")
HORIZON = 90
BLEND_WEIGHTS = (0.5, 0.75, 1.0)

Change = Callable[[TrainConfig], TrainConfig]


def unchanged(given: Any) -> Any:
    return given


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


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One change: of the settings, of what is fitted before the network, of how often rows are drawn, of the start."""

    config: Change = unchanged
    setup: Callable[[Setup], Setup] = unchanged
    drawn: tuple[Callable[[Samples], NDArray[np.bool_]], float] | None = None
    pretrain: tuple[str, ...] = ()
    blend_weights: tuple[float, ...] = BLEND_WEIGHTS


VARIANTS = {
    "default": Variant(),
    "encoder: GPT-2": Variant(config=backbone(architecture="gpt2")),
    "encoder: LSTM": Variant(config=backbone(architecture="lstm")),
    "encoder: bidirectional LSTM": Variant(config=backbone(architecture="bilstm")),
    "encoder: GRU": Variant(config=backbone(architecture="gru")),
    "encoder: MLP": Variant(config=backbone(architecture="mlp")),
    "without the sequence": Variant(config=model(use_sequence=False)),
    "without the features": Variant(config=model(use_wide=False)),
    "head on the BTYD model alone": Variant(config=model(start_curves="btyd")),
    "head on the population average alone": Variant(config=model(start_curves="population_average")),
    "without the BTYD model (all of the model)": Variant(setup=parts.without_btyd, blend_weights=(1.0,)),
    "all of the model": Variant(blend_weights=(1.0,)),
    "without the level": Variant(setup=parts.without_factor),
    "loss: ZILN": Variant(config=loss(name="ziln")),
    "loss: Tweedie": Variant(config=loss(name="tweedie")),
    "loss: squared error": Variant(config=loss(name="mse")),
    "buyers drawn 3 times as often, odds corrected": Variant(drawn=(parts.buyers, 3.0)),
    "buyers drawn a third as often, odds corrected": Variant(drawn=(parts.buyers, 1 / 3)),
    "big spenders drawn 3 times as often, odds corrected": Variant(drawn=(parts.big_spenders, 3.0)),
    "origins every second week": Variant(config=settings(num_origins=20)),
    "no averaged weights": Variant(config=settings(ema_decay=0.0)),
    "no event dropout": Variant(config=settings(token_dropout=0.0)),
    "half the epochs": Variant(config=settings(epochs=3)),
    "weight decay 0.2": Variant(config=optimizer(weight_decay=0.2)),
    "an ensemble of four heads": Variant(config=model(ensemble_size=4)),
    "pretrained: masked, next event, CoLES": Variant(pretrain=("masked", "next_event", "coles")),
    "pretrained: autoencoder": Variant(pretrain=("autoencoder",)),
}
ITEM_TEXT = "with vectors of the items' texts"
PRETRAIN_EPOCHS = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    only: str = ""
    """Changes to run, separated by semicolons; all by default."""
    seeds: int = 2
    cache: Path = ROOT / "out/scoreboard"
    out: Path = ROOT / "out/ablations.json"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    reserve(options.out)
    torch.set_num_threads(1)
    os.environ.setdefault("CLV_DATA", str(ROOT.parent / "shared/data"))
    options.cache.mkdir(parents=True, exist_ok=True)
    names = [name.strip() for name in options.only.split(";") if name.strip()] or [*VARIANTS, ITEM_TEXT]
    folder = histories("online_retail_ii", options.cache)
    if ITEM_TEXT in names:
        embedding.embed(folder, DEFAULT_ENCODER, run=embedding.encode_here)
    shop = read_dataset(folder)
    done: dict[str, dict[str, float]] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in names:
        chosen = shop if name == ITEM_TEXT else replace(shop, items=Items.empty())
        variant = VARIANTS.get(name, Variant())
        config = variant.config(TrainConfig().with_engine(kind="torch"))
        for origin in ORIGINS:
            for seed in range(options.seeds):
                key = f"{name} | {origin} | {seed}"
                if key not in done:
                    done[key] = judged(chosen, origin, replace(config, seed=seed), variant)
                    options.out.write_text(json.dumps(done, indent=1))
                    print(key, done[key], flush=True)
    print(table(done))


def judged(shop: Dataset, origin: str, config: TrainConfig, variant: Variant) -> dict[str, float]:
    """Score and metrics of a fit at the origin, as means over the blend weights, on everybody with an earlier purchase.

    The score compares with the BTYD model times its seasonal factor."""
    begun, cutoff = time.process_time(), shop.clock.parse(origin)
    plain = fitting.prepare(shop, cutoff, config, HORIZON)
    setup = variant.setup(plain)
    if variant.pretrain:
        config = parts.pretrained(shop, setup, config, variant.pretrain, PRETRAIN_EPOCHS)
    source, odds = setup.source(shop, config), 1.0
    if variant.drawn is not None:
        assert isinstance(source, RandomOrigins)
        source = parts.Resampled(source, *variant.drawn)
        odds = source.odds()
    engine = make_engine(setup.model(config), loop.sum_loss(config, True), config, torch.device("cpu"))
    weights = loop.finish(loop.run(engine, source, config))
    seconds = time.process_time() - begun
    rows = setup.assembler.assemble(shop.histories, cutoff, known_before=shop.data_through)
    i = shop.horizons.index(HORIZON)
    raw = forecast_samples(load_model(setup, config, weights), rows.samples, setup.assembler.value_scale)
    base = plain.assembler.assemble(shop.histories, cutoff, known_before=shop.data_through)
    held_out = HeldOut(base, i)
    keep, (value, orders) = held_out.buyers, held_out.labels(i)
    found = []
    for blend_weight in variant.blend_weights:
        ours = blend_weight * raw.value[:, i] + (1 - blend_weight) * base.base.value[:, i]
        p = blend_weight * parts.corrected(raw.p_purchase[:, i], odds) + (1 - blend_weight) * base.base.p_purchase[:, i]
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
