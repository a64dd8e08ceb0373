"""The predictor: the one code path of batch scoring, serving and notebooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from clv import bundle as bundles
from clv.anchor.baseline import Baseline, Curves
from clv.data.clock import DAY_US, Clock
from clv.data.histories import Histories
from clv.evaluate import sums
from clv.evaluate.calibrate import GRID, Calibration, cells, identity
from clv.evaluate.prediction import LEVELS, Prediction, Quantiles
from clv.models.features import FeatureSpace
from clv.models.infer import Forecast, forecast
from clv.models.model import CustomerModel, ModelConfig
from clv.models.samples import Assembled, Assembler

Floats = NDArray[np.float64]

MAX_DAYS_AHEAD = 90
BAND = np.array([0.1, 0.5, 0.9])
TAIL_YEARS = 10  # beyond the longest learned horizon, in `clv_mean`
TAIL_YEARS_WITHOUT_DROPOUT = 3  # where the log does not show that customers leave, ten years of staying are a fiction
_NODES = np.linspace(0, 1, 128)  # of a buyer's log value, from four sigmas below his mixture to four above
_CHUNK = 2_000

SCORES = pa.schema(
    [
        pa.field("customer_id", pa.string(), nullable=False),
        pa.field("origin", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("horizon_days", pa.int32(), nullable=False),
        *(
            pa.field(name, pa.float64())
            for name in ("p_purchase", "churn_probability", "orders_mean", "aov", "value_mean", "value_median")
        ),
        *(pa.field(name, pa.float64()) for name in ("value_p10", "value_p90", "clv_mean", "anchor_value_mean")),
        pa.field("extrapolated", pa.bool_()),
        pa.field("value_rank", pa.int64()),
        pa.field("value_decile", pa.int32()),
    ]
)
PORTFOLIO = pa.schema(
    [
        pa.field("horizon_days", pa.int32(), nullable=False),
        pa.field("customers", pa.int64(), nullable=False),
        *(pa.field(name, pa.float64()) for name in ("value_mean", "value_p10", "value_median", "value_p90")),
    ]
)


@dataclass(frozen=True)
class Adjustment:
    """What the held-out origin taught, per learned horizon: the weight of the model against the anchor, the factors
    that bring its totals (of value, raised to the power of `slope`; of orders, by those beyond the first) to the
    level, and the calibration of probabilities and bands.

    At horizons after the first `matured` no training origin has matured: the model's weights are 0 there, and the BTYD
    model's increments carry the curves on from the last matured horizon (`Forecast.carried`), so that factors and
    calibration of probabilities have no use there.
    """

    gate_purchase: tuple[float, ...]
    gate_value: tuple[float, ...]
    scale: tuple[float, ...]
    scale_repeats: tuple[float, ...]
    calibration: tuple[Calibration, ...]
    matured: int
    slope: float = 1.0  # see `clv.evaluate.slope`

    @classmethod
    def none(cls, num_horizons: int, gate: float = 1.0) -> Self:
        ones = (1.0,) * num_horizons
        return cls(
            (gate,) * num_horizons, (gate,) * num_horizons, ones, ones, (identity(),) * num_horizons, num_horizons
        )

    def limited(self, matured: int) -> Self:
        """The same with weight 0 on the model at all but the first `matured` horizons."""
        purchase, value = (
            (*gate[:matured], *(0.0,) * (len(gate) - matured)) for gate in (self.gate_purchase, self.gate_value)
        )
        return replace(self, gate_purchase=purchase, gate_value=value, matured=matured)

    def to_json(self) -> dict[str, Any]:
        return {
            "gate_purchase": list(self.gate_purchase),
            "gate_value": list(self.gate_value),
            "scale": list(self.scale),
            "scale_repeats": list(self.scale_repeats),
            "calibration": [json.loads(c.to_json()) for c in self.calibration],
            "matured": self.matured,
            "slope": self.slope,
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Self:
        return cls(
            tuple(plain["gate_purchase"]),
            tuple(plain["gate_value"]),
            tuple(plain["scale"]),
            tuple(plain["scale_repeats"]),
            tuple(Calibration.from_json(json.dumps(c)) for c in plain["calibration"]),
            int(plain["matured"]),
            float(plain["slope"]),
        )


@dataclass(frozen=True)
class Outlook:
    """Adjusted forecast of S rows at the learned horizons, and what is needed to read any horizon off it."""

    forecast: Forecast
    base: Curves
    remap: Floats  # (S, H, GRID): the level to read for a wanted level of a buyer's value
    level_error: Floats  # (H,) log standard deviation of the level that all customers share
    sum_spread: Floats  # (H,) realised over predicted variance of sums of customers
    matured: int  # learned horizons, the shortest ones, at which the model was trained (see `Adjustment`)
    learned: Outlook | None = None  # at the learned horizons, where this one is read off it
    right: NDArray[np.int64] | None = None  # (H,) index of the learned horizon at or after each; their number beyond

    def quantiles(self, levels: Floats) -> Floats:
        """(S, H, Q) in shop currency, non-decreasing in level and in horizon."""
        p = self.forecast.p_purchase[..., None]
        inner, read = self._read(levels)
        values = self.forecast.quantile(np.where(inner > 0, 1 - p + p * read, 0.0))
        values = np.maximum.accumulate(values, axis=2)
        return self._between(values, None if self.learned is None else self.learned.quantiles(levels))

    def _between(self, values: Floats, learned: Floats | None) -> Floats:
        """Values (S, H, Q) made non-decreasing in the horizon, and held between those of the learned horizons around
        each: what is said of a horizon must not depend on which others are asked for."""
        if learned is not None and self.right is not None:
            edge = np.zeros((len(values), 1, values.shape[2]))
            around = np.concatenate([edge, learned, edge + np.inf], axis=1)
            values = np.clip(values, around[:, self.right], around[:, self.right + 1])
        return np.maximum.accumulate(values, axis=1)

    def _read(self, levels: Floats) -> tuple[Floats, Floats]:
        """For wanted levels, (S, H, Q) each: the level among the customer's purchases, and where the mixture has it."""
        p = self.forecast.p_purchase[..., None]
        inner = (levels - (1 - p)) / p
        place = np.clip(inner, 0, 1) * (len(GRID) - 1)
        left = np.minimum(place.astype(np.int64), len(GRID) - 2)
        low = np.take_along_axis(self.remap, left, 2)
        high = np.take_along_axis(self.remap, left + 1, 2)
        return inner, np.clip(low + (place - left) * (high - low), 1e-4, 1 - 1e-4)

    def equally_likely(self) -> Floats:
        """(S, H, NUM_DRAWS) equally likely values of each customer, ascending: `quantiles` by a table, good to 1 %."""
        f = self.forecast
        low, high = (f.location - 4 * f.sigma).min(-1), (f.location + 4 * f.sigma).max(-1)
        log_value = low[..., None] + (high - low)[..., None] * _NODES
        below = np.zeros(log_value.shape)
        for k in range(f.sigma.shape[-1]):
            below += np.exp(f.log_weight[..., k, None]) * ndtr(
                (log_value - f.location[..., k, None]) / f.sigma[..., k, None]
            )
        inner, read = self._read(sums.DRAW_LEVELS)
        # One ascending curve of all rows: each stands 2 above the one before.
        step = 2.0 * np.arange(low.size).reshape(*low.shape, 1)
        found = np.interp((read + step).ravel(), (below + step).ravel(), log_value.ravel()).reshape(read.shape)
        values = np.where(inner > 0, np.exp(found), 0.0)
        return self._between(values, None if self.learned is None else self.learned.equally_likely())

    def take(self, rows: slice) -> Outlook:
        """The outlook of some rows."""
        forecast = replace(self.forecast, **{f.name: getattr(self.forecast, f.name)[rows] for f in fields(Forecast)})
        base = replace(self.base, **{f.name: getattr(self.base, f.name)[rows] for f in fields(Curves)})
        learned = None if self.learned is None else self.learned.take(rows)
        return replace(self, forecast=forecast, base=base, remap=self.remap[rows], learned=learned)

    def prediction(self, horizon: int) -> Prediction:
        """The outlook at the learned horizon of that index, as the metrics take it."""
        p = self.forecast.p_purchase[:, horizon]
        values = self.quantiles(LEVELS)[:, horizon]
        return Prediction(
            value=self.forecast.value[:, horizon],
            p_purchase=p,
            quantiles=Quantiles(LEVELS, values, p_zero=1 - p),
            level_error=float(self.level_error[horizon]),
            sum_spread=float(self.sum_spread[horizon]),
        )


