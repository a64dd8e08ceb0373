"""Back-testing at past origins: actual outcomes, predictions of the baselines, and of the model refitted there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.data import features
from clv.data.clock import to_us
from clv.data.cutoff import cut
from clv.evaluate.baselines.inputs import Context, population
from clv.evaluate.baselines.run import run_baselines
from clv.evaluate.panel import Panel, Visitors
from clv.forecast.adjustment import AdjustedForecast
from clv.forecast.calibration import age_frequency_cells, cell_names
from clv.forecast.distributions import LEVELS, Prediction, Quantiles
from clv.forecast.pipeline import forecast_customers
from clv.forecast.predictor import Predictor
from clv.models.inputs.assemble import AssembledRows
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, plan
from clv.train.loop import finish
from clv.train.trainer import load_model, train

# The baselines' training origins: (days between them, days of log before the first). The narrow grid serves logs with
# fewer than MIN_ORIGINS origins on the wide one.
WIDE_GRID, NARROW_GRID, MIN_ORIGINS = (28, 90), (14, 45), 6


@dataclass(frozen=True)
class Outcomes:
    """Actual value and orders over the horizon of every customer with a purchase before the origin, arrays (N,).

    origin: its date as text. cohort: quarter of the first purchase. log_days: days of log before the origin. cell: age
    and frequency as text. visitors: value and orders of the known customers without a purchase.
    """

    origin: str
    horizon_days: int
    customer_id: NDArray[Any]
    value: NDArray[np.float64]
    orders: NDArray[np.float64]
    cohort: NDArray[Any]
    log_days: int
    orders_past: NDArray[np.float64]
    cell: NDArray[Any]
    visitors: tuple[NDArray[np.float64], NDArray[np.float64]]

    def panel(self, fits: Sequence[ModelPredictions], baselines: dict[str, Any]) -> Panel:
        """The evaluation panel of this origin; several fits of the model, one per seed, are averaged."""
        return Panel(
            origin=self.origin,
            horizon_days=self.horizon_days,
            y=self.value,
            orders=self.orders,
            predictions={"clv": average_predictions([fit.customers for fit in fits]), **baselines},
            cohort=self.cohort,
            cell=self.cell,
            orders_past=self.orders_past,
            log_days=self.log_days,
            visitors=Visitors(
                y=self.visitors[0],
                orders=self.visitors[1],
                predictions={
                    "clv": average_predictions([fit.visitors for fit in fits]),
                    "conversion": average_predictions([fit.conversion for fit in fits]),
                },
            ),
        )


@dataclass(frozen=True)
class ModelPredictions:
    """The model's predictions at an origin, rows as in `Outcomes`: of customers, of visitors, and those of the
    conversion baseline for the same visitors."""

    customers: Prediction
    visitors: Prediction
    conversion: Prediction

    @classmethod
    def from_forecast(cls, rows: AssembledRows, adjusted: AdjustedForecast, horizon: int) -> ModelPredictions:
        """The predictions for the horizon with this index."""
        buys = rows.table["has_purchase"].to_numpy(bool)
        everybody = adjusted.prediction(horizon)
        base = Prediction(value=adjusted.btyd.value[:, horizon], p_purchase=adjusted.btyd.p_purchase[:, horizon])
        return cls(everybody.take(buys), everybody.take(~buys), base.take(~buys))


def outcomes(dataset: Dataset, origin: int, horizon: int) -> Outcomes:
    """Actual outcomes over `horizon` days from `origin` (us).

    Raises ValueError when the horizon reaches past the end of the log or no customer has bought before the origin.
    """
    clock = dataset.clock
    day = int(clock.local_day(np.array([origin]))[0])
    last = int(clock.local_day(np.array([dataset.data_through]))[0])
    if day + horizon > last:
        raise ValueError(
            f"a back-test at {clock.format(origin)} over {horizon} days needs the log until "
            f"{clock.format(int(clock.day_start(day + horizon)))}, it ends at {clock.format(dataset.data_through)}; "
            "choose earlier --origins or a shorter --horizon-days"
        )
    past = cut(dataset.histories, origin, (horizon,), clock, value=dataset.value, known_before=dataset.data_through)
    known = features.purchase_frame(past)
    table, visitors = population(known), known[~known["has_purchase"].to_numpy(bool)]
    if len(table) == 0:
        raise ValueError(f"no customer has bought before {clock.format(origin)}; choose later --origins")
    first = pd.to_datetime((day - table["T"]).to_numpy() * 86_400, unit="s")
    return Outcomes(
        clock.format(origin),
        horizon,
        table["customer_id"].to_numpy(),
        table[f"value_{horizon}"].to_numpy(),
        table[f"orders_{horizon}"].to_numpy(),
        first.to_period("Q").astype(str).to_numpy(),
        day - dataset.first_day,
        table["orders_past"].to_numpy(),
        np.array(cell_names())[age_frequency_cells(table["T"].to_numpy(), table["frequency"].to_numpy())],
        (visitors[f"value_{horizon}"].to_numpy(), visitors[f"orders_{horizon}"].to_numpy()),
    )


def baseline_frames(dataset: Dataset, origin: int, horizon: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(training frames of fully observed past origins, stacked; the frame at the origin), time-honest."""
    clock = dataset.clock
    day = int(clock.local_day(np.array([origin]))[0])
    for step, history in (WIDE_GRID, NARROW_GRID):
        days = np.arange(day - horizon, dataset.first_day + history - 1, -step)[::-1]
        if len(days) >= MIN_ORIGINS:
            break
    test = features.sample_frame(cut(dataset.histories, origin, (horizon,), clock, value=dataset.value), (horizon,))
    if len(days) == 0:
        return test.iloc[:0].assign(
            **{f"{name}_{horizon}": 0.0 for name in ("value", "orders", "days", "observed")}
        ), test
    past = cut(dataset.histories, clock.day_start(days), (horizon,), clock, value=dataset.value, known_before=origin)
    return features.sample_frame(past, (horizon,)), test


