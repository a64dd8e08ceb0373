"""The arithmetic of a back-test: what happened, what the baselines predict, and our own refit at an origin."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.data import features
from clv.data.cutoff import cut
from clv.evaluate.baselines.inputs import Context, population
from clv.evaluate.baselines.run import run_baselines
from clv.forecast.adjustment import AdjustedForecast
from clv.forecast.calibration import age_frequency_cells, cell_names
from clv.forecast.distributions import LEVELS, Prediction, Quantiles
from clv.forecast.pipeline import forecast_customers
from clv.forecast.predictor import Predictor
from clv.models.inputs.assemble import AssembledRows
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, plan
from clv.train.loop import finish
from clv.train.trainer import Fitted, load_model, train

WIDE_STEP = (28, 90)  # (days between training origins, days of log before the first) of the baselines


NARROW_STEP = (14, 45)  # for logs with fewer than MIN_ORIGINS wide ones


MIN_ORIGINS = 6


@dataclass(frozen=True)
class Outcomes:
    """What happened to everybody with a purchase before the origin, and when they first bought."""

    customer_id: NDArray[Any]
    value: NDArray[np.float64]
    orders: NDArray[np.float64]
    cohort: NDArray[Any]
    log_days: int
    orders_past: NDArray[np.float64]
    cell: NDArray[Any]  # age x frequency, in words
    visitors: tuple[NDArray[np.float64], NDArray[np.float64]]  # value, orders of those known without a purchase


@dataclass(frozen=True)
class Ours:
    """Our model at an origin: rows of customers as in `outcomes`; of visitors too, with the conversion baseline's."""

    customers: Prediction
    visitors: Prediction
    conversion: Prediction

    @classmethod
    def of(cls, rows: AssembledRows, outlook: AdjustedForecast, horizon: int) -> Ours:
        """From an outlook whose horizon of that index is judged."""
        buys = rows.table["has_purchase"].to_numpy(bool)
        everybody = outlook.prediction(horizon)
        base = Prediction(value=outlook.btyd.value[:, horizon], p_purchase=outlook.btyd.p_purchase[:, horizon])
        return cls(everybody.take(buys), everybody.take(~buys), base.take(~buys))


def outcomes(dataset: Dataset, origin: int, horizon: int) -> Outcomes:
    """Raises ValueError when the horizon reaches past the end of the log."""
    clock = dataset.clock
    day = int(clock.day_of(np.array([origin]))[0])
    last = int(clock.day_of(np.array([dataset.data_through]))[0])
    if day + horizon > last:
        raise ValueError(
            f"a back-test at {clock.format(origin)} over {horizon} days needs the log until "
            f"{clock.format(int(clock.start_of(day + horizon)))}, it ends at {clock.format(dataset.data_through)}; "
            "choose earlier --origins or a shorter --horizon-days"
        )
    past = cut(dataset.histories, origin, (horizon,), clock, value=dataset.value, known_before=dataset.data_through)
    known = features.purchases(past)
    table, visitors = population(known), known[~known["has_purchase"].to_numpy(bool)]
    if len(table) == 0:
        raise ValueError(f"nobody has bought before {clock.format(origin)}; choose later --origins")
    first = pd.to_datetime((day - table["T"]).to_numpy() * 86_400, unit="s")
    return Outcomes(
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
    day = int(clock.day_of(np.array([origin]))[0])
    for step, history in (WIDE_STEP, NARROW_STEP):
        days = np.arange(day - horizon, dataset.first_day + history - 1, -step)[::-1]
        if len(days) >= MIN_ORIGINS:
            break
    test = features.frame(cut(dataset.histories, origin, (horizon,), clock, value=dataset.value), (horizon,))
    if len(days) == 0:
        return test.iloc[:0].assign(
            **{f"{name}_{horizon}": 0.0 for name in ("value", "orders", "days", "observed")}
        ), test
    past = cut(dataset.histories, clock.start_of(days), (horizon,), clock, value=dataset.value, known_before=origin)
    return features.frame(past, (horizon,)), test


def baselines(dataset: Dataset, origin: int, horizon: int, seed: int, threads: int = 1) -> dict[str, Any]:
    """Prediction or {"not_run": reason} of every baseline, rows as in `outcomes`."""
    past, test = baseline_frames(dataset, origin, horizon)
    context = Context(threads=threads, log_start_day=dataset.first_day)
    return run_baselines(past, test, horizon, seed, context=context)


def refit(dataset: Dataset, origin: int, horizon: int, config: TrainConfig) -> tuple[Ours, Fitted]:
    """Our model, trained at the origin in this process."""
    wanted = replace(dataset, horizons=tuple(sorted({*dataset.horizons, horizon})))
    phases = plan(wanted, origin, config)
    fitted = finish(train(wanted, phases, config.with_engine(kind="torch")))
    assembler = phases.final.assembler
    model = load_model(phases.final, config, fitted.weights)
    found = forecast_customers(model, assembler, fitted.adjustment, wanted.histories, origin)
    assert found is not None, "a training run needs customers before the origin"
    return Ours.of(*found, wanted.horizons.index(horizon)), fitted


def check_bundle(bundle: Path, origins: Iterable[int]) -> Predictor:
    """The bundle, loaded; ValueError when it is damaged or was cut after an origin."""
    predictor = Predictor(bundle)
    for origin in origins:
        if origin < _us(predictor.cut):
            raise ValueError(
                f"bundle {bundle} was cut at {predictor.clock.format(_us(predictor.cut))}, after origin "
                f"{predictor.clock.format(origin)}: it has seen that future; leave --bundle out to refit, or choose "
                "later --origins"
            )
    return predictor


def by_bundle(dataset: Dataset, origin: int, horizon: int, bundle: Path) -> Ours:
    """The prediction of a bundle whose cut is not after the origin."""
    predictor = check_bundle(bundle, [origin])
    return Ours.of(*predictor.forecast(dataset.histories, origin, horizon), 0)


def mean_of(predictions: Sequence[Prediction]) -> Prediction:
    """The ensemble: mean value, mean probability, mean quantiles (Vincent average)."""
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


def _ours(dataset: Dataset, origin: int, horizon: int, config: TrainConfig, bundle: Path | None) -> Ours:
    return by_bundle(dataset, origin, horizon, bundle) if bundle else refit(dataset, origin, horizon, config)[0]


def _us(when: Any) -> int:
    return int(pd.Timestamp(when).value // 1000)
