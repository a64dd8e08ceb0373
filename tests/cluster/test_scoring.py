"""Batch scoring: ranks over all shards, a run that continues, and the list of valuable customers who may leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data
from numpy.typing import NDArray

from clv.cluster import scoring
from clv.cluster.scoring import ShardScorer
from clv.data.dataset import PreparedDataset
from clv.data.hashing import file_sha256
from clv.forecast.scores import SCORES
from tests.prepared_shop import prepared_shop

HORIZONS = [30, 90]


def table_of(ids: list[str], value: NDArray[np.float64], **columns: NDArray[np.float64]) -> pa.Table:
    """Scores of customers at HORIZONS, whose `value` (S, H) has no ranks yet."""
    num = value.size
    columns = {name: np.zeros(num) for name in SCORES.names} | columns
    given: Mapping[str, Any] = columns | {
        "customer_id": np.repeat(np.array(ids, object), len(HORIZONS)),
        "horizon_days": np.tile(HORIZONS, len(ids)),
        "value_mean": value.ravel(),
        "origin": np.zeros(num, "datetime64[us]"),
    }
    return pa.table({f.name: pa.array(given[f.name]).cast(f.type) for f in SCORES}, schema=SCORES)


class TokenCount:
    """Takes the place of the predictor: the value of a customer is the number of tokens, times 30 at the second."""

    currency, timezone, horizons = "EUR", "UTC", tuple(HORIZONS)

    def __init__(self, bundle: Any) -> None:
        self.bundle = bundle

    def check_origin(self, origin: int, data_through: int) -> None:
        if origin > data_through:
            raise ValueError("the origin lies after the data")

    def predict(self, histories: pa.Table, origin: int, horizons: tuple[int, ...] | None) -> pa.Table:
        tokens = np.array([len(times) for times in histories["time"].to_pylist()], float)
        return table_of(histories["customer_id"].to_pylist(), tokens[:, None] * [1.0, 30.0])


class Here:
    """Takes the place of a Ray Dataset: the actor scores the shards in this process."""

    def __init__(self, rows: list[dict[str, Any]], override_num_blocks: int) -> None:
        assert override_num_blocks == len(rows)
        self.rows = rows

    def map_batches(self, actor: type[ShardScorer], fn_constructor_args: tuple[Any, ...], **options: Any) -> Here:
        scorer = actor(*fn_constructor_args)
        batches = [scorer({name: np.array([value]) for name, value in row.items()}) for row in self.rows]
        return Here([{name: values[0] for name, values in batch.items()} for batch in batches], len(batches))

    def iter_rows(self) -> Iterator[dict[str, Any]]:
        yield from self.rows


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("shop")
    return PreparedDataset.open(prepared_shop(folder, 2, 30, "2023-01-01", "2023-07-01", seed=1))


@pytest.fixture
def score(tmp_path: Path, prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Scores the shop into tmp_path / "out" without Ray."""
    monkeypatch.setattr(ray.data, "from_items", Here)
    monkeypatch.setattr(scoring, "Predictor", TokenCount)
    monkeypatch.setattr(scoring.bundles, "verify", lambda folder: {"version": "v1", "cut": "2023-07-01"})
    (tmp_path / "manifest.json").write_text("{}")
    return partial(scoring.score, tmp_path, prepared, prepared.data_through, tmp_path / "out")


def test_customers_are_ranked_over_all_shards_at_each_horizon(
    score: Callable[[], dict[str, Any]], prepared: PreparedDataset, tmp_path: Path
) -> None:
    manifest = score()
    num = prepared.manifest["num_customers"]
    assert (manifest["rows"], manifest["customers"], manifest["horizons_days"]) == (2 * num, num, HORIZONS)
    parts = [tmp_path / "out" / f"part-0000{number}.parquet" for number in (0, 1)]
    assert manifest["parts"] == {path.name: file_sha256(path) for path in parts}
    table = pd.concat([pq.read_table(path).to_pandas() for path in parts])
    assert sorted(set(table["customer_id"])) == sorted(prepared.histories()["customer_id"].to_pylist())
    for _, rows in table.groupby("horizon_days"):
        assert rows["value_rank"].tolist() == rows["value_mean"].rank(ascending=False, method="first").tolist()
        assert rows["value_decile"].tolist() == np.ceil(10 * rows["value_rank"] / num).tolist()
    lists = pd.read_csv(tmp_path / "out" / "scores.csv", dtype={"customer_id": str})
    assert lists["value_rank"].tolist() == table["value_rank"].tolist()
    assert not (tmp_path / "out" / scoring.SCORED).exists()


