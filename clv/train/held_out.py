"""What the held-out origin decides: the best epoch, the blend weights against the BTYD model, and the calibration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.evaluate import metrics
from clv.evaluate.baselines.inputs import Context
from clv.evaluate.baselines.run import run_baselines
from clv.evaluate.panel import Panel, Visitors
from clv.forecast.adjustment import AdjustedForecast, Adjustment, adjust
from clv.forecast.calibration import age_frequency_cells, cell_names, fit_calibration, identity_calibration
from clv.forecast.distributions import Prediction
from clv.forecast.network import Forecast
from clv.forecast.slope import fit_slope
from clv.models.inputs.assemble import AssembledRows

Floats = NDArray[np.float64]

PURCHASE_BLEND_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
# A few customers account for most of the value; a share of the BTYD model stabilises their forecasts.
VALUE_BLEND_WEIGHTS = PURCHASE_BLEND_WEIGHTS[:-1]
PANEL_ROWS = 50_000  # customers, and as many visitors, in a held-out panel
SIMPLE_BASELINES = ("past_spend", "bgnbd_gg")  # baselines that need no training
ENOUGH_GAIN = 0.004  # mean log ratio; below it the forecast stays with the BTYD model
TIE = 0.002
REPEATS_SCALE = (0.2, 5.0)  # limits of the factor on the repeat orders


@dataclass(frozen=True)
class HeldOut:
    """All customers known at the calibration origin, with labels. horizon: index of the primary horizon."""

    rows: AssembledRows
    horizon: int

    @property
    def buyers(self) -> NDArray[np.bool_]:
        return self.rows.table["has_purchase"].to_numpy(bool)

    def labels(self, horizon: int) -> tuple[Floats, Floats]:
        labels = self.rows.cut.labels
        assert labels is not None, "a held-out origin has labels"
        return labels.value[:, horizon], labels.orders[:, horizon]

    def auc(self, p_purchase: Floats) -> float:
        """AUC of purchase probabilities among the customers with an earlier purchase."""
        return metrics.auc(self.labels(self.horizon)[1][self.buyers] > 0, p_purchase[self.buyers])

    @cached_property
    def btyd_auc(self) -> float:
        """AUC of the BTYD model, which every blend weight of every epoch is compared with."""
        return self.auc(self.rows.base.p_purchase[:, self.horizon])

    @cached_property
    def btyd_value_metrics(self) -> tuple[float, ...]:
        """`_value_metrics` of the BTYD model."""
        keep, i = self.buyers, self.horizon
        return _value_metrics(self.labels(i)[0][keep], self.rows.base.value[keep, i])


def score(held_out: HeldOut, value: Floats, p_purchase: Floats) -> float:
    """Mean log ratio of the core metrics to those of the BTYD model at the same total; higher is better, BTYD has 0."""
    return float(np.mean([*_value_gains(held_out, value), _purchase_gain(held_out, p_purchase)]))


def _purchase_gain(held_out: HeldOut, p_purchase: Floats) -> float:
    """Log ratio of the AUC to the BTYD model's."""
    return _ratio(held_out.auc(p_purchase), held_out.btyd_auc)


def _value_gains(held_out: HeldOut, value: Floats) -> list[float]:
    """Log ratios of the value metrics to the BTYD model's, at the BTYD model's total; none without prices."""
    keep, i = held_out.buyers, held_out.horizon
    y = held_out.labels(i)[0][keep]
    if y.sum() <= 0:
        return []
    ours = value[keep]
    ours = ours * (held_out.rows.base.value[keep, i].sum() / max(ours.sum(), 1e-12))
    (ngini, spearman, mae, rmse, mape), btyd = _value_metrics(y, ours), held_out.btyd_value_metrics
    return [
        _ratio(ngini, btyd[0]),
        _ratio(spearman, btyd[1]),
        _ratio(btyd[2], mae),
        _ratio(btyd[3], rmse),
        0.25 * _ratio(btyd[4] + 0.1, mape + 0.1),
    ]


def _value_metrics(y: Floats, value: Floats) -> tuple[float, ...]:
    """nGini, Spearman, MAE / mean, RMSE / mean and decile MAPE."""
    return (
        metrics.ngini(y, value),
        metrics.spearman(y, value),
        metrics.mae_over_mean(y, value),
        metrics.rmse_over_mean(y, value),
        metrics.decile_mape(y, value),
    )


def choose_blend_weights(held_out: HeldOut, raw: Forecast) -> tuple[float, float, float]:
    """(weight on purchase, weight on value, score) of the best mixture of model and BTYD model.

    Each weight is chosen by its own metrics: probabilities differ by less than values do and would always tie."""
    i, base = held_out.horizon, held_out.rows.base
    mixed = {
        blend_weight: raw.blend_with_btyd(base, blend_weight, blend_weight) for blend_weight in PURCHASE_BLEND_WEIGHTS
    }
    purchase = best_blend_weight({g: _purchase_gain(held_out, m.p_purchase[:, i]) for g, m in mixed.items()})
    gains = {g: _value_gains(held_out, mixed[g].value[:, i]) for g in VALUE_BLEND_WEIGHTS}
    value = best_blend_weight({g: float(np.mean(found)) if found else 0.0 for g, found in gains.items()})
    return purchase, value, score(held_out, mixed[value].value[:, i], mixed[purchase].p_purchase[:, i])


