"""quality.html: the indicators and the funnel of a log that has views, and what it says of one that has none."""

from __future__ import annotations

from typing import Any

import pyarrow.compute as pc

from clv.data.clock import Clock
from clv.data.histories import build
from clv.data.prepare import profile, profile_page
from clv.data.spec.models import DatasetSpec
from clv.simulate.small import simulate

SPEC = """
name: shop
timezone: UTC
currency: EUR
events: {path: log.parquet, columns: {customer_id: c, event_time: t, amount: a}}
"""
ACCOUNTING = {"read": 1, "accepted": 1, "rejected": {}, "notices": {}}


def page(views: bool, spec: str = SPEC) -> tuple[str, dict[str, Any]]:
    events = simulate(200, "2024-01-01", "2024-07-01", seed=1, sessions=2.0).events
    if not views:
        events = events.filter(pc.equal(events["event_type"], "purchase"))
    stats = profile.measure(build(events, Clock("UTC")))
    manifest = {
        "num_items": 3, "first_time": "2024-01-01", "last_time": "2024-06-30", "row_accounting": {"events": ACCOUNTING},
        "sources": [], "created": "now", "spec_sha256": "0" * 64,
    }  # fmt: skip
    return profile_page.page(DatasetSpec.parse(spec, "shop.yaml"), manifest, stats), stats


def test_a_log_with_views_shows_funnel_indicators_and_cohorts() -> None:
    text, stats = page(views=True)
    assert f"{stats['sessions_bought'] / stats['sessions']:.1%}" in text
    assert f"{1 - stats['one_time_buyers'] / stats['buyers']:.1%}" in text
    assert f"{stats['amount'] / stats['orders']:,.2f}" in text
    assert f"<title>with a cart: {stats['sessions_carted']:,}</title>" in text
    for month, buyers in stats["cohort_buyers_by_month"].items():
        assert f"<tr><td>{month}<td class=n>{buyers:,}<" in text
    assert sum(stats["cohort_buyers_by_month"].values()) == stats["buyers"]


def test_without_views_nothing_is_said_of_conversion() -> None:
    text, stats = page(views=False)
    assert "unknown: no views" in text
    assert "From a look to a purchase" not in text
    assert stats["sessions_bought"] == stats["sessions"]


def test_names_of_the_dataset_are_text_and_not_markup() -> None:
    text, _ = page(views=False, spec=SPEC.replace("name: shop", "name: <b>shop</b>"))
    assert "<h1>Data quality: &lt;b&gt;shop&lt;/b&gt;</h1>" in text
