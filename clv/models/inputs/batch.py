"""Batches: rows of a cut as padded tensors. Flat arrays in, one fancy index per tensor, no loop over customers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clv.data.histories import ranges
from clv.models.inputs.tokens import TextArrays, TokenArrays


@dataclass(frozen=True)
class Targets:
    """Outcomes per horizon, (B, H); value in units of the model's money scale; fully observed is 0 where nothing is known.

    unit (H,): the typical value of a horizon, by which errors of value are divided, so that neither a long horizon nor
    a shop of dear baskets drowns the other losses.
    """

    value: Tensor
    orders: Tensor
    observed: Tensor
    unit: Tensor = field(default_factory=lambda: torch.ones(1))


@dataclass(frozen=True)
class Batch:
    """B customers at their origins, T tokens (events oldest first, or a text; padded at the end).

    base_*: what the BTYD model expects by each horizon, cumulative, (B, H): hazard = -log P(no purchase),
    repeats = E[(orders - 1)+], value in units of the model's money scale. typical: the same of a mean customer at the
    cut, at the level of the row's origin.
    """

    scalars: Tensor  # (B, T, 9); of a text (B, T, 0)
    codes: Tensor  # (B, T, 6); of a text (B, T, 1), its word pieces
    mask: Tensor  # (B, T), 1 for a token
    item: Tensor  # (L,) item indices of all lines
    item_bag: Tensor  # (L,) which of the B * T places a line belongs to
    wide: Tensor  # (B, F)
    base_hazard: Tensor
    base_repeats: Tensor
    base_value: Tensor
    population_average: Tensor  # (B, 3, H): hazard, repeats, value of the population average
    targets: Targets | None = None

    @property
    def starts(self) -> dict[str, tuple[Tensor, ...]]:
        """(hazard, repeats, value), (B, H) each, of this customer's BTYD model and of the population average."""
        return {
            "btyd": (self.base_hazard, self.base_repeats, self.base_value),
            "population_average": self.population_average.unbind(1),
        }

    def to(self, device: torch.device | str) -> Batch:
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        targets = moved.pop("targets")
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in moved.items()}
        if targets is not None:
            targets = Targets(*(getattr(targets, f.name).to(device, non_blocking=True) for f in fields(targets)))
        return Batch(**moved, targets=targets)

    def __len__(self) -> int:
        return len(self.wide)


@dataclass(frozen=True)
class Samples:
    """Everything a model needs of S rows, as numpy: `batch(rows)` pads and converts some of them."""

    tokens: TokenArrays | TextArrays
    wide: NDArray[np.float32]
    base_hazard: NDArray[np.float32]
    base_repeats: NDArray[np.float32]
    base_value: NDArray[np.float32]
    population_average: NDArray[np.float32]
    value: NDArray[np.float32] | None = None
    orders: NDArray[np.float32] | None = None
    observed: NDArray[np.bool_] | None = None
    unit: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.wide)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.tokens.lengths

    def batch(
        self,
        rows: NDArray[np.int64],
        *,
        drop: float = 0.0,
        seed: int | None = None,
        part: tuple[int, int] | None = None,
    ) -> Batch:
        """Padded batch of `rows`. `drop` > 0 leaves out each event but the newest with that probability, and truncates
        one row in four to a random number of its newest events; both drawn from `seed`. `part` (i, n) takes every n-th
        row from the i-th on, after the draw: however a batch is shared, each row loses the same events."""
        t = self.tokens
        start, stop = t.offsets[rows], t.offsets[rows + 1]
        index = ranges(start, stop)
        place = np.repeat(np.arange(len(rows)), stop - start)
        if drop > 0 and len(index):
            rng = np.random.default_rng(seed)
            newest = index == np.repeat(stop - 1, stop - start)
            keep = rng.random(len(index)) >= drop
            shorten = rng.random(len(rows)) < 0.25
            num_kept = np.where(shorten, np.ceil(rng.random(len(rows)) * (stop - start)), stop - start)
            keep &= (np.repeat(stop, stop - start) - index) <= num_kept[place]
            index, place = index[keep | newest], place[keep | newest]
        if part is not None:
            first, num_parts = part
            mine = place % num_parts == first
            index, place, rows = index[mine], place[mine] // num_parts, rows[first::num_parts]
        tokens = {n: torch.from_numpy(a) for n, a in self.tokens.padded(index, place, len(rows)).items()}
        targets = None
        if self.value is not None and self.orders is not None and self.observed is not None:
            targets = Targets(
                torch.from_numpy(self.value[rows]),
                torch.from_numpy(self.orders[rows]),
                torch.from_numpy(self.observed[rows].astype(np.float32)),
                torch.ones(1) if self.unit is None else torch.from_numpy(self.unit),
            )
        return Batch(
            **tokens,
            wide=torch.from_numpy(self.wide[rows]),
            base_hazard=torch.from_numpy(self.base_hazard[rows]),
            base_repeats=torch.from_numpy(self.base_repeats[rows]),
            population_average=torch.from_numpy(self.population_average[rows]),
            base_value=torch.from_numpy(self.base_value[rows]),
            targets=targets,
        )

    def in_order_of_length(self, batch_size: int) -> Iterator[NDArray[np.int64]]:
        """Rows in batches of similar length, for prediction; every row once."""
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]
