"""A small simulated shop: its events, and how much of its truth BG/NBD can and cannot recover."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

from clv.btyd.models import BGNBD, BTYDModel
from clv.data.events import EVENTS
from clv.simulate.log import Simulation
from clv.simulate.small import simulate
from tests.simulate.outcomes import HORIZON, outcome, purchases


def sample_frame(shop: Simulation) -> pd.DataFrame:
    past = purchases(shop)
    past = past[past["day"] < 0].assign(day=lambda t: np.floor(t["day"]))
    days = past.groupby(["customer_id", "day"])["amount"].sum().reset_index().groupby("customer_id")
    first, last, x = days["day"].min(), days["day"].max(), days.size() - 1
    repeat = days["amount"].sum() - days["amount"].first()
    return pd.DataFrame(
        {
            "frequency": x.astype(float), "recency": last - first, "T": -first, "has_purchase": True,
            "monetary": np.where(x > 0, repeat / np.maximum(x, 1), 0.0),
        }
    )  # fmt: skip


def ngini(y: np.ndarray, score: np.ndarray) -> float:
    def gini(order: np.ndarray) -> float:
        share = np.cumsum(y[order]) / y.sum()
        return float(2 * (share - y[order] / y.sum() / 2).mean() - 1)

    return gini(np.argsort(-score, kind="stable")) / gini(np.argsort(-y))


def test_events_have_the_schema_and_orders_are_whole() -> None:
    shop = simulate(300, return_share=0.2)
    assert shop.events.schema == EVENTS
    assert shop.events["event_id"].to_pandas().is_unique
    table = shop.events.to_pandas()
    assert table["event_time"].is_monotonic_increasing
    assert set(table["event_type"]) == {"purchase", "return", "view", "cart"}
    assert table["order_id"].notna().equals(table["event_type"].isin(["purchase", "return"]))
    assert (table.loc[table["event_type"] == "purchase", "amount"] > 0).all()
    assert (table.loc[table["event_type"] == "return", "amount"] < 0).all()
    assert (table.groupby("order_id")["event_time"].nunique()[lambda s: s.index.str.startswith("O")] == 1).all()
    assert set(table["item_id"]) <= set(shop.items["item_id"])
    assert set(table["customer_id"]) <= set(shop.customers["customer_id"])


def test_same_seed_same_shop_and_another_seed_another() -> None:
    assert simulate(100, seed=3).events.equals(simulate(100, seed=3).events)
    assert not simulate(100, seed=3).events.equals(simulate(100, seed=4).events)


def test_local_dates_bound_the_log() -> None:
    shop = simulate(500, "2023-03-01", "2023-09-01", timezone="Europe/London")
    local = shop.events["event_time"].to_pandas().dt.tz_convert("Europe/London")
    assert local.min() >= pd.Timestamp("2023-03-01", tz="Europe/London")
    assert local.max() < pd.Timestamp("2023-09-01", tz="Europe/London")


def test_exact_shop_gives_bgnbd_back_its_parameters_and_totals() -> None:
    shop = simulate(8_000, seed=1, exact_btyd=True, rate=(0.8, 60.0), dropout=(1.0, 4.0))
    frame = sample_frame(shop)
    btyd_model = BTYDModel.fit(frame)
    counts = btyd_model.counts
    assert isinstance(counts, BGNBD)
    for name, truth in (("r", 0.8), ("alpha", 60.0), ("a", 1.0), ("b", 4.0)):
        assert abs(np.log(getattr(counts, name) / truth)) < max(4 * counts.stderr[name], 0.1)
    table, predicted = outcome(shop), btyd_model.predict(frame, HORIZON)
    assert (table.index == frame.index).all()
    assert predicted["orders"].sum() == pytest.approx(table["orders"].sum(), rel=0.05)
    assert predicted["value"].sum() == pytest.approx(table["value"].sum(), rel=0.06)


def gain_from_baskets(shop: Simulation) -> tuple[float, float, dict[str, float]]:
    """nGini of the BTYD model, and of it times its error by category of the newest item, learned on other customers."""
    table, frame = outcome(shop), sample_frame(shop)
    past = purchases(shop)
    newest = past[past["day"] < 0].groupby("customer_id")["item_id"].last()
    category = newest.map(shop.items.set_index("item_id")["category"]).reindex(frame.index)
    btyd_model, real = BTYDModel.fit(frame).predict(frame, HORIZON)["value"], table["value_real"]
    learn = np.arange(len(frame)) % 2 == 0
    error = real[learn].groupby(category[learn]).sum() / btyd_model[learn].groupby(category[learn]).sum()
    y, plain, corrected = real[~learn], btyd_model[~learn], (btyd_model * category.map(error))[~learn]
    return ngini(y.to_numpy(), plain.to_numpy()), ngini(y.to_numpy(), corrected.to_numpy()), error.to_dict()


def test_baskets_contain_what_the_btyd_model_cannot_know() -> None:
    plain, corrected, error = gain_from_baskets(simulate(8_000, seed=2))
    assert corrected > plain + 0.005
    assert error["Club / Refill"] > 2 * error["Clearance / Last chance"]


def test_baskets_add_nothing_where_bgnbd_is_exact() -> None:
    plain, corrected, _ = gain_from_baskets(simulate(8_000, seed=2, exact_btyd=True))
    assert corrected < plain + 0.001


def test_btyd_model_ranks_clearly_below_the_oracle_by_default() -> None:
    shop = simulate(6_000, seed=2)
    table, frame = outcome(shop), sample_frame(shop)
    y = table["value_real"].to_numpy()
    oracle, btyd_model = (
        ngini(y, s["value"].to_numpy()) for s in (table, BTYDModel.fit(frame).predict(frame, HORIZON))
    )
    assert btyd_model > 0.3
    assert oracle > btyd_model + 0.05


def test_two_thousand_customers_over_two_years_take_under_two_seconds() -> None:
    start = time.process_time()
    simulate(2_000)
    assert time.process_time() - start < 2


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_customers 0"):
        simulate(0)
    with pytest.raises(ValueError, match="2023-01-01 to 2023-01-02 are 1 days"):
        simulate(10, "2023-01-01", "2023-01-02")
