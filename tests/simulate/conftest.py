"""One block of a simulated shop with every kind of activity, and its events as a frame."""

from __future__ import annotations

import pandas as pd
import pytest

from clv.simulate import log
from clv.simulate.settings import ShopSettings

SHOP = ShopSettings.full(num_customers=6_000, seed=3)


@pytest.fixture(scope="module")
def block() -> log.Simulation:
    return log.draw_block(SHOP, 0, log.catalogue(SHOP))


@pytest.fixture(scope="module")
def events(block: log.Simulation) -> pd.DataFrame:
    table = block.events.to_pandas()
    number = {name: i for i, name in enumerate(block.truth.customer_id)}
    day = (table["event_time"] - pd.Timestamp(SHOP.start, tz="UTC")).dt.total_seconds() / 86_400
    return table.assign(customer=table["customer_id"].map(number), day=day)
