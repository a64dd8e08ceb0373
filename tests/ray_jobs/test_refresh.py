"""The scheduled refresh: new events reach scores and store, twice changes nothing, two at once are one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from clv.data.clock import Clock
from clv.data.histories import Histories
from clv.forecast.predictor import Predictor
from clv.registry import Registry
from clv.serve.store.factory import open_store
from ray_jobs import refresh

pytestmark = pytest.mark.ray

CLOCK = Clock("Europe/Berlin")

SPEC = """
name: simulated
timezone: Europe/Berlin
currency: EUR
events:
  - path: {folder}/orders-*.parquet
    columns: {{event_id: event_id, customer_id: customer_id, event_time: event_time, order_id: order_id,
              item_id: item_id, quantity: quantity, amount: amount}}
    event_type: {{column: event_type, map: {{purchase: purchase, return: return}}}}
value: gross
horizons_days: [30, 90]
"""


@pytest.fixture
def options(shop: Any, small_bundle: Path, tmp_path: Path, ray_cluster: None) -> refresh.Options:
    """The shop's orders until March 2024; the later ones have not arrived yet."""
    pq.write_table(orders(shop, "2023-01-01", "2024-03-01"), tmp_path / "orders-1.parquet")
    (tmp_path / "spec.yaml").write_text(SPEC.format(folder=tmp_path))
    registry = Registry(tmp_path / "registry")
    registry.promote(registry.publish(small_bundle))
    return refresh.Options(
        dataset=tmp_path / "spec.yaml",
        histories=tmp_path / "histories",
        registry=registry.root,
        store=str(tmp_path / "store"),
        scores=tmp_path / "scores",
        metrics=tmp_path / "refresh.prom",
    )


def orders(shop: Any, first: str, stop: str) -> pa.Table:
    events = shop.simulation.events
    us = events["event_time"].cast(pa.int64())
    inside = pc.and_(pc.greater_equal(us, CLOCK.parse(first)), pc.less(us, CLOCK.parse(stop)))
    sold = pc.is_in(events["event_type"], pa.array(["purchase", "return"]))
    return events.filter(pc.and_(inside, sold))


def scores(options: refresh.Options) -> pa.Table:
    parts = sorted(options.scores.rglob("*.parquet"))
    return pa.concat_tables(pq.read_table(part) for part in parts).sort_by(
        [("customer_id", "ascending"), ("horizon_days", "ascending")]
    )


def test_new_events_reach_scores_and_store_and_twice_changes_nothing(
    options: refresh.Options, shop: Any, tmp_path: Path
) -> None:
    refresh.run(options)
    first = scores(options)
    later = tmp_path / "orders-2.parquet"
    pq.write_table(orders(shop, "2024-03-01", "2024-07-01"), later)
    refresh.run(options)
    second = scores(options)
    newest = pc.max(pq.read_table(later)["event_time"].cast(pa.int64())).as_py()
    store = open_store(str(options.store))
    assert store.data_through() == newest
    stored = store.get(second["customer_id"].unique().to_pylist())
    assert len(stored) == len(second["customer_id"].unique())
    predictor = Predictor(Registry(options.registry).production())
    origin = second["origin"].cast(pa.int64())[0].as_py()
    assert origin > first["origin"].cast(pa.int64())[0].as_py()
    served = predictor.predict(stored, origin).sort_by([("customer_id", "ascending"), ("horizon_days", "ascending")])
    assert served["customer_id"].to_pylist() == second["customer_id"].to_pylist()
    assert served["value_mean"].to_numpy() == pytest.approx(second["value_mean"].to_numpy(), rel=1e-5)

    tokens = len(Histories.from_table(stored).time)
    refresh.run(options)
    assert scores(options).equals(second)
    assert len(Histories.from_table(store.get(stored["customer_id"].to_pylist())).time) == tokens
    store.close()

    facts = json.loads((options.scores / "refresh.json").read_text())
    assert facts["bundle"] == predictor.version
    assert options.metrics is not None
    values = dict(line.split() for line in options.metrics.read_text().splitlines() if not line.startswith("#"))
    assert abs(float(values["clv_refresh_timestamp_seconds"]) - time.time()) < 60
    assert 0 <= float(values["clv_refresh_data_through_timestamp_seconds"]) - newest / 1e6 <= 86_400


def test_one_refresh_at_a_time_and_a_killed_one_leaves_no_lock(options: refresh.Options, tmp_path: Path) -> None:
    place = str(options.histories)
    hold = f"from pathlib import Path\nfrom ray_jobs.refresh import refresh_lock\nwith refresh_lock(Path({place!r})):\n"
    hold += "    print('held', flush=True)\n    input()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"another refresh of .* is running: nothing was done"):
            refresh.run(options)
        assert not options.histories.exists()
        other.kill()
        other.wait()
    with refresh.refresh_lock(options.histories):
        pass
