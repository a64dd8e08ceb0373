"""The DeepSpeed engine: ZeRO stages, its JSON, and checkpoints that any number of workers can load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clv.data.workdir import write_json
from clv.models.inputs.batch import Batch
from clv.train.config import TrainConfig
from clv.train.engines.torch_engine import Engine
from clv.train.optimizers import make_optimizer

TAG, UNIVERSAL = "ds", "universal"
# Keys of a DeepSpeed JSON that have an effect here; DeepSpeed ignores unknown keys without an error.
PASSED_ON = (
    *("zero_optimization", "bf16", "fp16", "data_types", "communication_data_type", "prescale_gradients"),
    *("gradient_predivide_factor", "disable_allgather", "aio", "comms_logger", "flops_profiler", "memory_breakdown"),
    *("steps_per_print", "wall_clock_breakdown", "dump_state", "log_level", "zero_force_ds_cpu_optimizer"),
    *("gradient_clipping", "gradient_accumulation_steps", "train_batch_size", "train_micro_batch_size_per_gpu"),
)
INSTEAD = {
    "optimizer": "optimizer, learning_rate and weight_decay",
    "scheduler": "learning_rate and warmup",
    "activation_checkpointing": "activation_checkpointing",
    "compile": "compile",
    "compression_training": "nothing: weights are compressed after training",
    "checkpoint": "the checkpoint options of train",
}


class DeepSpeedEngine(Engine):
    """Training with DeepSpeed: ZeRO stages, mixed precision with loss scaling, its own clipping and checkpoints."""

    def _start(self) -> None:
        if not dist.is_initialized():
            raise ValueError("engine.kind deepspeed needs a process group: start it through Ray Train or torchrun")
        size = sum(p.numel() for p in self.module.parameters() if p.requires_grad)
        settings = deepspeed_config(self.config, self.precision, self.world_size, size)
        deepspeed = import_deepspeed(dynamo=self.config.engine.compile)
        # We build the optimizer: a name in the JSON would make DeepSpeed compile a fused one.
        optimizer = make_optimizer(self.config.optimizer, self.module)
        self.model, self.optimizer, _, _ = deepspeed.initialize(
            model=self.objective, optimizer=optimizer, config=settings
        )
        self.zero_stage = int(self.model.zero_optimization_stage())

    def _backward(self, batch: Batch, scale: Tensor, *, last: bool) -> Tensor:
        loss: Tensor = self.model(batch)
        # DeepSpeed divides by the number of micro-batches; `scale` already makes the loss a share of the global batch.
        self.model.backward(loss * scale * self.config.engine.accumulation)
        if last:
            self._observe()
        self.model.step()
        return loss.detach()

    def _step(self) -> None:
        """DeepSpeed steps with the last micro-batch."""

    def live(self) -> dict[str, Tensor]:
        if self.zero_stage < 3:
            return super().live()
        shards = {name: p.ds_tensor.detach() for name, p in self._sharded().items()}  # type: ignore[attr-defined]
        return shards | {name: b for name, b in self.module.state_dict().items() if name not in shards}

    def whole(self, live: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.zero_stage < 3:
            return super().whole(live)
        sharded, out = self._sharded(), {}
        for name, part in live.items():
            if (p := sharded.get(name)) is None:
                out[name] = part
                continue
            full = part.new_empty(self.world_size * part.numel())
            dist.all_gather_into_tensor(full, part.contiguous())
            out[name] = full[: p.ds_numel].view(p.ds_shape)  # type: ignore[attr-defined]
        return out

    def share(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.zero_stage < 3:
            return super().share(whole)
        sharded, out = self._sharded(), {}
        for name, value in whole.items():
            if (p := sharded.get(name)) is None:
                out[name] = value.to(self.device)
                continue
            size = p.ds_tensor.numel()  # type: ignore[attr-defined]
            padded = value.new_zeros(size * self.world_size)
            padded[: value.numel()] = value.flatten()
            out[name] = padded[size * self.rank : size * (self.rank + 1)].to(self.device, copy=True)
        return out

    def _sharded(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.module.named_parameters() if hasattr(p, "ds_tensor")}

    def weights(self) -> dict[str, Tensor]:
        if self.zero_stage < 3:
            return super().weights()
        deepspeed = import_deepspeed()
        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            return super().weights()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        deepspeed = import_deepspeed()
        if self.zero_stage < 3:
            return super().load_weights(weights)
        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), modifier_rank=0):
            if self.rank == 0:
                super().load_weights(weights)

    def save(self, folder: Path) -> None:
        # Below stage 3 DeepSpeed writes the universal form only for named parameters; this entry declares them so.
        state = {"step": self.step_count, "universal_checkpoint_info": {}}
        self.model.save_checkpoint(str(folder), tag=TAG, client_state=state)
        if self.rank == 0:
            facts = {"world_size": self.world_size, "zero_stage": self.zero_stage, "step": self.step_count}
            write_json(folder / "deepspeed.json", facts)

    def load(self, folder: Path) -> None:
        """Inverse of `save`, with any number of workers. Raises ValueError for a checkpoint of another ZeRO stage."""
        try:
            saved = json.loads((folder / "deepspeed.json").read_text())
        except FileNotFoundError:
            raise ValueError(f"no DeepSpeed checkpoint in {folder}") from None
        if saved["zero_stage"] != self.zero_stage:
            raise ValueError(
                f"{folder} was saved with ZeRO stage {saved['zero_stage']}, this run has {self.zero_stage}: "
                "resume with the saved stage"
            )
        if saved["world_size"] == self.world_size or self.zero_stage == 0:
            self.model.load_checkpoint(str(folder), tag=TAG)
        else:
            self._load_universal(folder)
        self.step_count = int(saved["step"])

    def _load_universal(self, folder: Path) -> None:
        if self.config.optimizer.name not in ("adamw", "adam"):
            raise ValueError(
                f"a checkpoint of another number of workers needs optimizer adamw or adam, not "
                f"{self.config.optimizer.name}: DeepSpeed's universal form knows their state alone"
            )
        if int(os.environ.get("LOCAL_RANK", "0")) == 0 and not (folder / UNIVERSAL).exists():
            _to_universal(folder)
        dist.barrier()
        groups = [{k: value for k, value in group.items() if k != "params"} for group in self.optimizer.param_groups]
        settings = self.model._config
        settings.load_universal_checkpoint = True
        try:
            self.model.load_checkpoint(str(folder), tag=UNIVERSAL)
        finally:
            settings.load_universal_checkpoint = False
        # Stage 3 gives every group the settings of the first, weight decay and name among them.
        for group, own in zip(self.optimizer.param_groups, groups, strict=True):
            group |= own


def _to_universal(folder: Path) -> None:
    """Converts a checkpoint to one file per parameter and state, which any number of workers can load."""
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal"]
    command += ["--input_folder", str(folder / TAG), "--output_folder", str(folder / UNIVERSAL)]
    command += ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder}: DeepSpeed could not convert the checkpoint: {done.stderr.strip()[-300:]}")


def import_deepspeed(*, dynamo: bool = False) -> Any:
    """Imports DeepSpeed without its CPU extension, which needs a compiler and which gloo does not use.

    Without `dynamo`, `torch.compile` is off in this process: importing it costs 5 CPU-s.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    if not dynamo:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Its autotuner, which nothing uses here, imports mlflow where that is installed: 1.6 CPU-s.
    without = "mlflow" not in sys.modules
    if without:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    if without:
        del sys.modules["mlflow"]
    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(
    config: TrainConfig, precision: str, world_size: int, num_parameters: int | None = None
) -> dict[str, Any]:
    """The DeepSpeed JSON of these settings and of the user's own JSON. Raises ValueError where the two conflict."""
    engine = config.engine
    parts = world_size * engine.accumulation
    if config.batch_size < parts:
        raise ValueError(
            f"batch_size {config.batch_size} is less than workers x accumulation = {world_size} x {engine.accumulation}"
        )
    ours: dict[str, Any] = {
        # Only a label: batches come from our own loader, and may differ in size.
        "train_micro_batch_size_per_gpu": config.batch_size // parts,
        "gradient_accumulation_steps": engine.accumulation,
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": {"stage": engine.stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # it would need a compiler
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if num_parameters is not None and engine.stage > 0:
        # DeepSpeed's default is a buffer of 5e8 numbers, whatever the model.
        ours["zero_optimization"]["reduce_bucket_size"] = min(num_parameters, 500_000_000)
    if engine.offload_optimizer:
        ours["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    if engine.offload_parameters:
        ours["zero_optimization"]["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    governed = {
        "train_batch_size": ("batch_size", config.batch_size),
        "train_micro_batch_size_per_gpu": ("batch_size", config.batch_size // parts),
        "gradient_accumulation_steps": ("accumulation", engine.accumulation),
        "gradient_clipping": ("optimizer.clip_norm", config.optimizer.clip_norm),
        "zero_optimization.stage": ("zero_stage", engine.stage),
        "bf16.enabled": ("precision", f"{engine.precision}, which is {precision} here"),
        "fp16.enabled": ("precision", f"{engine.precision}, which is {precision} here"),
    }
    return merge_json(ours, engine.deepspeed, governed)


def merge_json(
    ours: dict[str, Any], given: dict[str, Any], governed: dict[str, tuple[str, Any]], where: str = ""
) -> dict[str, Any]:
    """`ours` with what `given` adds; "auto" leaves ours. ValueError for a conflict or a key without effect, by name."""
    merged = dict(ours)
    for key, value in given.items():
        place = f"{where}.{key}".lstrip(".")
        if not where and key not in PASSED_ON:
            raise ValueError(f"DeepSpeed JSON: {key} {_remedy(key)}")
        expected = governed[place][1] if place == "train_batch_size" else merged.get(key, value)
        if isinstance(value, dict) and isinstance(expected, dict):
            merged[key] = merge_json(expected, value, governed, place)
        elif value == "auto" or value == expected:
            merged.setdefault(key, expected)
        elif place in governed:
            option, setting = governed[place]
            raise ValueError(f"DeepSpeed JSON: {place} {value} conflicts with {option} {setting}: change one of them")
        else:
            merged[key] = value
    return merged


def _remedy(key: str) -> str:
    if key in INSTEAD:
        return f"would be ignored; use {INSTEAD[key]}"
    near = get_close_matches(key, PASSED_ON, n=1)
    return "is unknown or has no effect here" + (f" (did you mean {near[0]!r}?)" if near else "")
