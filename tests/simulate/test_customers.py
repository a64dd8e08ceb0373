"""Simulated customers: arrivals, first purchases, and operational time with its inverse."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clv.simulate import customers
from clv.simulate.log import Simulation
from clv.simulate.settings import ShopSettings
from tests.simulate.conftest import SHOP


def test_customers_arrive_and_buy_first_on_the_days_of_the_truth(block: Simulation, events: pd.DataFrame) -> None:
    bought = events[events["event_type"] == "purchase"].groupby("customer")["day"].min()
    who = np.flatnonzero(block.truth.first < SHOP.num_days)
    np.testing.assert_allclose(bought.reindex(who), block.truth.first[who], atol=1e-6)
    assert set(bought.index) == set(who)
    seen = events[events["event_type"].isin(["view", "purchase"])].groupby("customer")["day"].min()
    waiting = np.flatnonzero(block.truth.first > block.truth.arrival)
    assert (seen.reindex(waiting) <= block.truth.arrival[waiting] + 0.02).all()


def test_the_calendar_day_of_an_operational_time_is_its_inverse() -> None:
    rng = np.random.default_rng(5)
    truth = customers.draw(rng, ShopSettings(num_customers=500), 500)
    owner = np.flatnonzero(truth.first < 600)
    day = truth.first[owner] + rng.random(len(owner)) * (700 - truth.first[owner])
    back = customers.calendar(truth, owner, truth.operational(day, owner))
    np.testing.assert_allclose(back, day, atol=1e-6)


def test_nobody_orders_after_leaving() -> None:
    shop = ShopSettings(num_customers=500, dropout=(1.0, 2.0))
    rng = np.random.default_rng(5)
    truth = customers.draw(rng, shop, 500)
    orders = customers.orders(rng, shop, truth)
    who = orders["customer"].to_numpy()
    spent = truth.operational(orders["day"].to_numpy(), who)
    assert (spent <= customers.leaving_time(truth)[who] + 1e-6).all()
    assert np.isfinite(customers.leaving_time(truth)).mean() > 0.3
