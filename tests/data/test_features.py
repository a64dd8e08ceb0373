from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clv.data import cutoff, features, histories
from clv.data.clock import DAY_US, Clock
from clv.data.cutoff import Cut, Value
from clv.data.events import PURCHASE, RETURN, TYPES
from clv.data.histories import Histories
from tests.scramble import scramble_future

CLOCK = Clock("Europe/London")
ORIGIN = CLOCK.parse("2011-04-10")
HORIZONS = (7, 30)

MakeEvents = Callable[[list[dict[str, Any]]], pa.Table]
RandomEvents = Callable[..., pa.Table]


def cut_at(table: pa.Table, origin: int = ORIGIN, value: Value = "gross") -> Cut:
    return cutoff.cut(Histories.from_table(table), origin, HORIZONS, CLOCK, value=value)


def naive(cut: Cut) -> pd.DataFrame:
    """Features by their names' words, with pandas, one row at a time."""
    h = cut.histories
    worth = {"gross": [PURCHASE], "net": [PURCHASE, RETURN], "none": []}[cut.value]
    rows = []
    for i in range(len(cut)):
        index = cut.index[cut.offsets[i] : cut.offsets[i + 1]]
        past = pd.DataFrame({"day": h.day[index], "type": h.type[index], "amount": h.amount[index]})
        past["worth"] = past["amount"].fillna(0.0).where(past["type"].isin(worth), 0.0)
        past["age"] = int(cut.origin_day[i]) - past["day"]
        past["lines"], past["quantity"] = h.lines[index], h.quantity[index]
        past["items"] = [h.items[h.item_offsets[t] : h.item_offsets[t + 1]].tolist() for t in index]
        buys = past[past["type"] == PURCHASE]
        days = np.sort(buys["day"].unique())
        origin_day, some = int(cut.origin_day[i]), len(buys) > 0
        gaps = np.diff(days)
        repeat = past[past["day"] > days[0]] if some else past.iloc[:0]
        bought = [key for keys in buys["items"] for key in keys]
        row: dict[str, Any] = {
            "customer_id": h.customer_id[int(cut.customer[i])].as_py(),
            "frequency": max(len(days) - 1, 0),
            "recency": days[-1] - days[0] if some else 0,
            "T": origin_day - days[0] if some else 0,
            "monetary": max(repeat["worth"].sum(), 0) / (len(days) - 1) if len(days) > 1 else 0.0,
            "has_purchase": some,
            "value_past": past["worth"].sum(),
            "orders_past": len(buys),
            "f_events": len(past),
            "f_event_recency": past["age"].min(),
            "f_recency": origin_day - days[-1] if some else np.nan,
            "f_tenure": origin_day - days[0] if some else np.nan,
            "f_gap_mean": gaps.mean() if len(gaps) else np.nan,
            "f_gap_std": gaps.std() if len(gaps) > 1 else np.nan,
            "f_gap_last": gaps[-1] if len(gaps) else np.nan,
            "f_aov": past["worth"].sum() / len(buys) if some else np.nan,
            "f_order_max": buys["worth"].max() if some else np.nan,
            "f_order_last": buys["worth"].iloc[-1] if some else np.nan,
            "f_lines_mean": buys["lines"].mean() if some else np.nan,
            "f_quantity_mean": buys["quantity"].mean() if some else np.nan,
            "f_items_distinct": len(set(bought)),
            "f_item_repeat": 1 - len(set(bought)) / len(bought) if bought else np.nan,
        }
        for w in (7, 14, 30, 60, 90, 180, 365):
            row[f"f_orders_{w}"] = (buys["age"] <= w).sum()
            row[f"f_spend_{w}"] = past.loc[past["age"] <= w, "worth"].sum()
        for w in (7, 30, 90):
            row[f"f_views_{w}"] = ((past["type"] == TYPES["view"]) & (past["age"] <= w)).sum()
        for h_days in HORIZONS:
            begin = origin_day - 365
            inside = (past["day"] >= begin) & (past["day"] < begin + h_days)
            row[f"f_orders_same_window_year_ago_{h_days}"] = (inside & (past["type"] == PURCHASE)).sum()
            row[f"f_spend_same_window_year_ago_{h_days}"] = past.loc[inside, "worth"].sum()
        rows.append(row)
    return pd.DataFrame(rows)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), value=st.sampled_from(["gross", "net", "none"]), year_ago=st.booleans())
def test_features_agree_with_pandas(seed: int, value: Value, year_ago: bool, random_events: RandomEvents) -> None:
    origin = CLOCK.parse("2012-03-15") if year_ago else ORIGIN
    cut = cut_at(histories.build(random_events(seed), CLOCK), origin, value)
    expected, found = naive(cut), features.sample_frame(cut, HORIZONS)
    assert len(found) == len(cut)
    for name in expected:
        # No column means that nobody has any.
        actual = found[name].to_numpy() if name in found else np.full(len(found), features.default_value(name))
        if name in ("customer_id", "has_purchase"):
            assert actual.tolist() == expected[name].tolist()
        else:
            np.testing.assert_allclose(actual.astype(float), expected[name].astype(float), atol=1e-6, err_msg=name)


