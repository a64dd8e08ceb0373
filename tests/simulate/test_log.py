"""The shop at any size: its blocks are whoever's, and every activity says about a customer what it should."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from clv.simulate import log
from clv.simulate.settings import ShopSettings

SHOP = ShopSettings.full(num_customers=6_000, seed=3)


@pytest.fixture(scope="module")
def made() -> log.EventBlock:
    return log.draw_block(SHOP, 0, log.catalogue(SHOP))


@pytest.fixture(scope="module")
def events(made: log.EventBlock) -> pd.DataFrame:
    table = made.events.to_pandas()
    number = {name: i for i, name in enumerate(made.truth.customer_id)}
    day = (table["event_time"] - pd.Timestamp(SHOP.start, tz="UTC")).dt.total_seconds() / 86_400
    return table.assign(customer=table["customer_id"].map(number), day=day)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "BLOCK_CUSTOMERS", 400)


@pytest.mark.usefixtures("small_blocks")
def test_a_block_is_the_same_whatever_was_made_before_it() -> None:
    shop = ShopSettings.full(num_customers=1_000, seed=3)
    items = log.catalogue(shop)
    alone = log.draw_block(shop, 2, items)
    after = [log.draw_block(shop, number, log.catalogue(shop)) for number in range(log.num_blocks(shop))][2]
    assert alone.events.equals(after.events)
    assert alone.treatments.equals(after.treatments)
    assert list(alone.truth.customer_id[[0, -1]]) == ["C0000800", "C0000999"]


@pytest.mark.usefixtures("small_blocks")
def test_blocks_share_no_id_and_no_random_number() -> None:
    shop = ShopSettings.full(num_customers=800, seed=3)
    first, second = (log.draw_block(shop, number, log.catalogue(shop)).events.to_pandas() for number in (0, 1))
    for name in ("event_id", "customer_id", "order_id"):
        assert not set(first[name].dropna()) & set(second[name].dropna())
    assert len(first) != len(second)


def test_every_kind_of_event_is_there_in_time_and_within_the_log(events: pd.DataFrame) -> None:
    kinds = {"view", "cart", "purchase", "return", "rating", "review", "impression", "click", "message"}
    assert set(events["event_type"]) == kinds
    assert events["event_time"].is_monotonic_increasing
    assert events["day"].between(0, SHOP.num_days, inclusive="left").all()
    late = events["known_at"] > events["event_time"]
    assert late.mean() == pytest.approx(SHOP.late_share, rel=0.1)
    assert (events["known_at"] >= events["event_time"]).all()


def test_customers_come_at_their_arrival_and_buy_first_when_the_truth_says(
    made: log.EventBlock, events: pd.DataFrame
) -> None:
    bought = events[events["event_type"] == "purchase"].groupby("customer")["day"].min()
    who = np.flatnonzero(made.truth.first < SHOP.num_days)
    np.testing.assert_allclose(bought.reindex(who), made.truth.first[who], atol=1e-6)
    assert set(bought.index) == set(who)
    seen = events[events["event_type"].isin(["view", "purchase"])].groupby("customer")["day"].min()
    waiting = np.flatnonzero(made.truth.first > made.truth.arrival)
    assert (seen.reindex(waiting) <= made.truth.arrival[waiting] + 0.02).all()


def test_who_has_left_hardly_looks_in_and_who_has_not_keeps_browsing(
    made: log.EventBlock, events: pd.DataFrame
) -> None:
    truth, half = made.truth, SHOP.num_days / 2
    who = np.flatnonzero(truth.first < half)
    here = truth._hits_before(half)[who] // truth.regularity < truth.last_order[who]
    views = events[(events["event_type"] == "view") & (events["day"] > half) & (events["day"] < half + 90)]
    count = views.groupby("customer").size().reindex(who).fillna(0).to_numpy()
    assert count[here].mean() > 10 * count[~here].mean()


def test_popularity_follows_zipf_and_buyers_their_taste(made: log.EventBlock, events: pd.DataFrame) -> None:
    bought = events[events["event_type"] == "purchase"].merge(made.catalogue.table, on="item_id")
    counts = bought["item_id"].value_counts().to_numpy()
    assert counts[0] > 20 * np.median(counts)
    top = bought.groupby("customer")["category"].agg(lambda s: s.mode()[0])
    names = np.array(["Home / Kitchen", "Home / Garden", "Gifts / Cards", "Gifts / Toys"])
    many = bought.groupby("customer").size() > 8
    own = names[made.truth.favourite[top.index]]
    assert (top.to_numpy() == own)[many.to_numpy()].mean() > 0.6


def test_coupons_are_logged_with_their_propensity_and_the_effect_they_have(made: log.EventBlock) -> None:
    table = made.treatments.to_pandas()
    # Weighting by the logged propensity gives the effect back (Horvitz and Thompson 1952).
    assert table["treated"].mean() == pytest.approx(table["propensity"].mean(), abs=0.01)
    assert table["propensity"].nunique() == 3
    bought = made.events.to_pandas()
    bought = bought[bought["event_type"] == "purchase"].drop_duplicates("order_id")
    effective = pd.to_timedelta(12, "h")
    merged = table.merge(bought[["customer_id", "event_time"]], on="customer_id", how="left")
    inside = (merged["event_time"] > merged["sent_at"]) & (merged["event_time"] < merged["sent_at"] + effective)
    orders = inside.groupby([merged["customer_id"], merged["sent_at"]]).sum()
    table = table.set_index(["customer_id", "sent_at"]).assign(orders=orders)
    weight = np.where(table["treated"], 1 / table["propensity"], -1 / (1 - table["propensity"]))
    effects = weight * table["orders"]
    error = effects.std() / np.sqrt(len(table))
    assert abs(effects.mean() - table["effect"].mean()) < 4 * error
    assert table["effect"].mean() > 8 * error


def test_impossible_shops_are_refused() -> None:
    with pytest.raises(ValueError, match="num_items 3: a catalogue has at least 12 items"):
        ShopSettings(num_items=3)
