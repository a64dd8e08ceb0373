"""Scores of the BTYD model alone equal the closed form of the Gamma-Poisson model, customer by customer."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from clv import bundle as bundles
from clv.btyd.conversion import EVENTS_EDGES, RECENCY_EDGES, Conversion
from clv.btyd.gamma_gamma import GammaGamma
from clv.btyd.models import NBD, BTYDModel
from clv.btyd.seasonal_btyd import ERROR_COLUMNS, SeasonalBTYD
from clv.btyd.seasonal_factor import SeasonalFactorModel
from clv.cluster.btyd_scores import COLUMNS, BTYDPredictor
from clv.data import histories
from clv.data.clock import DAY_US, Clock, to_datetime
from clv.data.events import EVENTS
from clv.forecast.horizons import TAIL_YEARS
from clv.forecast.scores import SCORES

CLOCK = Clock("Europe/London")
ORIGIN = CLOCK.parse("2024-03-01")
HORIZONS, RATE = (30, 90), 0.1
R, ALPHA, P, Q, V = 0.8, 40.0, 6.0, 4.0, 15.0
# Customer: (days before the origin, amount) of each purchase.
PURCHASES = {"a": [(200, 30.0), (150, 20.0), (20, 40.0)], "b": [(90, 10.0)], "c": [(300, 50.0), (1, 5.0)]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    origin_day = int(CLOCK.local_day(ORIGIN))
    counts = NBD(r=R, alpha=ALPHA, log_likelihood=0.0, stderr={}, num_customers=3.0)
    spend = GammaGamma(P, Q, V, observed_mean=30.0, log_likelihood=0.0, stderr={}, num_rows=3.0)
    cells = np.zeros(((len(RECENCY_EDGES) + 1) * (len(EVENTS_EDGES) + 1), len(HORIZONS)))
    factor = SeasonalFactorModel(origin_day, 0.0, *(np.zeros(0) for _ in range(5)))
    btyd = SeasonalBTYD(
        horizons=HORIZONS,
        cutoff_day=origin_day,
        fits={origin_day: BTYDModel("nbd", counts, spend, 1.0)},
        conversion=Conversion(HORIZONS, cells, cells, cells),
        past=pd.DataFrame(columns=list(ERROR_COLUMNS), dtype=np.float64),
        orders_factor_model=factor,
        value_factor_model=factor,
    )
    facts = {"horizons": list(HORIZONS), "value": "gross", "discount_rate_annual": RATE, "timezone": CLOCK.timezone}
    empty = {part: {} for part in ("vocab", "calibration", "metrics", "weights", "items")}
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    bundles.save(bundles.Bundle(config={"dataset_facts": facts}, btyd=btyd.to_json(), **empty), folder)
    return folder


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Histories of the customers of PURCHASES, at noon of each day, and of one who first buys on the origin's day."""
    events = [
        {"customer_id": name, "event_time": at, "known_at": at, "event_type": "purchase", "amount": amount}
        for name, purchases in (PURCHASES | {"later": [(0, 10.0)]}).items()
        for days, amount in purchases
        for at in [to_datetime(ORIGIN - days * DAY_US + DAY_US // 2)]
    ]
    return histories.build(pa.Table.from_pylist(events, EVENTS), CLOCK)


def closed_form(purchases: list[tuple[int, float]], days: int) -> tuple[float, float, float]:
    """P(purchase), expected orders (Schmittlein, Morrison and Colombo 1987 without dropout) and expected value (Fader
    and Hardie 2013, eq. 5) over the horizon."""
    x, age = len(purchases) - 1, purchases[0][0]
    mean = sum(amount for _, amount in purchases[1:]) / x if x else 0.0
    orders = (R + x) * days / (ALPHA + age)
    spend = P * (V + x * mean) / (P * x + Q - 1)
    return 1 - ((ALPHA + age) / (ALPHA + age + days)) ** (R + x), orders, orders * spend


def test_scores_equal_the_closed_form(bundle: Path, table: pa.Table) -> None:
    found = BTYDPredictor(bundle).predict(table, ORIGIN)
    assert found.schema == SCORES
    rows = found.to_pylist()
    assert [(row["customer_id"], row["horizon_days"]) for row in rows] == [(n, h) for n in PURCHASES for h in HORIZONS]
    for row in rows:
        purchases = PURCHASES[row["customer_id"]]
        p, orders, value = closed_form(purchases, row["horizon_days"])
        expected = {"p_purchase": p, "churn_probability": 1 - p, "orders_mean": orders, "aov": value / orders}
        expected |= {"value_mean": value, "btyd_value_mean": value}
        # Each period counts at its middle, with ten years beyond the longest horizon.
        ends = [0, *HORIZONS, *(HORIZONS[-1] + 365 * year for year in range(1, TAIL_YEARS + 1))]
        expected["clv_mean"] = sum(
            (closed_form(purchases, end)[2] - closed_form(purchases, start)[2]) * (1 + RATE) ** (-(start + end) / 730)
            for start, end in pairwise(ends)
        )
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)
        assert row["value_p10"] is row["value_median"] is row["value_p90"] is None


def test_the_read_columns_suffice_also_for_a_slice_of_a_shard(bundle: Path, table: pa.Table) -> None:
    predictor = BTYDPredictor(bundle)
    whole = predictor.predict(table, ORIGIN, (30,))
    part = predictor.predict(table.select(COLUMNS).slice(1, 2), ORIGIN, (30,))
    assert part.equals(whole.slice(1, 2))


def test_nobody_is_scored_before_the_log_and_only_longer_horizons_are_extrapolated(
    bundle: Path, table: pa.Table
) -> None:
    predictor = BTYDPredictor(bundle)
    assert predictor.predict(table, ORIGIN - 400 * DAY_US).equals(SCORES.empty_table())
    assert predictor.predict(table, ORIGIN, (91, 90)).to_pydict()["extrapolated"] == [False, True] * len(PURCHASES)
