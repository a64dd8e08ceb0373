"""What a training run will need: weights, memory per worker, steps, checkpoints; and the smallest setting that fits.

Arithmetic, before anything is started. Weights, gradients, optimizer and average are counted exactly; activations by a
law whose constants were fitted to counted bytes of small shapes (`python -m benchmarks.plan` shows both for others).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from clv.models.config import BackboneConfig
from clv.models.inputs.feature_space import FeatureSpace
from clv.models.model import CustomerModel
from clv.train.config import TrainConfig

GIB = 2**30
STATES = {"adamw": 2, "adam": 2, "rmsprop": 1, "sgd": 1}  # numbers that an optimizer keeps per weight
# Numbers kept for the backward pass, per token and layer: multiples of the width, of the feed-forward width, and of
# heads times tokens where attention's matrices are kept (on a CPU; fused attention of a GPU computes them again).
PER_WIDTH, PER_INTERMEDIATE, PER_ATTENTION = 9.6, 2.95, 2.9
ONCE = 15.0  # of the width, per token, outside the layers
RECOMPUTED = 0.8  # of a layer, while one is computed again
TEMPORARIES = 3.2  # numbers per weight that an optimizer's step needs for a moment
RESERVE = 0.1  # of a GPU's memory: fragments, communication, the CUDA context


@dataclass(frozen=True)
class Size:
    """Weights of a model: all, and those that are trained."""

    total: int
    trained: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at the worst moment of a step; passing: what comes and goes beside the gradients, activations
    in the passes, temporary numbers in the optimizer's step."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    passing: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.average + self.passing


def size_of(config: TrainConfig, space: FeatureSpace, num_horizons: int) -> Size:
    """Counted on the model itself, which is built without memory."""
    backbone = replace(config.model.backbone, pretrained=None)
    with torch.device("meta"):
        model = CustomerModel(replace(config.model, backbone=backbone), space, num_horizons)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Size(sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained))


def tokens_of_micro_batch(config: TrainConfig, workers: int) -> int:
    """Padded tokens of one micro-batch of one worker, at most."""
    whole = config.batch_tokens or config.batch_size * config.model.backbone.max_tokens
    return -(-whole // (workers * config.engine.accumulation))


def memory(
    size: Size, config: TrainConfig, *, workers: int, stage: int, precision: str, tokens: int, fused_attention: bool
) -> Memory:
    """Of one worker, by ZeRO stage (0: none) and precision, for micro-batches of so many tokens.

    A stage below 3 under DeepSpeed holds half-precision weights and gradients with a full-precision copy in the
    optimizer; plain torch and fp32 have no copy.
    """
    half = precision != "fp32" and config.engine.kind == "deepspeed"
    word = 2 if half else 4
    everywhere = workers if stage >= 3 else 1
    weights = word * size.total / everywhere
    gradients = word * size.trained / (workers if stage >= 2 else 1)
    states = 4 * (STATES[config.optimizer.name] + half) * size.trained / (workers if stage >= 1 else 1)
    average = 4 * size.total / everywhere if config.ema_decay else 0.0
    kept, last = activation_numbers(config.model.backbone, tokens, fused=fused_attention)
    word = 4 if precision == "fp32" else 2
    passing = word * (last if config.engine.activation_checkpointing else kept)
    if config.engine.kind == "torch" and config.engine.accumulation == 1:
        # Gradients come while what was kept goes: they share the memory.
        passing = max(passing - gradients, word * last)
    stepping = 4 * TEMPORARIES * size.trained / (workers if stage >= 1 else 1)
    return Memory(weights, gradients, states, average, max(passing, stepping))


def activation_numbers(backbone: BackboneConfig, tokens: int, *, fused: bool) -> tuple[float, float]:
    """Numbers that a micro-batch keeps for its backward pass: all, and where only layers' inputs are kept."""
    attention = 0.0 if fused else PER_ATTENTION * backbone.num_heads * backbone.max_tokens
    layer = PER_WIDTH * backbone.width + PER_INTERMEDIATE * backbone.intermediate + attention
    once = ONCE * backbone.width
    kept = backbone.num_layers * layer + once
    return tokens * kept, tokens * min(kept, backbone.num_layers * backbone.width + RECOMPUTED * layer + once)


