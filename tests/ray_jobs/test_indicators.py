"""The indicators as a job: of the past of everybody, and with scores what was predicted against what came."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clv.cluster import scoring
from clv.data.dataset import PreparedDataset
from ray_jobs.indicators import Options, run

ORIGIN = "2024-03-01"


def test_without_scores_customers_cohorts_and_the_funnel_are_written(histories: Path, tmp_path: Path) -> None:
    run(Options(histories=histories, out=tmp_path / "out", origin=ORIGIN))
    table = pd.read_parquet(tmp_path / "out" / "customers")
    assert table["customer_id"].is_unique
    assert {"sessions", "conversion_rate", "repurchased", "purchase_frequency", "aov"} <= set(table.columns)
    cohorts = pd.read_csv(tmp_path / "out" / "cohorts.csv")
    assert cohorts["customers"].sum() == len(table)
    assert set(cohorts["cohort"]) == set(table["cohort"])
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["sessions"] >= funnel["sessions_bought"] > 0
    assert funnel["conversion_rate"] == pytest.approx(table["sessions_bought"].sum() / table["sessions"].sum())
    assert not (tmp_path / "out" / "calibration.csv").exists()
    run(Options(histories=histories, out=tmp_path / "out", origin=ORIGIN))


def score_here(
    bundle: Path, prepared: PreparedDataset, origin: int, horizons: Any, model: Any, folder: Path, *_: Any
) -> int:
    """`scoring._score_all` without Ray."""
    scorer = scoring.ShardScorer(str(bundle), origin, horizons, model, str(folder))
    return sum(scorer.score(part, str(shard)) for part, shard in enumerate(prepared.shards))


def test_with_scores_predictions_stand_beside_what_came(
    histories: Path,
    small_bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "_score_all", score_here)
    prepared, out = PreparedDataset.open(histories), tmp_path / "out"
    scoring.score(small_bundle, prepared, prepared.origin(ORIGIN), tmp_path / "scores", csv=False)
    run(Options(histories=histories, out=out, scores=tmp_path / "scores"))
    table = pd.read_parquet(out / "customers")
    scores = pd.read_parquet(sorted((tmp_path / "scores").glob("part-*.parquet")))
    assert len(table) == len(scores)
    assert set(table["horizon_days"]) == {30, 90}
    found = pd.read_csv(out / "calibration.csv")
    assert set(found["by"]) == {"prediction", "cohort"}
    whole = found[(found["group"] == "all") & (found["horizon_days"] == 90)].set_index("indicator")
    buyers = table[(table["horizon_days"] == 90) & (table["orders"] > 0)]
    assert whole.loc["repurchase", "actual"] == pytest.approx((buyers["orders_real"] > 0).mean())
    assert whole.loc["frequency", "predicted"] == pytest.approx(buyers["orders_mean"].mean())
    again = buyers[buyers["orders_real"] > 0]
    assert whole.loc["aov", "actual"] == pytest.approx(again["value_real"].sum() / again["orders_real"].sum())
    assert np.isfinite(whole[["predicted", "actual"]].to_numpy()).all()
    assert "repurchase in 90 days: predicted" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"--origin 2024-02-01 is not that of"):
        run(Options(histories=histories, out=out, scores=tmp_path / "scores", origin="2024-02-01"))


def test_a_folder_that_holds_something_else_is_left_alone(histories: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is not a folder of indicators"):
        run(Options(histories=histories, out=tmp_path))
    assert (tmp_path / "thesis.txt").exists()
