"""From a cut to the arrays a model takes: the one code path of training, batch scoring and serving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.btyd.seasonal import SMALLEST, Curves, SeasonalBTYD, with_factor
from clv.data import features
from clv.data.clock import Clock
from clv.data.cutoff import Cut, Value, cut
from clv.data.histories import Histories
from clv.models.inputs.batch import Samples
from clv.models.inputs.feature_space import FeatureSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Assembled:
    """Rows of a cut, ready for the model: what it takes, what it starts from, and the sample frame."""

    samples: Samples
    base: Curves
    table: pd.DataFrame
    cut: Cut


@dataclass(frozen=True)
class Assembler:
    """Everything fitted that stands between histories and a model.

    money: shop currency per unit of value. typical (2, 3, H): mean hazard, repeats and value (in money) of the BTYD model
    at the cut, before any level, over the visitors and over the buyers.
    """

    clock: Clock
    value: Value
    horizons: tuple[int, ...]
    btyd: SeasonalBTYD
    space: FeatureSpace
    value_scale: float
    max_tokens: int
    population_average: Floats

    def at(self, histories: Histories, origin: int, known_before: int | None = None) -> Assembled:
        """Everybody known at the origin (us), with the forecast level of that origin; labels if `known_before`."""
        past = cut(histories, origin, self.horizons, self.clock, value=self.value, known_before=known_before)
        day = int(self.clock.day_of(np.array([origin]))[0])
        orders, value, _ = self.btyd.forecast_factor(day)
        return self._assemble(past, orders, value)

    def train(
        self, histories: Histories, customers: NDArray[np.int64], days: NDArray[np.int32], cutoff: int
    ) -> Samples:
        """Rows (customers[i], days[i]) with labels known before `cutoff` and the level that each origin really had."""
        origins = self.clock.start_of(days)
        past = cut(
            histories, origins, self.horizons, self.clock, value=self.value, customers=customers, known_before=cutoff
        )
        orders, value = self.btyd.realised_factor(past.origin_day)
        return self._assemble(past, orders, value).samples

    def _assemble(self, past: Cut, orders_factor: Floats, value_factor: Floats) -> Assembled:
        table = features.frame(past, self.horizons)
        plain = self.btyd.curves(table)
        base = with_factor(plain, orders_factor, value_factor)
        labels = past.labels
        buyer = table["has_purchase"].to_numpy(bool).astype(np.int64)
        hazard, repeats, worth = np.moveaxis(self.population_average[buyer], 1, 0)
        population_average = [hazard * orders_factor, repeats * orders_factor, worth * value_factor]
        samples = Samples(
            tokens=self.space.tokens(past, self.max_tokens),
            wide=np.concatenate([self.space.wide(table), self._curve_features(plain)], axis=1),
            base_hazard=base.hazard.astype(np.float32),
            base_repeats=base.repeats.astype(np.float32),
            base_value=(base.value / self.value_scale).astype(np.float32),
            population_average=np.stack(population_average, axis=1).astype(np.float32),
            value=None if labels is None else np.nan_to_num(labels.value / self.value_scale).astype(np.float32),
            orders=None if labels is None else np.nan_to_num(labels.orders).astype(np.float32),
            observed=None if labels is None else labels.observed,
            unit=np.maximum(self.population_average[1, 2], 1e-3).astype(np.float32),
        )
        return Assembled(samples, base, table, past)

    def _curve_features(self, curves: Curves) -> NDArray[np.float32]:
        """The BTYD model's curves before any level, so that a season seen once is not taken for a kind of customer."""
        stacked = np.concatenate([curves.hazard, curves.repeats, curves.value / self.value_scale], axis=1)
        return (np.log(stacked + 1e-4) / 4).astype(np.float32)


def population_average_curves(plain: Curves, buyers: NDArray[np.bool_], value_scale: float) -> Floats:
    """`Assembler.population_average` from the BTYD model's curves of everybody; where one kind is missing, the other stands for it."""
    stacked = np.stack([plain.hazard, plain.repeats, plain.value / value_scale], axis=1)
    kinds = [stacked[rows] if rows.any() else stacked for rows in (~buyers, buyers)]
    return np.stack([np.maximum(rows.mean(axis=0), SMALLEST) for rows in kinds])


def fit_value_scale(cuts: Cut) -> float:
    """Mean value of an order in the pasts of `cuts`: the unit in which value is learned; 1 without prices."""
    worth = cuts.worth()[np.unique(cuts.index)]
    paid = worth[worth > 0]
    return float(paid.mean()) if len(paid) else 1.0


def origin_grid(first_day: int, cutoff_day: int, num_origins: int, min_history_days: int) -> NDArray[np.int32]:
    """Past origins, whole weeks before the cut, at most `num_origins`, none with less log before it than asked."""
    span = cutoff_day - first_day - min_history_days
    step = 7 * max(1, int(np.ceil(span / 7 / num_origins)))
    days = cutoff_day - np.arange(1, num_origins + 1) * step
    return np.sort(days[days >= first_day + min_history_days]).astype(np.int32)
