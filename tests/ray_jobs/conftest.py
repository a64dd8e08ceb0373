"""A small simulated shop as its owner would have it: files on disk and a dataset file that names them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from clv.cluster import preparing, training, work_units
from clv.data.dataset import PreparedDataset
from clv.data.spec.models import DatasetSpec
from clv.simulate.log import Simulation
from clv.simulate.small import simulate
from ray_jobs.command import configure_logging

REPO = Path(__file__).parents[2]
CUT = "2024-01-01"

SPEC = """
name: simulated
timezone: Europe/Berlin
currency: EUR
events:
  - path: {folder}/orders-*.parquet
    columns: {{event_id: event_id, customer_id: customer_id, event_time: event_time, order_id: order_id,
              item_id: item_id, quantity: quantity, amount: amount}}
    event_type: {{column: event_type, map: {{purchase: purchase, return: return}}}}
  - path: {folder}/visits.csv
    columns: {{customer_id: customer, event_time: at, item_id: item}}
    time_format: unix_ms
    event_type: {{column: what, map: {{view: view, cart: cart}}}}
items:
  path: {folder}/items.csv
  columns: {{item_id: item_id, text: text, category: category, price: price}}
customers:
  path: {folder}/customers.csv
  columns: {{customer_id: customer_id}}
  attributes:
    channel: {{column: channel, constant: true}}
value: gross
horizons_days: [30, 90]
discount_rate_annual: 0.1
"""


@dataclass(frozen=True)
class Dataset:
    """Files of 300 customers from 2023-01-01 to 2024-06-30, and the dataset file."""

    folder: Path
    spec: Path
    simulation: Simulation


@pytest.fixture(autouse=True)
def log_lines() -> None:
    """Jobs that a test runs in this process write their lines as on the command line."""
    configure_logging("text")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("shop")
    made = simulate(
        300, "2023-01-01", "2024-07-01", seed=3, timezone="Europe/Berlin", return_share=0.03, acquired_over=0.85
    )
    sold = pc.is_in(made.events["event_type"], pa.array(["purchase", "return"]))
    orders, visits = made.events.filter(sold), made.events.filter(pc.invert(sold))
    half = len(orders) // 2
    pq.write_table(orders.slice(0, half), folder / "orders-1.parquet")
    pq.write_table(orders.slice(half), folder / "orders-2.parquet")
    milliseconds = pc.divide(visits["event_time"].cast(pa.int64()), 1000)
    columns = {"customer": visits["customer_id"], "at": milliseconds}
    columns |= {"what": visits["event_type"], "item": visits["item_id"]}
    pa.csv.write_csv(pa.table(columns), folder / "visits.csv")
    made.items.to_csv(folder / "items.csv", index=False)
    made.customers.to_csv(folder / "customers.csv", index=False)
    (folder / "spec.yaml").write_text(SPEC.format(folder=folder))
    return Dataset(folder, folder / "spec.yaml", made)


@pytest.fixture(scope="session")
def histories(shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shop prepared into three shards, without Ray."""
    out = tmp_path_factory.mktemp("prepared") / "histories"
    spec = DatasetSpec.load(shop.spec)
    preparing.prepare(spec, str(shop.spec), out, run=work_units.run_here, partitions=3)
    return out


@pytest.fixture(scope="session")
def small_bundle(histories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle cut at CUT, fitted in this process: one epoch of a few samples."""
    from clv import bundle
    from clv.train import export, fitting, loop, trainer
    from clv.train.config import TrainConfig

    config = TrainConfig().with_engine(kind="torch")
    backbone = replace(config.model.backbone, architecture="gru")
    config = replace(config, model=replace(config.model, backbone=backbone), epochs=1, num_origins=4)
    config = replace(config, samples_per_epoch=64, batch_size=64)
    read, prepared = training.read_dataset(histories), PreparedDataset.open(histories)
    phases = fitting.plan(read, prepared.origin(CUT), config)
    fitted = loop.finish(trainer.train(read, phases, config))
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    bundle.save(export.to_bundle(read, phases, config, fitted, training.dataset_facts(prepared), []), folder)
    return folder


Job = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def job() -> Job:
    """Runs `python -m ray_jobs.VERB ARGUMENTS` as a user would."""

    def run(verb: str, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"ray_jobs.{verb}", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=timeout)

    return run
