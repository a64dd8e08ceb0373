"""Item catalogue of a simulated shop: text, category path and price; popularity follows Zipf's law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.simulate.truth import Ints

CATEGORIES = (
    "Home / Kitchen",
    "Home / Garden",
    "Gifts / Cards",
    "Gifts / Toys",
    "Clearance / Last chance",
    "Club / Refill",
)
PLAIN = FADING = 4  # every customer buys from the first four; customers whose rate falls or rises turn to the others
GROWING = 5
_LOOKS = ("red", "blue", "green", "white", "paper", "glass", "wooden", "small")


@dataclass(frozen=True)
class Catalogue:
    """`table`: item_id, text, category, price. Item c * per_category + j is the j-th most popular of category c."""

    table: pd.DataFrame
    per_category: int
    zipf: float

    @classmethod
    def draw(cls, rng: np.random.Generator, num_items: int, zipf: float) -> Catalogue:
        """Draws texts and prices of about `num_items` items; `zipf` is the exponent of popularity, 0 for uniform."""
        each = num_items // len(CATEGORIES)
        code = np.arange(len(CATEGORIES) * each)
        category = np.array(CATEGORIES, dtype=object)[code // each]
        words = [name.split(" / ")[1].lower() for name in category]
        text = [f"{_LOOKS[i % 8]} {word} article {i}" for i, word in enumerate(words)]
        price = np.round(rng.lognormal(1.5, 0.6, len(code)), 2)
        ids = [f"I{i:04d}" for i in code]
        return cls(pd.DataFrame({"item_id": ids, "text": text, "category": category, "price": price}), each, zipf)

    def pick(self, rng: np.random.Generator, category: Ints) -> Ints:
        """Draws an item of each given category."""
        if self.zipf <= 0:
            return category * self.per_category + rng.integers(0, self.per_category, len(category))
        share = np.cumsum(np.arange(1, self.per_category + 1) ** -self.zipf)
        return category * self.per_category + np.searchsorted(share / share[-1], rng.random(len(category)))

    def by_taste(self, rng: np.random.Generator, favourite: Ints) -> Ints:
        """Draws an item per row, with probability 2/3 of the `favourite` category, where that is not -1."""
        any_category = rng.integers(0, PLAIN, len(favourite))
        follows = (favourite >= 0) & (rng.random(len(favourite)) < 2 / 3)
        return self.pick(rng, np.where(follows, favourite, any_category))

    @property
    def ids(self) -> NDArray[np.object_]:
        """Item ids by item number."""
        return self.table["item_id"].to_numpy(object)
