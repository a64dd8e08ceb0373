"""Prepare against single-process polars building the same histories in the same run: CPU, memory, equal sums, slope.

    python -m benchmarks.prepare --rows 1000000 10000000 --out benchmarks/prepare.json

CPU seconds and memory of the whole process tree. Start-up is measured with a log of a few rows and subtracted; memory
is proportional: each page, shared ones included, is counted once. Customers, tokens, lines, amounts and quantities are
compared with polars' customer by customer. Target: polars' CPU seconds are at least half of prepare's at 10 million.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from benchmarks.output import reserve

FILE_ROWS = 2_500_000
TICK = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Options:
    rows: tuple[int, ...] = (1_000_000,)
    """Events of each log; a tenth as many customers."""
    engine: Literal["ray", "here"] = "ray"
    workers: int | None = None
    shape: Literal["even", "bot", "whales"] = "even"
    """bot: one customer has five of six events; whales: one in a hundred customers have half of them."""
    polars_rows: int = 20_000_000
    """Largest log that polars gets: it holds all of it in memory."""
    folder: Path | None = None
    """Where logs and histories go for the time of the run."""
    out: Path | None = None
    """Write the figures here as JSON, and beside it a table and a log-log plot."""


def write_log(folder: Path, num_rows: int, shape: str, seed: int = 7) -> None:
    """Order lines, three to an order, and one view to ten of them; ten events per customer, a third known later."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    customers = max(num_rows // 10, 1)
    for number, first in enumerate(range(0, num_rows, FILE_ROWS)):
        count = min(FILE_ROWS, num_rows - first)
        row = first + np.arange(count)
        order = row // 3
        customer = (order * 2_654_435_761) % customers
        if shape == "bot":
            customer[order % 6 != 0] = 0
        elif shape == "whales":
            half = order % 2 == 0
            customer[half] = customer[half] % max(customers // 100, 1)
        time_us = 1_500_000_000_000_000 + order % 700 * 86_400_000_000 + order % 86_400 * 1_000_000
        view = row % 11 == 10
        table = pa.table(
            {
                "event": row,
                "customer": customer,
                "time": pa.array(time_us + view * row % 1_000_000).cast(pa.timestamp("us")),
                "known": pa.array(time_us + order % 3 * 3_600_000_000 + 1_000_000).cast(pa.timestamp("us")),
                "kind": pa.array(view.astype(np.int8)).cast(pa.string()),
                "order": pa.array(order, mask=view),
                "item": rng.integers(0, 20_000, count),
                "quantity": rng.integers(1, 5, count),
                "amount": np.round(rng.gamma(2.0, 5.0, count), 2),
                "channel": pa.array(["web", "app", "shop"]).take(pa.array(order % 3)),
            }
        )
        pq.write_table(table, folder / f"log-{number:03d}.parquet", row_group_size=500_000)


def spec_for(folder: Path) -> Path:
    path = folder.parent / f"{folder.name}.yaml"
    path.write_text(
        f"name: bench\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: {folder}/*.parquet\n"
        "  columns: {event_id: event, customer_id: customer, event_time: time, known_at: known, order_id: order,"
        " item_id: item, quantity: quantity, amount: amount, channel: channel}\n"
        '  event_type: {column: kind, map: {"0": purchase, "1": view}}\n'
    )
    return path


POLARS = """
import polars as pl, sys
log = pl.scan_parquet(sys.argv[1] + '/*.parquet')
log = log.with_columns(
    pl.col('customer').cast(pl.String), pl.col('item').cast(pl.String).hash(),
    pl.coalesce(pl.col('order'), -1 - pl.col('event')).alias('token'))
orders = log.group_by('customer', 'kind', 'token').agg(
    pl.col('time').min(), pl.col('known').max(), pl.col('amount').sum(), pl.col('quantity').sum(),
    pl.len().alias('lines'), pl.col('item'), pl.col('channel').first().hash(), pl.col('order').first())
histories = orders.sort('customer', 'time').group_by('customer', maintain_order=True).agg(pl.all())
histories.collect().write_parquet(sys.argv[2])
"""


class Tree:
    """CPU seconds and peak memory (proportional set size, GB) of a process and all of its descendants."""

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
        family = {self.process.pid}
        looked = 0.0
        while self.process.poll() is None:
            for path in Path("/proc").glob("[0-9]*/stat"):
                try:
                    fields = path.read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                pid, parent = int(path.parent.name), int(fields[1])
                if pid in family or parent in family:
                    family.add(pid)
                    self.seen[pid] = (int(fields[11]) + int(fields[12])) * TICK
            if time.monotonic() - looked > 0.5:  # the kernel walks page tables for this: not too often
                self.peak = max(self.peak, sum(map(_proportional_gb, family)))
                looked = time.monotonic()
            time.sleep(0.2)


def _proportional_gb(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1e6
    except OSError:
        pass
    return 0.0


def prepare_command(log: Path, out: Path, options: Options) -> list[str]:
    command = [sys.executable, "-m", "ray_jobs.prepare", "--dataset", str(spec_for(log)), "--out", str(out)]
    command += ["--engine", options.engine]
    return command + (["--workers", str(options.workers)] if options.workers else [])


def compare(out: Path, theirs: Path) -> str:
    """Customer by customer: tokens, lines, quantities equal, amounts to 1e-12; a digest of the ids and counts."""
    fields = ("lines", "quantity", "amount")
    sums = [pl.len().alias("customers")]
    sums += [pl.col(name).sum() for name in ("tokens", *fields)]
    ours = pl.scan_parquet(out / "shards" / "*.parquet").select(
        pl.col("customer_id").alias("customer"),
        pl.col("lines").list.len().cast(pl.Int64).alias("tokens"),
        *(pl.col(name).list.eval(pl.element().cast(pl.Float64)).list.sum().alias(name) for name in fields),
    )
    baseline = pl.scan_parquet(theirs).select(
        "customer",
        pl.col("lines").list.len().cast(pl.Int64).alias("tokens"),
        *(pl.col(name).list.eval(pl.element().cast(pl.Float64)).list.sum().alias(name) for name in fields),
    )
    left, right = ours.sort("customer").collect(), baseline.sort("customer").collect()
    assert left.select("customer", "tokens", "lines", "quantity").equals(
        right.select("customer", "tokens", "lines", "quantity")
    ), "prepare and polars disagree"
    np.testing.assert_allclose(left["amount"].to_numpy(), right["amount"].to_numpy(), rtol=1e-12, atol=1e-9)
    return hashlib.sha256(left.select("customer", "tokens", "lines").write_csv().encode()).hexdigest()


def measure(rows: int, folder: Path, options: Options, start: Tree, empty: Tree) -> dict[str, Any]:
    log, out, theirs = folder / "log", folder / "out", folder / "polars.parquet"
    write_log(log, rows, options.shape)
    ours = Tree(prepare_command(log, out, options))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["num_lines"] == rows, "prepare lost rows"
    net = ours.cpu - start.cpu
    figures: dict[str, Any] = {
        "rows": rows,
        "customers": manifest["num_customers"],
        "tokens": manifest["num_tokens"],
        "partitions": manifest["num_partitions"],
        "start_up_cpu_s": round(start.cpu, 1),
        "prepare_net_cpu_s": round(net, 1),
        "prepare_wall_s": round(ours.wall, 1),
        "prepare_peak_gb": round(ours.peak, 2),
        "log_gb": round(_size(log), 3),
        "rows_gb": round(_size(out / "rows"), 3),
        "shards_gb": round(_size(out / "shards"), 3),
        "manifest_sha256": hashlib.sha256(json.dumps(manifest["shards"]).encode()).hexdigest(),
        "operators": json.loads((out / "run.json").read_text())["operators"],
    }
    if rows <= options.polars_rows:
        polars = Tree([sys.executable, "-c", POLARS, str(log), str(theirs)])
        figures |= {
            "polars_net_cpu_s": round(polars.cpu - empty.cpu, 1),
            "polars_wall_s": round(polars.wall, 1),
            "polars_peak_gb": round(polars.peak, 2),
            "polars_over_prepare": round((polars.cpu - empty.cpu) / net, 2),
            "equal_sums_sha256": compare(out, theirs),
        }
    shutil.rmtree(log)
    shutil.rmtree(out)
    return figures


def _size(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def table(runs: list[dict[str, Any]]) -> str:
    names = ["rows", "customers", "partitions", "prepare_net_cpu_s", "polars_net_cpu_s", "polars_over_prepare",
             "prepare_wall_s", "polars_wall_s", "prepare_peak_gb", "polars_peak_gb",
             "log_gb", "rows_gb", "shards_gb"]  # fmt: skip
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(f"{run[n]:,}" if n in run else "" for n in names) + " |" for run in runs]
    return "\n".join(lines) + "\n"


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """CPU seconds over rows, both axes logarithmic, as SVG."""
    width, height, edge = 460, 320, 50
    lines: dict[str, list[tuple[float, float]]] = {}
    for name in ("prepare", "polars"):
        measured = [(run["rows"], run[f"{name}_net_cpu_s"]) for run in runs if f"{name}_net_cpu_s" in run]
        lines[name] = [(math.log10(x), math.log10(y)) for x, y in measured]
    xs, ys = zip(*(point for line in lines.values() for point in line), strict=True)
    low, high, bottom, top = math.floor(min(xs)), math.ceil(max(xs)), math.floor(min(ys)), math.ceil(max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across = edge + (x - low) / max(high - low, 1) * (width - 2 * edge)
        return round(across, 1), round(height - edge - (y - bottom) / max(top - bottom, 1) * (height - 2 * edge), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="11">'
    ]
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for x in range(low, high + 1):
        px, py = at(x, bottom)
        parts.append(f'<line x1="{px}" y1="{py}" x2="{px}" y2="{edge}" stroke="#ddd"/>')
        parts.append(f'<text x="{px}" y="{py + 16}" text-BTYD model="middle">10^{x}</text>')
    for y in range(bottom, top + 1):
        px, py = at(low, y)
        parts.append(f'<line x1="{px}" y1="{py}" x2="{width - edge}" y2="{py}" stroke="#ddd"/>')
        parts.append(f'<text x="{px - 6}" y="{py + 4}" text-BTYD model="end">10^{y}</text>')
    for (name, line), colour in zip(lines.items(), ("#c0392b", "#2c3e50"), strict=True):
        points = [at(x, y) for x, y in line]
        parts.append(f'<polyline fill="none" stroke="{colour}" points="{" ".join(f"{x},{y}" for x, y in points)}"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(
            f'<text x="{points[-1][0] - 8}" y="{points[-1][1] - 8}" text-BTYD model="end" fill="{colour}">{name}</text>'
        )
    parts.append(f'<text x="{width / 2}" y="{height - 8}" text-BTYD model="middle">events</text>')
    parts.append(f'<text x="12" y="{edge - 16}">CPU seconds beyond start-up</text></svg>')
    path.write_text("\n".join(parts) + "\n")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    reserve(options.out)
    folder = Path(tempfile.mkdtemp(prefix="bench-prepare-", dir=options.folder))
    runs = []
    try:
        write_log(folder / "small", 4_000, options.shape)
        start = Tree(prepare_command(folder / "small", folder / "out-small", options))
        empty = Tree([sys.executable, "-c", "import polars"])
        for rows in options.rows:
            runs.append(measure(rows, folder, options, start, empty))
            print(json.dumps(runs[-1], indent=1), flush=True)
    finally:
        shutil.rmtree(folder)
    if options.out is not None:
        options.out.write_text(
            json.dumps({"shape": options.shape, "engine": options.engine, "runs": runs}, indent=1) + "\n"
        )
        options.out.with_suffix(".md").write_text(table(runs))
        plot(runs, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