def tail_years(baseline: Baseline) -> int:
    """Years beyond the longest learned horizon that `clv_mean` counts; fewer where the anchor's dropout is unproven."""
    return TAIL_YEARS if baseline.warning is None else TAIL_YEARS_WITHOUT_DROPOUT


def adjust(raw: Forecast, base: Curves, table: pd.DataFrame, level_error: Floats, adjustment: Adjustment) -> Outlook:
    """Gate, spread, scale and calibrate at the matured horizons, and carry the curves on by the BTYD model's increments
    (those of `base`) beyond; the uncertainty of the level widens every customer's distribution."""
    gate = np.array(adjustment.gate_purchase), np.array(adjustment.gate_value)
    buys = table["has_purchase"].to_numpy(bool)
    out = raw.gated(base, gate[0], gate[1])
    value = np.where(buys[:, None], out.value**adjustment.slope * np.array(adjustment.scale), out.value)
    repeats = out.repeats * np.where(buys[:, None], np.array(adjustment.scale_repeats), 1.0)
    cell = cells(table["T"].to_numpy(), table["frequency"].to_numpy())
    p = out.p_purchase
    for i, calibration in enumerate(adjustment.calibration):
        p[:, i] = np.where(buys, calibration.probability(p[:, i], cell), p[:, i])
    hazard = np.maximum.accumulate(-np.log1p(-np.clip(p, 1e-12, 1 - 1e-12)), axis=1)
    out = replace(
        out.moved(hazard, np.maximum.accumulate(value, axis=1)), repeats=np.maximum.accumulate(repeats, axis=1)
    ).carried(base, adjustment.matured)
    wide = np.sqrt(out.sigma**2 + (level_error**2)[:, None])
    out = replace(out, sigma=wide, location=out.location + (out.sigma**2 - wide**2) / 2)
    remap = np.stack([np.asarray(c.remap)[cell] for c in adjustment.calibration], axis=1)
    stretch, spread = (
        np.array([getattr(c, n) for c in adjustment.calibration]) for n in ("level_stretch", "sum_spread")
    )
    return Outlook(out, base, remap, level_error * stretch, spread, adjustment.matured)


