"""BTYD model with seasonal factor: BTYD models fitted at past origins, and factors learned from their past errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.btyd import diagnostics
from clv.btyd.conversion import Conversion
from clv.btyd.likelihood import Floats
from clv.btyd.models import NBD, BTYDModel, Kind
from clv.btyd.seasonal_factor import MAX_LOG_FACTOR, MIN_REPEATS, SeasonalFactorModel, log_error
from clv.data.clock import Clock
from clv.data.cutoff import Value, cut
from clv.data.features import purchase_frame
from clv.data.histories import Histories

REFIT_DAYS = 28
PSEUDO_ORDERS = 20.0  # weight, in orders, of the factor 1 in the actual factor of an origin
MAX_ACTUAL_FACTOR = 5.0  # a larger one is an error of the BTYD model that no season explains
SMALLEST = 1e-6  # lower bound of hazard, orders and value
_ERROR_NAMES = {"expected": "expected", "actual": "actual", "error": "log_error"}
ERROR_COLUMNS = (
    *("origin_day", "horizon_days", "log_days", "repeats"),
    *(f"{part}_{what}" for what in ("orders", "value") for part in _ERROR_NAMES),
)


@dataclass(frozen=True)
class Curves:
    """Cumulative curves of the BTYD model, (S, H) each, horizons ascending: hazard = -log P(no purchase), expected
    orders, expected value (currency)."""

    hazard: Floats
    orders: Floats
    value: Floats

    @property
    def repeats(self) -> Floats:
        """(S, H) expected orders beyond the first: E[(orders - 1)+] = orders - P(purchase)."""
        gap = np.maximum(self.orders + np.expm1(-self.hazard), SMALLEST)
        return np.maximum.accumulate(gap, axis=1)

    @property
    def p_purchase(self) -> Floats:
        """(S, H) probability of at least one purchase."""
        return -np.expm1(-self.hazard)


@dataclass(frozen=True)
class SeasonalBTYD:
    """BTYD models by the day of their fit, conversion rates of visitors, seasonal factors of orders and of value."""

    horizons: tuple[int, ...]
    cutoff_day: int
    fits: dict[int, BTYDModel]
    conversion: Conversion
    past: pd.DataFrame  # ERROR_COLUMNS: expected and actual totals of the BTYD models at past origins
    orders_factor_model: SeasonalFactorModel
    value_factor_model: SeasonalFactorModel
    warning: str | None = None  # of the degenerate-fit check, where the fit at the cutoff is degenerate

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
        """Fit on the events known before `cutoff` (us) alone.

        `origin_days` are the past origins whose errors are used, ascending. Raises ValueError where no customer has
        bought before the cutoff.
        """
        horizons = tuple(horizons)
        cutoff_day = int(clock.local_day([cutoff])[0])
        visible = (histories.time < cutoff) & (histories.known_at < cutoff)
        first_day = int(histories.day[visible].min(initial=cutoff_day))
        fits: dict[int, BTYDModel] = {}
        repeats = 0.0  # purchase days after the first that the newest BTYD model was fitted on
        rows: list[dict[str, float]] = []
        visitors: list[pd.DataFrame] = []
        for day in [*(int(day) for day in origin_days if day < cutoff_day), cutoff_day]:
            origin = cutoff if day == cutoff_day else int(clock.day_start(day))
            table = purchase_frame(cut(histories, origin, horizons, clock, value=value, known_before=cutoff))
            buyers = table[table["has_purchase"].to_numpy()]
            if len(buyers) == 0:
                continue
            if not fits or day - max(fits) >= REFIT_DAYS or day == cutoff_day:
                fits[day], repeats = BTYDModel.fit(buyers, kind=kind), float(buyers["frequency"].sum())
            visitors.append(table[~table["has_purchase"].to_numpy()])
            about = {"origin_day": day, "log_days": day - first_day, "repeats": repeats}
            rows += [about | error for error in _errors(fits[max(fits)], buyers, horizons)]
        if not fits:
            raise ValueError(
                "no customer has bought before the origin: a BTYD model needs purchases; choose a later origin"
            )
        past_table = pd.DataFrame(rows, columns=list(ERROR_COLUMNS), dtype=np.float64)
        return cls(
            horizons=horizons,
            cutoff_day=cutoff_day,
            fits=fits,
            conversion=Conversion.fit(pd.concat(visitors, ignore_index=True), horizons),
            past=past_table,
            orders_factor_model=_factor_model(past_table, "orders", cutoff_day, repeats),
            value_factor_model=_factor_model(past_table, "value", cutoff_day, repeats),
            warning=_warning(fits[max(fits)], buyers),
        )

    def curves(self, table: pd.DataFrame, horizons: Sequence[int] | None = None) -> Curves:
        """Curves without the seasonal factor; each row uses the newest BTYD model not after its origin."""
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
                orders[rows, i], value[rows, i] = expected["orders"], expected["value"]
        rows = np.flatnonzero(~buys)
        if len(rows):
            hazard[rows], orders[rows], value[rows] = self.conversion.curves(table.iloc[rows], horizons)
        return _monotone(hazard, orders, value)

    def actual_factor(self, origin_day: NDArray[np.int32]) -> tuple[Floats, Floats]:
        """(orders factor, value factor) of past origins, (S, H) each: actual / expected totals; 1 where unobserved, and
        where there are fewer than MIN_REPEATS repeat purchases."""
        return self._lookup(origin_day, "orders"), self._lookup(origin_day, "value")

    def forecast_factor(self, origin_day: int, horizons: Sequence[int] | None = None) -> tuple[Floats, Floats, Floats]:
        """(orders factor, value factor, standard error of the log of the value factor) at an origin, (H,) each."""
        horizons = tuple(horizons or self.horizons)
        orders, _ = self.orders_factor_model.forecast(origin_day, horizons)
        value, error = self.value_factor_model.forecast(origin_day, horizons)
        return orders, value, error

    def findings(self) -> list[str]:
        """What is doubtful about this fit, as sentences for the log and the model card."""
        found = [] if self.warning is None else [f"BTYD model: {self.warning}"]
        for days, factor in zip(self.horizons, self.forecast_factor(self.cutoff_day)[1].tolist(), strict=True):
            if abs(np.log(factor)) >= MAX_LOG_FACTOR - 1e-9:
                most = "largest" if factor > 1 else "smallest"
                found.append(
                    f"seasonal factor: the BTYD model's total over {days} days is multiplied by {factor:.2f}, the "
                    f"{most} factor that is used; past errors ask for more, so the total may still be wrong: look for "
                    "a change of the shop that is no season, or train on a log that starts later"
                )
        return found

    def _lookup(self, origin_day: NDArray[np.int32], what: str) -> Floats:
        out = np.ones((len(origin_day), len(self.horizons)))
        for i, horizon in enumerate(self.horizons):
            rows = self.past[self.past["horizon_days"] == horizon].set_index("origin_day")
            expected, actual = rows[f"expected_{what}"], rows[f"actual_{what}"]
            scale = expected / rows["expected_orders"].clip(lower=SMALLEST) * PSEUDO_ORDERS
            factor = (actual + scale) / (expected + scale).clip(lower=SMALLEST)
            factor = factor.where(rows["repeats"] >= MIN_REPEATS, 1.0).clip(1 / MAX_ACTUAL_FACTOR, MAX_ACTUAL_FACTOR)
            out[:, i] = factor.reindex(origin_day).fillna(1.0)
        return out

    def to_json(self) -> dict[str, Any]:
        """The content of a bundle's btyd.json, plain JSON values."""
        # JSON has no infinity: null is the error of a factor where an actual total is not positive.
        past = self.past.astype(object).where(np.isfinite(self.past.astype(np.float64)), None)
        return {
            "horizons": list(self.horizons),
            "cutoff_day": self.cutoff_day,
            "fits": {str(day): btyd_model.to_json() for day, btyd_model in self.fits.items()},
            "conversion": self.conversion.to_json(),
            "past": past.to_dict(orient="list"),
            "orders_factor_model": self.orders_factor_model.to_json(),
            "value_factor_model": self.value_factor_model.to_json(),
            "warning": self.warning,
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            horizons=tuple(plain["horizons"]),
            cutoff_day=int(plain["cutoff_day"]),
            fits={int(day): BTYDModel.from_json(btyd_model) for day, btyd_model in plain["fits"].items()},
            conversion=Conversion.from_json(plain["conversion"]),
            past=pd.DataFrame(plain["past"], columns=list(ERROR_COLUMNS)).astype(np.float64).fillna(np.inf),
            orders_factor_model=SeasonalFactorModel.from_json(plain["orders_factor_model"]),
            value_factor_model=SeasonalFactorModel.from_json(plain["value_factor_model"]),
            warning=plain["warning"],
        )


