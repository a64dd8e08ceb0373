import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from benchmarks import seasonal_factor
from clv.btyd.models import BTYDModel
from clv.btyd.seasonal_btyd import MAX_ACTUAL_FACTOR, PSEUDO_ORDERS, Curves, SeasonalBTYD, apply_factor
from clv.btyd.seasonal_factor import MAX_LOG_FACTOR, MIN_REPEATS
from clv.data import features, histories
from clv.data.clock import DAY_US, Clock
from clv.data.cutoff import Value, cut
from clv.data.histories import Histories
from clv.models.inputs.assemble import origin_grid
from clv.simulate import small
from tests.scramble import scramble_future

CLOCK = Clock("Europe/London")
CUTOFF = CLOCK.parse("2024-03-01")
HORIZONS = (30, 90)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return histories.build(shop_events(), CLOCK)


def shop_events(**options: float) -> pa.Table:
    return small.simulate(250, "2023-01-01", "2024-07-01", seed=3, timezone="Europe/London", **options).events  # type: ignore[arg-type]


def fit(
    table: pa.Table, value: Value = "gross", horizons: tuple[int, ...] = HORIZONS, cutoff: int = CUTOFF
) -> SeasonalBTYD:
    h = Histories.from_table(table)
    # The grid is the caller's; it must not depend on what is scrambled either.
    grid = origin_grid(int(CLOCK.local_day(CLOCK.parse("2023-01-01"))), int(CLOCK.local_day(cutoff)), 6, 28)
    return SeasonalBTYD.fit(h, cutoff, horizons, CLOCK, value=value, origin_days=grid)


@pytest.fixture(scope="module")
def btyd(table: pa.Table) -> SeasonalBTYD:
    return fit(table)


def frame_at(table: pa.Table, origin: int = CUTOFF) -> pd.DataFrame:
    return features.sample_frame(cut(Histories.from_table(table), origin, HORIZONS, CLOCK), HORIZONS)


def test_json_gives_the_same_model_to_the_bit(btyd: SeasonalBTYD, table: pa.Table) -> None:
    text = json.dumps(btyd.to_json(), allow_nan=False)
    again = SeasonalBTYD.from_json(json.loads(text))
    frame = frame_at(table)
    for horizons in (HORIZONS, (7, 45, 400)):
        for name in ("hazard", "orders", "value"):
            assert np.array_equal(
                getattr(btyd.curves(frame, horizons), name), getattr(again.curves(frame, horizons), name)
            )
    days = btyd.past["origin_day"].unique().astype(np.int32)
    for a, b in zip(btyd.actual_factor(days), again.actual_factor(days), strict=True):
        assert np.array_equal(a, b)
    for a, b in zip(btyd.forecast_factor(19_800), again.forecast_factor(19_800), strict=True):
        assert np.array_equal(a, b)
    pd.testing.assert_frame_equal(btyd.past, again.past, check_exact=True)
    assert json.dumps(again.to_json()) == text


def test_the_actual_factor_times_the_expected_total_is_the_actual_total(btyd: SeasonalBTYD) -> None:
    assert len(btyd.past) >= 8
    for row in btyd.past.to_dict("records"):
        i = HORIZONS.index(int(row["horizon_days"]))
        factors = btyd.actual_factor(np.array([row["origin_day"]], np.int32))
        for what, factor in zip(("orders", "value"), factors, strict=True):
            pseudo = PSEUDO_ORDERS * row[f"expected_{what}"] / row["expected_orders"]
            product = factor[0, i] * (row[f"expected_{what}"] + pseudo)
            assert product == pytest.approx(row[f"actual_{what}"] + pseudo)


def test_actual_totals_are_those_of_the_log(btyd: SeasonalBTYD, table: pa.Table) -> None:
    h = Histories.from_table(table)
    row = btyd.past.iloc[3]
    origin = int(CLOCK.day_start(int(row["origin_day"])))
    labelled = features.purchase_frame(cut(h, origin, HORIZONS, CLOCK, known_before=CUTOFF))
    buyers = labelled[labelled["has_purchase"]]
    days = int(row["horizon_days"])
    assert row["actual_orders"] == buyers[f"orders_{days}"].sum() > 0
    assert row["actual_value"] == pytest.approx(buyers[f"value_{days}"].sum())


def test_an_origin_with_an_unobserved_horizon_has_factor_one(btyd: SeasonalBTYD) -> None:
    newest = np.array([btyd.cutoff_day - 40], np.int32)
    assert (btyd.past["origin_day"] + btyd.past["horizon_days"] <= btyd.cutoff_day).all()
    orders, value = btyd.actual_factor(newest)
    assert orders[0, 1] == value[0, 1] == 1.0


