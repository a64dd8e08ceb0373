"""Planted defects: each kind in known numbers, while every good row stays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from clv.simulate import defects, log
from clv.simulate.files import _nullable
from clv.simulate.settings import ShopSettings

SHOP = ShopSettings.full(num_customers=60, start="2024-01-01", end="2024-06-01")


@pytest.fixture(scope="module")
def good() -> pa.Table:
    block = log.draw_block(SHOP, 0, log.catalogue(SHOP))
    return block.events.drop_columns("amount_filled").cast(_nullable(block.events.schema))


def test_good_rows_stay_in_their_order_among_the_planted_ones(good: pa.Table) -> None:
    rows, planted = defects.plant(np.random.default_rng(0), SHOP, good, 3)
    assert len(rows) == len(good) + planted.total()
    assert set(planted) == {*defects.defect_kinds(SHOP), "duplicate of another order"}
    assert all(planted[reason] == 3 for reason in defects.defect_kinds(SHOP))
    kept = iter(rows["event_id"].to_pylist())
    assert all(any(name == other for other in kept) for name in good["event_id"].to_pylist())


def test_a_copy_has_one_defect_and_is_else_its_row(good: pa.Table) -> None:
    row = good.filter(pa.compute.equal(good["event_type"], "purchase")).slice(0, 1)
    for reason, make_defect in defects.defect_kinds(SHOP).items():
        changed = [name for name in row.column_names if make_defect(row)[name] != row[name]]
        assert len(changed) == (reason != "exact duplicate of another row"), reason


def test_items_get_one_defect_of_each_kind() -> None:
    items, planted = defects.plant_items(log.catalogue(SHOP).table)
    assert len(items) == len(log.catalogue(SHOP).table) + 3
    assert sorted(planted.values()) == [1, 1, 1]
