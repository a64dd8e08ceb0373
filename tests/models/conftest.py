"""A small simulated dataset with purchases, returns, views and channels, cut at two origins, and its feature space."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from clv.data import features, histories
from clv.data.clock import Clock
from clv.data.cutoff import Cut, cut
from clv.data.events import stable_hash
from clv.data.histories import Histories
from clv.models.inputs.batch import Samples
from clv.models.inputs.feature_space import FeatureSpace, Items
from clv.simulate.small import simulate

HORIZONS = (30, 90)
MAX_TOKENS = 12


@dataclass(frozen=True)
class Dataset:
    """`past` has labels, not fully observed for 90 days at the second origin."""

    clock: Clock
    histories: Histories
    past: Cut
    table: pd.DataFrame
    items: Items
    space: FeatureSpace
    samples: Samples


@pytest.fixture(scope="session")
def shop() -> Dataset:
    made = simulate(150, "2023-01-01", "2024-03-01", seed=5, timezone="Europe/Berlin", return_share=0.1)
    clock, rng = Clock("Europe/Berlin"), np.random.default_rng(6)
    events = made.events
    channel = np.array(["web", "shop", "app", None], object)[rng.integers(0, 4, len(events))]
    events = events.set_column(
        events.column_names.index("channel"), events.schema.field("channel"), pa.array(channel, pa.string())
    )
    # One event in five arrives days after it happened.
    late = np.where(rng.random(len(events)) < 0.2, rng.integers(1, 30, len(events)), 0) * 86_400_000_000
    known = pa.array(events["event_time"].cast(pa.int64()).to_numpy() + late).cast(events.schema.field("known_at").type)
    events = events.set_column(events.column_names.index("known_at"), events.schema.field("known_at"), known)
    attributes = pa.table(
        {
            "customer_id": pa.array(made.customers["customer_id"], pa.string()),
            "attr_source": pa.array(made.customers["channel"], pa.string()),
            "attr_age": rng.normal(40, 9, len(made.customers)),
        }
    )
    h = Histories.from_table(histories.build(events, clock, attributes))
    origins = np.array([clock.parse("2023-10-01"), clock.parse("2024-01-15")])
    past = cut(h, origins, HORIZONS, clock, known_before=clock.parse("2024-03-01"))
    table = features.sample_frame(past, HORIZONS)
    names = sorted(made.items["category"].unique())
    items = Items(
        keys=stable_hash(pa.array(made.items["item_id"], pa.string())),
        vectors=rng.normal(size=(len(made.items), 40)).astype(np.float32),
        category=np.array([names.index(name) + 1 for name in made.items["category"]]),
        category_names=tuple(names),
    )
    space = FeatureSpace.fit(past, table, items, text_width=8)
    labels = past.labels
    assert labels is not None
    curves = np.cumsum(rng.uniform(0.05, 1.0, (3, len(past), len(HORIZONS))), axis=2).astype(np.float32)
    samples = Samples(
        tokens=space.tokens(past, MAX_TOKENS),
        # As in the assembler: the features, then the three curves of the BTYD model.
        wide=np.concatenate([space.wide(table), *np.log(curves)], axis=1),
        base_hazard=curves[0],
        base_repeats=curves[1],
        base_value=curves[2],
        population_average=np.tile(curves.mean(axis=1), (len(past), 1, 1)),
        value=np.nan_to_num(labels.value / 30).astype(np.float32),
        orders=np.nan_to_num(labels.orders).astype(np.float32),
        observed=labels.observed,
    )
    return Dataset(clock, h, past, table, items, space, samples)
