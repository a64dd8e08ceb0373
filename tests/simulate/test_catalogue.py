"""Item catalogue: popularity by Zipf's law, favourite categories."""

from __future__ import annotations

import numpy as np
import pandas as pd

from clv.simulate.catalogue import CATEGORIES, Catalogue
from clv.simulate.log import Simulation


def test_popularity_follows_zipf_and_buyers_their_taste(block: Simulation, events: pd.DataFrame) -> None:
    bought = events[events["event_type"] == "purchase"].merge(block.items, on="item_id")
    counts = bought["item_id"].value_counts().to_numpy()
    assert counts[0] > 20 * np.median(counts)
    top = bought.groupby("customer")["category"].agg(lambda s: s.mode()[0])
    names = np.array(["Home / Kitchen", "Home / Garden", "Gifts / Cards", "Gifts / Toys"])
    many = bought.groupby("customer").size() > 8
    own = names[block.truth.favourite[top.index]]
    assert (top.to_numpy() == own)[many.to_numpy()].mean() > 0.6


def test_the_share_of_the_jth_item_of_a_category_is_proportional_to_a_power_of_j() -> None:
    rng = np.random.default_rng(0)
    catalogue = Catalogue.draw(rng, 60, zipf=1.5)
    assert len(catalogue.table) == 60
    assert list(catalogue.table["category"].unique()) == list(CATEGORIES)
    drawn = catalogue.pick(rng, np.full(200_000, 2)) - 2 * catalogue.per_category
    expected = np.arange(1.0, 11) ** -1.5
    np.testing.assert_allclose(np.bincount(drawn, minlength=10) / 200_000, expected / expected.sum(), atol=0.005)
