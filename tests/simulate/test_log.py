"""Blocks of a simulated log: each is the same in whatever order blocks are drawn, and within the bounds of the log."""

from __future__ import annotations

import pandas as pd
import pytest

from clv.simulate import log
from clv.simulate.settings import ShopSettings
from tests.simulate.conftest import SHOP


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
