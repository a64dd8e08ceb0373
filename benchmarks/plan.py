"""Memory of a training step: `clv.train.estimate` against a count, for shapes its constants were not fitted to.

`python -m benchmarks.plan`. Counted: bytes of all tensors that live at once, on a CPU; peaks of the allocator on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clv.data.clock import Clock
from clv.data.histories import Histories, build
from clv.models.config import BackboneConfig, ModelConfig
from clv.models.inputs.batch import Batch
from clv.models.inputs.feature_space import Items
from clv.simulate.small import simulate
from clv.train import estimate
from clv.train.config import TrainConfig
from clv.train.engines.factory import make_engine
from clv.train.fitting import Dataset, Setup, prepare
from clv.train.loop import Average, sum_loss


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside the block that live at once; `peak` is their most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._note(value.untyped_storage())
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def held_bytes(root: Any) -> int:
    """Bytes of the distinct storages of all tensors that `root` holds, at any depth."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_of(root)}.values())


def tensors_of(root: Any) -> Iterator[torch.Tensor]:
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or isinstance(one, type | FunctionType | ModuleType | str | int | float):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            yield one
            waiting += [one.grad, getattr(one, "ds_tensor", None)]
        elif isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset):
            waiting += one
        elif hasattr(one, "__dict__"):
            waiting += vars(one).values()


class Case(NamedTuple):
    """A shape, and how its step is computed."""

    width: int
    num_layers: int
    num_heads: int
    tokens: int
    batch: int
    recompute: bool = False


# The law's constants were fitted to other shapes: one to six layers of 64 to 256, 32 to 128 tokens.
CASES = (
    Case(192, 3, 6, 48, 16),
    Case(320, 5, 5, 80, 8),
    Case(160, 5, 5, 64, 16, recompute=True),
    Case(320, 5, 5, 80, 8, recompute=True),
)


def predicted(case: Case, setup: Setup) -> tuple[TrainConfig, estimate.Size, estimate.Memory]:
    shape = {"width": case.width, "num_layers": case.num_layers, "num_heads": case.num_heads}
    backbone = BackboneConfig(**shape, intermediate=4 * case.width, max_tokens=case.tokens)
    config = TrainConfig(model=ModelConfig(backbone=backbone), batch_size=case.batch)
    config = config.with_engine(kind="torch", activation_checkpointing=case.recompute)
    size = estimate.size_of(config, setup.assembler.space, len(setup.assembler.horizons))
    told = estimate.memory(
        size,
        config,
        workers=1,
        stage=0,
        precision="fp32",
        tokens=case.batch * case.tokens,
        fused_attention=False,
    )
    return config, size, told


def counted(config: TrainConfig, setup: Setup, batch: Batch) -> tuple[int, int]:
    """Bytes that are held between steps, and the most that live at once within one beyond them."""
    engine = make_engine(setup.model(config), sum_loss(config, True), config, torch.device("cpu"))
    engine.module.train()
    average = Average(config.ema_decay)
    for _ in range(2):
        engine.train_step([batch], 1e-4)
        average.update(engine.live())
    held = held_bytes([engine.module, engine.optimizer.state, average.weights])
    with PeakBytes() as counter:
        engine.train_step([batch], 1e-4)
    return held, counter.peak


def compared(cases: Sequence[Case] = CASES) -> list[tuple[Case, estimate.Memory, int, int]]:
    """(case, predicted, held, peak beyond it) of every case."""
    found = []
    for case in cases:
        setup, histories = shop(case)
        config, _, told = predicted(case, setup)
        samples = setup.source(histories, config).epoch(0)
        batch = samples.batch(np.argsort(-samples.lengths)[: case.batch])
        assert batch.mask.shape[1] == case.tokens, batch.mask.shape
        found.append((case, told, *counted(config, setup, batch)))
    return found


def shop(case: Case) -> tuple[Setup, Dataset]:
    clock = Clock("UTC")
    table = build(simulate(300, "2020-01-01", "2023-12-31", seed=0).events, clock)
    end = clock.parse("2024-01-01")
    made = Dataset(Histories.from_table(table), clock, "gross", (30, 90), Items.empty(), end)
    backbone = BackboneConfig(max_tokens=case.tokens)
    return prepare(made, end, TrainConfig(model=ModelConfig(backbone=backbone)), 30), made


def main() -> None:
    torch.set_num_threads(1)
    print("| shape | held: predicted | counted | in a step: predicted | counted | ratio of the sums |")
    print("|---|---|---|---|---|---|")
    for case, told, held, peak in compared():
        mib = 2**20
        kept = told.weights + told.optimizer + told.average
        moving = told.passing + told.gradients
        name = f"{case.num_layers}x{case.width}, {case.batch} x {case.tokens} tokens"
        print(
            f"| {name}{', checkpointing' if case.recompute else ''} | {kept / mib:.1f} MiB | {held / mib:.1f} "
            f"| {moving / mib:.1f} MiB | {peak / mib:.1f} | {(kept + moving) / (held + peak):.2f} |"
        )


if __name__ == "__main__":
    main()
