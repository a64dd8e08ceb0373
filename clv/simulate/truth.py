"""Expected orders and value of simulated customers, in closed form from their latent parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.data.clock import DAY_US, Clock

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CHANGE_NODES = 24


@dataclass(frozen=True)
class Truth:
    """Latent parameters per customer, (N,), and the state from which expectations at any origin follow.

    Days are float days since `start`. `phase_*` are the hits of the process that counts k per purchase, CSR by
    `phase_offsets`, in operational time.
    """

    customer_id: NDArray[np.object_]
    first: Floats  # day of the first purchase, inf for customers who never buy
    rate: Floats  # λ, purchases a day before season, drift and change
    change: Floats  # day of the life change, inf for none
    factor: Floats  # of the rate after the change
    leave: Floats  # p
    order_value: Floats  # expected value of an order, shop currency
    last_order: Ints  # number of the repeat purchase after which the customer leaves
    phase_offsets: Ints
    phase_time: Floats
    regularity: int
    change_per_day: float
    notice_days: float  # how long before the change the baskets show it
    season_time: Floats  # S at the end of each day, from 0
    start_day: int
    clock: Clock
    arrival: Floats  # day of the first visit; of customers who buy at once that of the first purchase
    convert: Floats  # a visitor's first purchases a day while interested; inf for customers who buy at once
    lost: Floats  # day on which a visitor loses interest, inf for none
    loss_per_day: float
    favourite: Ints  # category, -1 for none
    segment: Ints
    propensity: Floats  # chance of a coupon at each campaign
    uplift: Floats  # extra orders that a coupon causes on the same day, of a customer who has not left
    campaigns: Floats  # days

    def expected(self, origin: str, horizon_days: float) -> pd.DataFrame:
        """Forecasts orders and value (gross) in [origin, origin + horizon) of all customers who arrived before.

        Given the latent parameters and state at the origin (alive, time since the last purchase, life changes that have
        happened or are announced; of a visitor, whether still interested) and the policy of coupons, this is the best
        possible forecast: closed form up to quadrature over the time of a change or a first purchase. Returns the
        columns `customer_id`, `orders`, `value`. Raises ValueError for a window outside the simulation.
        """
        day = (self.clock.parse(origin) - int(self.clock.day_start(self.start_day))) / DAY_US
        end = day + horizon_days
        if day <= 0 or end > len(self.season_time) - 1:
            raise ValueError(
                f"[{origin}, + {horizon_days:g} days) leaves the simulation: stay within the "
                f"{len(self.season_time) - 1} days from its start"
            )
        known = np.flatnonzero(self.arrival < day)
        buyer = self.first[known] < day
        orders = np.zeros(len(known))
        for some, ahead in ((buyer, self._repeats), (~buyer, self._conversions)):
            who = known[some]
            customers, repeats = ahead(who, day, end)
            orders[some] = repeats if ahead == self._repeats else customers + repeats
            for campaign in self.campaigns[(self.campaigns >= day) & (self.campaigns < end)]:
                customers, repeats = ahead(who, day, campaign)
                # A customer leaves with a fixed probability after each repeat purchase: so many are still active.
                here = customers - self.leave[who] * repeats
                orders[some] += self.propensity[who] * self.uplift[who] * here
        return pd.DataFrame(
            {"customer_id": self.customer_id[known], "orders": orders, "value": orders * self.order_value[known]}
        )

    def _repeats(self, who: Ints, day: float, end: float) -> tuple[Floats, Floats]:
        """Returns (1 where not left, orders expected in [day, end)) of customers who have bought."""
        hits, k = self._hits_before(day)[who], self.regularity
        alive = hits // k < self.last_order[who]
        announced = self.change[who] <= day + self.notice_days
        factor, leave = self.factor[who], self.leave[who]
        steady = self.rate[who] * (self.season_at(end) - self.season_at(day))
        ahead = (self.operational(end) - self.operational(day))[who]
        orders = mean_orders(np.where(announced, ahead, steady), hits % k, leave, k)
        soonest = day + self.notice_days
        may = np.flatnonzero(~announced & alive & (factor != 1))
        if self.change_per_day > 0 and len(may) and soonest < end:
            # A change not announced yet is exponential from `soonest` on; all times past the horizon are one node.
            nodes, weights = np.polynomial.legendre.leggauss(_CHANGE_NODES)
            when = soonest + (nodes + 1) / 2 * (end - soonest)
            wait = np.exp(-self.change_per_day * (when - soonest))
            density = weights / 2 * (end - soonest) * self.change_per_day * wait
            after = self.rate[who][may, None] * (self.season_at(end) - self.season_at(when))
            u = steady[may, None] + (factor[may, None] - 1) * after
            mixed = mean_orders(u, (hits[may] % k)[:, None], leave[may, None], k) @ density
            orders[may] = mixed + (1 - density.sum()) * orders[may]
        return alive.astype(np.float64), np.where(alive, orders, 0.0)

    def _conversions(self, who: Ints, day: float, end: float) -> tuple[Floats, Floats]:
        """Returns (new customers, their later orders) expected in [day, end) of visitors who have not bought."""
        nodes, weights = np.polynomial.legendre.leggauss(_CHANGE_NODES)
        wait = (nodes + 1) / 2 * (end - day)
        rate = self.convert[who, None]
        density = weights / 2 * (end - day) * rate * np.exp(-(rate + self.loss_per_day) * wait)
        density *= (self.lost[who] > day)[:, None]
        u = self.rate[who, None] * (self.season_at(end) - self.season_at(day + wait))
        later = mean_orders(u, np.zeros(u.shape, np.int64), self.leave[who, None], self.regularity)
        return np.asarray(density.sum(1)), np.asarray((density * later).sum(1))

    def season_at(self, day: Floats | float) -> Floats:
        """S(day): operational days of a customer with λ = 1 since the start."""
        return np.asarray(np.interp(day, np.arange(len(self.season_time)), self.season_time))

    def operational(self, day: Floats | float, who: Ints | slice = slice(None)) -> Floats:
        """u(day[i]) of customer who[i], by default of each customer; `day` is one day or one per customer."""
        first, change = self.first[who], self.change[who]
        day = np.maximum(day, first)
        before = self.season_at(np.minimum(day, change)) - self.season_at(first)
        after = np.maximum(self.season_at(day) - self.season_at(np.minimum(change, len(self.season_time) - 1)), 0)
        return np.asarray(self.rate[who] * (before + np.where(day > change, self.factor[who] * after, 0)))

    def _hits_before(self, day: float) -> Ints:
        owner = np.repeat(np.arange(len(self.first)), np.diff(self.phase_offsets))
        return np.bincount(owner[self.phase_time < self.operational(day)[owner]], minlength=len(self.first))


def mean_orders(u: Floats, phase: Ints, leave: Floats, k: int) -> Floats:
    """E[purchases] in operational time u, `phase` hits after the last, hits Poisson(ku), k per purchase.

    Without dropout E[M], M = ⌊(phase + N) / k⌋, with it (1 − E[(1−p)^M]) / p; both are exact by expanding the
    remainder modulo k in roots of unity ω: E[ω^(l(phase+N))] = ω^(l·phase) exp(ku(ω^l − 1)).
    """
    u, phase, leave = np.broadcast_arrays(u, phase, leave)
    stay = leave <= 1e-9
    root = np.exp(2j * np.pi * np.arange(k) / k)
    remainder = np.full(u.shape, (k - 1) / 2)
    for w in root[1:]:
        remainder = remainder + (w**phase * np.exp(k * u * (w - 1)) / (w - 1)).real
    plain = (k * u + phase - remainder) / k
    sigma = np.where(stay, 1.0, 1 - np.minimum(leave, 1 - 1e-12)) ** (1 / k)
    power = np.zeros(u.shape)
    step = np.arange(k)
    for w in root:
        share = ((sigma[..., None] * w) ** -step).mean(axis=-1)
        power = power + (share * (sigma * w) ** phase * np.exp(k * u * (sigma * w - 1))).real
    return np.asarray(np.where(stay, plain, (1 - power) / np.where(stay, 1.0, leave)))
