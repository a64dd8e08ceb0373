"""Memory of a training step, predicted by `clv.train.plan` and counted, for shapes its constants were not fitted to.

`python -m benchmarks.plan`. Counted: bytes of all tensors that live at once, on a CPU; peaks of the allocator on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
