"""Settings of a simulated shop: impossible ones are refused, and seasons and promotions lift the demand."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import numpy as np
import pytest

from clv.simulate.settings import ShopSettings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_items": 11}, "num_items 11: a catalogue has at least 12 items"),
        ({"num_customers": 0}, "num_customers 0, regularity 1, spend q 6.0: need >= 1, >= 1 and > 1"),
        ({"regularity": 0}, "regularity 0"),
        ({"spend": (2.0, 1.0, 30.0)}, "spend q 1.0"),
        ({"start": "2024-01-01", "end": "2024-01-02"}, "2024-01-01 to 2024-01-02 are 1 days: simulate at least 2"),
    ],
)
def test_impossible_shops_are_refused_with_their_values(wrong: dict[str, Any], message: str) -> None:
    ShopSettings(num_items=12, num_customers=1, spend=(2.0, 6.0, 30.0), start="2024-01-01", end="2024-01-03")
    with pytest.raises(ValueError, match=re.escape(message)):
        ShopSettings(**({"spend": (2.0, 6.0, 30.0), "regularity": 1} | wrong))


def test_demand_peaks_in_november_and_jumps_in_promotion_weeks() -> None:
    shop = ShopSettings(start="2024-01-01", end="2025-01-01", season=0.5)
    demand = np.diff(shop.season_time())
    days = np.array([date.fromordinal(date(2024, 1, 1).toordinal() + day) for day in range(shop.num_days)])
    assert days[demand.argmax()].month == 11
    assert demand.mean() == pytest.approx(1, abs=0.01)
    promoted = np.diff(ShopSettings(start="2024-01-01", end="2025-01-01", season=0.5, promotion=0.7).season_time())
    lifted = ~np.isclose(promoted, demand)
    assert lifted.sum() == 11
    np.testing.assert_allclose(promoted[lifted] / demand[lifted], np.exp(0.7))


def test_campaigns_are_sent_at_noon_within_the_log() -> None:
    shop = ShopSettings(start="2024-01-01", end="2024-04-01", coupons=(40, 0.3, 0.1))
    assert shop.campaigns().tolist() == [40.5, 80.5]
    assert len(ShopSettings().campaigns()) == 0


def test_days_are_counted_from_the_local_midnight_of_the_start() -> None:
    shop = ShopSettings(start="2024-01-01", end="2024-01-31", timezone="Asia/Tokyo")
    assert (shop.num_days, shop.start_day) == (30, date(2024, 1, 1).toordinal() - date(1970, 1, 1).toordinal())
    assert shop.day_of(shop.clock.parse("2024-01-02T12:00:00")) == 1.5


def test_the_exact_btyd_shop_has_no_season_and_the_full_one_every_kind_of_activity() -> None:
    full = ShopSettings.full(visitors=0.25)
    assert (full.visitors, full.coupons, full.num_items) == (0.25, (61, 0.3, 0.1), 5_000)
    exact = full.exact_btyd()
    assert (exact.season, exact.visitors, exact.coupons, exact.regularity) == (0.0, 0.0, None, 1)
    assert np.diff(exact.season_time()) == pytest.approx(1)
