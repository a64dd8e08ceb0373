"""Loading the online store from a histories folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.data.clock import Clock
from clv.data.events import EVENTS, US
from clv.data.histories import build
from clv.serve.store.sqlite import SqliteStore
from ray_jobs.load_store import Options, run


def histories(names: list[str], amount: float = 1.0) -> pa.Table:
    """One purchase per customer, with an attribute."""
    time = pa.array(1_300_000_000_000_000 + np.arange(len(names))).cast(US)
    columns = {name: pa.nulls(len(names), EVENTS.field(name).type) for name in EVENTS.names}
    columns |= {"customer_id": pa.array(names), "event_time": time, "known_at": time}
    columns |= {"event_type": pa.array(["purchase"] * len(names)), "amount": pa.array([amount] * len(names))}
    attributes = pa.table({"customer_id": names, "attr_town": ["Leeds"] * len(names)})
    return build(pa.table(columns, schema=EVENTS), Clock("UTC"), attributes)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A histories folder of two shards with 5 and 3 customers."""
    folder = tmp_path / "histories"
    (folder / "shards").mkdir(parents=True)
    pq.write_table(histories(["a", "b", "c", "d", "e"]), folder / "shards" / "part-00000.parquet")
    pq.write_table(histories(["f", "g", "h"]), folder / "shards" / "part-00001.parquet")
    return folder


def test_every_customer_of_every_shard_is_stored_as_it_was(prepared: Path, tmp_path: Path) -> None:
    run(Options(histories=prepared, store=str(tmp_path / "store"), rows=2))
    store = SqliteStore(tmp_path / "store")
    assert store.count() == 8
    expected = pa.concat_tables([pq.read_table(path) for path in sorted((prepared / "shards").glob("*"))])
    found = store.get(expected["customer_id"].to_pylist())
    assert repr(found.to_pylist()) == repr(expected.to_pylist())
    store.close()
    record = json.loads((tmp_path / "store" / "run.json").read_text())
    assert (record["read"], record["added"], record["replaced"]) == (8, 8, 0)


def test_loading_again_replaces_and_the_row_accounting_say_so(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Options(histories=prepared, store=str(tmp_path / "store")))
    pq.write_table(histories(["f", "g", "new"], amount=9.0), prepared / "shards" / "part-00001.parquet")
    run(Options(histories=prepared, store=str(tmp_path / "store")))
    assert "read 8 customers = 1 added + 7 replaced; 9 stored" in capsys.readouterr().out
    store = SqliteStore(tmp_path / "store")
    assert store.get(["f"])["amount"].to_pylist() == [[9.0]]
    store.close()


def test_a_folder_without_shards_ends_with_code_1_and_makes_no_store(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ray_jobs.load_store",
        "--histories",
        str(tmp_path),
        "--store",
        str(tmp_path / "s"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "holds no shards" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "s").exists()
