"""Settings of a simulated shop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from clv.data.clock import DAY_US, Clock
from clv.simulate.truth import Floats

_SEASON_PEAK_DAY = 330  # of the year: late November
_PROMOTIONS = ((164, 5), (328, 6))  # (day of the year, days): mid-June and the end of November
YEAR = 365.2425


@dataclass(frozen=True, kw_only=True)
class ShopSettings:
    """A log from `start` to before `end` (local dates); activities that are 0 or None by default are off."""

    num_customers: int = 2_000
    start: str = "2023-01-01"
    end: str = "2025-01-01"
    seed: int = 0
    timezone: str = "UTC"
    rate: tuple[float, float] = (2.0, 60.0)
    """BG/NBD purchase rate λ: (r, α in days)."""
    dropout: tuple[float, float] | None = (0.8, 8.0)
    """BG/NBD dropout probability after a repeat purchase: (a, b); None for customers who never leave."""
    spend: tuple[float, float, float] = (5.0, 6.0, 30.0)
    """Gamma-Gamma spend per order: (p, q, v)."""
    spend_follows_rate: float = 0.4
    """Power of λ in the mean spend."""
    season: float = 0.4
    """Amplitude of the log season, which peaks in November."""
    drift: float = 0.0
    """Log growth of all purchase rates per year."""
    regularity: int = 4
    """Erlang shape of the times between purchases; 1 is a Poisson process."""
    changes_per_year: float = 1.5
    """Life changes of a customer, after which the purchase rate is another."""
    views_per_purchase: float = 1.5
    """Views of an item before its purchase, in a shop without sessions."""
    return_share: float = 0.0
    """Share of order lines that are sent back."""
    acquired_over: float = 0.6
    """Share of the log, from its start, in which customers arrive."""
    visitors: float = 0.0
    """Share of customers who visit before they buy, if they ever buy."""
    sessions: float = 0.0
    """Browsing sessions per purchase of a customer who has not left."""
    tastes: float = 0.0
    """Log spread of rate and spend between buyers of the categories."""
    promotion: float = 0.0
    """Log lift of demand in the promotion weeks."""
    late_share: float = 0.0
    """Share of events that become known only hours or days later."""
    review_share: float = 0.0
    """Share of order lines that are rated, one in three of them with a text."""
    ads_per_month: float = 0.0
    """Advertisement impressions per customer."""
    coupons: tuple[int, float, float] | None = None
    """(days between campaigns, share treated, extra orders per treated customer who has not left)."""
    num_items: int = 240
    zipf: float = 0.0
    """Exponent of the popularity of items; 0 for equal popularity."""

    def __post_init__(self) -> None:
        if self.num_customers < 1 or self.regularity < 1 or self.spend[1] <= 1:
            raise ValueError(
                f"num_customers {self.num_customers}, regularity {self.regularity}, spend q {self.spend[1]}: "
                "need >= 1, >= 1 and > 1"
            )
        if self.num_days < 2:
            raise ValueError(f"{self.start} to {self.end} are {self.num_days} days: simulate at least 2")
        if self.num_items < 12:
            raise ValueError(f"num_items {self.num_items}: a catalogue has at least 12 items")

    @classmethod
    def full(cls, **settings: Any) -> Self:
        """Settings with every kind of activity on: about ten events per customer and year."""
        everything: dict[str, Any] = {
            "rate": (1.2, 110.0), "dropout": (0.9, 3.5), "visitors": 0.5, "sessions": 1.5, "tastes": 0.3,
            "promotion": 0.5, "late_share": 0.02, "review_share": 0.05, "ads_per_month": 0.1, "return_share": 0.05,
            "coupons": (61, 0.3, 0.1), "num_items": 5_000, "zipf": 1.0, "regularity": 2, "acquired_over": 0.9,
        }  # fmt: skip
        return cls(**(everything | settings))

    def exact_btyd(self) -> Self:
        """Settings of the same shop with BG/NBD and Gamma-Gamma as the truth."""
        return replace(
            self, spend_follows_rate=0.0, season=0.0, drift=0.0, changes_per_year=0.0, views_per_purchase=0.0,
            return_share=0.0, regularity=1, visitors=0.0, sessions=0.0, tastes=0.0, promotion=0.0, coupons=None,
        )  # fmt: skip

    @property
    def clock(self) -> Clock:
        """The shop's clock."""
        return Clock(self.timezone)

    @property
    def start_us(self) -> int:
        """Start of the log (us UTC)."""
        return self.clock.parse(self.start)

    @property
    def start_day(self) -> int:
        """Local day on which the log starts, since 1970-01-01."""
        return int(self.clock.local_day(self.start_us))

    @property
    def num_days(self) -> int:
        """Length of the log in local days."""
        return int(self.clock.local_day(self.clock.parse(self.end))) - self.start_day

    def season_time(self) -> Floats:
        """Returns S at days 0 to num_days: the cumulative season × drift × promotions, about 1 per day on average."""
        day = self.start_day + np.arange(self.num_days) + 0.5
        angle = 2 * np.pi * (day - _SEASON_PEAK_DAY) / YEAR
        # Day 0 is 1970-01-01, so that the day modulo the year is the day of the year.
        demand = np.exp(self.season * np.cos(angle) + self.drift * np.arange(self.num_days) / YEAR)
        for first, length in _PROMOTIONS:
            demand[(day - first) % YEAR < length] *= np.exp(self.promotion)
        return np.append(0.0, np.cumsum(demand / np.i0(self.season)))

    def day_of(self, instant_us: int) -> float:
        """Days from the start of the log to an instant (us UTC)."""
        return (instant_us - self.start_us) / DAY_US

    def campaigns(self) -> Floats:
        """Returns the days on which coupons are sent, at noon."""
        every = self.coupons[0] if self.coupons else self.num_days
        return np.asarray(np.arange(every, self.num_days, every) + 0.5, np.float64)