def predict_baselines(dataset: Dataset, origin: int, horizon: int, seed: int, threads: int = 1) -> dict[str, Any]:
    """Prediction or {"not_run": reason} of every baseline by name, rows as in `Outcomes`."""
    past, test = baseline_frames(dataset, origin, horizon)
    context = Context(threads=threads, log_start_day=dataset.first_day)
    return run_baselines(past, test, horizon, seed, context=context)


def predict(
    dataset: Dataset, origin: int, horizon: int, config: TrainConfig, bundle: Path | None = None
) -> ModelPredictions:
    """The model's predictions at `origin` (us): of a bundle, or refitted in this process on what was known there."""
    if bundle is not None:
        return ModelPredictions.from_forecast(
            *check_bundle(bundle, [origin]).forecast(dataset.histories, origin, horizon), 0
        )
    wanted = replace(dataset, horizons=tuple(sorted({*dataset.horizons, horizon})))
    phases = plan(wanted, origin, config)
    fitted = finish(train(wanted, phases, config.with_engine(kind="torch")))
    assembler = phases.final.assembler
    model = load_model(phases.final, config, fitted.weights)
    found = forecast_customers(model, assembler, fitted.adjustment, wanted.histories, origin)
    assert found is not None, "a training run needs customers before the origin"
    return ModelPredictions.from_forecast(*found, wanted.horizons.index(horizon))


def check_bundle(bundle: Path, origins: Iterable[int]) -> Predictor:
    """Loads a bundle; raises ValueError when it is damaged or was cut after an origin (us)."""
    predictor = Predictor(bundle)
    for origin in origins:
        if origin < to_us(predictor.cut):
            raise ValueError(
                f"bundle {bundle} was cut at {predictor.clock.format(to_us(predictor.cut))}, after origin "
                f"{predictor.clock.format(origin)}: it was trained on that future; leave --bundle out to refit, "
                "or choose later --origins"
            )
    return predictor


def average_predictions(predictions: Sequence[Prediction]) -> Prediction:
    """The mean of several predictions for the same rows: of value, probability and quantiles (Vincent average)."""
    if len(predictions) == 1:
        return predictions[0]
    value = np.mean([p.value for p in predictions], axis=0)
    probability = np.mean([p.p_purchase for p in predictions if p.p_purchase is not None], axis=0)
    tables = [p.quantiles for p in predictions if p.quantiles is not None]
    quantiles = None
    if tables:
        quantiles = Quantiles(LEVELS, np.mean([q.values for q in tables], axis=0), p_zero=1 - probability)
    return Prediction(
        value=value,
        p_purchase=probability,
        quantiles=quantiles,
        factor_error=float(np.mean([p.factor_error for p in predictions])),
        sum_spread=float(np.mean([p.sum_spread for p in predictions])),
    )
