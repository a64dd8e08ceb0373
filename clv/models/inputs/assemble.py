"""From histories to the samples of a model: the one code path of training, batch scoring and serving."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.btyd.seasonal_btyd import SMALLEST, Curves, SeasonalBTYD, apply_factor
from clv.data import features
from clv.data.clock import Clock
from clv.data.cutoff import Cut, Value, cut
from clv.data.histories import Histories
from clv.models.inputs.batch import Samples
from clv.models.inputs.feature_space import FeatureSpace

Floats = NDArray[np.float64]
MIN_VALUE_UNIT = 1e-3


@dataclass(frozen=True)
class AssembledRows:
    """The rows of a cut (customers at an origin) with all that a forecast of them needs."""

    samples: Samples
    base: Curves  # of the BTYD model with the seasonal factor of the origin, in currency
    factor_error: Floats  # (H,) standard error of the log of the value factor; 0 where the factor is known
    table: pd.DataFrame  # the features, one row per row of the cut
    cut: Cut


@dataclass(frozen=True)
class Assembler:
    """Everything fitted that stands between histories and a model.

    value_scale: currency per unit of value. population_average (2, 3, H): mean hazard, repeats and value (in value
    units) of the BTYD model at the cutoff, without a seasonal factor, over the visitors and over the buyers.
    """

    clock: Clock
    value: Value
    horizons: tuple[int, ...]
    btyd: SeasonalBTYD
    space: FeatureSpace
    value_scale: float
    max_tokens: int
    population_average: Floats

    def assemble(self, histories: Histories, origin: int, known_before: int | None = None) -> AssembledRows:
        """All customers known at the origin (us), with the seasonal factor forecast for it; labels if `known_before`
        (us) is given."""
        past = cut(histories, origin, self.horizons, self.clock, value=self.value, known_before=known_before)
        day = int(self.clock.local_day(np.array([origin]))[0])
        return self._assemble(past, *self.btyd.forecast_factor(day))

    def training_samples(
        self, histories: Histories, customers: NDArray[np.int64], days: NDArray[np.int32], cutoff: int
    ) -> Samples:
        """Samples (customers[i], days[i]) with labels known before `cutoff` (us) and each origin's actual factor."""
        origins = self.clock.day_start(days)
        past = cut(
            histories, origins, self.horizons, self.clock, value=self.value, customers=customers, known_before=cutoff
        )
        no_error = np.zeros(len(self.horizons))
        return self._assemble(past, *self.btyd.actual_factor(past.origin_day), no_error).samples

    def _assemble(self, past: Cut, orders_factor: Floats, value_factor: Floats, factor_error: Floats) -> AssembledRows:
        table = features.sample_frame(past, self.horizons)
        plain = self.btyd.curves(table)
        base = apply_factor(plain, orders_factor, value_factor)
        labels = past.labels
        buyer = table["has_purchase"].to_numpy(bool).astype(np.int64)
        hazard, repeats, value = np.moveaxis(self.population_average[buyer], 1, 0)
        average = [hazard * orders_factor, repeats * orders_factor, value * value_factor]
        samples = Samples(
            tokens=self.space.tokens(past, self.max_tokens),
            wide=np.concatenate([self.space.wide(table), self._curve_features(plain)], axis=1),
            base_hazard=base.hazard.astype(np.float32),
            base_repeats=base.repeats.astype(np.float32),
            base_value=(base.value / self.value_scale).astype(np.float32),
            population_average=np.stack(average, axis=1).astype(np.float32),
            value=None if labels is None else np.nan_to_num(labels.value / self.value_scale).astype(np.float32),
            orders=None if labels is None else np.nan_to_num(labels.orders).astype(np.float32),
            observed=None if labels is None else labels.observed,
            unit=np.maximum(self.population_average[1, 2], MIN_VALUE_UNIT).astype(np.float32),
        )
        return AssembledRows(samples, base, factor_error, table, past)

    def _curve_features(self, curves: Curves) -> NDArray[np.float32]:
        """(S, 3 H) logs of the BTYD model's curves without the seasonal factor, so that the model cannot take a season
        that it has seen once for a kind of customer."""
        stacked = np.concatenate([curves.hazard, curves.repeats, curves.value / self.value_scale], axis=1)
        return (np.log(stacked + 1e-4) / 4).astype(np.float32)


def population_average_curves(plain: Curves, buyers: NDArray[np.bool_], value_scale: float) -> Floats:
    """(2, 3, H) `Assembler.population_average` from the BTYD model's curves of all customers.

    Where there are no visitors or no buyers, the mean of all customers replaces theirs.
    """
    stacked = np.stack([plain.hazard, plain.repeats, plain.value / value_scale], axis=1)
    groups = [stacked[rows] if rows.any() else stacked for rows in (~buyers, buyers)]
    return np.stack([np.maximum(rows.mean(axis=0), SMALLEST) for rows in groups])


def fit_value_scale(cuts: Cut) -> float:
    """Mean value of an order in the pasts of `cuts`, the unit in which the model learns value; 1 without prices."""
    value = cuts.token_values()[np.unique(cuts.index)]
    paid = value[value > 0]
    return float(paid.mean()) if len(paid) else 1.0


def origin_grid(first_day: int, cutoff_day: int, num_origins: int, min_history_days: int) -> NDArray[np.int32]:
    """Days (since 1970) of past training origins, ascending: whole weeks before the cutoff, at most `num_origins`, each
    with at least `min_history_days` of log before it."""
    span = cutoff_day - first_day - min_history_days
    step = 7 * max(1, int(np.ceil(span / 7 / num_origins)))
    days = cutoff_day - np.arange(1, num_origins + 1) * step
    return np.sort(days[days >= first_day + min_history_days]).astype(np.int32)
