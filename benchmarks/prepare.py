"""CPU seconds of prepare on Ray against single-process polars building the same histories, in the same run.

    python -m benchmarks.prepare --rows 1000000

Counts the CPU of the whole process tree. Ray's start-up and the first pipeline's workers are measured with a log of a
few rows and subtracted; target: polars' CPU seconds are at least half of prepare's at 10 million events.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro


@dataclass(frozen=True, kw_only=True)
class Options:
    rows: int = 1_000_000
    """Events (order lines)."""
    files: int = 4
    """Parquet files of the log."""
    workers: int | None = None
    out: Path | None = None
    """Write the figures as JSON here."""


def write_log(folder: Path, num_rows: int, num_files: int, seed: int = 7) -> None:
    """A log of orders of three lines on average; ten lines per customer."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    done = 0
    for number in range(num_files):
        count = num_rows // num_files
        order = done // 3 + np.arange(count) // 3
        customer = (order * 2_654_435_761) % max(num_rows // 10, 1)
        table = pa.table(
            {
                "customer": customer,
                "time": pa.array(
                    1_500_000_000_000_000 + order % 700 * 86_400_000_000 + order % 86_400 * 1_000_000
                ).cast(pa.timestamp("us")),
                "order": order,
                "item": rng.integers(0, 20_000, count),
                "quantity": rng.integers(1, 5, count),
                "amount": np.round(rng.gamma(2.0, 5.0, count), 2),
            }
        )
        pq.write_table(table, folder / f"log-{number}.parquet", row_group_size=500_000)
        done += count


def spec_for(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(
        f"name: bench\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: {folder}/*.parquet\n"
        "  columns: {customer_id: customer, event_time: time, order_id: order, item_id: item, quantity: quantity,"
        " amount: amount}\n"
    )
    return path


POLARS = """
import polars as pl, sys
log = pl.scan_parquet(sys.argv[1] + '/*.parquet')
log = log.with_columns(pl.col('customer').cast(pl.String), pl.col('item').hash())
orders = log.group_by('customer', 'order').agg(
    pl.col('time').min(), pl.col('amount').sum(), pl.col('quantity').sum(), pl.len().alias('lines'), pl.col('item'))
histories = orders.sort('customer', 'time').group_by('customer', maintain_order=True).agg(pl.all())
histories.collect().write_parquet(sys.argv[2])
"""


class Tree:
    """CPU seconds and peak memory (GB) of a process and all of its descendants, dead ones included."""

    def __init__(self, command: list[str]) -> None:
        self.peak = 0.0
        self.seen: dict[int, float] = {}
        begun = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        watch = threading.Thread(target=self._watch, daemon=True)
        watch.start()
        self.output = self.process.communicate()[0]
        watch.join()
        self.wall = time.monotonic() - begun
        self.cpu = sum(self.seen.values())
        if self.process.returncode:
            raise RuntimeError(f"{command} failed:\n{self.output}")

    def _watch(self) -> None:
        tick = 1 / 100
        page = resource.getpagesize()
        family = {self.process.pid}
        while self.process.poll() is None:
            memory = 0
            for path in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = path.read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                pid, parent = int(path.parent.name), int(fields[1])
                if pid in family or parent in family:
                    family.add(pid)
                    self.seen[pid] = (int(fields[11]) + int(fields[12])) * tick
                    memory += int(fields[21]) * page
            self.peak = max(self.peak, memory / 1e9)
            time.sleep(0.1)


def prepare_command(log: Path, out: Path, options: Options) -> list[str]:
    command = [sys.executable, "-m", "ray_jobs.prepare", "--dataset", str(spec_for(log)), "--out", str(out)]
    return command + (["--workers", str(options.workers)] if options.workers else [])


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    folder = Path(tempfile.mkdtemp(prefix="bench-prepare-"))
    try:
        write_log(folder / "small", 4_000, options.files)
        write_log(folder / "log", options.rows, options.files)
        start = Tree(prepare_command(folder / "small", folder / "out-small", options))
        ours = Tree(prepare_command(folder / "log", folder / "out", options))
        polars = Tree([sys.executable, "-c", POLARS, str(folder / "log"), str(folder / "polars.parquet")])
        empty = Tree([sys.executable, "-c", "import polars"])
        manifest = json.loads((folder / "out" / "manifest.json").read_text())
        assert manifest["num_customers"] == pq.read_metadata(folder / "polars.parquet").num_rows
    finally:
        shutil.rmtree(folder)
    net, peer = ours.cpu - start.cpu, polars.cpu - empty.cpu
    figures = {
        "rows": options.rows,
        "prepare_cpu_s": round(ours.cpu, 1),
        "start_up_cpu_s": round(start.cpu, 1),
        "prepare_net_cpu_s": round(net, 1),
        "prepare_wall_s": round(ours.wall, 1),
        "prepare_peak_gb": round(ours.peak, 2),
        "polars_net_cpu_s": round(peer, 1),
        "polars_wall_s": round(polars.wall, 1),
        "polars_peak_gb": round(polars.peak, 2),
        "polars_over_prepare": round(peer / net, 2) if net > 0 else None,
    }
    print(json.dumps(figures, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
