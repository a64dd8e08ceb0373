"""The whole flow of a shop's owner: prepare, train, back-test, score, load the store, serve; contracts held exactly."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv import bundle as bundles
from clv.data.clock import Clock
from clv.evaluate.report import verdict
from clv.forecast.predictor import Predictor
from clv.forecast.scores import SCORES
from ray_jobs import backtest, load_store, prepare, train
from tests.ray_jobs.flags import options_of

pytestmark = pytest.mark.ray

CUT, SCORED_AT = "2024-01-01", "2024-02-01"
CLOCK = Clock("Europe/Berlin")
SCORE_COLUMNS = {
    "customer_id": pa.string(),
    "origin": pa.timestamp("us", "UTC"),
    "horizon_days": pa.int32(),
    "p_purchase": pa.float64(),
    "churn_probability": pa.float64(),
    "orders_mean": pa.float64(),
    "aov": pa.float64(),
    "value_mean": pa.float64(),
    "value_median": pa.float64(),
    "value_p10": pa.float64(),
    "value_p90": pa.float64(),
    "clv_mean": pa.float64(),
    "btyd_value_mean": pa.float64(),
    "extrapolated": pa.bool_(),
    "value_rank": pa.int64(),
    "value_decile": pa.int32(),
}
MODELS = ["clv", "past_spend", "bgnbd_gg", "mbgnbd_gg", "lgbm_tweedie", "lgbm_l1", "lgbm_hurdle", "lgbm_btyd_offset",
          "ziln_mlp", "linear", "logistic", "seasonal_naive"]  # fmt: skip
METRICS = ["ngini", "spearman", "auc", "mae_over_mean", "rmse_over_mean", "bias", "decile_mape", "top_decile_capture",
           "crps", "pit80"]  # fmt: skip


@dataclass(frozen=True)
class Step:
    """What a job left and what it said."""

    folder: Path
    said: str


def said(run: Callable[..., None], options: Any) -> str:
    text = StringIO()
    with redirect_stdout(text):
        run(options)
    return text.getvalue()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flow")


@pytest.fixture(scope="module")
def prepared(shop: Any, out: Path, ray_cluster: None) -> Step:
    return Step(
        out / "histories",
        said(prepare.run, prepare.Options(dataset=shop.spec, out=out / "histories", partitions=3)),
    )


@pytest.fixture(scope="module")
def trained(prepared: Step, out: Path) -> Step:
    options = options_of(
        train.Options,
        histories=prepared.folder,
        out=out / "bundle",
        origin=CUT,
        workers=2,
        zero_stage=1,
        preset="tiny",
        architecture="gru",
        epochs=1,
        samples_per_epoch=300,
        batch_size=64,
        seed=5,
    )
    return Step(out / "bundle", said(train.run, options))


@pytest.fixture(scope="module")
def scored(prepared: Step, trained: Step, out: Path, job: Callable[..., Any]) -> Step:
    """As a user calls it: a process of its own with a Ray of its own."""
    done = job("score", "--bundle", trained.folder, "--histories", prepared.folder, "--origin", SCORED_AT,
               "--out", out / "scores")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return Step(out / "scores", done.stdout)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_record(path: Path, **arguments: object) -> dict[str, Any]:
    """run.json: arguments, versions, seed, commit, times."""
    record = json.loads(path.read_text())
    for name, value in arguments.items():
        assert record["arguments"][name] == value
    assert {"ray", "torch", "deepspeed", "python", "clv"} <= {name for name, v in record["versions"].items() if v}
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", record["git_commit"])
    begun, ended = (datetime.fromisoformat(record[name]) for name in ("begun", "ended"))
    assert begun <= ended <= datetime.now(UTC)
    assert (ended - begun).total_seconds() == pytest.approx(record["seconds"], abs=1.0)
    return dict(record)


def test_prepare_keeps_every_event_and_balances_its_row_accounting(prepared: Step, shop: Any) -> None:
    events = shop.simulation.events
    manifest = json.loads((prepared.folder / "manifest.json").read_text())
    accounting = manifest["row_accounting"]["events"]
    assert (accounting["read"], accounting["accepted"], accounting["rejected"]) == (len(events), len(events), {})
    assert manifest["num_customers"] == 300
    assert f"events: {len(events):,} rows read, {len(events):,} accepted, 0 rejected" in prepared.said
    assert len(manifest["shards"]) == 3
    ids = []
    for shard in manifest["shards"]:
        path = prepared.folder / shard["file"]
        assert sha256(path) == shard["sha256"]
        found = pq.read_table(path, columns=["customer_id"])["customer_id"].to_pylist()
        assert len(found) == shard["customers"] > 50
        ids += found
    assert sorted(ids) == sorted(shop.simulation.truth.customer_id)
    check_record(prepared.folder / "run.json", partitions=3, dataset=str(shop.spec))


def test_training_says_who_works_on_what_and_leaves_a_verified_bundle(prepared: Step, trained: Step) -> None:
    workers = re.findall(r"^worker rank (\d) of (\d): (.*)$", trained.said, re.MULTILINE)
    assert {(rank, world) for rank, world, _ in workers} == {("0", "2"), ("1", "2")}
    for _, _, rest in workers:
        assert re.fullmatch(r"3 shards, 300 customers, engine deepspeed, ZeRO stage 1, pid \d+", rest)
    for phase in ("holdout", "final"):
        assert re.search(rf"^{phase}, epoch 1: loss -?\d+\.\d{{4}}, \d+ s", trained.said, re.MULTILINE)
    manifest = bundles.verify(trained.folder)
    assert f"wrote bundle {manifest['version']}" in trained.said
    assert datetime.fromisoformat(manifest["cut"]) == pd.Timestamp(CUT, tz="Europe/Berlin")
    files = {path.name for path in trained.folder.iterdir()}
    assert files >= {"weights.safetensors", "config.json", "vocab.json", "items.safetensors", "btyd.json",
                     "calibration.json", "metrics.json", "card.md", "manifest.json"}  # fmt: skip
    assert set(manifest["sha256"]) == files - {"manifest.json"}
    for name, digest in manifest["sha256"].items():
        assert sha256(trained.folder / name) == digest
    facts = json.loads((trained.folder / "config.json").read_text())["dataset_facts"]
    ours = json.loads((prepared.folder / "manifest.json").read_text())
    assert facts["shards"] == {shard["file"]: shard["sha256"] for shard in ours["shards"]}
    assert (facts["currency"], facts["timezone"], facts["horizons"]) == ("EUR", "Europe/Berlin", [30, 90])
    record = check_record(trained.folder.with_name("bundle.run") / "run.json", seed=5, zero_stage=1, workers=2)
    assert (record["seed"], record["bundle"]) == (5, manifest["version"])


def test_the_backtest_judges_twelve_models_by_ten_metrics(prepared: Step, trained: Step, out: Path) -> None:
    folder = out / "backtest"
    options = backtest.Options(
        histories=prepared.folder, origins=f"{CUT}, 2024-03-01", horizon_days=90, bundle=trained.folder, out=folder
    )
    lines = said(backtest.run, options)
    found = json.loads((folder / "metrics.json").read_text())
    assert list(found) == [CUT, "2024-03-01"]
    for origin, horizons in found.items():
        assert list(horizons) == ["90"]
        models = horizons["90"]
        assert set(models) == set(MODELS)
        for name, metrics in models.items():
            assert "not_run" not in metrics, (origin, name, metrics)
            assert list(metrics) == METRICS
            given = {metric for metric, value in metrics.items() if value is not None}
            assert {"ngini", "spearman", "auc"} <= given, (origin, name)
            assert all(np.isfinite(metrics[metric]) for metric in given)
        # Only what gives a distribution can be judged as one.
        assert models["clv"]["crps"] > 0
        assert 0 <= models["clv"]["pit80"] <= 1
        assert models["clv"]["auc"] > 0.6
        assert f"origin {origin}, 90 days" in lines
    page = (folder / "report.html").read_text()
    assert all(verdict.model_label(name) in page for name in MODELS)
    assert "http://" not in re.sub(r"http://www\.w3\.org", "", page.split("<body", 1)[1].split("<script", 1)[0])
    check_record(folder / "run.json", horizon_days=90)


def table_of(folder: Path) -> pd.DataFrame:
    tables = [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    return pa.concat_tables(tables).to_pandas()


def test_scores_have_the_agreed_columns_and_everybody_known_at_the_origin(
    prepared: Step, scored: Step, shop: Any
) -> None:
    parts = sorted(scored.folder.glob("part-*.parquet"))
    assert [path.name for path in parts] == [f"part-0000{i}.parquet" for i in range(3)]
    for path in parts:
        schema = pq.read_schema(path)
        assert dict(zip(schema.names, schema.types, strict=True)) == SCORE_COLUMNS
        assert schema.names == list(SCORE_COLUMNS) == SCORES.names
    table = table_of(scored.folder)
    events = shop.simulation.events.select(["customer_id", "event_time"]).to_pandas()
    origin = pd.Timestamp(SCORED_AT, tz="Europe/Berlin")
    known = set(events.loc[events["event_time"] < origin, "customer_id"])
    assert (table["origin"] == origin).all()
    assert sorted(table["customer_id"]) == sorted([*known, *known])
    assert set(zip(table["customer_id"], table["horizon_days"], strict=True)) == {
        (c, h) for c in known for h in (30, 90)
    }
    assert 0 < len(known) < 300
    assert f"customers: 300 read, {len(known)} scored, {300 - len(known)} not yet known" in scored.said


def test_scores_agree_with_each_other(scored: Step) -> None:
    table = table_of(scored.folder)
    numbers = table.select_dtypes("float64")
    assert np.isfinite(numbers.to_numpy()).all()
    assert (numbers.to_numpy() >= 0).all()
    assert table["p_purchase"].between(0, 1).all()
    np.testing.assert_allclose(table["churn_probability"], 1 - table["p_purchase"], atol=1e-12)
    np.testing.assert_allclose(table["aov"] * table["orders_mean"], table["value_mean"], rtol=1e-9)
    assert (table["orders_mean"] >= table["p_purchase"] - 1e-12).all()
    assert (table["value_p10"] <= table["value_median"]).all()
    assert (table["value_median"] <= table["value_p90"]).all()
    near, far = (table[table["horizon_days"] == h].set_index("customer_id").sort_index() for h in (30, 90))
    for column in ("p_purchase", "orders_mean", "value_mean", "value_median", "value_p10", "value_p90"):
        assert (near[column] <= far[column] + 1e-12).all(), column
    assert (near["clv_mean"] == far["clv_mean"]).all()
    assert not table["extrapolated"].any()


def test_ranks_and_deciles_run_over_all_shards(scored: Step) -> None:
    for _, table in table_of(scored.folder).groupby("horizon_days"):
        ordered = table.sort_values("value_rank")
        num = len(ordered)
        assert ordered["value_rank"].tolist() == list(range(1, num + 1))
        assert ordered["value_mean"].is_monotonic_decreasing
        assert (ordered["value_decile"] == 1 + (ordered["value_rank"] - 1) * 10 // num).all()
        assert ordered["value_decile"].value_counts().max() - ordered["value_decile"].value_counts().min() <= 1


def test_the_manifest_of_the_scores_names_every_part_by_its_hash(trained: Step, scored: Step) -> None:
    manifest = json.loads((scored.folder / "manifest.json").read_text())
    assert manifest["parts"] == {path.name: sha256(path) for path in scored.folder.glob("part-*.parquet")}
    table = table_of(scored.folder)
    assert manifest["rows"] == len(table)
    assert manifest["customers"] == table["customer_id"].nunique()
    assert manifest["bundle"] == bundles.verify(trained.folder)["version"]
    assert datetime.fromisoformat(manifest["origin"]) == pd.Timestamp(SCORED_AT, tz="Europe/Berlin")
    assert (manifest["currency"], manifest["horizons_days"]) == ("EUR", [30, 90])
    check_record(scored.folder / "run.json", origin=SCORED_AT)
    sheet = pd.read_csv(scored.folder / "scores.csv")
    assert list(sheet.columns) == list(SCORE_COLUMNS)
    pd.testing.assert_series_equal(sheet["value_mean"], table["value_mean"])
    leavers = pd.read_csv(scored.folder / "valuable_and_leaving.csv")
    far = table[table["horizon_days"] == 90]
    valuable = far["clv_mean"] >= far["clv_mean"].quantile(0.8)
    chosen = far[valuable & (far["churn_probability"] >= 0.5)]
    assert set(leavers["customer_id"]) == set(chosen["customer_id"])
    assert leavers["value_at_risk"].is_monotonic_decreasing


def test_one_table_scored_by_the_predictor_equals_the_shards(prepared: Step, trained: Step, scored: Step) -> None:
    shards = sorted((prepared.folder / "shards").glob("*.parquet"))
    whole = pa.concat_tables([pq.read_table(path) for path in shards])
    expected = Predictor(trained.folder).predict(whole, CLOCK.parse(SCORED_AT)).to_pandas()
    by = ["customer_id", "horizon_days"]
    # The last digits depend on who shares a batch, and with them the order of customers that are nearly equal.
    columns = [name for name in SCORE_COLUMNS if name not in ("value_rank", "value_decile")]
    pd.testing.assert_frame_equal(
        table_of(scored.folder)[columns].sort_values(by, ignore_index=True),
        expected[columns].sort_values(by, ignore_index=True),
        rtol=1e-5,
    )


@pytest.fixture(scope="module")
def service(prepared: Step, trained: Step, out: Path) -> Iterator[str]:
    """The application of the Serve files on the session's cluster, over HTTP."""
    from ray import serve

    from clv.serve.app import build_app
    from clv.serve.deployments import AppArgs

    store = out / "store"
    text = said(load_store.run, load_store.Options(histories=prepared.folder, store=store))
    assert "read 300 customers = 300 added + 0 replaced; 300 stored, " in text
    assert " bytes per customer, data through 2024-06-30T" in text
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(build_app(AppArgs(bundle=trained.folder, store=str(store))))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def test_the_service_answers_what_the_job_scored(service: str, trained: Step, scored: Step) -> None:
    from clv.serve.client import Client

    table = table_of(scored.folder)
    known = sorted(set(table["customer_id"]))
    with Client(service) as client:
        answer = client.predict([*known, "nobody"], as_of="2024-02-01", horizons_days=[30, 90])
        assert client.model().model.version == bundles.verify(trained.folder)["version"]
    assert answer.currency == "EUR"
    assert answer.as_of == pd.Timestamp(SCORED_AT, tz="Europe/Berlin")
    assert [result.customer_id for result in answer.results] == [*known, "nobody"]
    assert [result.status for result in answer.results] == ["ok"] * len(known) + ["unknown_customer"]
    rows = [score.model_dump() for result in answer.results for score in result.scores]
    served = pd.DataFrame(rows)
    by = ["customer_id", "horizon_days"]
    # Ranks of the service are among those asked for together; the job's are among all.
    columns = [name for name in SCORE_COLUMNS if name not in ("origin", "value_rank", "value_decile")]
    pd.testing.assert_frame_equal(
        served[columns].sort_values(by, ignore_index=True),
        table[columns].sort_values(by, ignore_index=True),
        rtol=1e-5,
        check_dtype=False,
    )


@pytest.mark.slow
def test_a_second_score_replaces_the_first_and_repeats_it(prepared: Step, trained: Step, scored: Step) -> None:
    """Same inputs, same values; here through the session's cluster with one worker instead of two."""
    from ray_jobs import score

    before = table_of(scored.folder)
    options = score.Options(
        bundle=trained.folder, histories=prepared.folder, out=scored.folder, origin=SCORED_AT, workers=1, csv=False
    )
    score.run(options)
    pd.testing.assert_frame_equal(table_of(scored.folder), before, rtol=1e-6)
    assert not (scored.folder / "scores.csv").exists()
    assert [path.name for path in scored.folder.parent.iterdir() if path.name.startswith(".scores")] == []
