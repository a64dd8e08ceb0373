"""Batch scoring on Ray Data: actors hold the predictor, each task scores a shard, ranks are computed over all shards.

The results are written into a staging directory, where a killed run continues, and published when complete.
"""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clv import bundle as bundles
from clv.cluster import session
from clv.cluster.btyd_scores import COLUMNS, BTYDPredictor
from clv.data.clock import to_datetime
from clv.data.dataset import PreparedDataset
from clv.data.hashing import file_sha256
from clv.data.workdir import JOURNAL, atomic_write, check_output, staging_directory, write_json, write_text
from clv.forecast.predictor import Predictor
from clv.forecast.scores import SCORES

LOG = logging.getLogger(__name__)

# Limits of a chunk that is scored at once, which bound the memory of an actor for any shard.
CHUNK_CUSTOMERS, CHUNK_TOKENS = 20_000, 2_000_000
SCORED = f"{JOURNAL}/scored"  # parts without ranks and their row counts, deleted at the end
VALUABLE_SHARE = 0.2
LEAVING_PROBABILITY = 0.5

Model = Literal["clv", "btyd"]


class ShardScorer:
    """Ray Data actor that loads the bundle once; for each shard it writes a part file and an entry in the journal."""

    def __init__(self, bundle: str, origin: int, horizons: tuple[int, ...] | None, model: Model, folder: str) -> None:
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.predictor = Predictor(bundle) if model == "clv" else BTYDPredictor(bundle)
        self.columns = None if model == "clv" else list(COLUMNS)
        self.origin, self.horizons, self.folder = origin, horizons, Path(folder)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        parts = [self.score(int(i), str(shard)) for i, shard in zip(batch["part"], batch["shard"], strict=True)]
        return {"part": batch["part"], "rows": np.array(parts)}

    def score(self, part: int, shard: str) -> int:
        """Scores a shard; returns the number of rows. An interrupted shard leaves no file."""
        count = 0
        with (
            atomic_write(self.folder / SCORED / f"part-{part:05d}.parquet") as staged,
            pq.ParquetWriter(staged, SCORES, compression="zstd") as writer,
        ):
            file = pq.ParquetFile(shard)
            for batch in file.iter_batches(_chunk(file.metadata), columns=self.columns):
                scores = self.predictor.predict(pa.Table.from_batches([batch]), self.origin, self.horizons)
                writer.write_table(scores)
                count += len(scores)
        write_text(_entry(self.folder, part), json.dumps(count))
        return count


def _chunk(shard: pq.FileMetaData) -> int:
    """The number of a shard's customers that are scored at once."""
    time = next(i for i in range(shard.num_columns) if shard.schema.column(i).path.startswith("time."))
    tokens = sum(shard.row_group(i).column(time).num_values for i in range(shard.num_row_groups))
    return max(1, min(CHUNK_CUSTOMERS, CHUNK_TOKENS * shard.num_rows // max(tokens, 1)))


def score(
    bundle: Path,
    prepared: PreparedDataset,
    origin: int,
    out: Path,
    *,
    horizons: tuple[int, ...] | None = None,
    workers: int = 2,
    csv: bool = True,
    model: Model = "clv",
) -> dict[str, Any]:
    """Writes the scores of all customers known at `origin` (us) to `out`; returns the manifest. Ray must be running.

    A killed run continues with the remaining shards. Raises ValueError for an origin before the bundle's cut or after
    the data, or a bundle with another currency or timezone.
    """
    begun = datetime.now(UTC)
    manifest = bundles.verify(bundle)
    predictor = check_bundle(bundle, prepared, origin)
    wanted = sorted(set(horizons or predictor.horizons))
    plan = {
        "bundle": file_sha256(bundle / "manifest.json"),
        "shards": sorted(entry["sha256"] for entry in prepared.manifest["shards"]),
        "origin": origin,
        "horizons": wanted,
        "model": model,
    }
    with staging_directory(out, plan) as folder:
        rows = _score_all(bundle, prepared, origin, horizons, model, folder, workers)
        _rank(folder, wanted)
        parts = sorted(folder.glob("part-*.parquet"))
        lists = _write_lists(parts, folder, wanted) if csv and rows else []
        written = {
            "origin": to_datetime(origin).isoformat(),
            "bundle": manifest["version"],
            "cut": manifest["cut"],
            "model": model,
            "currency": predictor.currency,
            "horizons_days": wanted,
            "rows": rows,
            "customers": rows // len(wanted),
            "parts": {path.name: file_sha256(path) for path in parts},
            "lists": lists,
            "seconds": round((datetime.now(UTC) - begun).total_seconds(), 2),
        }
        write_json(folder / "manifest.json", written)
    return written


def _score_all(
    bundle: Path, prepared: PreparedDataset, origin: int, horizons: tuple[int, ...] | None, model: Model, folder: Path,
    workers: int,
) -> int:  # fmt: skip
    """Scores the shards that an interrupted run has left; returns the number of rows of all shards."""
    import ray

    (folder / SCORED).mkdir(parents=True, exist_ok=True)
    shards = list(enumerate(map(str, prepared.shards)))
    known = {part: json.loads(_entry(folder, part).read_text()) for part, _ in shards if _entry(folder, part).is_file()}
    remaining = [{"part": part, "shard": shard} for part, shard in shards if part not in known]
    begun, fresh = time.monotonic(), 0
    if remaining:
        scored = ray.data.from_items(remaining, override_num_blocks=len(remaining)).map_batches(
            ShardScorer,
            fn_constructor_args=(str(bundle), origin, horizons, model, str(folder)),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(remaining))),
            batch_size=1,
            batch_format="numpy",
        )
        with session.plain_errors():
            for row in scored.iter_rows():
                known[int(row["part"])] = int(row["rows"])
                fresh += int(row["rows"])
                speed = fresh / max(time.monotonic() - begun, 1e-9)
                LOG.info(f"{len(known)}/{len(shards)} shards, {sum(known.values()):,} rows, {speed:,.0f} rows/s")
    return sum(known.values())


