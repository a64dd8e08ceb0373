"""The one seam to the training back ends: forward, backward, step, save, load; plain torch or DeepSpeed behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clv.models.batch import Batch
from clv.train.config import EngineConfig, OptimizerConfig, TrainConfig

LossSum = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
"""(model, batch) -> (sum of losses, weight); the weight must not depend on the model."""

BACKBONE = "backbone"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Biases, norms and embeddings are not decayed; the backbone learns at its own share of the rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            decays = p.ndim >= 2 and "embedding" not in name
            groups.setdefault(("backbone." in name, decays), []).append(p)
    parameters = [
        {"params": group, "weight_decay": config.weight_decay if decays else 0.0, "name": _group_name(backbone, decays)}
        for (backbone, decays), group in sorted(groups.items(), key=lambda entry: entry[0])
    ]
    rate = config.learning_rate
    match config.name:
        case "adamw":
            return torch.optim.AdamW(parameters, lr=rate)
        case "adam":
            return torch.optim.Adam(parameters, lr=rate)
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=rate)
        case "sgd":
            return torch.optim.SGD(parameters, lr=rate, momentum=0.9)


def _group_name(backbone: bool, decays: bool) -> str:
    return f"{BACKBONE if backbone else 'rest'}-{'decayed' if decays else 'plain'}"


def choose_precision(config: EngineConfig, device: torch.device) -> str:
    """`auto` is bf16 on a GPU that has it, fp32 on a CPU, where half precision is emulated and many times slower."""
    if config.precision != "auto":
        return config.precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


class _Objective(nn.Module):
    """Model and loss as one module whose output is a tensor, in mixed precision where that is asked for.

    ZeRO-3 gathers and frees parameters by hooks on the tensors that a module returns, and finds none in a dataclass;
    DistributedDataParallel tells by the output which parameters take no part. DeepSpeed casts parameters but not our
    batches, and undoes an autocast around it: so it stands inside.
    """

    def __init__(self, model: nn.Module, loss: LossSum, device: torch.device, precision: str) -> None:
        super().__init__()
        self.model, self.loss = model, loss
        self._autocast: dict[str, Any] = {
            "device_type": device.type,
            "dtype": DTYPES[precision],
            "enabled": precision != "fp32",
        }

    def forward(self, batch: Batch) -> Tensor:
        with torch.autocast(**self._autocast):
            return self.loss(self.model, batch)[0]


class Engine:
    """Plain torch: one process, or DistributedDataParallel where a process group exists."""

    zero_stage = 0

    def __init__(self, model: nn.Module, loss: LossSum, config: TrainConfig, device: torch.device) -> None:
        self.module, self.loss, self.config, self.device = model.to(device), loss, config, device
        self.precision = choose_precision(config.engine, device)
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.step_count = 0
        self.objective = _Objective(self.module, loss, device, self.precision)
        self._start()

    def _start(self) -> None:
        if self.precision == "fp16":
            raise ValueError("engine.precision fp16 needs engine.kind deepspeed (it scales the loss)")
        self.optimizer: Any = make_optimizer(self.config.optimizer, self.module)
        self.model: Any = self.objective
        if self.world_size > 1:
            # Without prices, or with half of the model switched off, some parameters take no part in the loss.
            self.model = nn.parallel.DistributedDataParallel(self.objective, find_unused_parameters=True)

    def train_step(self, batches: Sequence[Batch], learning_rate: float) -> float:
        """One optimizer step over the micro-batches of this worker; returns the mean loss of the global batch.

        The weight is reduced over workers and micro-batches before scaling, so any split of the same global batch
        gives the same step.
        """
        batches = [batch.to(self.device) for batch in batches]
        weight = self._reduce(sum((_weight(batch) for batch in batches), torch.zeros((), device=self.device)))
        for group in self.optimizer.param_groups:
            share = self.config.optimizer.backbone_share if group["name"].startswith(BACKBONE) else 1.0
            group["lr"] = learning_rate * share
        scale = self.world_size / weight.clamp(min=1.0)
        loss_sum = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            loss_sum += self._backward(batch, scale, last=i == len(batches) - 1)
        self._step()
        self.step_count += 1
        return float(self._reduce(loss_sum) / weight.clamp(min=1.0))

    def _backward(self, batch: Batch, scale: Tensor, *, last: bool) -> Tensor:
        if self.world_size > 1 and not last:
            with self.model.no_sync():
                return self._forward_backward(batch, scale)
        return self._forward_backward(batch, scale)

    def _forward_backward(self, batch: Batch, scale: Tensor) -> Tensor:
        loss: Tensor = self.model(batch)
        (loss * scale).backward()
        return loss.detach()

    def _step(self) -> None:
        if self.config.optimizer.clip_norm > 0:  # 0 turns it off, as in DeepSpeed
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _reduce(self, value: Tensor) -> Tensor:
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def weights(self) -> dict[str, Tensor]:
        """Full-precision copies of all parameters and persistent buffers, on the CPU, on every worker."""
        return {name: value.detach().float().cpu().clone() for name, value in self.module.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self.module.load_state_dict(weights)

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        """Checkpoint for resuming (a pickle: for trusted storage only). Every worker calls it."""
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            state = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state | {"step": self.step_count, "extra": extra}, folder / "torch.pt")

    def load(self, folder: Path) -> dict[str, Any]:
        """Inverse of `save`; returns `extra`."""
        state = torch.load(folder / "torch.pt", map_location=self.device, weights_only=False)
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count = state["step"]
        return dict(state["extra"])


class DeepSpeedEngine(Engine):
    """The same over DeepSpeed: ZeRO stages, mixed precision with loss scaling, its own clipping and checkpoints."""

    def _start(self) -> None:
        deepspeed = import_deepspeed()
        if not dist.is_initialized():
            raise ValueError("engine.kind deepspeed needs a process group: start it through Ray Train or torchrun")
        # Ours is built by hand: a name in the JSON would make DeepSpeed compile a fused optimizer of its own.
        optimizer = make_optimizer(self.config.optimizer, self.module)
        self.model, self.optimizer, _, _ = deepspeed.initialize(
            model=self.objective,
            optimizer=optimizer,
            config=deepspeed_config(self.config, self.precision, self.world_size),
        )
        self.zero_stage = int(self.model.zero_optimization_stage())

    def _backward(self, batch: Batch, scale: Tensor, *, last: bool) -> Tensor:
        loss: Tensor = self.model(batch)
        # DeepSpeed divides by the number of micro-batches; ours is already the share of the whole.
        self.model.backward(loss * scale * self.config.engine.accumulation)
        self.model.step()
        return loss.detach()

    def _step(self) -> None:
        """`step` of the last micro-batch has done it."""

    def weights(self) -> dict[str, Tensor]:
        if self.zero_stage < 3:
            return super().weights()
        deepspeed = import_deepspeed()
        parameters = list(self.module.parameters())
        with deepspeed.zero.GatheredParameters(parameters):
            return super().weights()

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        deepspeed = import_deepspeed()
        if self.zero_stage < 3:
            return super().load_weights(weights)
        with deepspeed.zero.GatheredParameters(list(self.module.parameters()), modifier_rank=0):
            if self.rank == 0:
                super().load_weights(weights)

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        self.model.save_checkpoint(str(folder), tag="ds", client_state={"step": self.step_count, "extra": extra})

    def load(self, folder: Path) -> dict[str, Any]:
        path, state = self.model.load_checkpoint(str(folder), tag="ds")
        if path is None:
            raise ValueError(f"no DeepSpeed checkpoint in {folder}")
        self.step_count = state["step"]
        return dict(state["extra"])


def make_engine(model: nn.Module, loss: LossSum, config: TrainConfig, device: torch.device) -> Engine:
    kind = DeepSpeedEngine if config.engine.kind == "deepspeed" else Engine
    return kind(model, loss, config, device)


def import_deepspeed() -> Any:
    """DeepSpeed without a compiler: on a CPU it would build a shared-memory extension that gloo does not need."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def deepspeed_config(config: TrainConfig, precision: str, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON of these settings."""
    accumulation = config.engine.accumulation
    micro = config.batch_size // (world_size * accumulation)
    if micro * world_size * accumulation != config.batch_size:
        raise ValueError(
            f"batch_size {config.batch_size} is not a multiple of workers x accumulation = "
            f"{world_size} x {accumulation}"
        )
    return {
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.optimizer.clip_norm,
        "zero_optimization": {"stage": config.engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _weight(batch: Batch) -> Tensor:
    assert batch.targets is not None, "training needs labels"
    return batch.targets.mature.sum()
