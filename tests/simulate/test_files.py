"""Files of a simulated shop: a spec that fits the log, its manifest, and refusals of impossible origins."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clv.data.hashing import file_sha256
from clv.data.prepare.check import check
from clv.simulate import files, log
from clv.simulate.settings import ShopSettings

SHOP = ShopSettings.full(num_customers=40, start="2024-01-01", end="2024-06-01", seed=4)
PLAN = files.SimulationPlan(SHOP, ("2024-04-01",), (30, 60), defects=2)


def test_the_manifest_counts_the_rows_of_the_files_and_the_spec_rejects_the_planted_ones(tmp_path: Path) -> None:
    blocks = [files.write_block(PLAN, tmp_path, number) for number in range(log.num_blocks(SHOP))]
    manifest = files.write_shop(PLAN, tmp_path, blocks, tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert manifest["rows"] == sum(pq.read_metadata(path).num_rows for path in (tmp_path / "events").iterdir())
    assert manifest["rows"] == sum(manifest["rows_by_type"].values()) + sum(manifest["planted"]["events"].values())
    assert all(file_sha256(tmp_path / name) == digest for name, digest in manifest["files"].items())
    spec = files.dataset_spec(PLAN, tmp_path).model_copy(update={"max_rejected_share": 0.9})
    accounting = check(spec, "spec.yaml", num_rows=10**6)["events[0]"]
    assert (accounting.read, accounting.rejected) == (manifest["rows"], manifest["planted"]["events"])


def test_truth_is_written_for_each_origin_and_horizon(tmp_path: Path) -> None:
    files.write_block(PLAN, tmp_path, 0)
    truth = pq.read_table(tmp_path / "truth" / "part-00000.parquet").to_pandas()
    assert set(truth["horizon_days"]) == {30, 60}
    orders = truth.pivot_table(index="customer_id", columns="horizon_days", values="orders")
    assert (orders[60] >= orders[30]).all()
    assert orders[60].sum() > orders[30].sum() > 0


def test_an_origin_whose_horizon_leaves_the_log_is_refused() -> None:
    PLAN.check()
    plan = files.SimulationPlan(SHOP, ("2024-05-01",), (30, 60))
    with pytest.raises(ValueError, match="the truth at 2024-05-01 over 60 days leaves the log from 2024-01-01"):
        plan.check()
