"""One worker of a gloo group: runs the cases of a JSON file and writes what happened. Started by test_engine.py.

engine_worker.py FOLDER WORLD_SIZE RANK; FOLDER holds setup.pt, cases-WORLD_SIZE.json and gets result-WORLD-RANK.pt.
"""

import json
import os
import sys
import traceback
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.plan import held_bytes
from clv.models.adapters import methods
from clv.models.backbones import encoders
from clv.models.config import AdapterConfig
from clv.models.model import CustomerModel
from clv.train import loop
from clv.train.config import TrainConfig
from clv.train.engines.deepspeed_engine import DeepSpeedEngine
from clv.train.engines.factory import make_engine
from clv.train.engines.torch_engine import Engine
from clv.train.examples.loader import Whole, steps_of
from ray_jobs.options import read_preset


class Fixed(Whole):
    """The same samples every epoch."""

    def __init__(self, samples: Any) -> None:
        self.samples = samples

    def epoch(self, epoch: int) -> Any:
        return self.samples


def build(case: dict[str, Any], setup: dict[str, Any], folder: Path) -> tuple[Engine, TrainConfig]:
    config: TrainConfig = setup["config"]
    if case.get("preset"):
        backbone = replace(read_preset(case["preset"]).model.backbone, dropout=0.0)
        config = replace(config, model=replace(config.model, backbone=backbone), batch_size=8)
    for part in ("engine", "optimizer"):
        config = replace(config, **{part: replace(getattr(config, part), **case.get(part, {}))})
    config = replace(config, **case.get("config", {}))
    if given := case.get("adapters"):
        backbone = replace(config.model.backbone, pretrained=str(folder.parent / "bert"))
        config = replace(config, model=replace(config.model, backbone=backbone, adapters=AdapterConfig(**given)))
    torch.manual_seed(7)
    model = CustomerModel(config.model.without_adapters, setup["space"], setup["num_horizons"])
    if config.model.encoder != "text" and config.model.backbone.pretrained:
        encoders.load_pretrained(model.backbone, config.model.backbone.pretrained)
    if config.model.adapters.method:
        methods.inject(model, config.model.adapters, config.model.backbone)
    loss = loop.sum_loss(config, case.get("has_value", True))
    # A CPU has nothing to offload from, and says so; the code is DeepSpeed's own, and runs.
    make = DeepSpeedEngine if config.engine.offload_optimizer else make_engine
    return make(model, loss, config, torch.device("cpu")), config


def observe(engine: Engine, micro: list[Any]) -> dict[str, Any]:
    """What the options of the engine change, seen from outside, in one more step."""
    layer = next(m for name, m in engine.module.named_modules() if name.endswith("layer.0.intermediate.dense"))
    calls: list[str] = []
    layer.register_forward_hook(lambda module, given, out: calls.append(str(out.dtype)))
    before = engine.weights()
    engine.train_step(micro, 1.0)
    moved = sum(float((after - before[name]).square().sum()) for name, after in engine.weights().items())
    out: dict[str, Any] = {
        "moved": moved**0.5,
        "calls": len(calls),
        "computed": calls[0] if calls else "by a compiled graph, which calls no hooks",
        "parameters": sorted({str(p.dtype) for p in engine.module.parameters()}),
        "precision": engine.precision,
        "world_size": engine.world_size,
        "trainable": sum(p.numel() for group in engine.optimizer.param_groups for p in group["params"]),
        "parameter_bytes": held_bytes(list(engine.live().values())),
        "state_bytes": held_bytes(list(getattr(engine.optimizer, "optimizer", engine.optimizer).state.values())),
        "shards_gradients": getattr(engine.optimizer, "partition_gradients", engine.zero_stage == 3),
        "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"] if engine.config.engine.compile else 0,
    }
    if engine.config.engine.kind == "deepspeed":
        zero = engine.model._config.zero_config
        out |= {
            "bucket": zero.reduce_bucket_size,
            "offloads": [zero.offload_optimizer is not None, zero.offload_param is not None],
            "micro_batches": engine.model.gradient_accumulation_steps(),
            "world_size": engine.model.dp_world_size,
        }
    return out


def run_case(case: dict[str, Any], setup: dict[str, Any], folder: Path) -> dict[str, Any]:
    engine, config = build(case, setup, folder)
    samples, num_steps = setup["samples"], case.get("steps", 4)
    if case.get("loop"):
        *events, last = loop.run(engine, Fixed(samples), config)
        losses = [event.row["loss"] for event in events if isinstance(event, loop.StepDone)]
        weights = last.result
        return {"losses": losses, "weights": weights, "zero_stage": engine.zero_stage}
    epochs = (steps_of(samples, config, engine.rank, engine.world_size, epoch) for epoch in count())
    steps = [step.batches for step in islice(chain.from_iterable(epochs), num_steps)]
    engine.module.train()
    losses = []
    for i, micro in enumerate(steps):
        if case.get("reload") and i == num_steps // 2:
            average = loop.Average(0.9)
            average.update(engine.live())
            expected = engine.weights()
            loop.save(engine, average, loop.Position(3, i), folder / case["name"])
            if dist.get_world_size() > 1:
                dist.barrier()
            engine, config = build(case, setup, folder)
            position, average = loop.resume(engine, folder / case["name"], config)
            assert replace(position, random=()) == loop.Position(3, i), position
            assert len(position.random) == dist.get_world_size(), position
            found = engine.whole(average.weights)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name].float(), value) for name, value in expected.items())
            assert engine.step_count == i
        rate = loop.learning_rate(i, num_steps, config.optimizer)
        # Within half an epoch, so that ranks are still being given up when half of the steps are done.
        losses.append(engine.train_step(micro, rate, i / (2 * num_steps)))
    out = {"losses": losses, "weights": engine.weights(), "zero_stage": engine.zero_stage, "rows": len(steps[0][0])}
    if case.get("observe"):
        out |= observe(engine, steps[0])
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
