import numpy as np
import pyarrow.compute as pc
import pytest

from clv.data import histories
from clv.data.clock import Clock
from clv.data.histories import Histories
from clv.forecast.adjustment import Adjustment
from clv.forecast.pipeline import forecast_customers
from clv.models.config import BackboneConfig, ModelConfig
from clv.models.inputs.feature_space import Items
from clv.simulate import small
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, Setup, prepare

CLOCK = Clock("Europe/London")
ORIGIN = CLOCK.parse("2024-03-01")
CONFIG = TrainConfig(model=ModelConfig(backbone=BackboneConfig(width=8, num_layers=1, num_heads=1, intermediate=8)))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    events = small.simulate(60, "2023-06-01", "2024-06-01", seed=3, timezone="Europe/London").events
    table = histories.build(events, CLOCK)
    return Dataset(Histories.from_table(table), CLOCK, "gross", (30, 90), Items.empty(), CLOCK.parse("2024-06-01"))


@pytest.fixture(scope="module")
def setup(dataset: Dataset) -> Setup:
    return prepare(dataset, ORIGIN, CONFIG, 30)


def test_without_the_network_the_forecast_is_the_btyd_model_with_the_seasonal_factor(
    dataset: Dataset, setup: Setup
) -> None:
    btyd_only = Adjustment.identity(2, blend_weight=0.0)
    found = forecast_customers(setup.model(CONFIG), setup.assembler, btyd_only, dataset.histories, ORIGIN)
    assert found is not None
    rows, adjusted = found
    orders, value, error = setup.assembler.btyd.forecast_factor(setup.assembler.btyd.cutoff_day)
    curves = setup.assembler.btyd.curves(rows.table)
    np.testing.assert_allclose(adjusted.forecast.value, curves.value * value, rtol=1e-6)
    np.testing.assert_allclose(adjusted.forecast.hazard, curves.hazard * orders, rtol=1e-6)
    assert np.array_equal(adjusted.factor_error, error)
    known = pc.count_distinct(dataset.histories.to_table()["customer_id"]).as_py()
    assert 0 < len(rows.table) == len(adjusted.forecast.z) <= known


def test_the_network_has_the_given_weight(dataset: Dataset, setup: Setup) -> None:
    model = setup.model(CONFIG)
    values = []
    for weight in (0.0, 0.25, 1.0):
        adjustment = Adjustment.identity(2, blend_weight=weight)
        found = forecast_customers(model, setup.assembler, adjustment, dataset.histories, ORIGIN)
        assert found is not None
        values.append(found[1].forecast.value)
    assert np.abs(values[2] / values[0] - 1).max() > 0.01
    np.testing.assert_allclose(values[1], 0.75 * values[0] + 0.25 * values[2], rtol=1e-6)


def test_without_known_customers_there_is_no_forecast(dataset: Dataset, setup: Setup) -> None:
    adjustment, model = Adjustment.identity(2), setup.model(CONFIG)
    before_all = CLOCK.parse("2023-01-01")
    assert forecast_customers(model, setup.assembler, adjustment, dataset.histories, before_all) is None
    nobody = Histories.from_table(dataset.histories.to_table().slice(0, 0))
    assert forecast_customers(model, setup.assembler, adjustment, nobody, ORIGIN) is None
