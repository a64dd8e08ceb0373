"""Does pretraining help? `python -m benchmarks.pretraining [--rows cdnow] [--variants none,masked]`.

At development origins the model is trained as `train` does, without and with an encoder pretrained on what was known at
the origin, in one process. Score: mean log ratio of nGini, Spearman, AUC, MAE, RMSE and decile MAPE to those of the
BTYD model, for the model alone (blend weight 1, the BTYD model's total), after each epoch; the best epoch is printed.
`transfer` pretrains on the two other shops (leave one shop out).
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro

from benchmarks.scoreboard.__main__ import ROOT, histories
from clv.cluster.training import read_dataset
from clv.forecast.network import forecast_samples
from clv.models.pretraining import transfer
from clv.models.pretraining.pretrainer import Objectives
from clv.models.pretraining.transfer import joint_space, with_amount_scale
from clv.train import fitting, loop, pretraining
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.fitting import Dataset, Setup
from clv.train.held_out import HeldOut, score
from clv.train.pretraining import Ground, PretrainingPlan
from clv.train.trainer import load_model, merged

ROWS = {"cdnow": ("1997-10-02", 90), "complete_journey": ("2017-06-01", 30), "online_retail_ii": ("2010-09-15", 90)}
VARIANTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "masked": ("masked",),
    "next_event": ("next_event",),
    "coles": ("coles",),
    "autoencoder": ("autoencoder",),
    "all": ("masked", "next_event", "coles"),
    "transfer": ("masked", "next_event", "coles"),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    rows: str = ",".join(ROWS)
    variants: str = ",".join(VARIANTS)
    seeds: int = 1
    epochs: int = 4
    pretrain_epochs: int = 3
    samples: int = 16_000
    """Rows an epoch, of both."""
    labelled: float = 1.0
    """Share of the fine-tuning rows that is kept: where labels are few, pretraining should matter most."""
    cache: Path = ROOT / "out/pretraining"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    os.environ.setdefault("CLV_DATA", str(ROOT.parent / "shared/data"))
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    shops = {name: read_dataset(histories(name, options.cache)) for name in ROWS}
    config = replace(TrainConfig().with_engine(kind="torch"), samples_per_epoch=options.samples)
    for name in options.rows.split(","):
        for variant in options.variants.split(","):
            for seed in range(options.seeds):
                one_run(name, variant, shops, replace(config, seed=seed), options)


def one_run(name: str, variant: str, shops: dict[str, Dataset], config: TrainConfig, options: Options) -> None:
    setups = {}
    for shop_name in shops if variant == "transfer" else [name]:
        shop, (origin, horizon) = shops[shop_name], ROWS[shop_name]
        setups[shop_name] = fitting.prepare(shop, shop.clock.parse(origin), config, horizon)
    begun, line = time.process_time(), {"shop": name, "variant": variant, "seed": config.seed}
    if VARIANTS[variant]:
        seen = [n for n in setups if n != name] if variant == "transfer" else [name]
        line["losses"] = pretrain(seen, setups, shops, config, options, variant)
        backbone = replace(config.model.backbone, pretrained=str(options.cache / f"encoder-{os.getpid()}"))
        config = replace(config, model=replace(config.model, backbone=backbone))
    line["pretrain_cpu_s"] = round(time.process_time() - begun)
    line["scores"] = scores(shops[name], setups[name], config, options, *ROWS[name])
    line["best"] = max(line["scores"])
    print(json.dumps(line), flush=True)


def pretrain(
    seen: list[str],
    setups: dict[str, Setup],
    shops: dict[str, Dataset],
    config: TrainConfig,
    options: Options,
    variant: str,
) -> dict[str, list[float]]:
    spaces = [setups[n].assembler.space for n in seen]
    joint = joint_space(spaces)
    grounds = tuple(
        Ground(shops[n], setups[n].cutoff, with_amount_scale(joint, space))
        for n, space in zip(seen, spaces, strict=True)
    )
    planned = PretrainingPlan(grounds, joint, Objectives.from_names(*VARIANTS[variant]))
    done = loop.finish(pretraining.train(planned, replace(config, epochs=options.pretrain_epochs)))
    folder = options.cache / f"encoder-{os.getpid()}"
    transfer.save(folder, config.model.backbone, joint, done.weights, [], {})
    return {part: [round(float(row[part]), 3) for row in done.history] for part in VARIANTS[variant]}


def scores(
    shop: Dataset, setup: Setup, config: TrainConfig, options: Options, origin: str, horizon: int
) -> list[float]:
    rows = setup.assembler.assemble(shop.histories, setup.cutoff, known_before=shop.data_through)
    held_out = HeldOut(rows, shop.horizons.index(horizon))
    config = replace(config, samples_per_epoch=int(options.samples * options.labelled), epochs=options.epochs)
    engine = make_engine(setup.model(config), loop.sum_loss(config, True), config, torch.device("cpu"))
    found: list[float] = []
    for event in loop.run(engine, setup.source(shop, config), config):
        if isinstance(event, loop.EpochDone):
            model = load_model(setup, config, merged(setup, config, event.weights))
            raw = forecast_samples(model, rows.samples, setup.assembler.value_scale)
            i = held_out.horizon
            found.append(round(score(held_out, raw.value[:, i], raw.p_purchase[:, i]), 4))
    return found


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
