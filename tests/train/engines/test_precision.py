"""Every option of the engine, by what it changes when seen from outside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clv.models.model import CustomerModel
from clv.train.config import EngineConfig, TrainConfig
from clv.train.engines.precision import check_options, choose_precision, slow_precision
from clv.train.fitting import Setup

Results = dict[str, dict[str, Any]]
RunWorkers = Callable[[Path, int, list[dict[str, Any]]], list[Results]]
CPU = torch.device("cpu")


def case(name: str, stage: int | None = 1, clip: float = 1.0, **engine: Any) -> dict[str, Any]:
    chosen = {"kind": "torch"} if stage is None else {"kind": "deepspeed", "zero_stage": stage}
    return {
        "name": name,
        "observe": True,
        "engine": chosen | engine,
        "optimizer": {"name": "sgd", "clip_norm": clip, "weight_decay": 0.0},
    }


def adam(case: dict[str, Any]) -> dict[str, Any]:
    return case | {"optimizer": {"name": "adamw"}}


CASES = {
    1: [
        case("torch", None),
        case("torch recomputed", None, activation_checkpointing=True),
        case("zero 1 recomputed", 1, activation_checkpointing=True),
        case("zero 3 recomputed", 3, activation_checkpointing=True),
        case("torch bf16", None, precision="bf16"),
        case("zero 1 bf16", 1, precision="bf16"),
        case("zero 1 fp32", 1, precision="fp32"),
        case("micro-batches", 2, accumulation=4),
        case("clipped", 2, clip=1e-3),
        case("clipped plain", None, clip=1e-3),
        case("json", 2, deepspeed={"zero_optimization": {"reduce_bucket_size": 12345}, "gradient_clipping": "auto"}),
        *(case(f"offload {stage}", stage, offload_optimizer=True) for stage in (1, 2, 3)),
        case("offload all", 3, offload_optimizer=True, offload_parameters=True),
    ],
    2: [adam(case(f"zero {stage}", stage)) for stage in range(4)],
}


GetResults = Callable[[int], list[Results]]


@pytest.fixture(scope="module")
def one(results: GetResults) -> Results:
    found = results(1)[0]
    assert [name for name, result in found.items() if "error" in result] == []
    return found


@pytest.mark.parametrize("name", ["torch recomputed", "zero 1 recomputed", "zero 3 recomputed"])
def test_activation_checkpointing_runs_every_layer_twice_and_changes_no_loss(name: str, one: Results) -> None:
    assert (one["torch"]["calls"], one[name]["calls"]) == (1, 2)
    np.testing.assert_allclose(one[name]["losses"], one["torch"]["losses"], rtol=1e-6)


def test_half_precision_computes_in_it_and_deepspeed_holds_the_parameters_in_it(one: Results) -> None:
    found = {name: (one[name]["computed"], one[name]["parameters"]) for name in ("torch", "torch bf16", "zero 1 bf16")}
    assert found == {
        "torch": ("torch.float32", ["torch.float32"]),
        "torch bf16": ("torch.bfloat16", ["torch.float32"]),
        "zero 1 bf16": ("torch.bfloat16", ["torch.bfloat16"]),
    }
    assert one["zero 1 fp32"]["computed"] == "torch.float32"
    assert one["zero 1 bf16"]["precision"] == "bf16"


def test_accumulation_splits_the_batch_into_micro_batches(one: Results) -> None:
    assert (one["micro-batches"]["micro_batches"], one["micro-batches"]["calls"]) == (4, 4)
    assert (one["micro-batches"]["rows"], one["torch"]["rows"]) == (8, 32)


@pytest.mark.parametrize("name", ["clipped", "clipped plain"])
def test_clipping_bounds_what_a_step_moves(name: str, one: Results) -> None:
    # Rate 1, but .3 for the backbone, and no momentum left of the steps before that could exceed the bound tenfold.
    assert one[name]["moved"] < 1e-2 < 0.1 < one["torch"]["moved"]


def test_a_json_reaches_deepspeed_and_auto_leaves_ours(one: Results) -> None:
    assert one["json"]["bucket"] == 12345
    assert one["zero 1 fp32"]["bucket"] == one["zero 1 fp32"]["trainable"]
    np.testing.assert_allclose(one["json"]["losses"], one["torch"]["losses"], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "offloads"),
    [("zero 1 fp32", [False, False]), ("offload 1", [True, False]), ("offload 3", [True, False]),
     ("offload all", [True, True])],
)  # fmt: skip
def test_offloading_needs_no_compiler_and_changes_no_loss(name: str, offloads: list[bool], one: Results) -> None:
    assert one[name]["offloads"] == offloads
    np.testing.assert_allclose(one[name]["losses"], one["torch"]["losses"], rtol=1e-5)


def test_each_stage_shards_what_it_says_over_the_workers(results: GetResults) -> None:
    for found in results(2):
        assert [name for name, result in found.items() if "error" in result] == []
        stages = [found[f"zero {stage}"] for stage in range(4)]
        size = 4 * stages[0]["trainable"]
        parameters = [stage["parameter_bytes"] / size for stage in stages]
        moments = [stage["state_bytes"] / size for stage in stages]
        assert parameters == pytest.approx([1, 1, 1, 0.5], rel=0.05)
        assert moments == pytest.approx([2, 1, 1, 1], rel=0.05)
        assert [stage["shards_gradients"] for stage in stages] == [False, False, True, True]
        assert {stage["world_size"] for stage in stages} == {2}


def test_only_what_needs_a_gradient_is_trained(one: Results, setup: Setup, config: TrainConfig) -> None:
    model = CustomerModel(config.model, setup.assembler.space, 2)
    assert one["torch"]["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert one["torch"]["trainable"] < sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_compiling_makes_graphs_and_changes_no_loss(
    folder: Path, run_workers: RunWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    (found,) = run_workers(
        folder, 1, [case("plain", None), case("torch", None, compile=True), case("zero", compile=True)]
    )
    for name in ("torch", "zero"):
        assert "error" not in found[name], found[name]["error"]
        assert found[name]["graphs"] >= 1
        np.testing.assert_allclose(found[name]["losses"], found["plain"]["losses"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "torch", "zero_stage": 2}, r"engine\.zero_stage 2 needs engine\.kind deepspeed"),
        ({"kind": "torch", "offload_optimizer": True}, r"engine\.offload_optimizer True needs engine\.kind deepspeed"),
        ({"kind": "torch", "deepspeed": {"bf16": {}}}, r"engine\.deepspeed .* needs engine\.kind deepspeed"),
        ({"kind": "torch", "precision": "fp16"}, r"engine\.precision fp16 needs engine\.kind deepspeed"),
        ({"zero_stage": 0, "offload_optimizer": True}, r"engine\.offload_optimizer needs engine\.zero_stage 1, 2 or 3"),
        (
            {"zero_stage": 2, "offload_parameters": True},
            r"engine\.offload_parameters needs engine\.zero_stage 3, not 2",
        ),
        ({"zero_stage": 3, "compile": True}, r"engine\.compile needs engine\.zero_stage 0, 1 or 2"),
        ({"accumulation": 0}, r"engine\.accumulation must be at least 1, not 0"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offload_optimizer": True}, r"engine\.offload_optimizer would do nothing: this run trains in the host's"),
        ({"zero_stage": 3, "offload_parameters": True}, r"engine\.offload_parameters would do nothing"),
        (
            {"deepspeed": {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}},
            r"engine\.offload_optimizer would do nothing",
        ),
        ({"precision": "fp16"}, r"engine\.precision fp16 needs a GPU: use fp32 on a CPU, or bf16"),
        ({"compile": True}, r"engine\.compile would do nothing: TORCHDYNAMO_DISABLE=1 is set"),
    ],
)
def test_an_option_that_does_nothing_on_a_cpu_is_refused_there(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with pytest.raises(ValueError, match=message):
        check_options(EngineConfig(**options), CPU)


class FakeGpu:
    """What a device says of itself; no kernel runs."""

    def __init__(self, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        # Old cards emulate bf16, slowly: asked for the real thing only.
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16 or including_emulation
        )


@pytest.mark.parametrize(
    ("kind", "bf16", "chosen"),
    [("deepspeed", True, "bf16"), ("deepspeed", False, "fp16"), ("torch", True, "bf16"), ("torch", False, "fp32")],
)
def test_the_precision_is_the_fastest_that_gpu_and_engine_have(
    kind: Any, bf16: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeGpu(bf16, monkeypatch)
    assert choose_precision(EngineConfig(kind=kind), torch.device("cuda")) == chosen
    assert choose_precision(EngineConfig(kind=kind), CPU) == "fp32"
    assert choose_precision(EngineConfig(kind=kind, precision="bf16"), CPU) == "bf16"


def test_a_slow_precision_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(True, monkeypatch)
    gpu = torch.device("cuda")
    assert slow_precision(EngineConfig(), CPU) is None
    assert slow_precision(EngineConfig(), gpu) is None
    told = slow_precision(EngineConfig(precision="bf16"), CPU)
    assert told == "precision bf16 is emulated on a CPU: fp32 is 5 to 8 times faster"
    assert "bf16 is several times faster" in str(slow_precision(EngineConfig(precision="fp32"), gpu))