def apply_factor(curves: Curves, orders_factor: Floats, value_factor: Floats) -> Curves:
    """Curves times the seasonal factors of their origin, (S, H) or (H,); still non-decreasing in the horizon."""
    return _monotone(curves.hazard * orders_factor, curves.orders * orders_factor, curves.value * value_factor)


def _monotone(hazard: Floats, orders: Floats, value: Floats) -> Curves:
    hazard = np.maximum.accumulate(np.maximum(hazard, SMALLEST), axis=1)
    orders = np.maximum.accumulate(np.maximum(orders, -np.expm1(-hazard)), axis=1)
    return Curves(hazard, orders, np.maximum.accumulate(np.maximum(value, SMALLEST), axis=1))


def _errors(btyd_model: BTYDModel, buyers: pd.DataFrame, horizons: tuple[int, ...]) -> list[dict[str, float]]:
    """Expected and actual totals of one origin, and the errors of their ratios: a row per observed horizon."""
    rows = []
    for horizon in (h for h in horizons if buyers[f"observed_{h}"].iloc[0]):
        row: dict[str, float] = {"horizon_days": horizon}
        expected = btyd_model.predict(buyers, horizon)
        for what in ("orders", "value"):
            real = buyers[f"{what}_{horizon}"].to_numpy()
            row[f"expected_{what}"] = float(expected[what].sum())
            row[f"actual_{what}"] = float(real.sum())
            row[f"error_{what}"] = log_error(expected[what], real)
        rows.append(row)
    return rows


def _warning(btyd_model: BTYDModel, buyers: pd.DataFrame) -> str | None:
    """Text of the degenerate-fit check where the fit is degenerate."""
    if isinstance(btyd_model.counts, NBD):
        return None
    history = tuple(buyers[name].to_numpy(np.float64) for name in ("frequency", "recency", "T"))
    finding = diagnostics.check_dropout(btyd_model.counts, NBD.fit(*history), float((history[0] > 0).sum()))
    return finding.text if finding.degenerate else None


def _factor_model(past: pd.DataFrame, what: str, cutoff_day: int, repeats: float) -> SeasonalFactorModel:
    columns = {name: past[f"{part}_{what}"] for part, name in _ERROR_NAMES.items()}
    return SeasonalFactorModel.fit(past.assign(**columns), cutoff_day, repeats)
