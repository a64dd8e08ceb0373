"""Workers, nodes and the driver killed during prepare: it ends right or goes on, with equal output and no half file."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clv.cluster import preparing, work_units
from clv.data.dataset import PreparedDataset
from clv.data.hashing import file_sha256
from clv.data.spec.models import DatasetSpec

pytestmark = [pytest.mark.faults, pytest.mark.ray]

DRIVER = Path(__file__).with_name("prepare_driver.py")
FILES, ROWS = 24, 30_000
SPEC = """
name: shop
timezone: UTC
currency: EUR
events:
  path: {folder}/log-*.parquet
  columns: {{customer_id: c, event_time: t, order_id: o, item_id: i, amount: x, item_text: d}}
  time_format: unix_s
cleaning: {{exact_duplicates: drop, bounds: {{amount: {{above: 0}}}}}}
max_rejected_share: 0.5
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(5)
    for number in range(FILES):
        order = rng.integers(0, 100_000, ROWS)
        columns = {"c": order % 20_000, "t": 1_600_000_000 + order * 97, "o": order, "i": rng.integers(0, 400, ROWS),
                   "x": np.round(rng.normal(10, 6, ROWS), 2),
                   "d": rng.choice(["red mug", "blue mug"], ROWS)}  # fmt: skip
        pq.write_table(pa.table(columns), folder / f"log-{number:02d}.parquet")
    path = folder / "shop.yaml"
    path.write_text(SPEC.format(folder=folder))
    return path


@pytest.fixture(scope="module")
def undisturbed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    manifest = preparing.prepare(DatasetSpec.load(spec), str(spec), out, run=work_units.run_here, partitions=8)
    return files_of(out) | {"row_accounting": manifest["row_accounting"]}


def files_of(out: Path) -> dict[str, Any]:
    """sha256 of every table; hidden and half files would stand out."""
    tables = [path for path in out.rglob("*") if path.is_file() and path.suffix not in (".json", ".html", ".yaml")]
    return {str(path.relative_to(out)): file_sha256(path) for path in tables}


def disturbed(out: Path) -> dict[str, Any]:
    return files_of(out) | {"row_accounting": PreparedDataset.open(out).manifest["row_accounting"]}


@pytest.mark.parametrize("what", ["worker", "node"])
def test_a_killed_worker_or_node_costs_nothing_but_time(
    spec: Path, undisturbed: dict[str, Any], tmp_path: Path, what: str
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, str(DRIVER), str(spec), str(out), what], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # The second pass may be over before its first unit is logged.
    assert re.search("^killed", done.stdout, re.M), done.stdout
    assert disturbed(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("when", ["pass 1: 5/", "pass 2: 3/"])
def test_a_killed_driver_leaves_nothing_to_see_and_the_next_run_goes_on(
    spec: Path, undisturbed: dict[str, Any], tmp_path: Path, when: str
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "ray_jobs.prepare", "--dataset", str(spec), "--out", str(out), "--engine", "ray"]
    command += ["--partitions", "8", "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        for line in job.stdout:
            if line.startswith(when):
                os.kill(job.pid, signal.SIGKILL)
                break
    assert job.returncode == -signal.SIGKILL
    assert not out.exists()
    making = tmp_path / ".out.making"
    done = {path: path.stat().st_mtime_ns for path in (making / "journal").glob("*/[0-9]*.json")}
    written = {path: path.stat().st_ino for path in (making / "rows" / "events").glob("u00000[0-3]*.arrow")}
    assert len(done) >= 4
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr[-3000:]
    tasks = re.search(r"continuing an interrupted run: (\d+) of its tasks are done", again.stdout)
    assert tasks is not None
    assert int(tasks[1]) >= len(done)
    if when.startswith("pass 2"):  # all of pass 1 was done: none of its files is written again
        assert {out / path.relative_to(making): inode for path, inode in written.items()} == {
            path: path.stat().st_ino for path in (out / "rows" / "events").glob("u00000[0-3]*.arrow")
        }
    assert disturbed(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
