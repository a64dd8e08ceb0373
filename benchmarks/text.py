"""Text against events: `python -m benchmarks.text [--only "events; text, few samples"] [--samples 2000]`.

Complete Journey at a development origin (2017-06-01, the next 30 days), the final fit of `train` without a trial: our
event encoder, a pretrained text encoder over the same pasts in words, and the features alone, which both have beside
them. The model's own say, neither gated nor calibrated; everybody who had bought before. Results go one by one into
--out, and a run that was interrupted goes on there. Prints a Markdown table.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.output import reserve
from benchmarks.scoreboard.__main__ import ROOT, histories
from clv.cluster.training import read_dataset
from clv.evaluate import metrics
from clv.forecast.network import forecast_samples
from clv.train import fitting, loop
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.fitting import Dataset
from clv.train.held_out import HeldOut
from clv.train.trainer import load_model
from ray_jobs.options import read_preset

ORIGIN, HORIZON = "2017-06-01", 30


@dataclass(frozen=True, kw_only=True)
class Options:
    only: str = ""
    """Rows to run, separated by semicolons; all by default."""
    samples: int = 2000
    """Pasts an epoch, of the rows that say so."""
    epochs: int = 3
    tokens: int = 128
    """Word pieces of a text."""
    cache: Path = ROOT / "out/text"
    out: Path = ROOT / "out/text.json"


def rows(options: Options) -> dict[str, TrainConfig]:
    events = TrainConfig().with_engine(kind="torch")
    text = read_preset("text").with_engine(kind="torch")
    backbone = replace(text.model.backbone, max_tokens=options.tokens)
    text = replace(text, model=replace(text.model, backbone=backbone))
    few = {"samples_per_epoch": options.samples, "epochs": options.epochs, "batch_size": 32}
    alone = replace(events.model, use_sequence=False)
    return {
        "events": events,
        "features alone": replace(events, model=alone),
        "events, few samples": replace(events, **few),
        "features alone, few samples": replace(events, model=alone, **few),
        "text, few samples": replace(text, **few),
    }


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    reserve(options.out)
    torch.set_num_threads(1)
    os.environ.setdefault("CLV_DATA", str(ROOT.parent / "shared/data"))
    options.cache.mkdir(parents=True, exist_ok=True)
    shop = read_dataset(histories("complete_journey", options.cache))
    known = rows(options)
    names = [name.strip() for name in options.only.split(";") if name.strip()] or list(known)
    done: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for name in names:
        if name not in done:
            done |= judged(shop, name, known[name])
            options.out.write_text(json.dumps(done, indent=1))
            print(name, done[name], flush=True)
    print(table(done))


def judged(shop: Dataset, name: str, config: TrainConfig) -> dict[str, dict[str, float]]:
    """Metrics of a fit at the origin, and of the BTYD model that it starts from."""
    begun, cutoff = time.process_time(), shop.clock.parse(ORIGIN)
    setup = fitting.prepare(shop, cutoff, config, HORIZON)
    engine = make_engine(setup.model(config), loop.sum_loss(config, True), config, torch.device("cpu"))
    weights = {}
    for event in loop.run(engine, setup.source(shop, config), config):
        match event:
            case loop.EpochDone(row):
                print(f"{name}: epoch {row['epoch']}, loss {row['loss']:.4f}", flush=True)
            case loop.Finished(weights):
                pass
    trained = time.process_time() - begun
    held = setup.assembler.assemble(shop.histories, cutoff, known_before=shop.data_through)
    i = shop.horizons.index(HORIZON)
    held_out = HeldOut(held, i)
    begun = time.process_time()
    raw = forecast_samples(load_model(setup, config, weights), held.samples, setup.assembler.value_scale)
    scored = time.process_time() - begun
    keep, (value, orders) = held_out.buyers, held_out.labels(i)
    outcomes = value[keep], orders[keep]
    base = measures(*outcomes, held.base.value[keep, i], held.base.p_purchase[keep, i])
    ours = measures(*outcomes, raw.value[keep, i], raw.p_purchase[keep, i])
    cost = {
        "cpu_s": trained,
        "customers_per_s": len(held.table) / scored,
        "pasts": config.samples_per_epoch * config.epochs,
    }
    return {"btyd": base, name: ours | cost}


def measures(value: np.ndarray, orders: np.ndarray, said: np.ndarray, p_purchase: np.ndarray) -> dict[str, float]:
    """Of value, and of churn (no order in the horizon) as a classification: as many are called, those most at risk, as
    the probabilities expect to leave; that needs no label and no calibration."""
    risk = 1 - p_purchase
    report = metrics.churn_report(orders, p_purchase, threshold=float(np.sort(risk)[-max(1, round(risk.sum()))]))
    churned = report["churned"]
    return {
        "ngini": metrics.ngini(value, said),
        "spearman": metrics.spearman(value, said),
        "auc": report["overall"]["auc"],
        "average_precision": report["overall"]["average_precision"],
        "share_churned": report["overall"]["share_churned"],
        "precision": churned["precision"],
        "recall": churned["recall"],
        "f1": churned["f1"],
        "accuracy": report["overall"]["accuracy"],
    }


def table(done: dict[str, dict[str, float]]) -> str:
    names = ("ngini", "spearman", "auc", "precision", "recall", "f1", "accuracy")
    lines = [
        "| model | pasts | nGini | Spearman | AUC | precision | recall | F1 | accuracy | CPU-s | scored/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in done.items():
        cells = [f"{row[key]:.4f}" for key in names]
        cost = [f"{row[key]:,.0f}" if key in row else "" for key in ("pasts", "cpu_s", "customers_per_s")]
        lines.append(f"| {' | '.join([name, cost[0], *cells, *cost[1:]])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