@pytest.mark.parametrize("source", ["events", "histories"])
def test_the_fit_does_not_depend_on_events_after_the_cutoff(source: str, btyd: SeasonalBTYD, table: pa.Table) -> None:
    if source == "events":
        scrambled = histories.build(scramble_future(shop_events(), CUTOFF, seed=5), CLOCK)
    else:
        scrambled = scramble_future(table, CUTOFF, seed=5)
    future = [pc.sum(pc.list_flatten(t["amount"])).as_py() for t in (table, scrambled)]
    assert future[0] != future[1]
    other = fit(scrambled)
    assert json.dumps(other.to_json()) == json.dumps(btyd.to_json())
    frames = [frame_at(t) for t in (table, scrambled)]
    pd.testing.assert_frame_equal(frames[0], frames[1], check_exact=True)
    first, second = (b.curves(f) for b, f in zip((btyd, other), frames, strict=True))
    assert np.array_equal(first.value, second.value)


def test_events_that_arrive_after_the_cutoff_do_not_change_the_fit(table: pa.Table, btyd: SeasonalBTYD) -> None:
    """A first event of the log that arrives after the cutoff must not even lengthen the log."""
    h = Histories.from_table(table)
    oldest = int(np.argmin(h.time))
    known = h.known_at.copy()
    known[oldest] = CUTOFF + DAY_US
    gone = replace(h, known_at=known)
    early = h.time.copy()
    early[oldest] -= 50 * DAY_US
    day = h.day.copy()
    day[oldest] -= 50
    earlier = replace(gone, time=early, day=day)
    assert json.dumps(fit(gone.to_table()).to_json()) == json.dumps(fit(earlier.to_table()).to_json())


def test_curves_never_fall_with_the_horizon(btyd: SeasonalBTYD, table: pa.Table) -> None:
    curves = btyd.curves(frame_at(table), (1, 7, 30, 31, 60, 90, 180, 365, 1_000))
    for name in ("hazard", "orders", "value", "repeats", "p_purchase"):
        values = getattr(curves, name)
        assert np.isfinite(values).all()
        assert (values > 0).all()
        assert (np.diff(values, axis=1) >= 0).all(), name
    assert (curves.p_purchase <= 1).all()
    assert (curves.orders >= curves.p_purchase - 1e-12).all()


def test_a_factor_scales_the_curves_and_keeps_them_monotone(btyd: SeasonalBTYD, table: pa.Table) -> None:
    plain = btyd.curves(frame_at(table))
    scaled = apply_factor(plain, np.array([1.5, 2.0]), np.array([3.0, 0.1]))
    np.testing.assert_allclose(scaled.hazard, plain.hazard * [1.5, 2.0])
    np.testing.assert_allclose(scaled.value[:, 0], plain.value[:, 0] * 3)
    assert (np.diff(scaled.value, axis=1) >= 0).all()
    assert (scaled.orders >= scaled.p_purchase - 1e-12).all()


def test_repeats_are_orders_less_the_probability_of_a_purchase() -> None:
    curves = Curves(np.array([[0.1, 0.5]]), np.array([[0.2, 1.0]]), np.ones((1, 2)))
    np.testing.assert_allclose(curves.repeats, curves.orders - curves.p_purchase)


def test_each_row_uses_the_newest_btyd_model_that_is_not_after_it(btyd: SeasonalBTYD, table: pa.Table) -> None:
    days = sorted(btyd.fits)
    frame = frame_at(table)
    frame = frame[frame["has_purchase"]].iloc[:20]
    only = replace(btyd, fits={days[1]: btyd.fits[days[1]]})
    for day in (days[1], days[1] + 5):
        np.testing.assert_array_equal(
            btyd.curves(frame.assign(origin_day=day)).value, only.curves(frame.assign(origin_day=day)).value
        )
    newest = btyd.curves(frame.assign(origin_day=days[-1])).value
    assert not np.array_equal(newest, only.curves(frame).value)


def test_visitors_get_the_conversion_rates(table: pa.Table) -> None:
    """Purchases of half of the customers before the cutoff are taken for views: they have only looked."""
    h = Histories.from_table(table)
    owner = np.repeat(np.arange(len(h)), np.diff(h.offsets))
    kind = np.where((owner % 2 == 0) & (h.type == 0) & (h.time < CLOCK.parse("2023-11-01")), 2, h.type).astype(np.int16)
    shop = replace(h, type=kind).to_table()
    fitted = fit(shop)
    frame = frame_at(shop)
    looks = ~frame["has_purchase"].to_numpy()
    assert looks.sum() > 10
    curves = fitted.curves(frame)
    hazard, orders, value = fitted.conversion.curves(frame[looks], HORIZONS)
    np.testing.assert_allclose(curves.hazard[looks], hazard)
    np.testing.assert_allclose(curves.orders[looks], np.maximum(orders, -np.expm1(-hazard)))
    np.testing.assert_allclose(curves.value[looks], value)
    assert (value > 0).all()