def checkpoint_bytes(size: Size, config: TrainConfig, precision: str) -> float:
    """Of one checkpoint, over all its files: weights, optimizer, averaged weights, and those of the best epoch."""
    half = precision != "fp32" and config.engine.kind == "deepspeed"
    states = 4 * (STATES[config.optimizer.name] + half) * size.trained
    return (2 if half else 4) * size.total + states + 4 * size.total * (1 + bool(config.ema_decay))


def flops_per_token(backbone: BackboneConfig) -> float:
    """Of forward and backward at full length (Chowdhery et al. 2022, appendix B)."""
    weights = backbone.num_layers * (4 * backbone.width**2 + 2 * backbone.width * backbone.intermediate)
    return 6 * weights + 12 * backbone.num_layers * backbone.width * backbone.max_tokens


def candidates(config: TrainConfig) -> Iterator[TrainConfig]:
    """Settings that need less and less memory, and are slower and slower, from `config` on."""
    last = 0 if config.prunes else 3
    for recompute in (False, True):
        for stage in range(config.engine.stage, last + 1):
            yield config.with_engine(zero_stage=stage, activation_checkpointing=recompute)
    for more in (2, 4, 8, 16, 32):
        if config.batch_size >= more * config.engine.accumulation:
            changes = {"accumulation": config.engine.accumulation * more}
            yield config.with_engine(zero_stage=last, activation_checkpointing=True, **changes)


def fitting(size: Size, config: TrainConfig, workers: int, precision: str, gpu_bytes: float) -> TrainConfig | None:
    """The first of `candidates` that fits the memory of a GPU, a reserve left; None where none does."""
    for tried in candidates(config):
        found = memory(
            size,
            tried,
            workers=workers,
            stage=tried.engine.stage,
            precision=precision,
            tokens=tokens_of_micro_batch(tried, workers),
            fused_attention=True,
        )
        if found.total <= (1 - RESERVE) * gpu_bytes:
            return tried
    return None


def report(
    config: TrainConfig, space: FeatureSpace, num_horizons: int, workers: int, *, gpu: bool, gpu_gib: float | None
) -> list[str]:
    """The plan in lines for people."""
    size, tokens = size_of(config, space, num_horizons), tokens_of_micro_batch(config, workers)
    steps = max(1, config.samples_per_epoch // config.batch_size)
    whole = tokens * workers * config.engine.accumulation
    work = flops_per_token(config.model.backbone) * whole / 1e12
    lines = [
        f"weights: {size.total:,}, of which {size.trained:,} are trained",
        f"steps: {steps:,} an epoch, {steps * config.epochs:,} in the {config.epochs} epochs of the trial, no more in "
        f"the final fit; {whole:,} tokens a step at most, {tokens:,} in a micro-batch of a worker",
        f"work: {work:,.3g} TFLOP a step at most; at 1 TFLOP/s of all workers together "
        f"{2 * steps * config.epochs * work / 3600:,.3g} hours",
        "",
        f"GiB of one of {workers} workers: weights + gradients + optimizer + average + passing",
    ]
    precisions = ("bf16", "fp32") if gpu else ("fp32",)
    for precision in precisions:
        for stage in range(4):
            m = memory(
                size, config, workers=workers, stage=stage, precision=precision, tokens=tokens, fused_attention=gpu
            )
            parts = " + ".join(
                f"{part / GIB:.3f}" for part in (m.weights, m.gradients, m.optimizer, m.average, m.passing)
            )
            lines.append(f"  {precision}, ZeRO {stage}: {m.total / GIB:8.3f} = {parts}")
    precision = precisions[0]
    lines.append(f"checkpoint: {checkpoint_bytes(size, config, precision) / GIB:.3f} GiB each, {precision}")
    if gpu_gib is not None:
        lines.append(_advice(fitting(size, config, workers, precision, gpu_gib * GIB), gpu_gib, workers, precision))
    return lines


def _advice(found: TrainConfig | None, gpu_gib: float, workers: int, precision: str) -> str:
    if found is None:
        return f"nothing fits {workers} GPUs of {gpu_gib:g} GiB: use more workers, or a smaller batch or backbone"
    engine = found.engine
    options = [f"--zero-stage {engine.stage}"]
    options += ["--activation-checkpointing"] if engine.activation_checkpointing else []
    options += [f"--accumulation {engine.accumulation}"] if engine.accumulation > 1 else []
    return f"smallest setting that fits {workers} GPUs of {gpu_gib:g} GiB in {precision}: {' '.join(options)}"