def _entry(folder: Path, part: int) -> Path:
    return folder / SCORED / f"{part:06d}.json"


def check_target(out: Path) -> None:
    """Raises ValueError if `out` holds something that is not scores."""
    check_output(out, "a folder of scores", "part-*.parquet", "manifest.json")


def check_bundle(bundle: Path, prepared: PreparedDataset, origin: int) -> Predictor:
    """Loads the bundle; raises ValueError when it is damaged, of another dataset, or cannot score at `origin` (us)."""
    predictor = Predictor(bundle)
    for name in ("currency", "timezone"):
        ours, theirs = getattr(predictor, name), getattr(prepared.spec, name)
        if ours != theirs:
            raise ValueError(f"the bundle's {name} is {ours!r}, that of the histories {theirs!r}: not the same shop")
    predictor.check_origin(origin, prepared.data_through)
    return predictor


def _rank(folder: Path, horizons: list[int]) -> None:
    """Writes the parts with ranks and deciles over all customers, one horizon after the other.

    The driver holds four bytes per customer and horizon, and one horizon's values while it sorts them.
    """
    parts = sorted((folder / SCORED).glob("part-*.parquet"))
    sizes = [pq.read_metadata(path).num_rows // len(horizons) for path in parts]
    count, stop = sum(sizes), np.cumsum(sizes)
    rank = np.empty((count, len(horizons)), np.int32)
    for column in range(len(horizons)):
        values = np.empty(count)
        for path, begin, end in zip(parts, stop - sizes, stop, strict=True):
            whole = pq.read_table(path, columns=["value_mean"])["value_mean"].to_numpy()
            values[begin:end] = whole[column :: len(horizons)]
        np.negative(values, out=values)
        rank[np.argsort(values, kind="stable"), column] = np.arange(1, count + 1, dtype=np.int32)
    for path, begin, end in zip(parts, stop - sizes, stop, strict=True):
        scores, ranks = pq.read_table(path), rank[begin:end].ravel().astype(np.int64)
        for name, numbers in (("value_rank", ranks), ("value_decile", 1 + (ranks - 1) * 10 // max(count, 1))):
            scores = scores.set_column(
                scores.column_names.index(name), SCORES.field(name), pa.array(numbers).cast(SCORES.field(name).type)
            )
        with atomic_write(folder / path.name) as staged:
            pq.write_table(scores, staged, compression="zstd")


def _write_lists(parts: list[Path], folder: Path, horizons: list[int]) -> list[str]:
    """Writes scores.csv (all rows) and valuable_and_leaving.csv; returns their names."""
    with pa.csv.CSVWriter(folder / "scores.csv", SCORES) as writer:
        for path in parts:
            writer.write_table(pq.read_table(path))
    horizon = min(horizons, key=lambda days: abs(days - 90))
    near = pc.field("horizon_days") == horizon
    values = [pq.read_table(path, columns=["clv_mean"], filters=near)["clv_mean"].to_numpy() for path in parts]
    threshold = float(np.quantile(np.concatenate(values), 1 - VALUABLE_SHARE))
    columns = ["customer_id", "clv_mean", "churn_probability", "p_purchase", "value_mean", "value_p10", "value_p90"]
    tables = (pq.read_table(path, columns=columns, filters=near).to_pandas() for path in parts)
    found = [valuable_and_leaving(table, threshold) for table in tables]
    table = pd.concat(found).sort_values(["value_at_risk", "customer_id"], ascending=[False, True])
    table.to_csv(folder / "valuable_and_leaving.csv", index=False)
    return ["scores.csv", "valuable_and_leaving.csv"]


def valuable_and_leaving(table: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Customers with a lifetime value of at least `threshold` and a churn probability of at least one half.

    `value_at_risk` is the lifetime value times the churn probability.
    """
    chosen = table[(table["clv_mean"] >= threshold) & (table["churn_probability"] >= LEAVING_PROBABILITY)]
    return chosen.assign(value_at_risk=chosen["clv_mean"] * chosen["churn_probability"])
