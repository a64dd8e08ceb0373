"""The simulated shop as a job: equal files whoever makes them, and a log of which prepare finds every planted row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from clv.data.spec.models import DatasetSpec
from clv.simulate.settings import ShopSettings
from ray_jobs import simulate

SMALL: dict[str, Any] = {"start": "2024-01-01", "end": "2024-04-01", "ads_per_month": 0.0, "coupons": (40, 0.3, 0.1)}


def manifest(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "manifest.json").read_text()))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "log"
    whole = ShopSettings.full(num_customers=2_500, **SMALL)
    simulate.run(simulate.Options(out=out, shop=whole, horizons_days=(30,), defects=12, engine="here"))
    return out


def test_prepare_rejects_every_planted_row_for_its_reason_and_no_other(shop: Path, tmp_path: Path) -> None:
    from clv.cluster import preparing, work_units

    spec = DatasetSpec.load(shop / "spec.yaml")
    preparing.prepare(spec, "spec.yaml", tmp_path / "histories", run=work_units.run_here)
    made, accounting = manifest(shop), manifest(tmp_path / "histories")["row_accounting"]
    for table in ("events", "items"):
        assert accounting[table]["rejected"] == made["planted"][table]
        assert len(made["planted"][table]) >= 3
    assert accounting["events"]["read"] == made["rows"]
    assert accounting["events"]["accepted"] == sum(made["rows_by_type"].values())
    stats = json.loads((tmp_path / "histories" / "stats.json").read_text())
    assert stats["amount"] == pytest.approx(made["purchases"], rel=1e-9)


@pytest.mark.parametrize(("form", "more"), [("csv", {"malformed row": 4}), ("jsonl", {"malformed row": 4})])
def test_every_planted_line_of_a_text_is_rejected_for_its_reason_too(
    tmp_path: Path, form: Any, more: dict[str, int]
) -> None:
    from clv.cluster import preparing, work_units

    out, each = tmp_path / "log", 6
    options = {"horizons_days": (30,), "defects": each, "engine": "here", "format": form}
    simulate.run(simulate.Options(out=out, shop=ShopSettings.full(num_customers=900, **SMALL), **options))
    made = manifest(out)
    assert made["planted"]["events"]["malformed row"] == more["malformed row"] * each
    assert made["planted"]["events"]["amount is not a finite number"] > each
    spec = DatasetSpec.load(out / "spec.yaml").model_copy(update={"max_rejected_share": 0.5})
    preparing.prepare(spec, "spec.yaml", tmp_path / "histories", run=work_units.run_here)
    accounting = manifest(tmp_path / "histories")["row_accounting"]["events"]
    assert accounting["rejected"] == made["planted"]["events"]
    assert accounting["read"] == made["rows"]
    assert accounting["accepted"] == sum(made["rows_by_type"].values())
    stats = json.loads((tmp_path / "histories" / "stats.json").read_text())
    assert stats["amount"] == pytest.approx(made["purchases"], rel=1e-9)


def test_every_kind_of_defect_of_a_parquet_log_is_planted(shop: Path) -> None:
    assert len(manifest(shop)["planted"]["events"]) == 17


def test_truth_holds_everybody_who_came_before_each_origin(shop: Path) -> None:
    truth = pq.read_table(shop / "truth").to_pandas()
    assert (truth["horizon_days"] == 30).all()
    assert truth["origin"].unique() == [pd.Timestamp("2024-03-02", tz="UTC")]
    events = pq.read_table(shop / "events", columns=["customer_id", "event_time", "event_type", "amount"]).to_pandas()
    events = events[(events["event_time"] >= "2024-01-01") & (events["event_time"] < "2024-04-01")]
    before = events[events["event_time"] < "2024-03-02"]
    assert set(before.loc[before["event_type"] == "purchase", "customer_id"].dropna()) <= set(truth["customer_id"])
    assert truth["orders"].sum() > 50
    assert np.all(truth["value"] >= 0)


def test_what_a_killed_run_has_made_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clv.simulate import files, log

    options = simulate.Options(
        out=tmp_path / "log", shop=ShopSettings.full(num_customers=900, **SMALL), horizons_days=(30,), engine="here"
    )
    monkeypatch.setattr(log, "BLOCK_CUSTOMERS", 300)
    write, done = files.write_block, list[int]()

    def dies_at_the_third(plan: files.SimulationPlan, folder: Path, number: int) -> dict[str, Any]:
        if number == 2 and len(done) == 2:
            done.append(-1)
            raise OSError("no space left on device")
        done.append(number)
        return write(plan, folder, number)

    monkeypatch.setattr(files, "write_block", dies_at_the_third)
    with pytest.raises(OSError, match="no space left"):
        simulate.run(options)
    assert not (tmp_path / "log").exists()
    simulate.run(options)
    assert done == [0, 1, -1, 2]
    assert manifest(tmp_path / "log")["customers"] == 900


@pytest.mark.usefixtures("ray_cluster")
def test_the_files_are_the_same_bit_by_bit_for_any_number_of_workers(tmp_path: Path) -> None:
    shop = ShopSettings.full(num_customers=45_000, **(SMALL | {"sessions": 0.2, "end": "2024-02-15", "coupons": None}))
    made = {}
    for name, engine, workers in (("here", "here", None), ("one", "ray", 1), ("three", "ray", 3)):
        simulate.run(
            simulate.Options(
                out=tmp_path / name, shop=shop, horizons_days=(14,), defects=3, engine=engine, workers=workers
            )
        )
        made[name] = manifest(tmp_path / name)
    assert made["here"]["customers"] == 45_000
    assert len(made["here"]["files"]) == 3 * 4 + 1
    assert made["here"] == made["one"] == made["three"]


def test_an_impossible_run_is_refused_before_any_work(tmp_path: Path, shop: Path) -> None:
    with pytest.raises(ValueError, match=r"the truth at 2024-03-20 over 30 days leaves the log"):
        simulate.run(
            simulate.Options(
                out=tmp_path / "a", shop=ShopSettings(**SMALL), horizons_days=(30,), origins=("2024-03-20",)
            )
        )
    with pytest.raises(ValueError, match="must be positive"):
        simulate.run(simulate.Options(out=tmp_path / "a", horizons_days=(0,)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not a simulated shop"):
        simulate.run(simulate.Options(out=tmp_path / "mine"))
    assert not (tmp_path / "a").exists()
