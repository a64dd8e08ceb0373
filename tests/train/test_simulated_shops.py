"""Simulated shops of known truth: what the value model learns beyond the BTYD model, and what it leaves unchanged."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from clv.data.clock import Clock
from clv.data.histories import Histories, build
from clv.evaluate.metrics import ngini
from clv.forecast.pipeline import forecast_customers
from clv.models.config import BackboneConfig, ModelConfig
from clv.models.inputs.feature_space import Items
from clv.simulate.small import simulate
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, plan
from clv.train.loop import finish
from clv.train.trainer import load_model, train

pytestmark = pytest.mark.slow

ORIGIN, HORIZON = "2024-09-01", 90
# Some four orders a year; who still comes to look is still a customer, and looks as often as they feel like buying.
BROWSED: dict[str, Any] = {"rate": (1.2, 110.0), "dropout": (0.9, 3.5), "sessions": 4.0, "tastes": 0.3}


@dataclass(frozen=True)
class Outcome:
    truth: np.ndarray
    btyd_model: np.ndarray
    model: np.ndarray

    def error(self, value: np.ndarray) -> float:
        return float(np.abs(value - self.truth).mean() / self.truth.mean())


def fitted(num_customers: int, seed: int = 1, **settings: Any) -> Outcome:
    clock = Clock("UTC")
    simulation = simulate(num_customers, "2023-01-01", "2025-01-01", seed, **settings)
    histories = Histories.from_table(build(simulation.events, clock))
    shop = Dataset(histories, clock, "gross", (30, HORIZON), Items.empty(), clock.parse("2025-01-01"))
    backbone = BackboneConfig(architecture="gru", width=64, num_layers=1, max_tokens=48)
    config = TrainConfig(model=ModelConfig(backbone=backbone), samples_per_epoch=6000, batch_size=64)
    config = config.with_engine(kind="torch")
    phases = plan(shop, clock.parse(ORIGIN), config)
    found = finish(train(shop, phases, config))
    assembler = phases.final.assembler
    model = load_model(phases.final, config, found.weights)
    rows, adjusted = forecast_customers(model, assembler, found.adjustment, histories, clock.parse(ORIGIN))
    known = rows.table["has_purchase"].to_numpy()
    expected = simulation.truth.expected(ORIGIN, HORIZON).set_index("customer_id")["value"]
    truth = expected.reindex(rows.table["customer_id"]).to_numpy()[known]
    return Outcome(truth, rows.base.value[known, 1], adjusted.forecast.value[known, 1])


def test_where_customers_tell_by_browsing_the_model_ranks_far_better_than_the_btyd_model() -> None:
    found = fitted(2_000, **BROWSED)
    assert ngini(found.truth, found.model) > ngini(found.truth, found.btyd_model) + 0.05
    assert found.error(found.model) < 0.85 * found.error(found.btyd_model)


def test_where_the_btyd_model_is_right_the_blend_weight_keeps_it_there() -> None:
    found = fitted(800, exact_btyd=True)
    assert ngini(found.truth, found.model) > ngini(found.truth, found.btyd_model) - 0.005
    assert found.error(found.model) < 1.05 * found.error(found.btyd_model)
