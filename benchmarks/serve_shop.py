"""A simulated shop, its online store and a bundle of the `tiny` preset whose weights are drawn, not trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from clv import bundle as bundles
from clv.data.clock import Clock
from clv.data.histories import Histories, build
from clv.forecast.adjustment import Adjustment
from clv.models.inputs.feature_space import Items
from clv.serve.store.sqlite import SqliteStore
from clv.simulate.small import simulate
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, prepare

CUT = "2024-12-01"
HORIZONS = (30, 90)


def make_shop(folder: Path, num_customers: int, bundles_too: int = 0) -> list[str]:
    """Writes `folder`/store and `folder`/bundle, and so many more as bundle-1, ...; returns the ids of the customers
    with an event before the cut."""
    clock = Clock("UTC")
    end = clock.parse(CUT)
    made = simulate(num_customers, "2023-01-01", CUT, seed=5)
    histories = build(made.events, clock)
    store = SqliteStore(folder / "store", create=True)
    store.put_histories(histories)
    store.close()
    h = Histories.from_table(histories)
    config = dataclasses.replace(TrainConfig(), num_origins=4)
    setup = prepare(Dataset(h, clock, "gross", HORIZONS, Items.empty(), end), end, config, HORIZONS[0])
    vocab, items = setup.assembler.space.to_arrays()
    facts = {"currency": "EUR", "timezone": "UTC", "horizons": list(HORIZONS), "value": "gross"}
    for number in range(bundles_too + 1):
        rng = np.random.default_rng(number)
        bundle = bundles.Bundle(
            config={
                "cut_us": end,
                "data_through_us": int(h.time.max()),
                "model": bundles.plain_json(config.model),
                "value_scale": setup.assembler.value_scale,
                "population_average": setup.assembler.population_average.tolist(),
                "dataset_facts": {**facts, "discount_rate_annual": 0.1},
            },
            vocab=vocab,
            btyd=setup.assembler.btyd.to_json(),
            calibration=Adjustment.identity(len(HORIZONS)).to_json(),
            metrics={},
            weights={
                name: tensor.numpy() + (number > 0) * rng.normal(0, 0.02, tensor.shape).astype(np.float32)
                for name, tensor in setup.model(config).state_dict().items()
            },
            items=items,
        )
        bundles.save(bundle, folder / ("bundle" if number == 0 else f"bundle-{number}"))
    ids: list[str] = histories["customer_id"].to_pylist()
    return ids
