"""One worker of a gloo group: runs the cases of a JSON file and writes what happened. Started by test_engine.py.

engine_worker.py FOLDER WORLD_SIZE RANK; FOLDER holds setup.pt, cases-WORLD_SIZE.json and gets result-WORLD-RANK.pt.
"""

import json
import os
import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from clv.models import encoders
from clv.models.model import CustomerModel
from clv.train import loop
from clv.train.config import TrainConfig
from clv.train.engine import Engine, make_engine


class Fixed:
    """The same samples every epoch."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def epoch(self, epoch: int) -> Any:
        return self.samples


def build(case: dict[str, Any], setup: dict[str, Any]) -> tuple[Engine, TrainConfig]:
    config: TrainConfig = setup["config"]
    if case.get("preset"):
        backbone = replace(encoders.resolve_preset(case["preset"]), dropout=0.0)
        config = replace(config, model=replace(config.model, backbone=backbone), batch_size=8)
    for part in ("engine", "optimizer"):
        config = replace(config, **{part: replace(getattr(config, part), **case.get(part, {}))})
    config = replace(config, **case.get("config", {}))
    torch.manual_seed(7)
    model = CustomerModel(config.model, setup["space"], setup["num_horizons"])
    if config.model.backbone.pretrained:
        encoders.load_pretrained(model.backbone, config.model.backbone.pretrained)
    loss = loop.sum_loss(config, case.get("has_value", True))
    return make_engine(model, loss, config, torch.device("cpu")), config


def run_case(case: dict[str, Any], setup: dict[str, Any], folder: Path) -> dict[str, Any]:
    engine, config = build(case, setup)
    samples, num_steps = setup["samples"], case.get("steps", 4)
    if case.get("loop"):
        losses: list[float] = []
        weights = loop.run(engine, Fixed(samples), config, on_step=lambda step, loss, rate: losses.append(loss))
        return {"losses": losses, "weights": weights, "zero_stage": engine.zero_stage}
    steps = list(loop.steps_of(samples, config, engine.rank, engine.world_size, 0))[:num_steps]
    losses = []
    for i, micro in enumerate(steps):
        if case.get("reload") and i == num_steps // 2:
            engine.save(folder / case["name"], {"epoch": 3, "note": "extra"})
            if dist.get_world_size() > 1:
                dist.barrier()
            engine, config = build(case, setup)
            extra = engine.load(folder / case["name"])
            assert extra["epoch"] == 3, extra
            assert extra["note"] == "extra", extra
            assert engine.step_count == i
        losses.append(engine.train_step(micro, loop.learning_rate(i, num_steps, config.optimizer)))
    out = {"losses": losses, "weights": engine.weights(), "zero_stage": engine.zero_stage, "rows": len(steps[0][0])}
    if case.get("load_weights"):
        doubled = {name: 2 * value for name, value in out["weights"].items()}
        engine.load_weights(doubled)
        found = engine.weights()
        out["loaded"] = all(torch.equal(found[name], doubled[name]) for name in doubled)
    return out


def main(folder: Path, world_size: int, rank: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ |= {"LOCAL_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    store = dist.FileStore(str(folder / f"store-{world_size}"), world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    setup = torch.load(folder / "setup.pt", weights_only=False)
    results = {}
    for case in json.loads((folder / f"cases-{world_size}.json").read_text()):
        try:
            results[case["name"]] = run_case(case, setup, folder / str(world_size))
        except ValueError as error:
            results[case["name"]] = {"error": str(error)}
        except Exception:
            # A worker that leaves alone would make the others wait for it.
            traceback.print_exc()
            results[case["name"]] = {"error": traceback.format_exc()}
            if world_size > 1:
                break
    torch.save(results, folder / f"result-{world_size}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
