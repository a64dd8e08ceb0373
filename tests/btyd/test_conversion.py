import json

import numpy as np
import pandas as pd
import pytest

from clv.btyd.conversion import PRIOR_VISITORS, Conversion

HORIZONS = (30, 90)


def visitors(num: int = 4_000, seed: int = 0) -> pd.DataFrame:
    """Sample frame rows: those seen yesterday convert more often than those not seen for long."""
    rng = np.random.default_rng(seed)
    recency = rng.choice([1.0, 20.0, 200.0], num)
    table = pd.DataFrame({"f_event_recency": recency, "f_events": rng.choice([1.0, 3.0, 10.0, 50.0], num)})
    for days in HORIZONS:
        chance = np.select([recency == 1, recency == 20], [0.4, 0.2], 0.05) * days / 90
        orders = rng.binomial(2, chance)
        table[f"orders_{days}"] = orders
        table[f"value_{days}"] = orders * 25.0
        table[f"observed_{days}"] = True
    return table


def test_the_rate_of_a_cell_is_shrunk_by_the_prior() -> None:
    table = visitors()
    fitted = Conversion.fit(table, HORIZONS)
    rows = table[(table["f_event_recency"] == 1) & (table["f_events"] == 3)]
    hazard, orders, value = fitted.curves(rows.iloc[:1], HORIZONS)
    for i, days in enumerate(HORIZONS):
        for found, name in ((orders, "orders"), (value, "value")):
            own, everyone = rows[f"{name}_{days}"], table[f"{name}_{days}"]
            expected = (own.sum() + PRIOR_VISITORS * everyone.mean()) / (len(own) + PRIOR_VISITORS)
            assert found[0, i] == pytest.approx(expected)
        bought, all_bought = (frame[f"orders_{days}"] > 0 for frame in (rows, table))
        p = (bought.sum() + PRIOR_VISITORS * all_bought.mean()) / (len(rows) + PRIOR_VISITORS)
        assert -np.expm1(-hazard[0, i]) == pytest.approx(p)


def test_totals_of_all_visitors_are_kept_nearly() -> None:
    table = visitors()
    _, orders, value = Conversion.fit(table, HORIZONS).curves(table, HORIZONS)
    for i, days in enumerate(HORIZONS):
        assert orders[:, i].sum() == pytest.approx(table[f"orders_{days}"].sum(), rel=0.05)
        assert value[:, i].sum() == pytest.approx(table[f"value_{days}"].sum(), rel=0.05)


def test_recent_visitors_convert_more() -> None:
    table = visitors()
    smoke_test = pd.DataFrame({"f_event_recency": [1.0, 20.0, 200.0], "f_events": 3.0})
    for curve in Conversion.fit(table, HORIZONS).curves(smoke_test, HORIZONS):
        assert (np.diff(curve[:, 1]) < 0).all()


def test_a_cell_without_visitors_takes_the_mean_of_all() -> None:
    table = visitors()
    smoke_test = pd.DataFrame({"f_event_recency": [50.0], "f_events": [3.0]})
    _, orders, _ = Conversion.fit(table, HORIZONS).curves(smoke_test, HORIZONS)
    assert orders[0] == pytest.approx([table[f"orders_{days}"].mean() for days in HORIZONS])


def test_horizons_between_are_linear_and_those_beyond_in_proportion() -> None:
    fitted = Conversion.fit(visitors(), HORIZONS)
    smoke_test = visitors(20, seed=3)
    at = {days: np.stack([c[:, 0] for c in fitted.curves(smoke_test, (days,))]) for days in (10, 30, 60, 90, 180)}
    np.testing.assert_allclose(at[10], at[30] / 3)
    np.testing.assert_allclose(at[60], (at[30] + at[90]) / 2)
    np.testing.assert_allclose(at[180], at[90] * 2)


def test_an_unobserved_horizon_grows_with_its_days_from_the_last_observed_one() -> None:
    table = visitors()
    table["observed_90"] = False
    table[["orders_90", "value_90"]] = np.nan
    fitted = Conversion.fit(table, HORIZONS)
    for name in ("hazard", "orders", "value"):
        rates = getattr(fitted, name)
        np.testing.assert_allclose(rates[:, 1], rates[:, 0] * 3)


def test_only_observed_rows_count() -> None:
    table = visitors()
    spoiled = pd.concat([table, table.assign(observed_30=False, observed_90=False, orders_30=9.0, value_90=np.nan)])
    first, second = (Conversion.fit(t, HORIZONS).to_json() for t in (table, spoiled))
    assert first == second


def test_without_visitors_nothing_is_expected() -> None:
    fitted = Conversion.fit(visitors().iloc[:0], HORIZONS)
    for curve in fitted.curves(visitors(5), (30, 45, 90, 365)):
        assert curve.tolist() == np.zeros((5, 4)).tolist()


def test_json_gives_the_same_curves_to_the_bit() -> None:
    fitted = Conversion.fit(visitors(), HORIZONS)
    again = Conversion.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
    for a, b in zip(fitted.curves(visitors(50), (7, 200)), again.curves(visitors(50), (7, 200)), strict=True):
        assert np.array_equal(a, b)
