"""The predictor: the one code path of batch scoring, serving and notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray

from clv import bundle as bundles
from clv.btyd.seasonal import Curves, SeasonalBTYD
from clv.data.clock import DAY_US, Clock
from clv.data.histories import Histories
from clv.forecast import portfolio
from clv.forecast.adjustment import Adjustment, Outlook, adjust
from clv.forecast.horizons import at_horizons, tail_years
from clv.forecast.network import forecast
from clv.forecast.scores import PORTFOLIO, SCORES, score_table
from clv.models.inputs.assemble import Assembled, Assembler
from clv.models.inputs.feature_space import FeatureSpace
from clv.models.model import CustomerModel, ModelConfig

Floats = NDArray[np.float64]

MAX_DAYS_AHEAD = 90
_CHUNK = 2_000


class Predictor:
    """Scores customers from their histories with one bundle. Loading verifies the bundle."""

    def __init__(self, bundle: Path | str | bundles.Bundle, device: str = "cpu") -> None:
        b = bundle if isinstance(bundle, bundles.Bundle) else bundles.load(bundle)
        facts = b.config["dataset_facts"]
        self.version, self.currency, self.timezone = b.version, facts["currency"], facts["timezone"]
        self.horizons = tuple(int(h) for h in facts["horizons"])
        self.clock = Clock(self.timezone)
        self.cut = _utc(b.config["cut_us"])
        self.data_through = _utc(b.config["data_through_us"])
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
        """SCORES of everybody in `histories` with an event before `as_of`, one row per customer and horizon.

        Ranks and deciles are within the table. Raises ValueError for an origin before the bundle's cut, and for a
        horizon that is not a positive number of days. How far past the data one may look: `check_origin`.
        """
        origin, wanted = self._after_cut(as_of), self._wanted(horizons)
        rows, learned = self._outlook(Histories.from_table(histories), origin)
        if rows is None or learned is None:
            return SCORES.empty_table()
        clv = self._lifetime(learned, rows)
        outlook, beyond = self._at(learned, rows, wanted)
        return score_table(rows.table["customer_id"], origin, wanted, outlook, clv, beyond)

    def portfolio(self, histories: pa.Table, as_of: datetime | int, horizons: Sequence[int] | None = None) -> pa.Table:
        """PORTFOLIO: what everybody in `histories` known at `as_of` will be worth together, one row per horizon.

        `customers`: how many of them are known; with none the values are 0. The band is that of the total: customers
        spread independently, and the level that all share may be wrong for all at once. Errors as in `predict`.
        """
        origin, wanted = self._after_cut(as_of), self._wanted(horizons)
        rows, learned = self._outlook(Histories.from_table(histories), origin)
        mean, band, num = np.zeros(len(wanted)), np.zeros((len(wanted), 3)), 0
        if rows is not None and learned is not None:
            outlook, _ = self._at(learned, rows, wanted)
            num, mean = len(rows.table), outlook.forecast.value.sum(0)
            chunks = [slice(start, start + _CHUNK) for start in range(0, num, _CHUNK)]
            drawn = sum(portfolio.totals(outlook.take(c).equally_likely(), c.start) for c in chunks)
            band = portfolio.bands(
                np.asarray(drawn), mean[None], [num], factor_error=outlook.factor_error, spread=outlook.sum_spread
            )[0]
        columns = [list(wanted), [num] * len(wanted), mean, *band.T]
        arrays = [pa.array(c).cast(field.type) for c, field in zip(columns, PORTFOLIO, strict=True)]
        return pa.table(arrays, schema=PORTFOLIO)

    def embed(self, histories: pa.Table, as_of: datetime | int) -> pa.Table:
        """`customer_id` and the customer's vector `z`."""
        rows, outlook = self._outlook(Histories.from_table(histories), self._after_cut(as_of))
        width = self._model.config.hidden
        if rows is None or outlook is None:
            return pa.table(
                {"customer_id": pa.array([], pa.string()), "z": pa.array([], pa.list_(pa.float32(), width))}
            )
        z = pa.FixedSizeListArray.from_arrays(pa.array(outlook.forecast.z.ravel(), pa.float32()), width)
        return pa.table({"customer_id": pa.array(rows.table["customer_id"], pa.string()), "z": z})

    def outlook(self, histories: Histories, origin: int, horizon: int) -> tuple[Assembled, Outlook]:
        """Rows of everybody known at the origin (us) and their outlook at one horizon, for judging; ValueError if
        nobody has bought before."""
        rows, outlook = self._outlook(histories, origin)
        if rows is None or outlook is None or not rows.table["has_purchase"].any():
            raise ValueError(f"nobody has bought before {self.clock.format(origin)}")
        return rows, self._at(outlook, rows, (horizon,))[0]

    def check_origin(self, as_of: datetime | int, data_through: int | None = None) -> int:
        """The origin in us; ValueError before the cut, or more than 90 days past the newest data.

        `data_through` (us): the end of the data that is scored, where it is newer than what the bundle has seen.
        """
        origin = self._after_cut(as_of)
        through = max(_us(self.data_through), data_through or 0)
        if origin > through + MAX_DAYS_AHEAD * DAY_US:
            raise ValueError(
                f"origin {self.clock.format(origin)} lies more than {MAX_DAYS_AHEAD} days past the data "
                f"(through {self.clock.format(through)}); prepare newer events"
            )
        return origin

    def _wanted(self, horizons: Sequence[int] | None) -> tuple[int, ...]:
        wanted = tuple(sorted({int(h) for h in horizons or self.horizons}))
        if wanted[0] < 1 or wanted[-1] > 3650:
            raise ValueError(f"horizons_days {list(wanted)} must lie between 1 and 3650")
        return wanted

    def _at(self, outlook: Outlook, rows: Assembled, wanted: tuple[int, ...]) -> tuple[Outlook, NDArray[np.bool_]]:
        """The outlook at the wanted horizons, and which of them are extrapolated."""
        if wanted == self.horizons:
            return outlook, np.zeros(len(wanted), bool)
        return at_horizons(outlook, self.horizons, wanted, self._plain(rows.table, wanted))

    def _after_cut(self, as_of: datetime | int) -> int:
        origin = int(as_of) if isinstance(as_of, int | np.integer) else self.clock.parse(as_of)
        cut = _us(self.cut)
        if origin < cut:
            raise ValueError(
                f"origin {self.clock.format(origin)} lies before the bundle's cut {self.clock.format(cut)}: it was "
                "trained on what happened after it; choose a later origin or train with --origin"
            )
        return origin

    def _outlook(self, histories: Histories, origin: int) -> tuple[Assembled | None, Outlook | None]:
        if len(histories) == 0:
            return None, None
        rows = self._assembler.at(histories, origin)
        if len(rows.table) == 0:
            return None, None
        raw = forecast(self._model, rows.samples, self._assembler.value_scale, device=self._device)
        _, _, error = self._assembler.btyd.forecast_factor(self._day(origin))
        return rows, adjust(raw, rows.base, rows.table, error, self._adjustment)

    def _plain(self, table: pd.DataFrame, wanted: tuple[int, ...]) -> Curves:
        """The BTYD model's curves without level at all learned and wanted horizons, ascending."""
        return self._assembler.btyd.curves(table, sorted({*self.horizons, *wanted}))

    def _lifetime(self, outlook: Outlook, rows: Assembled) -> Floats:
        """(S,) discounted value: the learned increments at their mid-points, then the BTYD model's tail by years."""
        last = self.horizons[-1]
        tail = tuple(last + 365 * year for year in range(1, tail_years(self._assembler.btyd) + 1))
        far, _ = at_horizons(outlook, self.horizons, tail, self._plain(rows.table, tail))
        value = np.concatenate([outlook.forecast.value, far.forecast.value], axis=1)
        ends = np.array((*self.horizons, *tail), float)
        middle = (np.append(0.0, ends[:-1]) + ends) / 2
        factor = (1 + self._discount) ** (-middle / 365.0)
        return np.asarray(np.diff(value, axis=1, prepend=0.0) @ factor)

    def _day(self, origin: int) -> int:
        return int(self.clock.day_of(np.array([origin]))[0])


def _utc(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)


def _us(when: datetime) -> int:
    return int(pd.Timestamp(when).value // 1000)