def at_horizons(
    outlook: Outlook, learned: tuple[int, ...], wanted: tuple[int, ...], plain: Curves
) -> tuple[Outlook, NDArray[np.bool_]]:
    """The outlook at other horizons `wanted` (ascending), and which of them are extrapolated.

    `plain`: the anchor's curves, without level, at all learned and wanted horizons, ascending. Between learned horizons
    hazard, orders and value grow in the proportion of these curves. Beyond the longest learned horizon they grow by the
    increments of these curves times a ratio: the forecast over `plain` at the longest horizon if a training origin has
    matured for it, else the seasonally adjusted BTYD curve over `plain`, so that no untrained ratio is carried on. All
    is non-decreasing in the horizon, whatever else is asked for.
    """
    f, known, days = outlook.forecast, np.array(learned), np.array(wanted)
    asked = np.union1d(known, days)
    at_known, at_days = np.searchsorted(asked, known), np.searchsorted(asked, days)
    right = np.searchsorted(known, days)
    near, beyond = np.minimum(right, len(known) - 1), right == len(known)
    even = (days - np.append(0, known)[near]) / np.diff(known, prepend=0)[near]

    def share(anchor: Floats) -> Floats:
        """(S, W) how much of the increment to the next learned horizon has come."""
        padded = np.concatenate([np.zeros((len(anchor), 1)), anchor[:, at_known]], 1)
        low, step = padded[:, near], padded[:, near + 1] - padded[:, near]
        grown = (anchor[:, at_days] - low) / np.maximum(step, 1e-12)
        return np.clip(np.where(step > 1e-12, grown, even), 0, 1)

    def read(name: str, own: Forecast | Curves, ahead: Forecast | Curves) -> Floats:
        """(S, W) a curve of `own`, carried on beyond the learned horizons in the proportion of `ahead` to `plain`."""
        model, anchor = getattr(own, name), getattr(plain, name)
        padded = np.concatenate([np.zeros((len(model), 1)), model], 1)
        between = padded[:, near] + share(anchor) * (padded[:, near + 1] - padded[:, near])
        last = anchor[:, at_known[-1:]]
        ratio = np.clip(getattr(ahead, name)[:, -1:] / np.maximum(last, 1e-12), 0.02, 50.0)
        return np.where(beyond, model[:, -1:] + ratio * np.maximum(anchor[:, at_days] - last, 0), between)

    ahead = f if outlook.matured == len(known) else outlook.base
    hazard = np.maximum(read("hazard", f, ahead), 1e-12)
    value = np.maximum(read("value", f, ahead), 1e-12)
    orders = np.maximum(read("orders", f, ahead), -np.expm1(-hazard))
    base = Curves(*(read(c.name, outlook.base, outlook.base) for c in fields(Curves)))
    spent = f.value / f.p_purchase  # (S, L) by a buyer
    here = value / -np.expm1(-hazard) / spent[:, near]
    before = np.minimum(spent[:, np.maximum(near - 1, 0)] / spent[:, near], 1.0)
    size = np.where(near == 0, np.minimum(here, 1.0), before ** (1 - share(plain.value)))
    size = np.where(beyond, np.maximum(here, 1.0), size)
    moved = replace(
        f,
        repeats=orders + np.expm1(-hazard),
        hazard=hazard,
        value=value,
        log_weight=f.log_weight[:, near],
        location=f.location[:, near] + np.log(size)[..., None],
        sigma=f.sigma[:, near],
    )
    level_error = np.interp(days, known, outlook.level_error)
    remap, spread = outlook.remap[:, near], outlook.sum_spread[near]
    return Outlook(moved, base, remap, level_error, spread, outlook.matured, outlook, right), beyond


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
            baseline=Baseline.from_json(b.anchor),
            space=space,
            money=float(b.config["money"]),
            max_tokens=self.max_tokens,
            typical=np.array(b.config["typical"]),
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
        return _scores(rows.table["customer_id"], origin, wanted, outlook, clv, beyond)

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
            drawn = sum(sums.totals(outlook.take(c).equally_likely(), c.start) for c in chunks)
            band = sums.bands(
                np.asarray(drawn), mean[None], [num], level_error=outlook.level_error, spread=outlook.sum_spread
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
        raw = forecast(self._model, rows.samples, self._assembler.money, device=self._device)
        _, _, error = self._assembler.baseline.forecast_level(self._day(origin))
        return rows, adjust(raw, rows.base, rows.table, error, self._adjustment)

    def _plain(self, table: pd.DataFrame, wanted: tuple[int, ...]) -> Curves:
        """The anchor's curves without level at all learned and wanted horizons, ascending."""
        return self._assembler.baseline.curves(table, sorted({*self.horizons, *wanted}))

    def _lifetime(self, outlook: Outlook, rows: Assembled) -> Floats:
        """(S,) discounted value: the learned increments at their mid-points, then the anchor's tail by years."""
        last = self.horizons[-1]
        tail = tuple(last + 365 * year for year in range(1, tail_years(self._assembler.baseline) + 1))
        far, _ = at_horizons(outlook, self.horizons, tail, self._plain(rows.table, tail))
        value = np.concatenate([outlook.forecast.value, far.forecast.value], axis=1)
        ends = np.array((*self.horizons, *tail), float)
        middle = (np.append(0.0, ends[:-1]) + ends) / 2
        factor = (1 + self._discount) ** (-middle / 365.0)
        return np.asarray(np.diff(value, axis=1, prepend=0.0) @ factor)

    def _day(self, origin: int) -> int:
        return int(self.clock.day_of(np.array([origin]))[0])


def _scores(
    ids: pd.Series[str],
    origin: int,
    horizons: tuple[int, ...],
    outlook: Outlook,
    clv: Floats,
    beyond: NDArray[np.bool_],
) -> pa.Table:
    f, num = outlook.forecast, len(ids)
    p, orders, value = f.p_purchase, f.orders, f.value
    band = outlook.quantiles(BAND)
    rank = np.empty((num, len(horizons)), np.int64)
    order = np.lexsort((np.arange(num)[:, None].repeat(len(horizons), 1), -value), axis=0)
    np.put_along_axis(rank, order, np.arange(1, num + 1)[:, None], 0)
    columns: dict[str, Any] = {
        "customer_id": np.repeat(ids.to_numpy(object), len(horizons)),
        "origin": pa.array(np.full(num * len(horizons), origin), pa.int64()).cast(pa.timestamp("us", tz="UTC")),
        "horizon_days": np.tile(np.array(horizons, np.int32), num),
        "p_purchase": p.ravel(),
        "churn_probability": (1 - p).ravel(),
        "orders_mean": orders.ravel(),
        "aov": (value / orders).ravel(),
        "value_mean": value.ravel(),
        "value_median": band[..., 1].ravel(),
        "value_p10": band[..., 0].ravel(),
        "value_p90": band[..., 2].ravel(),
        "clv_mean": np.repeat(clv, len(horizons)),
        "anchor_value_mean": outlook.base.value.ravel(),
        "extrapolated": np.tile(beyond, num),
        "value_rank": rank.ravel(),
        "value_decile": (1 + (rank - 1) * 10 // max(num, 1)).astype(np.int32).ravel(),
    }
    return pa.table({f.name: pa.array(columns[f.name]).cast(f.type) for f in SCORES}, schema=SCORES)


def _utc(us: int) -> datetime:
    return datetime.fromtimestamp(us / 1e6, UTC)


def _us(when: datetime) -> int:
    return int(pd.Timestamp(when).value // 1000)
