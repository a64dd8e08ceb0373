"""Simulate a small shop in memory, with the orders and value that were expected of each customer.

Every customer buys first at a random instant, then as a renewal process in *operational* time
    u(t) = λ [S(min(t, c)) − S(t₀) + f (S(t) − S(c))⁺],   S(t) = ∫ season · drift,
with rate λ ~ Gamma(r, α), gaps Erlang(k) of mean 1 in u, a life change at c (exponential, factor f), and leaves after
a repeat purchase with probability p ~ Beta(a, b). Spend per order is Gamma-Gamma, and its
mean depends on λ. A sequence model can learn what RFM does not contain: gaps are regular (k), baskets from 60 days
before c on are of other categories according to f, and views precede purchases; with `sessions`, customers who have
not left keep browsing. With `exact_btyd=True` all of this is off, and BG/NBD + Gamma-Gamma is the truth. The job
`ray_jobs.simulate` writes such shops of any size.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clv.simulate.log import Simulation, draw
from clv.simulate.settings import ShopSettings


def simulate(
    num_customers: int = 2_000,
    start: str = "2023-01-01",
    end: str = "2025-01-01",
    seed: int = 0,
    *,
    exact_btyd: bool = False,
    **settings: Any,
) -> Simulation:
    """Simulates a shop from `start` to before `end` (local dates); equal arguments give equal tables.

    `settings` are those of `ShopSettings`, which raises ValueError for impossible ones; `exact_btyd` makes BG/NBD +
    Gamma-Gamma the truth.

    Example: `simulate(500, seed=1).events.to_pandas()`.
    """
    shop = ShopSettings(num_customers=num_customers, start=start, end=end, seed=seed, **settings)
    return draw(np.random.default_rng(seed), shop.exact_btyd() if exact_btyd else shop, num_customers)