def test_recency_and_frequency_count_distinct_local_days(make_events: MakeEvents) -> None:
    # 23:30 UTC on 9 May is 00:30 on 10 May in London: the first two are one day, the last two another.
    times = ["2011-05-09T23:30Z", "2011-05-10T20:00Z", "2011-05-20T12:00Z", "2011-05-20T22:59Z", "2011-05-20T23:00Z"]
    amounts = [5.0, 6.0, 10.0, 20.0, 40.0]
    rows = [{"event_time": CLOCK.parse(t), "amount": a} for t, a in zip(times, amounts, strict=True)]
    (row,) = features.sample_frame(
        cut_at(histories.build(make_events(rows), CLOCK), CLOCK.parse("2011-06-12"))
    ).to_dict("records")
    assert (row["frequency"], row["recency"], row["T"]) == (2, 11, 33)
    assert row["monetary"] == (10 + 20 + 40) / 2
    assert (row["orders_past"], row["value_past"]) == (5, 81.0)
    assert (row["f_orders_30"], row["f_orders_60"]) == (3, 5)


def test_the_frame_holds_the_labels_of_a_labelled_cut(random_events: RandomEvents) -> None:
    h = Histories.from_table(histories.build(random_events(5), CLOCK))
    end = ORIGIN + 20 * DAY_US
    cut = cutoff.cut(h, ORIGIN, HORIZONS, CLOCK, known_before=end)
    assert cut.labels is not None
    table = features.sample_frame(cut, HORIZONS)
    for i, horizon in enumerate(HORIZONS):
        for name in ("value", "orders", "days", "observed"):
            assert np.array_equal(
                table[f"{name}_{horizon}"], getattr(cut.labels, name)[:, i], equal_nan=name != "observed"
            )
    assert table["observed_7"].all()
    assert not table["observed_30"].any()
    assert table["value_30"].isna().all()
    slim = features.purchase_frame(cut)
    pd.testing.assert_frame_equal(slim, table[slim.columns])


def test_attributes_come_with_their_customer(make_events: MakeEvents) -> None:
    events = make_events([{"customer_id": c, "event_time": ORIGIN - i * DAY_US + 1} for i, c in enumerate("ABC")])
    attributes = pa.table({"customer_id": list("ABC"), "attr_town": ["x", "y", None], "attr_age": [1.0, 2.0, 3.0]})
    table = features.sample_frame(cut_at(histories.build(events, CLOCK, attributes)))
    assert table["customer_id"].tolist() == ["B", "C"]  # A comes after the origin
    assert table["attr_age"].tolist() == [2.0, 3.0]
    assert table["attr_town"].iloc[0] == "y"
    assert pd.isna(table["attr_town"].iloc[1])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("source", ["events", "histories"])
def test_no_feature_sees_the_future(seed: int, source: str, random_events: RandomEvents) -> None:
    events = random_events(seed, num=120)
    # An order is one fact, known with its last line: none may lie on both sides of the origin.
    orders = events.select(["customer_id", "event_type", "event_time"]).to_pandas()
    events = events.filter(pc.is_null(events["order_id"]).to_numpy() & ~orders.duplicated(keep=False).to_numpy())
    if source == "events":
        tables = [histories.build(t, CLOCK) for t in (events, scramble_future(events, ORIGIN, seed))]
    else:
        built = histories.build(events, CLOCK)
        tables = [built, scramble_future(built, ORIGIN, seed)]
    assert not tables[0].drop_columns("amount").equals(tables[1].drop_columns("amount"))
    first, second = (features.sample_frame(cut_at(table), HORIZONS) for table in tables)
    pd.testing.assert_frame_equal(first, second, check_exact=True)


def test_a_kind_of_event_that_comes_later_gives_no_column(make_events: MakeEvents) -> None:
    rows = [{"event_time": ORIGIN - 1}, {"event_time": ORIGIN, "event_type": "view"}]
    assert "f_views_7" not in features.sample_frame(cut_at(histories.build(make_events(rows), CLOCK)))


def test_one_customer_alone_has_the_features_of_the_same_in_a_table(random_events: RandomEvents) -> None:
    table = histories.build(random_events(11, num=40), CLOCK)
    together = features.sample_frame(cut_at(table, CLOCK.parse("2011-06-12")), HORIZONS)
    for i in range(len(table)):
        alone = features.sample_frame(cut_at(table.slice(i, 1), CLOCK.parse("2011-06-12")), HORIZONS)
        for name in features.feature_names(together):
            value = alone[name].iloc[0] if name in alone else features.default_value(name)
            np.testing.assert_equal(value, together[name].iloc[i], err_msg=name)
