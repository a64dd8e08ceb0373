"""Samples (customers at an origin, as numpy arrays) and padded batches of them as torch tensors, with event dropout."""

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
    """Outcomes of B customers at H horizons."""

    value: Tensor  # Shape: (B, H), in units of the model's value scale
    orders: Tensor  # Shape: (B, H)
    observed: Tensor  # Shape: (B, H), 0 where the horizon ends after the data
    # Shape: (H,). The average value of a horizon, by which errors of value are divided, so that neither a long horizon
    # nor a shop of expensive baskets drowns the other losses.
    unit: Tensor = field(default_factory=lambda: torch.ones(1))


@dataclass(frozen=True)
class Batch:
    """B customers at their origins with T tokens each: events, oldest first, or the word pieces of a text.

    Padding follows the tokens. The curves are cumulative over the horizons: hazard = -log P(no purchase),
    repeats = E[(orders - 1)+], value in units of the model's value scale.
    """

    scalars: Tensor  # Shape: (B, T, 9); (B, T, 0) for a text
    codes: Tensor  # Shape: (B, T, 6); (B, T, 1) for a text, its word pieces
    mask: Tensor  # Shape: (B, T), 1 for a token, 0 for padding
    item: Tensor  # Shape: (L,), item indices of all tokens
    item_token: Tensor  # Shape: (L,), which of the B * T tokens an item belongs to
    wide: Tensor  # Shape: (B, F)
    base_hazard: Tensor  # Shape: (B, H), as base_repeats and base_value: the forecast of the BTYD model
    base_repeats: Tensor
    base_value: Tensor
    population_average: Tensor  # Shape: (B, 3, H): mean hazard, repeats, value, with the origin's seasonal factor
    targets: Targets | None = None

    @property
    def start_curves(self) -> dict[str, tuple[Tensor, ...]]:
        """(hazard, repeats, value), (B, H) each, of the customer's BTYD model and of the population average."""
        return {
            "btyd": (self.base_hazard, self.base_repeats, self.base_value),
            "population_average": self.population_average.unbind(1),
        }

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
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
    """Everything that a model needs of S samples, named as in `Batch` and `Targets`; `batch` pads some of them."""

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
        """(S,) tokens of each sample."""
        return self.tokens.lengths

    def batch(
        self,
        rows: NDArray[np.int64],
        *,
        drop: float = 0.0,
        seed: int | None = None,
        part: tuple[int, int] | None = None,
    ) -> Batch:
        """Padded batch of `rows`.

        drop: probability that an event other than the newest is left out; where it is positive, one row in four is also
        truncated to a random number of its newest events. Both are drawn from `seed`. part (i, n): every n-th row from
        the i-th on, chosen after the draw, so that a row loses the same events however a batch is shared.
        """
        t = self.tokens
        start, stop = t.offsets[rows], t.offsets[rows + 1]
        index = ranges(start, stop)
        row = np.repeat(np.arange(len(rows)), stop - start)
        if drop > 0 and len(index):
            rng = np.random.default_rng(seed)
            newest = index == np.repeat(stop - 1, stop - start)
            keep = rng.random(len(index)) >= drop
            shorten = rng.random(len(rows)) < 0.25
            num_kept = np.where(shorten, np.ceil(rng.random(len(rows)) * (stop - start)), stop - start)
            keep &= (np.repeat(stop, stop - start) - index) <= num_kept[row]
            index, row = index[keep | newest], row[keep | newest]
        if part is not None:
            first, num_parts = part
            in_part = row % num_parts == first
            index, row, rows = index[in_part], row[in_part] // num_parts, rows[first::num_parts]
        targets = None
        if self.value is not None and self.orders is not None and self.observed is not None:
            targets = Targets(
                torch.from_numpy(self.value[rows]),
                torch.from_numpy(self.orders[rows]),
                torch.from_numpy(self.observed[rows].astype(np.float32)),
                torch.ones(1) if self.unit is None else torch.from_numpy(self.unit),
            )
        arrays = self.tokens.pad(index, row, len(rows))
        curves = ("base_hazard", "base_repeats", "base_value", "population_average")
        arrays |= {name: getattr(self, name)[rows] for name in ("wide", *curves)}
        return Batch(**{name: torch.from_numpy(array) for name, array in arrays.items()}, targets=targets)

    def batches_by_length(self, batch_size: int) -> Iterator[NDArray[np.int64]]:
        """Rows in batches of similar length, for prediction; every row once."""
        order = np.argsort(self.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]
