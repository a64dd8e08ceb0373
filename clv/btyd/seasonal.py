"""The baseline of every prediction: BTYD models fitted at past origins, times a level learned from their errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.btyd import diagnostics
from clv.btyd.conversion import Conversion
from clv.btyd.models import NBD, BTYDModel, Kind
from clv.btyd.seasonality import SeasonalFactor, log_error
from clv.data.clock import Clock
from clv.data.cutoff import Value, cut
from clv.data.features import purchases
from clv.data.histories import Histories

Floats = NDArray[np.float64]

REFIT_DAYS = 28
PSEUDO_ORDERS = 20.0  # weight of "as expected" in an origin's own level, in orders
SMALLEST = 1e-6
_INDEX_NAMES = {"expected": "expected", "realised": "realised", "error": "log_error"}
ERROR_COLUMNS = (
    *("origin_day", "horizon_days", "log_days"),
    *(f"{part}_{what}" for what in ("orders", "value") for part in _INDEX_NAMES),
)


@dataclass(frozen=True)
class Curves:
    """Cumulative expectations per row and horizon, (S, H), horizons ascending: hazard = -log P(no purchase), orders,
    value (currency)."""

    hazard: Floats
    orders: Floats
    value: Floats

    @property
    def repeats(self) -> Floats:
        """E[(orders - 1)+] = orders - P(purchase)."""
        gap = np.maximum(self.orders + np.expm1(-self.hazard), SMALLEST)
        return np.maximum.accumulate(gap, axis=1)

    @property
    def p_purchase(self) -> Floats:
        return -np.expm1(-self.hazard)


@dataclass(frozen=True)
class SeasonalBTYD:
    """BTYD models by fit day, the level of every past origin of the grid, and the index that forecasts the level."""

    horizons: tuple[int, ...]
    cutoff_day: int
    fits: dict[int, BTYDModel]
    conversion: Conversion
    past: pd.DataFrame  # ERROR_COLUMNS: what the BTYD models of past origins expected and what came
    orders_factor_model: SeasonalFactor
    value_factor_model: SeasonalFactor
    warning: str | None = None  # what the degenerate-fit check says of a degenerate fit at the cutoff

    @classmethod
    def fit(
        cls,
        histories: Histories,
        cutoff: int,
        horizons: Sequence[int],
        clock: Clock,
        *,
        value: Value = "gross",
        origin_days: NDArray[np.int32],
        kind: Kind = "bgnbd",
    ) -> Self:
        """Fit on everything known before `cutoff` (us) and nothing else.

        `origin_days`: the grid of past origins, ascending. Raises ValueError where nobody has bought.
        """
        horizons = tuple(horizons)
        cutoff_day = int(clock.day_of(np.array([cutoff]))[0])
        visible = (histories.time < cutoff) & (histories.known_at < cutoff)
        first_day = int(histories.day[visible].min(initial=cutoff_day))
        fits: dict[int, BTYDModel] = {}
        rows: list[dict[str, float]] = []
        visitors: list[pd.DataFrame] = []
        days = [int(day) for day in origin_days if day < cutoff_day] + [cutoff_day]
        newest = None
        for day in days:
            origin = cutoff if day == cutoff_day else int(clock.start_of(day))
            past = cut(histories, origin, horizons, clock, value=value, known_before=cutoff)
            table = purchases(past)
            buyers = table[table["has_purchase"].to_numpy()]
            if len(buyers) == 0:
                continue
            if newest is None or day - newest >= REFIT_DAYS or day == cutoff_day:
                fits[day] = BTYDModel.fit(buyers, kind=kind)
                newest = day
            visitors.append(table[~table["has_purchase"].to_numpy()])
            rows += _errors(fits[newest], buyers, horizons, day, day - first_day)
        if not fits:
            raise ValueError(
                "nobody has bought before the origin: an BTYD model needs purchases; choose a later origin"
            )
        past_table = pd.DataFrame(rows, columns=list(ERROR_COLUMNS), dtype=np.float64)
        return cls(
            horizons=horizons,
            cutoff_day=cutoff_day,
            fits=fits,
            conversion=Conversion.fit(pd.concat(visitors, ignore_index=True), horizons),
            past=past_table,
            orders_factor_model=_index(past_table, "orders", cutoff_day),
            value_factor_model=_index(past_table, "value", cutoff_day),
            warning=_warning(fits[max(fits)], buyers),
        )

    def curves(self, table: pd.DataFrame, horizons: Sequence[int] | None = None) -> Curves:
        """What the BTYD model alone expects of each row, without season; each row uses the newest BTYD model not after it."""
        horizons = tuple(horizons or self.horizons)
        hazard, orders, value = (np.full((len(table), len(horizons)), SMALLEST) for _ in range(3))
        buys = table["has_purchase"].to_numpy()
        fit_days = np.array(sorted(self.fits))
        chosen = fit_days[np.maximum(np.searchsorted(fit_days, table["origin_day"], side="right") - 1, 0)]
        for day in np.unique(chosen[buys]) if buys.any() else []:
            rows = np.flatnonzero(buys & (chosen == day))
            part = table.iloc[rows]
            for i, days in enumerate(horizons):
                expected = self.fits[int(day)].predict(part, days)
                hazard[rows, i] = -np.log1p(-np.clip(expected["p_purchase"], 0, 1 - 1e-9))
                orders[rows, i] = expected["orders"]
                value[rows, i] = expected["value"]
        rows = np.flatnonzero(~buys)
        if len(rows):
            hazard[rows], orders[rows], value[rows] = self.conversion.curves(table.iloc[rows], horizons)
        return _monotone(hazard, orders, value)

    def realised_factor(self, origin_day: NDArray[np.int32]) -> tuple[Floats, Floats]:
        """(orders, value) level of each past origin, (S, H): realised / expected; 1 where it has not fully observed."""
        return self._lookup(origin_day, "orders"), self._lookup(origin_day, "value")

    def forecast_factor(self, origin_day: int, horizons: Sequence[int] | None = None) -> tuple[Floats, Floats, Floats]:
        """(orders level, value level, log standard error of the value level), each (H,)."""
        horizons = tuple(horizons or self.horizons)
        orders, _ = self.orders_factor_model.levels(origin_day, horizons)
        value, error = self.value_factor_model.levels(origin_day, horizons)
        return orders, value, error

    def _lookup(self, origin_day: NDArray[np.int32], what: str) -> Floats:
        out = np.ones((len(origin_day), len(self.horizons)))
        for i, horizon in enumerate(self.horizons):
            rows = self.past[self.past["horizon_days"] == horizon]
            if len(rows) == 0:
                continue
            expected, realised = (rows[f"{part}_{what}"].to_numpy() for part in ("expected", "realised"))
            scale = expected / np.maximum(rows["expected_orders"].to_numpy(), SMALLEST) * PSEUDO_ORDERS
            level = (realised + scale) / np.maximum(expected + scale, SMALLEST)
            ratio = pd.Series(level, index=rows["origin_day"].to_numpy())
            out[:, i] = ratio.reindex(origin_day).fillna(1.0).to_numpy()
        return out

    def to_json(self) -> dict[str, Any]:
        # JSON has no infinity: null is the error of a level where nothing was realised.
        past = self.past.astype(object).where(np.isfinite(self.past.astype(np.float64)), None)
        return {
            "horizons": list(self.horizons),
            "cutoff_day": self.cutoff_day,
            "fits": {str(day): json.loads(btyd_model.to_json()) for day, btyd_model in self.fits.items()},
            "conversion": self.conversion.to_json(),
            "past": past.to_dict(orient="list"),
            "orders_factor_model": json.loads(self.orders_factor_model.to_json()),
            "value_factor_model": json.loads(self.value_factor_model.to_json()),
            "warning": self.warning,
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        return cls(
            horizons=tuple(plain["horizons"]),
            cutoff_day=int(plain["cutoff_day"]),
            fits={int(day): BTYDModel.from_json(json.dumps(btyd_model)) for day, btyd_model in plain["fits"].items()},
            conversion=Conversion.from_json(plain["conversion"]),
            past=pd.DataFrame(plain["past"], columns=list(ERROR_COLUMNS)).astype(np.float64).fillna(np.inf),
            orders_factor_model=SeasonalFactor.from_json(json.dumps(plain["orders_factor_model"])),
            value_factor_model=SeasonalFactor.from_json(json.dumps(plain["value_factor_model"])),
            warning=plain["warning"],
        )


def with_factor(curves: Curves, orders_factor: Floats, value_factor: Floats) -> Curves:
    """Curves with the level of their origin applied; levels are (S, H) or (H,)."""
    return _monotone(curves.hazard * orders_factor, curves.orders * orders_factor, curves.value * value_factor)


def _monotone(hazard: Floats, orders: Floats, value: Floats) -> Curves:
    hazard = np.maximum.accumulate(np.maximum(hazard, SMALLEST), axis=1)
    orders = np.maximum.accumulate(np.maximum(orders, -np.expm1(-hazard)), axis=1)
    return Curves(hazard, orders, np.maximum.accumulate(np.maximum(value, SMALLEST), axis=1))


def _errors(
    btyd_model: BTYDModel, buyers: pd.DataFrame, horizons: tuple[int, ...], day: int, log_days: int
) -> list[dict[str, float]]:
    rows = []
    for horizon in horizons:
        if not bool(buyers[f"observed_{horizon}"].iloc[0]):
            continue
        row: dict[str, float] = {"origin_day": day, "horizon_days": horizon, "log_days": log_days}
        expected = btyd_model.predict(buyers, horizon)
        for what in ("orders", "value"):
            real = buyers[f"{what}_{horizon}"].to_numpy()
            row[f"expected_{what}"] = float(expected[what].sum())
            row[f"realised_{what}"] = float(real.sum())
            row[f"error_{what}"] = log_error(expected[what], real)
        rows.append(row)
    return rows


def _warning(btyd_model: BTYDModel, buyers: pd.DataFrame) -> str | None:
    if isinstance(btyd_model.counts, NBD):
        return None
    history = tuple(buyers[name].to_numpy(np.float64) for name in ("frequency", "recency", "T"))
    finding = diagnostics.check(btyd_model.counts, NBD.fit(*history), float((history[0] > 0).sum()))
    return finding.text if finding.degenerate else None


def _index(past: pd.DataFrame, what: str, cutoff_day: int) -> SeasonalFactor:
    names = {f"{part}_{what}": name for part, name in _INDEX_NAMES.items()}
    return SeasonalFactor.fit(past.rename(columns=names), cutoff_day)
