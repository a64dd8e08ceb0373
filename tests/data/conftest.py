"""Event logs for the tests of histories, windows and features."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clv.data.clock import DAY_US, Clock
from clv.data.events import EVENTS

HOUR_US = 3_600_000_000
EMPTY = {"order_id": None, "item_id": None, "quantity": 1.0, "amount": None, "amount_filled": False}

MakeEvents = Callable[[list[dict[str, Any]]], pa.Table]
RandomEvents = Callable[..., pa.Table]


def _make_events(rows: list[dict[str, Any]]) -> pa.Table:
    full = []
    for i, row in enumerate(rows):
        merged = EMPTY | {"event_id": f"e{i}", "customer_id": "A", "event_type": "purchase", "text": None} | row
        full.append({"known_at": merged["event_time"], "channel": None} | merged)
    columns = {f.name: [row[f.name] for row in full] for f in EVENTS}
    stamps = ("event_time", "known_at")
    return pa.table(
        {
            f.name: pa.array(columns[f.name], pa.int64()).cast(f.type) if f.name in stamps else columns[f.name]
            for f in EVENTS
        }
    ).cast(EVENTS)


@pytest.fixture(scope="session")
def make_events() -> MakeEvents:
    """Rows with `event_time` in us and any other columns of EVENTS; the rest is filled in."""
    return _make_events


@pytest.fixture(scope="session")
def random_events() -> RandomEvents:
    """A log of few customers and orders with ties, missing fields and late arrivals, around a change of the clocks."""

    def build(seed: int, *, num: int = 60, late: bool = True, timezone: str = "Europe/London") -> pa.Table:
        rng = np.random.default_rng(seed)
        start = Clock(timezone).parse("2011-02-20")
        rows = []
        for _ in range(int(rng.integers(1, num + 1))):
            kind = str(rng.choice(["purchase", "purchase", "purchase", "return", "view", "bid"]))
            time = int(start + rng.integers(0, 70 * 24) * HOUR_US)
            amount = None if rng.random() < 0.15 else float(np.round(rng.gamma(2.0, 10.0), 2))
            known = time + int(rng.integers(1, 20 * 24) * HOUR_US) * bool(late and rng.random() < 0.25)
            rows.append(
                {
                    "customer_id": str(rng.choice(["A", "B", "C", "D"])),
                    "event_time": time,
                    "known_at": known,
                    "event_type": kind,
                    "order_id": None if rng.random() < 0.5 else f"o{rng.integers(0, 12)}",
                    "item_id": None if rng.random() < 0.2 else f"i{rng.integers(0, 6)}",
                    "quantity": None if rng.random() < 0.1 else float(rng.integers(1, 5)),
                    "amount": -amount if amount is not None and kind == "return" else amount,
                    "amount_filled": bool(rng.random() < 0.1),
                    "channel": None if rng.random() < 0.5 else str(rng.choice(["web", "shop"])),
                }
            )
        return _make_events(rows)

    return build


@pytest.fixture(scope="session")
def day_us() -> int:
    return DAY_US
