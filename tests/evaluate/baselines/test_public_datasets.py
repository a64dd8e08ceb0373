from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from clv.data import cutoff, features, histories
from clv.data.clock import Clock
from clv.data.events import EVENTS
from clv.evaluate import metrics
from clv.evaluate.baselines import run
from clv.evaluate.baselines.inputs import population

H = 90
# What good fits of the same baselines reached: nGini at least, bias at most this far from 1.
WANTED = {
    "past_spend": (0.841, 0.60),
    "bgnbd_gg": (0.854, 0.10),
    "lgbm_tweedie": (0.858, 0.30),
    "lgbm_l1": (0.848, 0.22),
    "lgbm_hurdle": (0.858, 0.40),
    "lgbm_btyd_offset": (0.857, 0.30),
}


def online_retail(folder: Path, clock: Clock) -> histories.Histories:
    sales = pd.read_parquet(folder / "online_retail_ii").drop_duplicates()
    sales = sales[sales["Customer ID"].notna() & (sales["Quantity"] > 0) & (sales["Price"] > 0)]
    sales = sales[~sales["Invoice"].str.startswith("C")]
    time = sales["InvoiceDate"].dt.tz_localize(clock.timezone).dt.tz_convert("UTC").astype("datetime64[us, UTC]")
    columns = {
        "customer_id": pa.array(sales["Customer ID"].astype(int).astype(str).tolist()),
        "event_time": pa.Array.from_pandas(time),
        "known_at": pa.Array.from_pandas(time),
        "event_type": pa.array(["purchase"] * len(sales)),
        "order_id": pa.array(sales["Invoice"].tolist()),
        "item_id": pa.array(sales["StockCode"].tolist()),
        "quantity": pa.array(sales["Quantity"].to_numpy(float)),
        "amount": pa.array((sales["Quantity"] * sales["Price"]).to_numpy(float)),
    }
    table = pa.table({f.name: columns.get(f.name, pa.nulls(len(sales), f.type)) for f in EVENTS}).cast(EVENTS)
    return histories.Histories.from_table(histories.build(table, clock))


@pytest.mark.slow
def test_baselines_reach_their_known_quality_on_online_retail(shared_data: Path) -> None:
    clock = Clock("Europe/London")
    log, origin = online_retail(shared_data, clock), clock.parse("2011-06-12")
    day = int(clock.local_day(np.array([origin]))[0])
    past = clock.day_start(np.array([day - H - 28 * i for i in range(14)]))
    train = features.sample_frame(cutoff.cut(log, past, [H], clock, known_before=origin), (H,))
    test = features.sample_frame(cutoff.cut(log, [origin], [H], clock, known_before=origin + 91 * 86_400_000_000), (H,))
    now = population(test)
    y, orders = now[f"value_{H}"].to_numpy(), now[f"orders_{H}"].to_numpy()
    assert len(now) == 4976
    assert y.mean() == pytest.approx(340.6, abs=0.05)
    for name, prediction in run.run_baselines(train, test, H, names=WANTED).items():
        assert not isinstance(prediction, dict), (name, prediction)
        found = metrics.evaluate(y, orders, prediction)
        ngini, off = WANTED[name]
        assert found["ngini"] >= ngini, (name, found)
        assert abs(found["bias"] - 1) <= off, (name, found)
