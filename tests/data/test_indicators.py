"""Indicators of customers and cohorts, against a plain loop on a simulated shop."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from clv.data import cutoff, indicators
from clv.data.clock import Clock
from clv.data.events import TYPES
from clv.data.histories import Histories, build
from clv.data.prepare import profile
from clv.data.sessions import PAUSE_US
from clv.simulate.small import simulate


def loop(h: Histories, origin: int) -> dict[str, tuple[int, int, int]]:
    """(sessions, with a purchase, orders) of each customer, one event at a time."""
    acts = {TYPES[n] for n in ("purchase", "view", "cart", "favourite", "click", "rating", "review")}
    out = {}
    for i, name in enumerate(h.customer_id.to_pylist()):
        last, bought, orders, count = -(10**18), set(), 0, 0
        for token in range(h.offsets[i], h.offsets[i + 1]):
            if h.time[token] >= origin or int(h.type[token]) not in acts:
                continue
            count += h.time[token] - last > PAUSE_US
            last = h.time[token]
            if h.type[token] == TYPES["purchase"]:
                orders += 1
                bought.add(count)
        out[name] = (count, len(bought), orders)
    return out


@pytest.fixture(scope="module")
def shop() -> tuple[Histories, Clock, int]:
    clock = Clock("Europe/Berlin")
    made = simulate(300, "2023-01-01", "2024-01-01", seed=5, timezone="Europe/Berlin", sessions=2.0, visitors=0.5)
    return Histories.from_table(build(made.events, clock)), clock, clock.parse("2023-09-10")


def test_indicators_of_customers_equal_a_plain_loop(shop: tuple[Histories, Clock, int]) -> None:
    h, clock, origin = shop
    table = indicators.customer_indicators(cutoff.cut(h, origin, (), clock)).set_index("customer_id")
    expected = {name: row for name, row in loop(h, origin).items() if name in table.index}
    assert {i: tuple(r) for i, r in table[["sessions", "sessions_bought", "orders"]].iterrows()} == expected
    buyers = table[table["orders"] > 0]
    np.testing.assert_allclose(buyers["aov"] * buyers["orders"], buyers["value"])
    assert buyers["repurchased"].equals((buyers["orders"] > 1).astype(float))
    np.testing.assert_allclose(buyers["purchase_frequency"], 30 * buyers["orders"] / np.maximum(buyers["days"], 1))
    visitors = table[table["orders"] == 0]
    assert len(visitors) > 20
    assert (visitors["cohort"] == "visitors").all()
    assert visitors[["repurchased", "purchase_frequency", "aov"]].isna().all().all()
    assert (visitors["conversion_rate"] == 0).all()


def test_what_comes_later_does_not_show(shop: tuple[Histories, Clock, int]) -> None:
    h, clock, origin = shop
    later = indicators.customer_indicators(cutoff.cut(h, clock.parse("2024-01-01"), (), clock)).set_index("customer_id")
    now = indicators.customer_indicators(cutoff.cut(h, origin, (), clock)).set_index("customer_id")
    bought = now["orders"] > 0
    assert (later["cohort"].reindex(now.index)[bought] == now["cohort"][bought]).all()
    assert (later["sessions"].reindex(now.index) >= now["sessions"]).all()


def test_cohorts_add_up_to_all_customers(shop: tuple[Histories, Clock, int]) -> None:
    h, clock, origin = shop
    table = indicators.customer_indicators(cutoff.cut(h, origin, (), clock))
    cohorts, everybody = indicators.summary(table, "cohort"), indicators.summary(table).iloc[0]
    for name in ("customers", "buyers", *indicators.SUMS):
        assert cohorts[name].sum() == pytest.approx(everybody[name])
    assert everybody["aov"] == pytest.approx(table["value"].sum() / table["orders"].sum())
    assert everybody["repurchase_rate"] == pytest.approx((table["orders"] > 1).sum() / (table["orders"] > 0).sum())
    assert np.isnan(cohorts.loc["visitors", "aov"])


def test_stats_of_shards_give_the_indicators_of_the_whole(shop: tuple[Histories, Clock, int]) -> None:
    h, clock, _ = shop
    table = h.to_table()
    merged = profile.merge([profile.measure(table.slice(0, 100)), profile.measure(table.slice(100))])
    whole = profile.measure(table)
    plain = indicators.customer_indicators(cutoff.cut(h, clock.parse("2024-01-01"), (), clock))
    everybody = indicators.summary(plain).iloc[0]
    for name in ("sessions", "sessions_viewed", "sessions_carted", "sessions_bought"):
        assert merged[name] == whole[name] == everybody[name]
    cohorts = pd.DataFrame({name: merged[f"cohort_{name}_by_month"] for name in ("buyers", "orders", "again")})
    expected = indicators.summary(plain[plain["orders"] > 0], "cohort")
    assert cohorts["buyers"].to_dict() == expected["buyers"].to_dict()
    assert cohorts["orders"].to_dict() == expected["orders"].to_dict()
