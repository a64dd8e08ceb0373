"""Predictor: scores customers with a bundle; batch scoring, serving and notebooks all use it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clv import bundle as bundles
from clv.btyd.seasonal_btyd import Curves, SeasonalBTYD
from clv.data.clock import DAY_US, Clock, to_datetime, to_us
from clv.data.histories import Histories
from clv.forecast import portfolio
from clv.forecast.adjustment import AdjustedForecast, Adjustment
from clv.forecast.distributions import Array
from clv.forecast.horizons import resample_horizons, tail_years
from clv.forecast.pipeline import forecast_customers
from clv.forecast.scores import PORTFOLIO, SCORES, score_table
from clv.models.config import ModelConfig
from clv.models.inputs.assemble import AssembledRows, Assembler
from clv.models.inputs.feature_space import FeatureSpace
from clv.models.model import CustomerModel

MAX_DAYS_AHEAD = 90
_CHUNK = 2_000


class Predictor:
    """Scores customers from their histories with one bundle.

    `bundle` is a folder or a loaded bundle, `device` a torch device. Raises BundleError for a damaged folder.

    Example::

        predictor = Predictor("out/bundle")
        scores = predictor.predict(histories, as_of=datetime(2011, 6, 12), horizons=(30, 90))
    """

    def __init__(self, bundle: Path | str | bundles.Bundle, device: str = "cpu") -> None:
        b = bundle if isinstance(bundle, bundles.Bundle) else bundles.load(bundle)
        facts = b.config["dataset_facts"]
        self.version, self.currency, self.timezone = b.version, facts["currency"], facts["timezone"]
        self.horizons = tuple(int(h) for h in facts["horizons"])
        self.clock = Clock(self.timezone)
        self.cut = to_datetime(b.config["cut_us"])
        self.data_through = to_datetime(b.config["data_through_us"])
        self.metrics = b.metrics
        self._discount = float(facts["discount_rate_annual"])
        self._device = device
        shape = ModelConfig.from_json(b.config["model"])
        self.max_tokens = shape.backbone.max_tokens
        space = FeatureSpace.from_arrays(b.vocab, b.items)
        self._model = CustomerModel(shape, space, len(self.horizons))
        self._model.load_state_dict({name: torch.from_numpy(array) for name, array in b.weights.items()})
        self._model.to(device).eval()
        self._assembler = Assembler(
            clock=self.clock,
            value=facts["value"],
            horizons=self.horizons,
            btyd=SeasonalBTYD.from_json(b.btyd),
            space=space,
            value_scale=float(b.config["value_scale"]),
            max_tokens=self.max_tokens,
            population_average=np.array(b.config["population_average"]),
        )
        self._adjustment = Adjustment.from_json(b.calibration)

    def predict(self, histories: pa.Table, as_of: datetime | int, horizons: Sequence[int] | None = None) -> pa.Table:
        """SCORES of all customers in `histories` with an event before `as_of`, one row per customer and horizon.

        `as_of` is a time or us UTC; `horizons` are days, by default the learned ones. Ranks and deciles are within the
        table. Raises ValueError for an origin before the bundle's cut, and for a horizon that is not between 1 and 3650
        days. `check_origin` limits how far the origin may lie past the data.
        """
        origin, wanted = self._origin_after_cut(as_of), self._check_horizons(horizons)
        found = self._forecast(Histories.from_table(histories), origin)
        if found is None:
            return SCORES.empty_table()
        rows, learned = found
        clv = self._lifetime_value(learned, rows)
        adjusted, extrapolated = self._resample(learned, rows, wanted)
        return score_table(rows.table["customer_id"], origin, wanted, adjusted, clv, extrapolated)

    def portfolio(self, histories: pa.Table, as_of: datetime | int, horizons: Sequence[int] | None = None) -> pa.Table:
        """PORTFOLIO: total value of all customers in `histories` known at `as_of`, one row per horizon.

        `customers` is their number; without any, the values are 0. The quantiles are those of the total: customers vary
        independently, and the error of the seasonal factor is common to all. Errors are raised as in `predict`.
        """
        origin, wanted = self._origin_after_cut(as_of), self._check_horizons(horizons)
        found = self._forecast(Histories.from_table(histories), origin)
        mean, interval, num = np.zeros(len(wanted)), np.zeros((len(wanted), 3)), 0
        if found is not None:
            rows, learned = found
            adjusted, _ = self._resample(learned, rows, wanted)
            num, mean = len(rows.table), adjusted.forecast.value.sum(0)
            chunks = [slice(start, start + _CHUNK) for start in range(0, num, _CHUNK)]
            drawn = sum(portfolio.draw_totals(adjusted.take(c).equally_likely_values(), c.start) for c in chunks)
            interval = portfolio.total_quantiles(
                np.asarray(drawn), mean[None], [num], factor_error=adjusted.factor_error, spread=adjusted.sum_spread
            )[0]
        columns = [list(wanted), [num] * len(wanted), mean, *interval.T]
        arrays = [pa.array(c).cast(field.type) for c, field in zip(columns, PORTFOLIO, strict=True)]
        return pa.table(arrays, schema=PORTFOLIO)

    def embed(self, histories: pa.Table, as_of: datetime | int) -> pa.Table:
        """`customer_id` and the customer's embedding `z`; errors are raised as in `predict`."""
        found = self._forecast(Histories.from_table(histories), self._origin_after_cut(as_of))
        width = self._model.config.hidden
        schema = pa.schema([("customer_id", pa.string()), ("z", pa.list_(pa.float32(), width))])
        if found is None:
            return schema.empty_table()
        rows, adjusted = found
        z = pa.FixedSizeListArray.from_arrays(adjusted.forecast.z.ravel(), width)
        return pa.table([pa.array(rows.table["customer_id"], pa.string()), z], schema=schema)

    def forecast(self, histories: Histories, origin: int, horizon: int) -> tuple[AssembledRows, AdjustedForecast]:
        """Rows of all customers known at the origin (us) and their adjusted forecast at one horizon (days), for a
        back-test. Raises ValueError where no customer has bought before."""
        found = self._forecast(histories, origin)
        if found is None or not found[0].table["has_purchase"].any():
            raise ValueError(f"no customer has bought before {self.clock.format(origin)}; choose a later origin")
        rows, learned = found
        return rows, self._resample(learned, rows, (horizon,))[0]

    def check_origin(self, as_of: datetime | int, data_through: int | None = None) -> int:
        """The origin in us; ValueError where it lies before the cut, or more than 90 days past the newest data.

        `data_through` (us) is the end of the scored data, where it is newer than the bundle's training data.
        """
        origin = self._origin_after_cut(as_of)
        through = max(to_us(self.data_through), data_through or 0)
        if origin > through + MAX_DAYS_AHEAD * DAY_US:
            raise ValueError(
                f"origin {self.clock.format(origin)} lies more than {MAX_DAYS_AHEAD} days past the data "
                f"(through {self.clock.format(through)}); prepare newer events"
            )
        return origin

    def _check_horizons(self, horizons: Sequence[int] | None) -> tuple[int, ...]:
        wanted = tuple(sorted({int(h) for h in horizons or self.horizons}))
        if wanted[0] < 1 or wanted[-1] > 3650:
            raise ValueError(f"horizons_days {list(wanted)} must lie between 1 and 3650")
        return wanted

    def _resample(
        self, learned: AdjustedForecast, rows: AssembledRows, wanted: tuple[int, ...]
    ) -> tuple[AdjustedForecast, NDArray[np.bool_]]:
        """The forecast at the wanted horizons, and which of them are extrapolated."""
        if wanted == self.horizons:
            return learned, np.zeros(len(wanted), bool)
        return resample_horizons(learned, self.horizons, wanted, self._btyd_curves(rows.table, wanted))

    def _origin_after_cut(self, as_of: datetime | int) -> int:
        origin = int(as_of) if isinstance(as_of, int | np.integer) else self.clock.parse(as_of)
        cut = to_us(self.cut)
        if origin < cut:
            raise ValueError(
                f"origin {self.clock.format(origin)} lies before the bundle's cut {self.clock.format(cut)}: the bundle "
                "was trained on data after this origin; choose a later origin or train with --origin"
            )
        return origin

    def _forecast(self, histories: Histories, origin: int) -> tuple[AssembledRows, AdjustedForecast] | None:
        return forecast_customers(self._model, self._assembler, self._adjustment, histories, origin, self._device)

    def _btyd_curves(self, table: pd.DataFrame, wanted: tuple[int, ...]) -> Curves:
        """The BTYD model's curves without the seasonal factor, at all learned and wanted horizons, ascending."""
        return self._assembler.btyd.curves(table, sorted({*self.horizons, *wanted}))

    def _lifetime_value(self, learned: AdjustedForecast, rows: AssembledRows) -> Array:
        """(S,) discounted value: increments to the learned horizons, and the yearly increments of the tail.

        Each increment is discounted from the middle of its interval.
        """
        last = self.horizons[-1]
        tail = tuple(last + 365 * year for year in range(1, tail_years(self._assembler.btyd) + 1))
        far, _ = resample_horizons(learned, self.horizons, tail, self._btyd_curves(rows.table, tail))
        value = np.concatenate([learned.forecast.value, far.forecast.value], axis=1)
        ends = np.array((*self.horizons, *tail), float)
        middle = (np.append(0.0, ends[:-1]) + ends) / 2
        factor = (1 + self._discount) ** (-middle / 365.0)
        return np.asarray(np.diff(value, axis=1, prepend=0.0) @ factor)
