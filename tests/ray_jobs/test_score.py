"""Batch scoring beside the happy path: the BTYD model alone, and runs that stopped and go on."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.cluster import preparing, scoring, work_units
from clv.cluster.btyd_scores import COLUMNS, BTYDPredictor
from clv.data.dataset import PreparedDataset
from clv.data.spec.models import DatasetSpec
from clv.forecast.predictor import Predictor
from clv.forecast.scores import SCORES
from tests.log_lines import each_line

ORIGIN = "2024-03-01"
SHARDS = 24


def table_of(folder: Path) -> pd.DataFrame:
    parts = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    return pa.concat_tables(parts).to_pandas()


def test_the_btyd_model_alone_says_what_the_predictor_says_of_the_btyd_model(
    histories: Path, small_bundle: Path
) -> None:
    shards = sorted((histories / "shards").glob("*.parquet"))
    whole = pa.concat_tables([pq.read_table(path) for path in shards])
    origin = PreparedDataset.open(histories).origin(ORIGIN)
    expected = Predictor(small_bundle).predict(whole, origin).to_pandas()
    found = BTYDPredictor(small_bundle).predict(whole.select(COLUMNS), origin)
    assert found.schema == SCORES
    table = found.to_pandas()
    for name in ("customer_id", "origin", "horizon_days"):
        assert table[name].equals(expected[name])
    np.testing.assert_allclose(table["value_mean"], expected["btyd_value_mean"], rtol=1e-9)
    np.testing.assert_allclose(table["btyd_value_mean"], expected["btyd_value_mean"], rtol=1e-9)
    assert (table["clv_mean"] >= table["value_mean"] * 0.9).all()
    assert table["p_purchase"].between(0, 1).all()
    assert table[["value_p10", "value_median", "value_p90"]].isna().all().all()


def test_the_btyd_model_alone_scores_any_horizon_and_nobody_before_the_log(histories: Path, small_bundle: Path) -> None:
    whole = pq.read_table(sorted((histories / "shards").glob("*.parquet"))[0])
    btyd_model, prepared = BTYDPredictor(small_bundle), PreparedDataset.open(histories)
    table = btyd_model.predict(whole, prepared.origin(ORIGIN), (10, 400)).to_pandas()
    near, far = (table[table["horizon_days"] == days].reset_index() for days in (10, 400))
    assert (near["value_mean"] <= far["value_mean"]).all()
    assert (near["clv_mean"] == far["clv_mean"]).all()
    assert far["extrapolated"].all()
    assert not near["extrapolated"].any()
    assert len(btyd_model.predict(whole, prepared.spec.clock.parse("2022-01-01"))) == 0


def test_long_histories_are_scored_few_at_a_time_with_the_same_result(
    histories: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = sorted((histories / "shards").glob("*.parquet"))[0]
    origin = PreparedDataset.open(histories).origin(ORIGIN)
    sizes: list[int] = []
    for name, tokens in (("whole", 2_000_000), ("pieces", 400)):
        monkeypatch.setattr(scoring, "CHUNK_TOKENS", tokens)
        scorer = scoring.ShardScorer(str(small_bundle), origin, None, "btyd", str(tmp_path / name))
        predict = scorer.predictor.predict

        def watched(table: pa.Table, *rest: object, predict: Any = predict) -> pa.Table:
            sizes.append(int(sum(len(row) for row in table["time"])))
            return predict(table, *rest)

        monkeypatch.setattr(scorer.predictor, "predict", watched)
        scorer.score(0, str(shard))
    assert sizes[0] > 1_000
    assert max(sizes[1:]) < 800
    assert sum(sizes[1:]) == sizes[0]
    whole, pieces = (table_of(tmp_path / name / scoring.SCORED) for name in ("whole", "pieces"))
    pd.testing.assert_frame_equal(pieces, whole, rtol=1e-12)


@pytest.fixture(scope="module")
def many_shards(shop: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("many") / "histories"
    spec = DatasetSpec.load(shop.spec)  # type: ignore[attr-defined]
    preparing.prepare(spec, "shop", out, run=work_units.run_here, partitions=SHARDS)
    return out


@pytest.mark.usefixtures("ray_cluster")
def test_shards_that_an_earlier_run_scored_are_not_scored_again(
    many_shards: Path, small_bundle: Path, tmp_path: Path
) -> None:
    prepared = PreparedDataset.open(many_shards)
    origin, whole, out = prepared.origin(ORIGIN), tmp_path / "whole", tmp_path / "scores"
    said: list[str] = []
    scoring.score(small_bundle, prepared, origin, whole, model="btyd")
    plan = _stopped_after(small_bundle, prepared, origin, out, shards=20)
    mark = time.time_ns()
    with each_line(said.append):
        written = scoring.score(small_bundle, prepared, origin, out, model="btyd")
    assert "continuing an interrupted run: 20 of its tasks are done" in said
    assert sum(line.startswith("2") and "shards" in line for line in said) == SHARDS - 20
    assert all(stamp < mark for stamp in plan.values())
    pd.testing.assert_frame_equal(table_of(out), table_of(whole))
    assert written["parts"] == json.loads((whole / "manifest.json").read_text())["parts"]
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


def _stopped_after(bundle: Path, prepared: PreparedDataset, origin: int, out: Path, shards: int) -> dict[str, int]:
    """What a run that dies after so many shards leaves; when each part was written."""
    score_all = scoring._score_all

    def dies(*arguments: object) -> int:
        folder = next(a for a in arguments[5:6] if isinstance(a, Path))
        scorer = scoring.ShardScorer(str(bundle), origin, None, "btyd", str(folder))
        for part, shard in list(enumerate(map(str, prepared.shards)))[:shards]:
            scorer.score(part, shard)
        raise RuntimeError("the driver is gone")

    scoring._score_all = dies  # type: ignore[assignment]
    try:
        with pytest.raises(RuntimeError, match="the driver is gone"):
            scoring.score(bundle, prepared, origin, out, model="btyd")
    finally:
        scoring._score_all = score_all
    assert not out.exists()
    parts = (out.parent / f".{out.name}.making" / scoring.SCORED).glob("*.parquet")
    return {path.name: path.stat().st_mtime_ns for path in parts}


@pytest.mark.faults
@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_is_killed_while_it_clears_up_is_followed_by_one_with_the_same_result(
    histories: Path, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = PreparedDataset.open(histories)
    origin, whole, out = prepared.origin(ORIGIN), tmp_path / "whole", tmp_path / "scores"
    scoring.score(small_bundle, prepared, origin, whole, model="btyd")

    def half(folder: Path, ignore_errors: bool = False) -> None:
        next(folder.rglob("part-*.parquet")).unlink()
        raise RuntimeError("the driver is gone")

    monkeypatch.setattr(shutil, "rmtree", half)
    with pytest.raises(RuntimeError, match="the driver is gone"):
        scoring.score(small_bundle, prepared, origin, out, model="btyd")
    monkeypatch.undo()
    scoring.score(small_bundle, prepared, origin, out, model="btyd")
    pd.testing.assert_frame_equal(table_of(out), table_of(whole))
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