def best_blend_weight(gains: dict[float, float]) -> float:
    """The largest blend weight about as good as the best one, or 0 where none gains enough over the BTYD model.

    Ties go to the model, because the final fit trains on more data than the holdout fit.
    """
    best = max(gains.values())
    if best < gains[0.0] + ENOUGH_GAIN:
        return 0.0
    return max(blend_weight for blend_weight, gain in gains.items() if gain >= best - TIE)


def match_totals(raw: Forecast, rows: AssembledRows, adjustment: Adjustment) -> Adjustment:
    """The adjustment with the factors that make the customers' total value and orders equal to the BTYD model's:
    ranking and totals are two problems. It needs no label; the factor is 1 for horizons that are not fully observed."""
    buyers, ones = rows.table["has_purchase"].to_numpy(bool), (1.0,) * raw.hazard.shape[1]
    plain = replace(adjustment, scale=ones, scale_repeats=ones)
    found = adjust(raw, rows, plain).forecast
    value = rows.base.value[buyers].sum(0) / np.maximum(found.value[buyers].sum(0), 1e-12)
    wanted = (rows.base.orders - found.p_purchase)[buyers].sum(0)
    repeats = np.clip(wanted / np.maximum(found.repeats[buyers].sum(0), 1e-12), *REPEATS_SCALE)
    observed = np.arange(len(ones)) < adjustment.num_observed
    scale, scale_repeats = (tuple(np.where(observed, factor, 1.0).tolist()) for factor in (value, repeats))
    return replace(adjustment, scale=scale, scale_repeats=scale_repeats)


def fit_adjustment(
    held_out: HeldOut, raw: Forecast, blend_weight: tuple[float, float]
) -> tuple[Adjustment, AdjustedForecast]:
    """The adjustment of forecasts fitted at the held-out origin, and the held-out forecast after it.

    It holds the blend weights, the slope, the factors of the totals, and a calibration per horizon."""
    rows, keep = held_out.rows, held_out.buyers
    num = raw.hazard.shape[1]
    mixed = raw.blend_with_btyd(rows.base, *blend_weight).value[keep, held_out.horizon]
    slope = fit_slope(mixed, held_out.labels(held_out.horizon)[0][keep])
    adjustment = Adjustment.identity(num)
    adjustment = replace(
        adjustment, blend_purchase=(blend_weight[0],) * num, blend_value=(blend_weight[1],) * num, slope=slope
    )
    adjustment = match_totals(raw, rows, adjustment)
    before = adjust(raw, rows, adjustment)
    table = rows.table[keep]
    labels = rows.cut.labels
    assert labels is not None
    calibrations = [identity_calibration()] * num
    newest = identity_calibration()
    for i in range(num):
        if labels.observed[:, i].all():
            y, orders = held_out.labels(i)
            prediction: Prediction = before.prediction(i).take(keep)
            newest = fit_calibration(
                prediction,
                y[keep],
                orders[keep],
                table["T"].to_numpy(),
                table["frequency"].to_numpy(),
                factor_error=float(rows.factor_error[i]),
            )
        # A horizon that is not fully observed takes the calibration of the longest one that is.
        calibrations[i] = newest
    adjustment = match_totals(raw, rows, replace(adjustment, calibration=tuple(calibrations)))
    return adjustment, adjust(raw, rows, adjustment)


def held_out_panel(held_out: HeldOut, adjusted: AdjustedForecast, origin: str, first_day: int) -> Panel:
    """Actual outcomes over the primary horizon and the predictions of model, BTYD model and simple baselines.

    origin: the held-out origin as a date text. first_day: local day on which the log begins.
    """
    i, table = held_out.horizon, held_out.rows.table
    labels, base = held_out.rows.cut.labels, held_out.rows.base
    assert labels is not None
    rng = np.random.default_rng(0)
    buyers, visitors = (_some(np.flatnonzero(rows), rng) for rows in (held_out.buyers, ~held_out.buyers))
    y, orders = held_out.labels(i)
    btyd = Prediction(value=base.value[:, i], p_purchase=base.p_purchase[:, i])
    ours, part = adjusted.prediction(i), table.iloc[buyers]
    day = int(table["origin_day"].iloc[0])
    simple = run_baselines(
        table.iloc[:0], part, labels.horizons[i], names=SIMPLE_BASELINES, context=Context(log_start_day=first_day)
    )
    first = pd.to_datetime((day - part["T"]).to_numpy() * 86_400, unit="s")
    return Panel(
        origin=origin,
        horizon_days=labels.horizons[i],
        y=y[buyers],
        orders=orders[buyers],
        predictions={"clv": ours.take(buyers), "btyd": btyd.take(buyers), **simple},
        cohort=first.to_period("Q").astype(str).to_numpy(),
        cell=np.array(cell_names())[age_frequency_cells(part["T"].to_numpy(), part["frequency"].to_numpy())],
        orders_past=part["orders_past"].to_numpy(),
        log_days=day - first_day,
        visitors=Visitors(
            y=y[visitors],
            orders=orders[visitors],
            predictions={"clv": ours.take(visitors), "conversion": btyd.take(visitors)},
        ),
    )


def _some(rows: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """All rows, or a random PANEL_ROWS of them."""
    return rows if len(rows) <= PANEL_ROWS else np.sort(rng.choice(rows, PANEL_ROWS, replace=False))


def _ratio(better: float, worse: float) -> float:
    if not (np.isfinite(better) and np.isfinite(worse)) or better <= 0 or worse <= 0:
        return 0.0
    return float(np.log(better / worse))
