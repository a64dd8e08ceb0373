"""The feature space against a loop in plain Python: unknown values, clipping, gaps without late events."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from clv.data import features, histories
from clv.data.clock import DAY_US, Clock
from clv.data.cutoff import Cut, cut
from clv.data.events import EVENTS, TYPES, US, stable_hash, type_code
from clv.data.histories import Histories
from clv.models.inputs.feature_space import LONGEST_GAP_DAYS, FeatureSpace, Items

DAY = 86_400


def events(rows: list[dict[str, object]]) -> pa.Table:
    """EVENTS of rows (customer, day, ...); by default a purchase of 1 piece for 10."""
    made = []
    for number, row in enumerate(rows):
        made.append(
            {
                "event_id": str(number),
                "customer_id": str(row["customer"]),
                "event_time": int(float(row["day"]) * DAY_US),  # type: ignore[arg-type]
                "known_at": int(float(row.get("known", row["day"])) * DAY_US),  # type: ignore[arg-type]
                "event_type": row.get("type", "purchase"),
                "order_id": row.get("order"),
                "item_id": row.get("item", "mug"),
                "quantity": float(row.get("quantity", 1.0)),  # type: ignore[arg-type]
                "amount": row.get("amount", 10.0),
                "amount_filled": False,
                "text": None,
                "channel": row.get("channel"),
            }
        )
    frame = pd.DataFrame(made)
    columns = {}
    for field in EVENTS:
        values = frame[field.name]
        columns[field.name] = (
            pa.array(values.to_numpy(np.int64)).cast(US) if field.type == US else pa.array(values.tolist(), field.type)
        )
    return pa.table(columns, schema=EVENTS)


def past_at(rows: list[dict[str, object]], day: float) -> Cut:
    clock = Clock("UTC")
    return cut(Histories.from_table(histories.build(events(rows), clock)), int(day * DAY_US), (30,), clock)


def fitted(past: Cut, **more: object) -> FeatureSpace:
    return FeatureSpace.fit(past, features.sample_frame(past, (30,)), **({"min_count": 1} | more))  # type: ignore[arg-type]


def test_a_round_trip_through_json_and_arrays_changes_nothing(shop) -> None:
    plain, arrays = shop.space.to_arrays()
    back = FeatureSpace.from_arrays(json.loads(json.dumps(plain)), {name: a.copy() for name, a in arrays.items()})
    np.testing.assert_array_equal(back.wide(shop.table), shop.space.wide(shop.table))
    ours, theirs = shop.space.tokens(shop.past, 9), back.tokens(shop.past, 9)
    for name in ("offsets", "scalars", "codes", "item_offsets", "item"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert back.num_learned_items == shop.space.num_learned_items
    assert back.width == shop.space.width
    np.testing.assert_array_equal(back.text_vectors, shop.space.text_vectors)
    again, more = back.to_arrays()
    assert again == plain
    assert more.keys() == arrays.keys()


def test_tokens_agree_with_a_plain_loop(shop) -> None:
    space, past, h = shop.space, shop.past, shop.histories
    got = space.tokens(past, 7)
    types, channels, keys = (values.tolist() for values in (space.types, space.channels, space.item_keys))
    checked = 0
    for row in range(0, len(past), 9):
        own = past.index[past.offsets[row] : past.offsets[row + 1]].tolist()
        newest = own[-7:]
        assert got.offsets[row + 1] - got.offsets[row] == len(newest)
        for i, token in enumerate(newest):
            where = got.offsets[row] + i
            position = len(own) - len(newest) + i
            since = (past.origin[row] - h.time[token]) / DAY_US
            gap = (h.time[token] - h.time[own[position - 1]]) / DAY_US if position else LONGEST_GAP_DAYS
            amount = 0.0 if np.isnan(h.amount[token]) else float(h.amount[token])
            amount = np.sign(amount) * np.log1p(abs(amount))
            angle = 2 * np.pi * (h.day[token] % 365.2425) / 365.2425
            scalars = [
                (amount - space.amount_center) / space.amount_scale,
                np.log1p(h.quantity[token]) / 3,
                np.log1p(h.lines[token]) / 2,
                np.log1p(min(gap, LONGEST_GAP_DAYS)) / 3 - 1,
                np.log1p(min(since, LONGEST_GAP_DAYS)) / 3 - 1,
                np.sin(angle),
                np.cos(angle),
                np.isnan(h.amount[token]),
                position == 0,
            ]
            np.testing.assert_allclose(got.scalars[where], scalars, rtol=1e-5, atol=1e-6)
            bins = [int(np.log1p(min(x, LONGEST_GAP_DAYS)) / np.log1p(LONGEST_GAP_DAYS) * 15) for x in (gap, since)]
            weekday = pd.Timestamp(int(h.day[token]), unit="D").weekday()
            kind, channel = int(h.type[token]), int(h.channel[token])
            codes = [
                types.index(kind) + 1 if kind in types else 0,
                1 + sum(edge < amount for edge in space.amount_edges.astype(float)),
                *bins,
                weekday,
                channels.index(channel) + 1 if channel in channels else 0,
            ]
            assert got.codes[where].tolist() == codes
            lines = h.items[h.item_offsets[token] : h.item_offsets[token + 1]].tolist()
            found = got.item[got.item_offsets[where] : got.item_offsets[where + 1]].tolist()
            assert found == [keys.index(key) + 1 if key in keys else 0 for key in lines]
            checked += 1
    assert checked > 100


def test_codes_stay_inside_their_embedding_tables(shop) -> None:
    codes = shop.space.tokens(shop.past, 1000).codes
    sizes = [len(shop.space.types) + 1, 17, 16, 16, 7, len(shop.space.channels) + 1]
    assert (codes >= 0).all()
    assert (codes.max(0) < sizes).all()
    extreme = past_at([{"customer": "a", "day": 10, "amount": 1e9}, {"customer": "a", "day": 20, "amount": -1e9}], 9000)
    assert (shop.space.tokens(extreme, 5).codes < sizes).all()


def test_unseen_types_channels_and_items_are_unknown() -> None:
    known = [{"customer": n, "day": n, "item": "mug", "channel": "web"} for n in range(1, 9)]
    space = fitted(past_at(known, 30))
    new = past_at(
        [
            {"customer": "x", "day": 10, "item": "jar", "channel": "kiosk", "type": "dream", "amount": None},
            {"customer": "x", "day": 11, "item": "mug", "channel": "web"},
        ],
        30,
    )
    assert new.histories.type[0] == type_code(["dream"])[0]
    tokens = space.tokens(new, 5)
    assert tokens.codes[:, 0].tolist() == [0, 1]
    assert tokens.codes[:, 5].tolist() == [0, 1]
    assert tokens.item.tolist() == [0, 1]


def test_a_gap_skips_events_that_become_known_only_after_the_origin() -> None:
    rows: list[dict[str, object]] = [{"customer": "a", "day": 10}, {"customer": "a", "day": 25}]
    late: list[dict[str, object]] = [*rows, {"customer": "a", "day": 20, "known": 40}]
    space = fitted(past_at(rows, 30))
    without, with_late = space.tokens(past_at(rows, 30), 5), space.tokens(past_at(late, 30), 5)
    np.testing.assert_array_equal(with_late.scalars, without.scalars)
    np.testing.assert_array_equal(with_late.codes, without.codes)
    assert without.scalars[1, 3] == pytest.approx(np.log1p(15) / 3 - 1, abs=1e-6)
    afterwards = space.tokens(past_at(late, 50), 5)
    assert len(afterwards.scalars) == 3
    assert afterwards.scalars[2, 3] == pytest.approx(np.log1p(5) / 3 - 1, abs=1e-6)


def test_the_oldest_of_the_newest_tokens_keeps_its_gap_and_only_the_first_ever_is_first() -> None:
    past = past_at([{"customer": "a", "day": day} for day in (2, 5, 12)], 30)
    tokens = fitted(past).tokens(past, 2)
    assert tokens.scalars[:, 8].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(tokens.scalars[:, 3], np.log1p([3, 7]) / 3 - 1, atol=1e-6)
    assert fitted(past).tokens(past, 9).scalars[:, 8].tolist() == [1.0, 0.0, 0.0]


def test_features_and_tokens_ignore_everything_at_or_after_the_origin(shop) -> None:
    h, rng = shop.histories, np.random.default_rng(1)
    origin = int(shop.past.origin.min())
    future = h.time >= origin
    scrambled = replace(
        h,
        amount=np.where(future, rng.uniform(1, 999, len(h.time)), h.amount),
        type=np.where(future, rng.permutation(h.type), h.type).astype(h.type.dtype),
        quantity=np.where(future, 77, h.quantity).astype(h.quantity.dtype),
    )
    made = []
    for source in (h, scrambled):
        past = cut(source, origin, (30, 90), shop.clock)
        space = FeatureSpace.fit(past, features.sample_frame(past, (30, 90)), shop.items)
        made.append((space.wide(features.sample_frame(past, (30, 90))), space.tokens(past, 20)))
    np.testing.assert_array_equal(made[0][0], made[1][0])
    np.testing.assert_array_equal(made[0][1].scalars, made[1][1].scalars)
    np.testing.assert_array_equal(made[0][1].codes, made[1][1].codes)


def test_wide_features_are_standardised_and_have_the_stated_width(shop) -> None:
    wide = shop.space.wide(shop.table)
    count = len(shop.space.numeric)
    assert wide.shape == (len(shop.table), shop.space.width)
    assert np.isfinite(wide).all()
    values, flags = wide[:, :count], wide[:, count : 2 * count]
    assert set(np.unique(flags)) <= {0.0, 1.0}
    present = flags == 0
    mean = np.array([values[present[:, i], i].mean() if present[:, i].any() else 0 for i in range(count)])
    assert np.abs(mean).max() < 0.1
    assert np.abs(values).max() <= 6
    assert not values[~present].any()
    np.testing.assert_array_equal(wide[:, 2 * count :].sum(1), 1)


def test_wide_clips_at_the_range_seen_in_training(shop) -> None:
    top = shop.table.copy()
    name = "f_tenure"
    column = shop.space.numeric.index(name)
    top[name] = shop.table[name].max() * 50
    beyond = shop.space.wide(top)[:, column]
    assert (beyond == beyond[0]).all()
    assert beyond[0] == pytest.approx(shop.space.wide(shop.table)[:, column].max(), abs=0.05)


def test_an_absent_column_counts_as_missing_and_an_unseen_category_as_unknown(shop) -> None:
    count = len(shop.space.numeric)
    age = shop.space.numeric.index("attr_age")
    wide = shop.space.wide(shop.table.drop(columns=["attr_age", "attr_source"]))
    assert (wide[:, age] == 0).all()
    assert (wide[:, count + age] == 1).all()
    assert (wide[:, 2 * count] == 1).all()
    strange = shop.space.wide(shop.table.assign(attr_source="zeppelin"))
    np.testing.assert_array_equal(strange[:, 2 * count :], wide[:, 2 * count :])
    words = shop.space.categorical["attr_source"]
    one_hot = shop.space.wide(shop.table)[:, 2 * count + 1 :]
    assert [words[i] for i in one_hot.argmax(1)] == shop.table["attr_source"].tolist()


def test_frequent_items_have_vectors_of_their_own_and_all_have_a_category(shop) -> None:
    space, h = shop.space, shop.histories
    bought = [t for t in np.unique(shop.past.index) if h.type[t] == TYPES["purchase"]]
    lines = np.concatenate([h.items[h.item_offsets[t] : h.item_offsets[t + 1]] for t in bought])
    keys, counts = np.unique(lines, return_counts=True)
    np.testing.assert_array_equal(space.item_keys, keys)
    np.testing.assert_array_equal(space.item_rank > 0, counts >= 20)
    ranked = np.argsort(space.item_rank)[np.sum(space.item_rank == 0) :]
    assert (np.diff(counts[ranked]) <= 0).all()
    row_of_key = {key: i for i, key in enumerate(shop.items.keys.tolist())}
    expected = [shop.items.category[row_of_key[key]] for key in keys.tolist()]
    assert space.item_category.tolist() == [0, *expected]


def test_text_vectors_keep_the_distances_that_the_components_can_hold(shop) -> None:
    full = FeatureSpace.fit(shop.past, shop.table, shop.items, text_width=40)
    row_of_key = {key: i for i, key in enumerate(shop.items.keys.tolist())}
    original = shop.items.vectors[[row_of_key[key] for key in full.item_keys.tolist()]]
    assert full.text_vectors.shape == (len(full.item_keys) + 1, 40)
    assert not full.text_vectors[0].any()
    left = np.linalg.norm(original[:20, None] - original[None, :20], axis=-1)
    reduced = full.text_vectors[1:21]
    right = np.linalg.norm(reduced[:, None] - reduced[None], axis=-1)
    off = ~np.eye(20, dtype=bool)
    np.testing.assert_allclose(right[off] / left[off], (right[off] / left[off]).mean(), rtol=1e-4)
    assert np.mean(full.text_vectors[1:] ** 2) == pytest.approx(1, rel=1e-5)


def test_a_log_without_texts_prices_or_channels_has_a_space_too() -> None:
    past = past_at([{"customer": n, "day": n, "amount": None} for n in range(1, 6)], 30)
    space = fitted(past, items=Items.empty())
    tokens = space.tokens(past, 4)
    assert np.isfinite(tokens.scalars).all()
    assert (tokens.scalars[:, 7] == 1).all()
    assert (tokens.codes[:, 5] == 0).all()
    assert space.text_vectors.shape == (2, 0)
    assert np.isfinite(space.wide(features.sample_frame(past, (30,)))).all()


def test_item_keys_are_the_hashes_in_the_histories() -> None:
    past = past_at([{"customer": 1, "day": 1, "item": "mug"}, {"customer": 1, "day": 2, "item": "jar"}], 30)
    names = ["jar", "mug"]
    items = Items(stable_hash(names), np.eye(2, dtype=np.float32), np.array([1, 2]), ("Jars", "Mugs"))
    space = fitted(past, items=items)
    category = dict(zip(space.item_keys.tolist(), space.item_category[1:].tolist(), strict=True))
    assert [category[int(key)] for key in stable_hash(names)] == [1, 2]
