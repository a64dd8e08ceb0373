"""Batch scoring on Ray Data: an actor holds the predictor, a task scores a shard, ranks are made over all shards."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clv import bundle as bundles
from clv.bundle import sha256_of
from clv.cluster import session
from clv.data.prepared import Prepared
from clv.predict import SCORES, Predictor

CHUNK_CUSTOMERS = 20_000  # scored at a time: bounds the memory of an actor, whatever the size of a shard
VALUABLE_SHARE = 0.2
LEAVING_PROBABILITY = 0.5

Say = Callable[[str], None]


class Scorer:
    """Ray Data actor: loads the bundle once; a row is a shard, its output a part file."""

    def __init__(self, bundle: str, origin: int, horizons: tuple[int, ...] | None, folder: str) -> None:
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        self.predictor = Predictor(bundle)
        self.origin, self.horizons, self.folder = origin, horizons, Path(folder)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        parts = [self._score(int(i), str(shard)) for i, shard in zip(batch["part"], batch["shard"], strict=True)]
        return {"part": batch["part"], "customers": np.array(parts)}

    def _score(self, part: int, shard: str) -> int:
        path = self.folder / f"part-{part:05d}.parquet"
        aside = path.with_suffix(".writing")
        count = 0
        with pq.ParquetWriter(aside, SCORES, compression="zstd") as writer:
            for batch in pq.ParquetFile(shard).iter_batches(CHUNK_CUSTOMERS):
                scores = self.predictor.predict(pa.Table.from_batches([batch]), self.origin, self.horizons)
                writer.write_table(scores)
                count += len(scores)
        aside.rename(path)
        return count


def score(
    bundle: Path,
    prepared: Prepared,
    origin: int,
    out: Path,
    *,
    horizons: tuple[int, ...] | None = None,
    workers: int = 2,
    csv: bool = True,
    say: Say = print,
) -> dict[str, Any]:
    """Writes SCORES of everybody known at `origin` to `out` and returns the manifest. Ray must be running.

    Raises ValueError for an origin the bundle must not score, or a bundle of another dataset's currency or timezone.
    """
    import ray

    begun = datetime.now(UTC)
    manifest = bundles.verify(bundle)
    predictor = check_bundle(bundle, prepared, origin)
    folder = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    folder.mkdir(parents=True)
    try:
        shards = [{"part": i, "shard": str(path)} for i, path in enumerate(prepared.shards)]
        scored = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            Scorer,
            fn_constructor_args=(str(bundle), origin, horizons, str(folder)),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards))),
            batch_size=1,
            batch_format="numpy",
        )
        with session.plain_errors():
            done = scored.take_all()
        rows = sum(int(row["customers"]) for row in done)
        say(f"scored {rows:,} rows from {len(shards)} shards")
        parts = sorted(folder.glob("part-*.parquet"))
        wanted = sorted(set(horizons or predictor.horizons))
        _rank(parts, wanted)
        lists = _lists(parts, folder, wanted) if csv and rows else []
        written = {
            "origin": datetime.fromtimestamp(origin / 1e6, UTC).isoformat(),
            "bundle": manifest["version"],
            "cut": manifest["cut"],
            "currency": predictor.currency,
            "horizons_days": wanted,
            "rows": rows,
            "customers": rows // len(wanted),
            "parts": {path.name: sha256_of(path) for path in parts},
            "lists": lists,
            "seconds": round((datetime.now(UTC) - begun).total_seconds(), 2),
        }
        (folder / "manifest.json").write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return written


def check_target(out: Path) -> None:
    """ValueError if `out` holds something that is not scores."""
    if (
        out.exists()
        and any(out.iterdir())
        and not (any(out.glob("part-*.parquet")) and (out / "manifest.json").is_file())
    ):
        raise ValueError(f"{out} exists and does not hold scores; choose another --out")


def check_bundle(bundle: Path, prepared: Prepared, origin: int) -> Predictor:
    """The bundle, loaded; ValueError when it is damaged, of another shop, or must not score at `origin` (us)."""
    predictor = Predictor(bundle)
    _same_shop(predictor, prepared)
    predictor.check_origin(origin, prepared.data_through)
    return predictor


def _same_shop(predictor: Predictor, prepared: Prepared) -> None:
    spec = prepared.spec
    for name, ours, theirs in (
        ("currency", predictor.currency, spec.currency),
        ("timezone", predictor.timezone, spec.timezone),
    ):
        if ours != theirs:
            raise ValueError(f"the bundle's {name} is {ours!r}, that of the histories {theirs!r}: not the same shop")


def _rank(parts: list[Path], horizons: list[int]) -> None:
    """Ranks and deciles over all parts; the driver holds one float per customer and horizon, nothing else."""
    values = [pq.read_table(path, columns=["value_mean"])["value_mean"].to_numpy() for path in parts]
    sizes = [len(part) // len(horizons) for part in values]
    table = np.concatenate(values).reshape(-1, len(horizons)) if values else np.zeros((0, len(horizons)))
    rank = np.empty(table.shape, np.int64)
    for column in range(len(horizons)):
        order = np.argsort(-table[:, column], kind="stable")
        rank[order, column] = np.arange(1, len(table) + 1)
    decile = 1 + (rank - 1) * 10 // max(len(table), 1)
    stop = np.cumsum(sizes)
    for path, begin, end in zip(parts, stop - sizes, stop, strict=True):
        scores = pq.read_table(path)
        for name, numbers in (("value_rank", rank), ("value_decile", decile)):
            place = scores.column_names.index(name)
            column = pa.array(numbers[begin:end].ravel()).cast(SCORES.field(name).type)
            scores = scores.set_column(place, SCORES.field(name), column)
        aside = path.with_suffix(".writing")
        pq.write_table(scores, aside, compression="zstd")
        aside.rename(path)


def _lists(parts: list[Path], folder: Path, horizons: list[int]) -> list[str]:
    """scores.csv (all rows) and valuable_and_leaving.csv, for spreadsheets."""
    with pa.csv.CSVWriter(folder / "scores.csv", SCORES) as writer:
        for path in parts:
            writer.write_table(pq.read_table(path))
    horizon = min(horizons, key=lambda days: abs(days - 90))
    near = pc.field("horizon_days") == horizon
    columns = ["customer_id", "clv_mean", "churn_probability", "p_purchase", "value_mean", "value_p10", "value_p90"]
    table = pd.concat([pq.read_table(path, columns=columns, filters=near).to_pandas() for path in parts])
    valuable_and_leaving(table).to_csv(folder / "valuable_and_leaving.csv", index=False)
    return ["scores.csv", "valuable_and_leaving.csv"]


def valuable_and_leaving(table: pd.DataFrame) -> pd.DataFrame:
    """The fifth of customers with the highest lifetime value who more likely than not will not buy in the horizon.

    `value_at_risk` = lifetime value x churn probability, descending: whom to call first.
    """
    valuable = table["clv_mean"] >= table["clv_mean"].quantile(1 - VALUABLE_SHARE)
    leaving = table["churn_probability"] >= LEAVING_PROBABILITY
    chosen = table[valuable & leaving]
    chosen = chosen.assign(value_at_risk=chosen["clv_mean"] * chosen["churn_probability"])
    return chosen.sort_values(["value_at_risk", "customer_id"], ascending=[False, True])