def test_a_run_that_failed_scores_only_the_remaining_shards(
    score: Callable[[], dict[str, Any]], prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []
    whole = ShardScorer.score

    def fails_at_the_second(self: ShardScorer, part: int, shard: str) -> int:
        scored.append(Path(shard).name)
        if len(scored) == 2:
            raise OSError("no space left on device")
        return whole(self, part, shard)

    monkeypatch.setattr(ShardScorer, "score", fails_at_the_second)
    with pytest.raises(OSError, match="no space left on device"):
        score()
    assert not (tmp_path / "out").exists()
    assert score()["rows"] == 2 * prepared.manifest["num_customers"]
    assert scored == ["part-00000.parquet", "part-00001.parquet", "part-00001.parquet"]


def test_deciles_of_few_customers_begin_at_one_and_ties_keep_their_order(tmp_path: Path) -> None:
    values = [np.array([[5.0, 1.0], [7.0, 1.0], [5.0, 3.0]]), np.array([[9.0, 0.0], [1.0, 2.0]])]
    (tmp_path / scoring.SCORED).mkdir(parents=True)
    for number, (ids, value) in enumerate(zip((["a", "b", "c"], ["d", "e"]), values, strict=True)):
        pq.write_table(table_of(ids, value), tmp_path / scoring.SCORED / f"part-{number:05d}.parquet")
    scoring._rank(tmp_path, HORIZONS)
    table = pq.read_table(sorted(tmp_path.glob("part-*.parquet"))).to_pandas()
    assert table["value_rank"].tolist() == [3, 3, 2, 4, 4, 1, 1, 5, 5, 2]
    assert table["value_decile"].tolist() == [5, 5, 3, 7, 7, 1, 1, 9, 9, 3]


def test_a_chunk_has_at_most_the_customers_and_tokens_of_the_limits(
    prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = pq.ParquetFile(prepared.shards[0])
    tokens = sum(len(times) for times in shard.read(["time"])["time"].to_pylist())
    num = shard.metadata.num_rows
    assert scoring._chunk(shard.metadata) == scoring.CHUNK_CUSTOMERS
    monkeypatch.setattr(scoring, "CHUNK_CUSTOMERS", 7)
    assert scoring._chunk(shard.metadata) == 7
    monkeypatch.setattr(scoring, "CHUNK_TOKENS", 2 * tokens // num + 1)
    assert scoring._chunk(shard.metadata) == 2
    monkeypatch.setattr(scoring, "CHUNK_TOKENS", 1)
    assert scoring._chunk(shard.metadata) == 1


def test_a_shard_in_chunks_has_the_scores_of_the_whole(
    prepared: PreparedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "Predictor", TokenCount)
    monkeypatch.setattr(scoring, "CHUNK_CUSTOMERS", 4)
    (tmp_path / scoring.SCORED).mkdir(parents=True)
    rows = ShardScorer("bundle", 0, None, "clv", str(tmp_path)).score(3, str(prepared.shards[0]))
    assert json.loads((tmp_path / scoring.SCORED / "000003.json").read_text()) == rows
    found = pq.read_table(tmp_path / scoring.SCORED / "part-00003.parquet")
    assert len(found) == rows
    assert found.equals(TokenCount("bundle").predict(pq.read_table(prepared.shards[0]), 0, None))


def test_a_bundle_of_another_currency_is_refused(prepared: PreparedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "Predictor", TokenCount)
    scoring.check_bundle(Path("bundle"), prepared, prepared.data_through)
    with pytest.raises(ValueError, match="the origin lies after the data"):
        scoring.check_bundle(Path("bundle"), prepared, prepared.data_through + 1)
    monkeypatch.setattr(TokenCount, "currency", "USD")
    with pytest.raises(ValueError, match="the bundle's currency is 'USD', that of the histories 'EUR': not the same"):
        scoring.check_bundle(Path("bundle"), prepared, prepared.data_through)


def test_valuable_customers_are_the_best_fifth_at_the_horizon_next_to_ninety_days(tmp_path: Path) -> None:
    ids = [f"c{number}" for number in range(10)]
    lifetime = np.repeat(np.arange(10.0), 2)
    # At 30 days nobody leaves; at 90 days all do but c9.
    leaving = np.array([[0.0, 0.5 + 0.01 * number] for number in range(9)] + [[0.9, 0.4]]).ravel()
    path = tmp_path / "part-00000.parquet"
    pq.write_table(table_of(ids, np.ones((10, 2)), clv_mean=lifetime, churn_probability=leaving), path)
    assert scoring._write_lists([path], tmp_path, HORIZONS) == ["scores.csv", "valuable_and_leaving.csv"]
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 20
    chosen = pd.read_csv(tmp_path / "valuable_and_leaving.csv")
    assert chosen["customer_id"].tolist() == ["c8"]
    assert chosen["value_at_risk"].tolist() == [pytest.approx(8 * 0.58)]


def test_valuable_and_leaving_are_those_above_the_threshold_who_will_rather_not_buy() -> None:
    table = pd.DataFrame({"clv_mean": [10.0, 50.0, 90.0, 90.0], "churn_probability": [0.9, 0.9, 0.4, 0.5]})
    chosen = scoring.valuable_and_leaving(table, 50.0)
    assert chosen["value_at_risk"].tolist() == [45.0, 45.0]