def test_a_dataset_without_prices_has_purchases_and_can_be_written(table: pa.Table) -> None:
    fitted = fit(table, value="none")
    text = json.dumps(fitted.to_json(), allow_nan=False)
    again = SeasonalBTYD.from_json(json.loads(text))
    assert np.isinf(again.past["error_value"]).all()
    frame = features.sample_frame(cut(Histories.from_table(table), CUTOFF, HORIZONS, CLOCK, value="none"), HORIZONS)
    curves = again.curves(frame)
    assert (curves.value < 1e-5).all()
    assert curves.orders[:, 1].sum() > 1
    assert fitted.forecast_factor(fitted.cutoff_day)[1].tolist() == [1.0, 1.0]


def test_a_log_without_an_observed_horizon_has_factor_one(table: pa.Table) -> None:
    fitted = fit(table, horizons=(500,), cutoff=CLOCK.parse("2023-09-01"))
    again = SeasonalBTYD.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False)))
    assert len(again.past) == 0
    assert again.actual_factor(np.array([19_500], np.int32))[0].tolist() == [[1.0]]
    assert again.forecast_factor(19_600)[0].tolist() == [1.0]


@pytest.mark.parametrize("cutoff", ["2022-12-01", "2023-01-01"])
def test_a_cutoff_before_the_first_purchase_is_refused(cutoff: str, table: pa.Table) -> None:
    with pytest.raises(ValueError, match="no customer has bought before the origin: a BTYD model needs purchases"):
        fit(table, cutoff=CLOCK.parse(cutoff))


def test_one_customer_with_one_purchase_is_enough(table: pa.Table) -> None:
    h = Histories.from_table(table.slice(0, 1))
    single = replace(
        h,
        offsets=np.array([0, 1]),
        item_offsets=h.item_offsets[:2],
        items=h.items[: h.item_offsets[1]],
        **{name: getattr(h, name)[h.type == 0][:1] for name in histories.TOKEN_FIELDS},
    ).to_table()
    curves = fit(single).curves(frame_at(single))
    assert np.isfinite(curves.value).all()
    assert curves.value.shape == (1, 2)


def test_where_nobody_has_bought_again_value_is_the_mean_of_all_purchase_days(table: pa.Table) -> None:
    h = Histories.from_table(table)
    frame = features.purchase_frame(cut(h, CLOCK.parse("2023-03-01"), HORIZONS, CLOCK, known_before=CUTOFF))
    once = frame[(frame["frequency"] == 0) & frame["has_purchase"]].iloc[:8]
    assert len(once) == 8
    found = BTYDModel.fit(once).predict(once, 90)
    np.testing.assert_allclose(found["value"], found["days"] * once["value_past"].mean())
    again = BTYDModel.from_json(json.loads(json.dumps(BTYDModel.fit(once).to_json(), allow_nan=False)))
    assert again.predict(once, 90).equals(found)


def test_labels_of_an_origin_with_few_repeat_purchases_are_not_divided_by_its_factor(btyd: SeasonalBTYD) -> None:
    days = btyd.past["origin_day"].unique().astype(np.int32)
    wild = btyd.past.assign(actual_value=btyd.past["expected_value"] * 1e6)
    assert (replace(btyd, past=wild).actual_factor(days)[1] == MAX_ACTUAL_FACTOR).any()
    few = replace(btyd, past=wild.assign(repeats=MIN_REPEATS - 1.0))
    assert (few.actual_factor(days)[1] == 1).all()


def test_a_factor_at_its_bound_is_a_finding(btyd: SeasonalBTYD) -> None:
    assert btyd.findings() == []
    model = btyd.value_factor_model
    bound = replace(model, log_ratio=np.full(len(model.log_ratio), 9.0), log_error=model.log_error * 0.1)
    found = replace(btyd, value_factor_model=bound, warning="no dropout").findings()
    assert found[0] == "BTYD model: no dropout"
    assert len(found) > 1
    assert all(line.startswith("seasonal factor: the BTYD model's total over ") for line in found[1:])
    assert all("est factor that is used; past errors ask for more" in line for line in found[1:])


@pytest.mark.parametrize("kind", ["marketplace", "yearly", "half-yearly", "dying", "weekly"])
def test_the_factor_of_a_shop_without_a_season_explodes_no_total(kind: str) -> None:
    rows = seasonal_factor.log_errors(pd.DataFrame(seasonal_factor.forecast(kind, 1_002)))
    assert len(rows)
    assert (np.abs(np.log(rows["factor"])) <= MAX_LOG_FACTOR + 1e-9).all()
    if kind in ("marketplace", "weekly", "dying"):
        assert (rows["with_factor"] - rows["alone"]).max() < 0.15
