"""Numerical precision and hardware options of an engine, checked against the device."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from clv.train.config import EngineConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_precision(config: EngineConfig, device: torch.device) -> str:
    """The precision of a run; `auto` is the fastest that the hardware has and the engine supports.

    bf16 on a GPU that has it; fp16 on an older one, where DeepSpeed scales the loss; fp32 on a CPU, where half
    precision is emulated and many times slower.
    """
    if config.precision != "auto":
        return config.precision
    if device.type != "cuda":
        return "fp32"
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bf16"
    return "fp16" if config.kind == "deepspeed" else "fp32"


def slow_precision(config: EngineConfig, device: torch.device) -> str | None:
    """A notice for a precision that is slow on this hardware; None otherwise."""
    chosen, best = choose_precision(config, device), choose_precision(replace(config, precision="auto"), device)
    if device.type == "cpu" and chosen != "fp32":
        return f"precision {chosen} is emulated on a CPU: fp32 is 5 to 8 times faster"
    if device.type == "cuda" and chosen == "fp32" and best != "fp32":
        return f"precision fp32 leaves the half-precision units of this GPU idle: {best} is several times faster"
    return None


def check_options(config: EngineConfig, device: torch.device) -> None:
    """Raises ValueError for an option that would have no effect on this device."""
    if device.type == "cpu":
        if config.precision == "fp16":
            raise ValueError("engine.precision fp16 needs a GPU: use fp32 on a CPU, or bf16")
        zero = config.deepspeed.get("zero_optimization", {})
        for name, key in (("offload_optimizer", "offload_optimizer"), ("offload_parameters", "offload_param")):
            if getattr(config, name) or zero.get(key, {}).get("device") == "cpu":
                raise ValueError(f"engine.{name} would do nothing: this run trains in the host's memory already")
    if config.compile and os.environ.get("TORCHDYNAMO_DISABLE") == "1":
        raise ValueError("engine.compile would do nothing: TORCHDYNAMO_DISABLE=1 is set in the environment; unset it")
