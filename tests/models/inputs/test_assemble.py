"""Assembling samples: seasonal factors, units of value, the population average and the grid of training origins."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clv.btyd.seasonal_btyd import Curves
from clv.data.events import PURCHASE
from clv.models.inputs.assemble import Assembler, fit_value_scale, origin_grid, population_average_curves

AVERAGE = np.arange(1.0, 13.0).reshape(2, 3, 2)  # visitors, then buyers; hazard, repeats, value; two horizons


class FakeBTYD:
    """Constant curves, with a factor of 2 where it is forecast and of 3 where it is known."""

    def curves(self, table: pd.DataFrame) -> Curves:
        rows = np.ones((len(table), 1))
        return Curves(rows * [0.1, 0.2], rows * [0.4, 0.8], rows * [30.0, 60.0])

    def forecast_factor(self, day: int) -> tuple[np.ndarray, ...]:
        return np.full(2, 2.0), np.full(2, 2.0), np.full(2, 0.25)

    def actual_factor(self, days: np.ndarray) -> tuple[np.ndarray, ...]:
        return np.full((len(days), 2), 3.0), np.full((len(days), 2), 3.0)


@pytest.fixture
def assembler(shop) -> Assembler:
    fake: Any = FakeBTYD()
    return Assembler(shop.clock, "gross", (30, 90), fake, shop.space, 10.0, 12, AVERAGE)


def test_samples_hold_curves_with_the_forecast_factor_and_features_without_it(shop, assembler: Assembler) -> None:
    rows = assembler.assemble(shop.histories, int(shop.past.origin[0]))
    samples = rows.samples
    np.testing.assert_allclose(samples.base_value[0], [6.0, 12.0])
    np.testing.assert_allclose(samples.base_hazard[0], [0.2, 0.4])
    np.testing.assert_allclose(rows.base.value[0], [60.0, 120.0])
    np.testing.assert_allclose(rows.factor_error, 0.25)
    plain = np.log(np.array([0.1, 0.2, *(np.array([0.4, 0.8]) + np.expm1(-np.array([0.1, 0.2]))), 3.0, 6.0]) + 1e-4) / 4
    np.testing.assert_allclose(samples.wide[0, -6:], plain, rtol=1e-5)
    buyers = rows.table["has_purchase"].to_numpy(bool)
    np.testing.assert_allclose(samples.population_average[buyers], np.tile(2 * AVERAGE[1], (buyers.sum(), 1, 1)))
    np.testing.assert_allclose(samples.unit, AVERAGE[1, 2])
    assert samples.value is None


def test_training_samples_have_the_actual_factor_and_labels_in_value_units(shop, assembler: Assembler) -> None:
    customers, day = np.arange(30), int(shop.past.origin_day[0])
    samples = assembler.training_samples(
        shop.histories, customers, np.full(30, day, np.int32), shop.clock.parse("2024-03-01")
    )
    np.testing.assert_allclose(samples.base_value[0], [9.0, 18.0])
    first = shop.past.origin_day == day
    wanted = dict(zip(shop.past.customer[first], shop.past.labels.value[first], strict=True))
    known = [i for i, customer in enumerate(customers) if customer in wanted][: len(samples)]
    assert len(known) == len(samples)
    np.testing.assert_allclose(samples.value, [wanted[customers[i]] / 10 for i in known], rtol=1e-6)


def test_the_population_average_is_the_mean_of_visitors_and_of_buyers() -> None:
    curves = Curves(
        np.array([[1.0], [3.0], [8.0]]), np.array([[2.0], [4.0], [9.0]]), np.array([[10.0], [30.0], [80.0]])
    )
    average = population_average_curves(curves, np.array([False, False, True]), 10.0)
    np.testing.assert_allclose(average[:, 0, 0], [2.0, 8.0])
    np.testing.assert_allclose(average[:, 2, 0], [2.0, 8.0])
    nobody = population_average_curves(curves, np.zeros(3, bool), 10.0)
    np.testing.assert_allclose(nobody[1, 0, 0], 4.0)


def test_the_value_scale_is_the_mean_order_before_the_origins_and_one_without_prices(shop) -> None:
    h = shop.histories
    past = np.unique(shop.past.index)
    amounts = h.amount[past][(h.type[past] == PURCHASE) & (h.amount[past] > 0)]
    assert fit_value_scale(shop.past) == pytest.approx(amounts.mean())
    free = replace(shop.past, histories=replace(h, amount=np.full(len(h.amount), np.nan)))
    assert fit_value_scale(free) == 1.0


def test_the_grid_of_origins_has_whole_weeks_and_enough_log_before_each() -> None:
    grid = origin_grid(first_day=1000, cutoff_day=1365, num_origins=6, min_history_days=90)
    assert grid.tolist() == sorted(1365 - 49 * step for step in range(1, 6))
    assert ((1365 - grid) % 7 == 0).all()
    assert grid.min() - 1000 >= 90
    assert len(origin_grid(1000, 1365, 100, 90)) == (365 - 90) // 7
    assert len(origin_grid(1000, 1050, 6, 90)) == 0
