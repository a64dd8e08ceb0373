"""RFM and window features: one table of recency, frequency, monetary value, features and labels per row of a cut."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from clv.data.cutoff import Cut, first_of_day
from clv.data.events import PURCHASE, TYPES
from clv.data.histories import ATTRIBUTE_PREFIX, ranges

WINDOWS_DAYS = (7, 14, 30, 60, 90, 180, 365)
EVENT_WINDOWS_DAYS = (7, 30, 90)
YEAR_DAYS = 365
NUM_BUCKETS = 8  # items are counted in this many hash buckets, so that no vocabulary is fitted

Floats = NDArray[np.float64]


def _count_name(event_type: str, days: int) -> str:
    return f"f_{event_type}s_{days}"


_COUNTS = {"f_items_distinct"} | {_count_name(name, days) for name in TYPES for days in EVENT_WINDOWS_DAYS}


def sample_frame(cut: Cut, horizons_days: tuple[int, ...] = (90,)) -> pd.DataFrame:
    """Returns one row per row of `cut`: the input of BTYD models, baselines and the wide part of the model.

    Columns: `customer_id`, `origin_day`; `frequency` (distinct purchase days - 1), `recency` and `T` (days from the
    first purchase to the last, and to the origin), `monetary` (mean value of the repeat purchase days, 0 without any),
    `has_purchase`, `value_past` (shop currency), `orders_past`; features `f_*` (NaN where undefined); and, if the cut
    has labels, `value_<h>`, `orders_<h>`, `days_<h>`, `observed_<h>` for its horizons.
    """
    past = _Past(cut)
    columns = _base(cut, past) | past.windows() | past.rhythm() | past.last_year(horizons_days)
    columns |= past.other_events() | past.baskets() | past.items()
    angle = 2 * np.pi * (cut.origin_day % 365.2425) / 365.2425
    columns |= {"f_doy_sin": np.sin(angle), "f_doy_cos": np.cos(angle)}
    columns |= {ATTRIBUTE_PREFIX + name: values for name, values in cut.attributes().items()}
    return pd.DataFrame(columns)


def purchase_frame(cut: Cut) -> pd.DataFrame:
    """Returns the sample frame without the features `f_*`: the input of a BTYD model."""
    return pd.DataFrame(_base(cut, _Past(cut)))


def _base(cut: Cut, past: _Past) -> dict[str, object]:
    columns: dict[str, object] = {
        "customer_id": cut.histories.customer_id.to_numpy(zero_copy_only=False)[cut.customer],
        "origin_day": cut.origin_day,
        **past.rfm(),
    }
    if cut.labels is not None:
        for i, days in enumerate(cut.labels.horizons):
            for name in ("value", "orders", "days", "observed"):
                columns[f"{name}_{days}"] = getattr(cut.labels, name)[:, i]
    return columns


def default_value(name: str) -> float:
    """Returns the value of a feature whose column a sample frame lacks: 0 for a count, otherwise NaN.

    A frame has columns only for the types of events in its pasts, so that of one customer has fewer than that of all.
    """
    return 0.0 if name in _COUNTS else np.nan


def feature_names(table: pd.DataFrame) -> list[str]:
    """Returns the names of the numeric features of a sample frame."""
    return [name for name in table.columns if name.startswith("f_")]


class _Past:
    """Arrays over the past tokens of all rows, which every group of features uses."""

    def __init__(self, cut: Cut) -> None:
        h = cut.histories
        self.cut, self.num_rows = cut, len(cut)
        self.row = np.repeat(np.arange(len(cut)), np.diff(cut.offsets))
        self.age = (cut.origin_day[self.row] - h.day[cut.index]).astype(np.float64)
        self.kind = h.type[cut.index]
        self.value = cut.token_values()[cut.index]
        self.buy = self.kind == PURCHASE
        self.new_day = first_of_day(self.row, self.age, self.buy)

    def total(self, weights: Floats | NDArray[np.bool_]) -> Floats:
        return np.bincount(self.row, weights=weights, minlength=self.num_rows).astype(np.float64)

    def largest(self, values: Floats, where: NDArray[np.bool_]) -> Floats:
        out = np.full(self.num_rows, np.nan)
        np.fmax.at(out, self.row[where], values[where])
        return out

    def rfm(self) -> dict[str, object]:
        self.days = self.total(self.new_day)
        self.orders = self.total(self.buy)
        self.spent = self.total(self.value)
        oldest = self.largest(self.age, self.buy)
        newest = -self.largest(-self.age, self.buy)
        has = self.days > 0
        first_age = np.where(has, oldest, np.nan)[self.row]
        with np.errstate(invalid="ignore"):
            repeat_value = self.total(np.where(self.age < first_age, self.value, 0.0))
        self.repeats = np.maximum(self.days - 1, 0)
        monetary = np.where(self.repeats > 0, np.maximum(repeat_value, 0) / np.maximum(self.repeats, 1), 0.0)
        self.recent = np.where(has, newest, np.nan)
        self.tenure = np.where(has, oldest, np.nan)
        return {
            "frequency": self.repeats,
            "recency": np.where(has, oldest - newest, 0.0),
            "T": np.where(has, oldest, 0.0),
            "monetary": monetary,
            "has_purchase": has,
            "value_past": self.spent,
            "orders_past": self.orders,
            "f_event_recency": -self.largest(-self.age, np.ones(len(self.age), bool)),
            "f_events": np.diff(self.cut.offsets).astype(np.float64),
        }

    def windows(self) -> dict[str, Floats]:
        out: dict[str, Floats] = {
            "f_recency": self.recent,
            "f_tenure": self.tenure,
            "f_orders": self.orders,
            "f_spend": self.spent,
        }
        for days in WINDOWS_DAYS:
            inside = self.age <= days
            out[f"f_orders_{days}"] = self.total(self.buy & inside)
            out[f"f_spend_{days}"] = self.total(np.where(inside, self.value, 0.0))
        return out

    def rhythm(self) -> dict[str, Floats]:
        """Returns features of the gaps between purchase days; `f_overdue` is the recency in mean gaps."""
        days = np.flatnonzero(self.new_day)
        row, age = self.row[days], self.age[days]
        same = row[1:] == row[:-1]
        gap, owner = (age[:-1] - age[1:])[same], row[1:][same]
        count = np.bincount(owner, minlength=self.num_rows)
        some = np.maximum(count, 1)
        mean = np.bincount(owner, weights=gap, minlength=self.num_rows) / some
        square = np.bincount(owner, weights=gap**2, minlength=self.num_rows) / some
        spread = np.sqrt(np.maximum(square - mean**2, 0.0))
        last = np.full(self.num_rows, np.nan)
        last[owner] = gap  # ascending in time, so the last write of a row is its newest gap
        some_gap, several = count > 0, count > 1
        return {
            "f_gap_mean": np.where(some_gap, mean, np.nan),
            "f_gap_std": np.where(several, spread, np.nan),
            "f_gap_last": last,
            "f_overdue": np.where(some_gap, self.recent / np.maximum(mean, 1.0), np.nan),
            "f_regularity": np.where(several, spread / np.maximum(mean, 1.0), np.nan),
        }

    def last_year(self, horizons_days: tuple[int, ...]) -> dict[str, Floats]:
        """Returns orders and spend of the window a year before, [origin - 365, origin - 365 + h), up to the origin."""
        out: dict[str, Floats] = {}
        for days in horizons_days:
            inside = (self.age <= YEAR_DAYS) & (self.age > YEAR_DAYS - min(days, YEAR_DAYS))
            out[f"f_orders_same_window_year_ago_{days}"] = self.total(self.buy & inside)
            out[f"f_spend_same_window_year_ago_{days}"] = self.total(np.where(inside, self.value, 0.0))
        return out

    def other_events(self) -> dict[str, Floats]:
        present = np.unique(self.kind)  # of the pasts only: a later event must not add a column
        return {
            _count_name(name, days): self.total((self.kind == code) & (self.age <= days))
            for name, code in TYPES.items()
            if code != PURCHASE and code in present
            for days in EVENT_WINDOWS_DAYS
        }

    def baskets(self) -> dict[str, Floats]:
        h, index = self.cut.histories, self.cut.index
        orders = np.maximum(self.orders, 1)
        bought = self.orders > 0
        lines = h.lines[index].astype(np.float64)
        quantity = h.quantity[index].astype(np.float64)
        last_value = np.full(self.num_rows, np.nan)
        last_value[self.row[self.buy]] = self.value[self.buy]
        return {
            "f_aov": np.where(bought, self.spent / orders, np.nan),
            "f_order_max": self.largest(self.value, self.buy),
            "f_order_last": last_value,
            "f_lines_mean": np.where(bought, self.total(np.where(self.buy, lines, 0.0)) / orders, np.nan),
            "f_quantity_mean": np.where(bought, self.total(np.where(self.buy, quantity, 0.0)) / orders, np.nan),
        }

    def items(self) -> dict[str, Floats]:
        """Returns the number of distinct items bought, the share of repeats, and the shares of the hash buckets."""
        h = self.cut.histories
        tokens = self.cut.index[self.buy]
        start, stop = h.item_offsets[tokens], h.item_offsets[tokens + 1]
        keys = h.items[ranges(start, stop)]
        row = np.repeat(self.row[self.buy], stop - start)
        if len(keys) == 0:
            return {}
        codes = pd.factorize(keys)[0].astype(np.int64)
        num_codes = int(codes.max()) + 1
        pairs = np.asarray(pd.unique(row * num_codes + codes)) // num_codes  # the row of each distinct (row, item)
        count = np.bincount(row, minlength=self.num_rows)
        out = {"f_items_distinct": np.bincount(pairs, minlength=self.num_rows).astype(np.float64)}
        out["f_item_repeat"] = np.where(count > 0, 1 - out["f_items_distinct"] / np.maximum(count, 1), np.nan)
        bucket = (keys.view(np.uint64) >> np.uint64(20)) % NUM_BUCKETS
        for i in range(NUM_BUCKETS):
            share = np.bincount(row[bucket == i], minlength=self.num_rows) / np.maximum(count, 1)
            out[f"f_cat_share_{i}"] = np.where(count > 0, share, np.nan)
        return out
