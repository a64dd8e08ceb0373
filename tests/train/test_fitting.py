"""Planning the fits of a training run: cut, primary horizon, and logs that are too short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from clv.data.histories import Histories
from clv.train.config import TrainConfig
from clv.train.fitting import Dataset, plan, primary_horizon

MakeShop = Callable[..., Dataset]


def test_a_log_without_any_fully_observed_origin_says_so(shop: Dataset, tiny: TrainConfig) -> None:
    with pytest.raises(ValueError, match="too short for"):
        plan(shop, shop.clock.parse("2023-02-10"), tiny)


@pytest.mark.parametrize(
    ("date", "message"),
    [
        ("2022-06-01", r"origin 2022-06-01 leaves 0 days of log before it .* choose a later --origin"),
        ("2023-01-02", r"origin 2023-01-02 leaves \d days of log before it"),
        ("2024-08-01", r"origin 2024-08-01 lies after the log ends, 2024-07-01"),
    ],
)
def test_a_cut_outside_the_log_is_refused(date: str, message: str, shop: Dataset, tiny: TrainConfig) -> None:
    with pytest.raises(ValueError, match=message):
        plan(shop, shop.clock.parse(date), tiny)


def test_views_alone_make_no_btyd_model(
    make_shop: MakeShop, shop_histories: pa.Table, cutoff: int, tiny: TrainConfig
) -> None:
    h = Histories.from_table(shop_histories)
    looking = make_shop(replace(h, type=np.full_like(h.type, 2)).to_table())
    with pytest.raises(ValueError, match="no customer has bought before the origin: a BTYD model needs purchases"):
        plan(looking, cutoff, tiny)


@pytest.mark.parametrize(
    ("horizons", "log_days", "expected"),
    [
        ((30, 90), 270, 90),
        ((30, 90), 269, 30),
        ((30, 90), 20, 30),
        ((180, 365), 4_000, 180),
        ((7, 28, 60, 365), 90, 28),
    ],
)
def test_the_primary_horizon_fits_the_log_three_times(horizons: tuple[int, ...], log_days: int, expected: int) -> None:
    assert primary_horizon(horizons, log_days) == expected
