"""What kind of shop is simulated."""

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
    """From `start` to before `end` (local dates). Everything after `acquired_over` is off unless given.

    rate (r, α in days), dropout (a, b) or None, spend (p, q, v): parameters of BG/NBD and Gamma-Gamma.
    spend_follows_rate: power of λ in the spend; season: amplitude of the log season (peak in November); drift: log
    growth of all rates per year; regularity: Erlang shape of gaps; changes_per_year: life changes of a customer;
    acquired_over: share of the log, from its start, over which customers come.
    visitors: share who look around before they buy, if they ever do. sessions: browsing sessions per purchase of a
    customer who has not left (in place of the views of views_per_purchase). tastes: log spread, between buyers of the
    categories, of rate and spend. promotion: log lift of demand in the promotion weeks. late_share: of events known
    only hours or days later. review_share: of purchase lines that are rated, one in three with a text.
    ads_per_month: impressions to a customer. coupons: (days between campaigns, share treated, extra orders per
    treated customer who has not left), or None.
    """

    num_customers: int = 2_000
    start: str = "2023-01-01"
    end: str = "2025-01-01"
    seed: int = 0
    timezone: str = "UTC"
    rate: tuple[float, float] = (2.0, 60.0)
    dropout: tuple[float, float] | None = (0.8, 8.0)
    spend: tuple[float, float, float] = (5.0, 6.0, 30.0)
    spend_follows_rate: float = 0.4
    season: float = 0.4
    drift: float = 0.0
    regularity: int = 4
    changes_per_year: float = 1.5
    views_per_purchase: float = 1.5
    return_share: float = 0.0
    acquired_over: float = 0.6
    visitors: float = 0.0
    sessions: float = 0.0
    tastes: float = 0.0
    promotion: float = 0.0
    late_share: float = 0.0
    review_share: float = 0.0
    ads_per_month: float = 0.0
    coupons: tuple[int, float, float] | None = None
    num_items: int = 240
    zipf: float = 0.0

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
        """A shop with everything on, about ten events per customer and year at the defaults of the rest."""
        everything: dict[str, Any] = {
            "rate": (1.2, 110.0), "dropout": (0.9, 3.5), "visitors": 0.5, "sessions": 1.5, "tastes": 0.3,
            "promotion": 0.5, "late_share": 0.02, "review_share": 0.05, "ads_per_month": 0.1, "return_share": 0.05,
            "coupons": (61, 0.3, 0.1), "num_items": 5_000, "zipf": 1.0, "regularity": 2, "acquired_over": 0.9,
        }  # fmt: skip
        return cls(**(everything | settings))

    def exact_btyd(self) -> Self:
        """The same shop in which BG/NBD + Gamma-Gamma is the truth."""
        return replace(
            self, spend_follows_rate=0.0, season=0.0, drift=0.0, changes_per_year=0.0, views_per_purchase=0.0,
            return_share=0.0, regularity=1, visitors=0.0, sessions=0.0, tastes=0.0, promotion=0.0, coupons=None,
        )  # fmt: skip

    @property
    def clock(self) -> Clock:
        return Clock(self.timezone)

    @property
    def start_us(self) -> int:
        return self.clock.parse(self.start)

    @property
    def start_day(self) -> int:
        return int(self.clock.day_of(self.start_us))

    @property
    def num_days(self) -> int:
        return int(self.clock.day_of(self.clock.parse(self.end))) - self.start_day

    def season_time(self) -> Floats:
        """S at day 0..num_days: the cumulated season × drift × promotions, of mean about 1 a day."""
        day = self.start_day + np.arange(self.num_days) + 0.5
        angle = 2 * np.pi * (day - _SEASON_PEAK_DAY) / YEAR
        # 1970-01-01 is day 0, so that day modulo the year is the day of the year
        level = np.exp(self.season * np.cos(angle) + self.drift * np.arange(self.num_days) / YEAR)
        for first, length in _PROMOTIONS:
            level[(day - first) % YEAR < length] *= np.exp(self.promotion)
        return np.append(0.0, np.cumsum(level / np.i0(self.season)))

    def day_of(self, instant_us: int) -> float:
        return (instant_us - self.start_us) / DAY_US

    def campaigns(self) -> Floats:
        """Days on which coupons go out, at noon."""
        every = self.coupons[0] if self.coupons else self.num_days
        return np.asarray(np.arange(every, self.num_days, every) + 0.5, np.float64)
