"""Settings of a simulated shop: impossible ones are refused, and seasons and promotions lift the demand."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from clv.simulate.settings import ShopSettings


def test_impossible_shops_are_refused() -> None:
    with pytest.raises(ValueError, match="num_items 3: a catalogue has at least 12 items"):
        ShopSettings(num_items=3)


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
