"""The training engine: forward, backward, optimizer step, checkpoints. Plain torch here, DeepSpeed in a subclass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clv.models.adapters import adalora
from clv.models.inputs.batch import Batch
from clv.train.config import TrainConfig
from clv.train.engines.precision import DTYPES, choose_precision
from clv.train.optimizers import BACKBONE, make_optimizer, shares

LossSum = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
"""(model, batch) -> (sum of losses, weight); the weight must not depend on the model."""


class _Objective(nn.Module):
    """Model and loss as one module whose output is a tensor, in the precision of the run.

    ZeRO-3 gathers and frees parameters by hooks on the tensors that a module returns, and finds none in a dataclass;
    DistributedDataParallel finds unused parameters by the output. DeepSpeed casts parameters but not our batches, and
    undoes an autocast around the model, so the autocast is inside.
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
        if config.engine.activation_checkpointing:
            recompute_layers(self.module)
        if config.engine.compile:
            # In place, so that no parameter changes its name. Batches differ in length.
            self.module.get_submodule(BACKBONE).compile(dynamic=True)
        self.objective = _Objective(self.module, loss, device, self.precision)
        self._start()

    def _start(self) -> None:
        self.optimizer: Any = make_optimizer(self.config.optimizer, self.module)
        self.model: Any = self.objective
        if self.world_size > 1:
            # Without prices, or with half of the model switched off, the loss does not use some parameters.
            self.model = nn.parallel.DistributedDataParallel(self.objective, find_unused_parameters=True)

    def train_step(self, batches: Sequence[Batch], learning_rate: float, epochs: float = math.inf) -> float:
        """One optimizer step over the micro-batches of this worker; returns the mean loss of the global batch.

        epochs: completed epochs; layers that are still frozen by then do not change.

        The weight is reduced over workers and micro-batches before scaling, so any split of the same global batch
        gives the same step.
        """
        batches = [batch.to(self.device) for batch in batches]
        weight = self._reduce(sum((_weight(batch) for batch in batches), torch.zeros((), device=self.device)))
        groups = self.optimizer.param_groups
        for group, share in zip(
            groups, shares([g["name"] for g in groups], self.config.optimizer, epochs), strict=True
        ):
            group["lr"] = learning_rate * share
        scale = self.world_size / weight.clamp(min=1.0)
        loss_sum = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            loss_sum += self._backward(batch, scale, last=i == len(batches) - 1)
        self._step()
        if self.config.prunes:
            adalora.prune(self.module, epochs)
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
        self._observe()
        if self.config.optimizer.clip_norm > 0:  # 0 turns it off, as in DeepSpeed
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _observe(self) -> None:
        """Runs once the gradients of a step are complete, before the update."""
        if self.config.prunes:
            adalora.update_importance(self.module)

    def _reduce(self, value: Tensor) -> Tensor:
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def random(self) -> tuple[Tensor, ...]:
        """States of all workers' random generators, on every worker; every worker calls it."""
        state = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else torch.get_rng_state()
        if self.world_size == 1:
            return (state,)
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, state)
        return tuple(found)

    def set_random(self, states: tuple[Tensor, ...]) -> None:
        """Inverse of `random`; with another number of workers each continues from one of the saved states."""
        state = states[self.rank % len(states)]
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)

    def live(self) -> dict[str, Tensor]:
        """The weights that this worker holds, on its device, not copied: all of them, or its shard under ZeRO-3."""
        return dict(self.module.state_dict())

    def whole(self, live: dict[str, Tensor]) -> dict[str, Tensor]:
        """Complete tensors, gathered from those that the workers hold as `live` returns them; every worker calls it."""
        return live

    def share(self, whole: dict[str, Tensor]) -> dict[str, Tensor]:
        """Inverse of `whole`."""
        return {name: value.to(self.device) for name, value in whole.items()}

    def weights(self) -> dict[str, Tensor]:
        """Full-precision copies of all parameters and persistent buffers, on the CPU, on every worker."""
        return {name: value.detach().float().cpu().clone() for name, value in self.module.state_dict().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Inverse of `weights`."""
        self.module.load_state_dict(weights)

    def save(self, folder: Path) -> None:
        """Checkpoint for resuming (a pickle: for trusted storage only). Every worker calls it."""
        if self.rank == 0:
            state = {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state | {"step": self.step_count}, folder / "torch.pt")

    def load(self, folder: Path) -> None:
        """Inverse of `save`, with any number of workers."""
        state = torch.load(folder / "torch.pt", map_location=self.device, weights_only=False)
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count = state["step"]


def recompute_layers(model: nn.Module) -> None:
    """Makes the transformer layers of `model` keep only their inputs and run again in the backward pass.

    Raises ValueError for a model without such layers.
    """
    found = [m for m in model.modules() if getattr(m, "supports_gradient_checkpointing", False)]
    if not found:
        raise ValueError("engine.activation_checkpointing needs a transformer backbone: bert or gpt2")
    module: Any
    for module in found:
        module.config.use_cache = False
        module.activation_checkpointing_enable()


def _weight(batch: Batch) -> Tensor:
    assert batch.targets is not None, "training needs labels"
    return batch.targets.observed.sum()
