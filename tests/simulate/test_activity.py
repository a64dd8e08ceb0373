"""Simulated activity: browsing stops when customers leave, and coupons have the logged propensity and effect."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from clv.simulate.log import Simulation
from tests.simulate.conftest import SHOP


def test_customers_who_have_left_have_a_tenth_of_the_views_of_others(block: Simulation, events: pd.DataFrame) -> None:
    truth, half = block.truth, SHOP.num_days / 2
    who = np.flatnonzero(truth.first < half)
    here = truth._hits_before(half)[who] // truth.regularity < truth.last_order[who]
    views = events[(events["event_type"] == "view") & (events["day"] > half) & (events["day"] < half + 90)]
    count = views.groupby("customer").size().reindex(who).fillna(0).to_numpy()
    assert count[here].mean() > 10 * count[~here].mean()


def test_coupons_are_logged_with_their_propensity_and_the_effect_they_have(block: Simulation) -> None:
    table = block.treatments.to_pandas()
    # Weighting by the logged propensity gives the effect back (Horvitz and Thompson 1952).
    assert table["treated"].mean() == pytest.approx(table["propensity"].mean(), abs=0.01)
    assert table["propensity"].nunique() == 3
    bought = block.events.to_pandas()
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
