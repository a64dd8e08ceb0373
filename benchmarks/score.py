"""Batch scoring: customers per CPU second and core, and the memory of the job as the number of customers grows.

    python -m benchmarks.score --BTYD model 1000000 10000000 --tiny 100000 1000000 --out benchmarks/score/score.json

The log is a simulated shop of `Dataset.full` over one year, prepared once and then copied under new customer ids. Each
run is `python -m ray_jobs.score` by two actors; CPU seconds are those of the whole process tree beyond those of a run
over a hundred customers, memory is proportional (each page, shared ones included, counts once). One more line is the
actor alone, one thread in one process, on customers who all have 32 tokens and more.
Targets: 20,000 customers per CPU second by the BTYD model, 500 by `tiny` at 32 tokens; memory that does not grow.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from benchmarks.output import reserve
from benchmarks.prepare import Tree

CUT = "2024-10-03"
TOKENS = 32
BASE = 20_000  # customers of the simulated log: one shard, which is then copied
SMALL = 1_000  # customers that the bundle learns from
FEW = 100  # customers of the run that shows what starting costs: half of them for each of two actors
Model = Literal["btyd", "clv"]


@dataclass(frozen=True, kw_only=True)
class Options:
    btyd: tuple[int, ...] = (100_000,)
    """Customers that the BTYD model alone scores."""
    tiny: tuple[int, ...] = (40_000,)
    """Customers that the network scores; at least two shards, or one of the two actors whose start is subtracted has
    nothing to do."""
    long: int = 2_000
    """Customers with 32 tokens and more that one actor scores in one thread; 0 leaves that out."""
    folder: Path | None = None
    """Where logs, histories and scores go for the time of the run."""
    out: Path | None = None
    """Write the figures here as JSON, and a table beside it."""


def prepare(folder: Path, **settings: Any) -> Path:
    """Histories of a simulated shop from 2024 on, in one shard."""
    from clv.cluster import preparing, work_units
    from clv.data.spec.models import DatasetSpec
    from clv.simulate import files, log
    from clv.simulate.settings import ShopSettings

    shop = ShopSettings.full(start="2024-01-01", **settings)
    plan = files.SimulationPlan(shop, (), (30, 90))
    blocks = [files.write_block(plan, folder / "log", number) for number in range(log.num_blocks(shop))]
    files.write_shop(plan, folder / "log", blocks, folder / "log")
    spec, out = DatasetSpec.load(folder / "log" / "spec.yaml"), folder / "histories"
    preparing.prepare(spec, "spec.yaml", out, run=work_units.run_here, partitions=1)
    return out


def train(histories: Path, folder: Path) -> Path:
    """A bundle of `tiny` over 32 tokens that has hardly learned anything: the cost of scoring does not depend on it."""
    from clv import bundle
    from clv.cluster import training
    from clv.data.dataset import PreparedDataset
    from clv.train import export, fitting, loop, trainer
    from clv.train.config import TrainConfig

    config = TrainConfig().with_engine(kind="torch")
    model = replace(config.model, backbone=replace(config.model.backbone, max_tokens=TOKENS))
    config = replace(config, model=model, epochs=1, samples_per_epoch=64, batch_size=64, num_origins=3)
    read, prepared = training.read_dataset(histories), PreparedDataset.open(histories)
    phases = fitting.plan(read, prepared.origin(CUT), config)
    fitted = loop.finish(trainer.train(read, phases, config))
    bundle.save(export.to_bundle(read, phases, config, fitted, training.dataset_facts(prepared), []), folder)
    return folder


def multiply(histories: Path, out: Path, customers: int, size: int = BASE) -> Path:
    """The first `size` histories again and again under new ids, a shard each, until there are so many customers."""
    (out / "shards").mkdir(parents=True)
    shutil.copy(histories / "spec.yaml", out / "spec.yaml")
    manifest = json.loads((histories / "manifest.json").read_text())
    (shard,) = manifest["shards"]
    sizes = [min(size, customers - first) for first in range(0, customers, size)]
    with ProcessPoolExecutor(2) as pool:
        names = list(pool.map(partial(_copy, histories / shard["file"], out), range(len(sizes)), sizes))
    manifest["shards"] = [
        shard | {"file": name, "customers": count, "sha256": f"{number:064x}"}
        for number, (name, count) in enumerate(zip(names, sizes, strict=True))
    ]
    (out / "all.json").write_text(json.dumps(manifest))
    return first(out, customers)


def first(histories: Path, customers: int) -> Path:
    """As many of the shards as hold so many customers: the others are not named in the manifest."""
    manifest = json.loads((histories / "all.json").read_text())
    ends = np.cumsum([shard["customers"] for shard in manifest["shards"]])
    manifest["shards"] = manifest["shards"][: int(np.searchsorted(ends, customers)) + 1]
    manifest["num_customers"] = sum(shard["customers"] for shard in manifest["shards"])
    (histories / "manifest.json").write_text(json.dumps(manifest))
    return histories


def _copy(shard: Path, out: Path, number: int, size: int) -> str:
    table = pq.read_table(shard).slice(0, size)
    ids = pc.binary_join_element_wise(table["customer_id"].cast(pa.string()), str(number), "-")
    table = table.set_column(table.column_names.index("customer_id"), table.schema.field("customer_id"), ids)
    name = f"shards/shard-{number:05d}.parquet"
    pq.write_table(table, out / name, compression="zstd")
    return name


def job(histories: Path, bundle: Path, out: Path, model: Model) -> Tree:
    command = [sys.executable, "-m", "ray_jobs.score", "--histories", histories, "--bundle", bundle, "--out", out]
    return Tree([*map(str, command), "--origin", CUT, "--model", model, "--no-csv"])


def measure(model: Model, histories: Path, bundle: Path, folder: Path, start: Tree) -> dict[str, Any]:
    done = job(histories, bundle, folder / "scores", model)
    written = json.loads((folder / "scores" / "manifest.json").read_text())
    known = json.loads((histories / "manifest.json").read_text())
    shutil.rmtree(folder / "scores")
    return {
        "model": "tiny" if model == "clv" else model,
        "customers": known["num_customers"],
        "scored": written["customers"],
        "horizons": len(written["horizons_days"]),
        "shards": len(known["shards"]),
        "cpu_s": round(done.cpu - start.cpu, 1),
        "wall_s": round(done.wall, 1),
        "customers_per_cpu_s": round(written["customers"] / (done.cpu - start.cpu)),
        "peak_gb": round(done.peak, 2),
    }


def alone(folder: Path, histories: Path, bundle: Path) -> None:
    """Prints what one actor does in this process with one thread."""
    from clv.cluster.scoring import ShardScorer
    from clv.data.dataset import PreparedDataset
    from clv.data.histories import Histories

    prepared = PreparedDataset.open(histories)
    origin = prepared.origin(CUT)
    read = Histories.from_table(pq.read_table(prepared.shards[0]))
    before = np.add.reduceat((read.time < origin).astype(np.int64), read.offsets[:-1])
    for model in ("btyd", "clv"):
        scorer = ShardScorer(str(bundle), origin, None, model, str(folder / "alone"))
        scorer.score(0, str(prepared.shards[0]))
        begun = time.process_time()
        rows = scorer.score(1, str(prepared.shards[0]))
        found = {
            "model": f"{'tiny' if model == 'clv' else model}, {TOKENS} tokens, one actor",
            "customers": len(read),
            "with_32_tokens": round(float((before >= TOKENS).mean()), 3),
            "customers_per_cpu_s": round(rows / len(scorer.predictor.horizons) / (time.process_time() - begun)),
        }
        print(json.dumps(found), flush=True)


def table(runs: list[dict[str, Any]]) -> str:
    names = ["model", "customers", "scored", "shards", "cpu_s", "customers_per_cpu_s", "wall_s", "peak_gb"]
    lines = ["| " + " | ".join(name.replace("_", " ") for name in names) + " |", "|" + "---|" * len(names)]
    for run in runs:
        cells = (run.get(name, "") for name in names)
        lines.append("| " + " | ".join(cell if isinstance(cell, str) else f"{cell:,}" for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    if len(sys.argv) == 5 and sys.argv[1] == "alone":
        alone(*map(Path, sys.argv[2:]))
        return
    options = tyro.cli(Options, description=__doc__)
    reserve(options.out)
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="bench-score-", dir=options.folder))
    runs: list[dict[str, Any]] = []

    def note(run: dict[str, Any]) -> None:
        runs.append(run)
        print(json.dumps(run), flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
            options.out.with_suffix(".md").write_text(table(runs))

    try:
        base = prepare(folder / "base", num_customers=BASE)
        bundle = train(prepare(folder / "small", num_customers=SMALL), folder / "bundle")
        if options.long:
            everybody = {"rate": (3.0, 30.0), "dropout": None, "visitors": 0.0, "acquired_over": 0.1, "sessions": 4.0}
            histories = prepare(folder / "long", num_customers=options.long, **everybody)
            command = [sys.executable, "-m", "benchmarks.score", "alone", folder, histories, bundle]
            said = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout
            for line in said.splitlines():
                note(json.loads(line))
        few = multiply(base, folder / "few", FEW, FEW // 2)
        models: dict[Model, tuple[int, ...]] = {"btyd": options.btyd, "clv": options.tiny}
        many = multiply(base, folder / "many", max(options.btyd + options.tiny))
        for model, sizes in models.items():
            # The first run also reads the packages from disk; what starting costs is seen in the second.
            _, start = (job(few, bundle, folder / f"scores-{model}-{turn}", model) for turn in range(2))
            for customers in sizes:
                note(measure(model, first(many, customers), bundle, folder, start))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
