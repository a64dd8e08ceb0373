"""Training speed of the backbone on one GPU: tokens per second, peak memory and MFU, against the card's own peak.

`python -m benchmarks.gpu [--out FILE]`. Needs torch and transformers, a CUDA GPU, and nothing else of the project's
dependencies; DeepSpeed rows are measured where it is installed. Without a GPU it runs `tiny` for a few steps, which
shows that it works and says nothing about speed.

MFU = FLOPs that forward and backward need / time / peak. The peak is this card's best measured bf16 matrix product, not
a data sheet's; recomputation is not counted as work. FLOPs per token: 6 per weight of the layers, and 12 x layers x
width x tokens for attention (Chowdhery et al. 2022, appendix B).
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.output import reserve
from clv.models.backbones import encoders
from ray_jobs.options import read_preset

NOT = "not measured"
LENGTHS = (128, 512)
PRESETS = ("base", "large")


@dataclass(frozen=True, kw_only=True)
class Case:
    preset: str
    tokens: int
    recompute: bool = False
    compiled: bool = False
    zero: bool = False

    def cells(self) -> list[str]:
        options = [(self.recompute, "checkpointing"), (self.compiled, "compile"), (self.zero, "ZeRO-1")]
        return [self.preset, str(self.tokens), ", ".join(name for on, name in options if on) or "plain"]


@dataclass(frozen=True)
class Measured:
    tokens_per_s: float
    peak_bytes: int | None
    mfu: float


def cases(presets: tuple[str, ...], lengths: tuple[int, ...]) -> Iterator[Case]:
    for preset, tokens in itertools.product(presets, lengths):
        for recompute, compiled in itertools.product((False, True), repeat=2):
            yield Case(preset=preset, tokens=tokens, recompute=recompute, compiled=compiled)
        yield Case(preset=preset, tokens=tokens, zero=True)


def matmul_peak(device: torch.device, size: int, repeats: int = 20) -> float:
    """FLOP/s of the best of a few bf16 products of square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(4):
        seconds = timed(lambda: [a @ b for _ in range(repeats)], device)
        best = max(best, 2 * size**3 * repeats / seconds)
    return best


def timed(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def flops_per_token(config: encoders.BackboneConfig, tokens: int) -> float:
    """Of forward and backward, for sequences of so many tokens."""
    weights = config.num_layers * (4 * config.width**2 + 2 * config.width * config.intermediate)
    return 6 * weights + 12 * config.num_layers * config.width * tokens


class Objective(nn.Module):
    """The backbone under a loss that is as cheap as can be."""

    def __init__(self, config: encoders.BackboneConfig) -> None:
        super().__init__()
        self.backbone = encoders.build(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.backbone(x, mask).float().square().mean()


def measure(case: Case, device: torch.device, budget: int, steps: int, peak: float) -> Measured:
    """Raises torch.OutOfMemoryError where the case does not fit."""
    config = replace(read_preset(case.preset).model.backbone, max_tokens=case.tokens, pretrained=None)
    torch.manual_seed(0)
    model = Objective(config).to(device).train()
    if case.recompute:
        inner: Any = model.backbone.model
        inner.activation_checkpointing_enable()
    if case.compiled:
        model.backbone.compile()
    batch = max(1, budget // case.tokens)
    x = torch.randn(batch, case.tokens, config.width, device=device)
    mask = torch.ones(batch, case.tokens, device=device)
    step = deepspeed_step(model) if case.zero else plain_step(model, device)
    for _ in range(3 if device.type == "cuda" else 1):
        step(x, mask)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = statistics.median(timed(lambda: step(x, mask), device) for _ in range(steps))
    peak_bytes = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
    rate = batch * case.tokens / seconds
    return Measured(rate, peak_bytes, rate * flops_per_token(config, case.tokens) / peak)


def plain_step(model: nn.Module, device: torch.device) -> Callable[[Tensor, Tensor], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step(x: Tensor, mask: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(x, mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def deepspeed_step(model: nn.Module) -> Callable[[Tensor, Tensor], None]:
    import deepspeed

    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.setdefault("MASTER_PORT", "29613")
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)

    def step(x: Tensor, mask: Tensor) -> None:
        engine.backward(engine(x.bfloat16(), mask.bfloat16()))
        engine.step()

    return step


def row(case: Case, device: torch.device, budget: int, steps: int, peak: float) -> list[str]:
    """The cells of a case; those that could not be measured say so."""
    if case.zero and (device.type != "cuda" or find_spec("deepspeed") is None):
        return [*case.cells(), NOT, NOT, NOT]
    try:
        found = measure(case, device, budget, steps, peak)
    except torch.OutOfMemoryError:
        return [*case.cells(), "out of memory", NOT, NOT]
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    memory = NOT if found.peak_bytes is None else f"{found.peak_bytes / 2**30:.1f} GiB"
    return [*case.cells(), f"{found.tokens_per_s:,.0f}", memory, f"{found.mfu:.1%}"]


def table(rows: list[list[str]]) -> str:
    head = ["preset", "T", "options", "tokens/s", "peak memory", "MFU"]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, help="tokens of a step (default: 16384 on a GPU, 256 on a CPU)")
    parser.add_argument("--steps", type=int, help="steps that are timed (default: 20 on a GPU, 2 on a CPU)")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    options = parser.parse_args(given)
    reserve(options.out)
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    card = torch.cuda.get_device_name() if gpu else "no GPU: a smoke test, not a measurement"
    torch.set_float32_matmul_precision("high")
    peak = matmul_peak(device, 8192 if gpu else 256, 20 if gpu else 1)
    budget, steps = options.tokens or (16_384 if gpu else 256), options.steps or (20 if gpu else 2)
    lines = [f"{card}, {datetime.date.today()}, torch {torch.__version__}, {budget:,} tokens a step, bf16"]
    if gpu:
        lines.append(f"measured bf16 matrix product: {peak / 1e12:.0f} TFLOP/s")
    chosen = (
        cases(PRESETS, LENGTHS)
        if gpu
        else [Case(preset="tiny", tokens=64), Case(preset="tiny", tokens=64, recompute=True)]
    )
    rows = []
    for case in chosen:
        rows.append(row(case, device, budget, steps, peak))
        print(" ".join(rows[-1]), flush=True)
    if not gpu:  # a CPU's speed is not what the table is for
        rows = [[*cells[:3], NOT, NOT, NOT] for cells in rows]
        rows += [[*case.cells(), NOT, NOT, NOT] for case in cases(PRESETS, LENGTHS)]
    text = "\n\n".join([*lines, table(rows)])
    print("\n" + text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
