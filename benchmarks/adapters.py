"""Adapters against full tuning: what each trains, needs and reaches. `python -m benchmarks.adapters`.

At a development origin of a shop (see `benchmarks.pretraining`) the tiny encoder, pretrained there by masked events, is
tuned whole, left as it is, and tuned by every kind of adapter, at the same rates and with the same samples. Memory:
bytes of all tensors that live at once within a step (see `benchmarks.plan`); time: CPU seconds of a step of one thread,
median of blocks. Score: mean log ratio of the metrics of the model alone to those of the BTYD model (higher is better).
Rows that the output holds already are not run again.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import nn

from benchmarks import plan, pretraining
from benchmarks.output import reserve
from benchmarks.pretraining import ROWS
from benchmarks.scoreboard.__main__ import ROOT, histories
from clv.cluster.training import read_dataset
from clv.models.adapters import methods
from clv.models.config import ADAPTER_OPTIONS, AdapterConfig
from clv.train import fitting, loop
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.engines.torch_engine import Engine
from clv.train.fitting import Dataset, Setup

WHOLE, HEADS = "all weights", "all but the backbone"
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Options:
    shop: str = "complete_journey"
    seeds: int = 1
    epochs: int = 4
    pretrain_epochs: int = 3
    samples: int = 8_000
    """Rows an epoch, of both."""
    out: Path = ROOT / "out/adapters.json"
    cache: Path = ROOT / "out/adapters"


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    reserve(options.out)
    os.environ.setdefault("CLV_DATA", str(ROOT.parent / "shared/data"))
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    shop, (origin, horizon) = read_dataset(histories(options.shop, options.cache)), ROWS[options.shop]
    config = replace(TrainConfig().with_engine(kind="torch"), samples_per_epoch=options.samples, epochs=options.epochs)
    setup = fitting.prepare(shop, shop.clock.parse(origin), config, horizon)
    rows: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed in range(options.seeds):
        encoder = pretrained(shop, setup, replace(config, seed=seed), options)
        for name, chosen in variants(replace(config, seed=seed), encoder).items():
            row = rows.setdefault(name, {"scores": {}})
            if "held_mib" not in row and name != HEADS:
                row |= cost(shop, setup, chosen)
            if str(seed) not in row["scores"]:
                how = pretraining.Options(epochs=options.epochs, samples=options.samples)
                row["scores"][str(seed)] = pretraining.scores(shop, setup, chosen, how, origin, horizon)
            options.out.write_text(json.dumps(rows, indent=1) + "\n")
            print(name, json.dumps(row), flush=True)
    print(table(rows))


def pretrained(shop: Dataset, setup: Setup, config: TrainConfig, options: Options) -> str:
    """Folder of an encoder that was pretrained on what is known at the cut of `setup`."""
    folder = options.cache / f"{options.shop}-{config.seed}"
    if not folder.exists():
        how = pretraining.Options(pretrain_epochs=options.pretrain_epochs, samples=options.samples, cache=options.cache)
        made = options.cache / f"encoder-{os.getpid()}"
        pretraining.pretrain([options.shop], {options.shop: setup}, {options.shop: shop}, config, how, "masked")
        made.rename(folder)
    return str(folder)


def variants(config: TrainConfig, encoder: str) -> dict[str, TrainConfig]:
    model = replace(config.model, backbone=replace(config.model.backbone, pretrained=encoder))
    whole = replace(config, model=model)
    # A rate of nothing leaves the backbone as it is.
    heads = replace(whole, optimizer=replace(whole.optimizer, backbone_share=0.0))
    kinds = {m: replace(whole, model=replace(model, adapters=AdapterConfig(method=m))) for m in ADAPTER_OPTIONS}
    return {WHOLE: whole, HEADS: heads, **kinds}


def cost(shop: Dataset, setup: Setup, config: TrainConfig) -> dict[str, Any]:
    """What is trained, held, needed and saved, and CPU seconds of a step on the longest histories."""
    samples = setup.source(shop, config).epoch(0)
    batch = samples.batch(np.argsort(-samples.lengths)[: config.batch_size])
    held, peak = plan.counted(config, setup, batch)
    engine = make_engine(setup.model(config), loop.sum_loss(config, True), config, torch.device("cpu"))
    engine.module.train()
    average, seconds = loop.Average(config.ema_decay), []
    for step in range(6):
        begun = time.process_time()
        engine.train_step([batch], 1e-4, float(step))
        average.update(engine.live())
        seconds.append(time.process_time() - begun)
    return {
        "trained": trained(engine.module),
        "trained_in_backbone": trained(engine.module.get_submodule("backbone")),
        "held_mib": held / MIB,
        "peak_mib": peak / MIB,
        "step_cpu_s": statistics.median(seconds[1:]),
        "tokens": list(batch.mask.shape),
        **sizes(engine, config, average),
    }


def trained(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def sizes(engine: Engine, config: TrainConfig, average: loop.Average) -> dict[str, float]:
    """MiB of a checkpoint, and KiB of what has to be kept beside the pretrained encoder: adapters, or the backbone."""
    with tempfile.TemporaryDirectory() as place:
        loop.save(engine, average, loop.Position(), Path(place))
        checkpoint = sum(path.stat().st_size for path in Path(place).iterdir())
    weights = engine.weights()
    if config.model.adapters.method:
        kept = {name: t for name, t in methods.trained_tensors(weights).items() if methods.is_adapter(name)}
    else:
        kept = {name: t for name, t in weights.items() if name.startswith("backbone.")}
    return {"checkpoint_mib": checkpoint / MIB, "kept_kib": sum(t.nbytes for t in kept.values()) / 1024}


def table(rows: dict[str, Any]) -> str:
    lines = [
        "| trained | weights trained | of them in the backbone | held between steps, MiB | more within one, MiB "
        "| CPU-s a step | checkpoint, MiB | kept beside the encoder, KiB | score after each epoch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        scores = np.array(list(row["scores"].values()))
        score = " → ".join(f"{mean:.3f}" for mean in scores.mean(0))
        spread = f" ({min(scores[:, -1]):.3f} to {max(scores[:, -1]):.3f})" if len(scores) > 1 else ""
        cells = [""] * 7
        if "held_mib" in row:
            cells = [f"{row['trained']:,}", f"{row['trained_in_backbone']:,}"]
            cells += [f"{row['held_mib']:.1f}", f"{row['peak_mib']:.0f}", f"{row['step_cpu_s']:.2f}"]
            cells += [f"{row['checkpoint_mib']:.1f}", f"{row['kept_kib']:,.0f}"]
        lines.append(f"| {' | '.join([name, *cells, score + spread])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
