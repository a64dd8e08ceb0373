"""A dirty log on disk that is cut into many small pieces, and comparisons of histories folders made of it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clv.data.histories import concat
from clv.data.spec.models import DatasetSpec

SPEC = """
name: shop
timezone: UTC
currency: EUR
events:
  path: {folder}/log-*.parquet
  columns: {{customer_id: c, event_time: t, order_id: o, item_id: i, quantity: q, amount: x, item_text: d}}
  time_format: unix_s
customers:
  path: {folder}/customers.csv
  columns: {{customer_id: id}}
  attributes:
    city: {{column: town, constant: true, fill: unknown}}
    age: {{column: age, kind: numeric, constant: true}}
cleaning: {{exact_duplicates: drop, bounds: {{amount: {{above: 0}}}}}}
max_rejected_share: 0.5
"""


def write_shop(folder: Path, rng: np.random.Generator, num_rows: int = 3000, num_customers: int = 120) -> DatasetSpec:
    """A dirty log in three files, one of them with a copy of rows of the first, and a customer table."""
    order = rng.integers(0, num_rows // 3, num_rows)
    table = pa.table(
        {
            "c": pa.array([f"c{n}" if n else None for n in order % num_customers]),
            "t": 1_600_000_000 + order * 977,
            "o": order.astype(str),
            "i": rng.integers(0, 40, num_rows).astype(str),
            "q": rng.integers(1, 4, num_rows),
            "x": np.round(rng.normal(10, 6, num_rows), 2),
            "d": rng.choice(["red mug", "blue mug ", "a longer red mug"], num_rows),
        }
    )
    table = table.take(pa.array(np.unique(table["i"].to_numpy().astype(int) + order * 100, return_index=True)[1]))
    pq.write_table(table.slice(0, 900), folder / "log-0.parquet", row_group_size=300)
    pq.write_table(table.slice(900), folder / "log-1.parquet", row_group_size=500)
    pq.write_table(table.slice(100, 50), folder / "log-2.parquet")
    (folder / "customers.csv").write_text("id,town,age\nc1,Ulm,30\nc2,,41\nc1,Bonn,31\n,Kiel,7\nzz,Jena,5\n")
    return DatasetSpec.parse(SPEC.format(folder=folder), "shop.yaml")


def read_shards(out: Path) -> pa.Table:
    return concat([pq.read_table(path) for path in sorted((out / "shards").glob("*.parquet"))])


# What differs between two folders of equal content: times, and which files it came from in which pieces.
OWN = ("created", "sources", "rejects")


def content(out: Path) -> dict[str, Any]:
    """Shards by their sha256 (part of the manifest), items, row accounting, and the rejects as a sorted list."""
    manifest = json.loads((out / "manifest.json").read_text())
    rejects = pa.concat_tables([pq.read_table(out / name) for name in manifest["rejects"]]).to_pylist()
    rows = sorted((row["table"], row["stage"], row["reason"], row["record"] or "") for row in rejects)
    return {name: value for name, value in manifest.items() if name not in OWN} | {"rejected": rows}


def inodes(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in (out / "shards").iterdir()}


def held_back(folder: Path, pattern: str) -> Callable[[], None]:
    """Moves files of the log away; the function that is returned brings them back."""
    aside = folder / "later"
    aside.mkdir()
    for path in folder.glob(pattern):
        shutil.move(path, aside / path.name)

    def back() -> None:
        for path in aside.iterdir():
            os.rename(path, folder / path.name)

    return back
