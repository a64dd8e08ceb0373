"""The scoreboard: `python -m benchmarks.scoreboard [--seeds 3] [--rows online_retail_ii,cdnow]`.

Every model and baseline at every origin of the protocol, as Ray tasks of one CPU; each result is cached under --cache
by a hash of the library's source, the pins, the dataset and its origin and seed, so an interrupted run continues
where it stopped. Writes scoreboard.json and README.md's table (scoreboard.md) beside this file.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.scoreboard.table import markdown, row_of
from clv.cluster import preparing, session, work_units
from clv.cluster.training import read_dataset
from clv.data.dataset import PreparedDataset
from clv.data.spec.models import DatasetSpec
from clv.train.config import TrainConfig

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DATASETS = ROOT / "ray_jobs/datasets"
PROTOCOL = (
    ("online_retail_ii", 90, ("2010-12-14", "2011-03-14", "2011-06-12")),
    ("cdnow", 90, ("1998-01-02", "1998-04-02")),
    ("cdnow", 181, ("1997-12-31",)),
    ("complete_journey", 90, ("2017-07-06", "2017-10-04")),
)


@dataclass(frozen=True, kw_only=True)
class Options:
    seeds: int = 3
    rows: str = "online_retail_ii,cdnow,complete_journey"
    """Datasets to run, separated by commas."""
    cache: Path = ROOT / "out/scoreboard"
    workers: int | None = None


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    import ray

    os.environ.setdefault("CLV_DATA", str(ROOT.parent / "shared/data"))
    begun = time.monotonic()
    options.cache.mkdir(parents=True, exist_ok=True)
    wanted = options.rows.split(",")
    config = TrainConfig()
    with session.ray_session(num_cpus=options.workers, object_store_mb=1024):
        baselines, ours = ray.remote(cached("baselines")), ray.remote(cached("ours"))
        jobs: list[tuple[str, int, str, Any, list[Any]]] = []
        for name, horizon, origins in PROTOCOL:
            if name not in wanted:
                continue
            folder = histories(name, options.cache)
            shop = ray.put(read_dataset(folder))
            clock = PreparedDataset.open(folder).clock
            for origin in origins:
                key = f"{source_hash()}-{PreparedDataset.open(folder).manifest['spec_sha256'][:8]}-{origin}-{horizon}"
                at = clock.parse(origin)
                path = options.cache / f"{name}-{key}"
                fits = [ours.remote(f"{path}-ours-{s}.pkl", shop, at, horizon, config, s) for s in range(options.seeds)]
                jobs.append(
                    (name, horizon, origin, baselines.remote(f"{path}-peers.pkl", shop, at, horizon, config, 0), fits)
                )
        rows = []
        for name, horizon, origin, baseline, fits in jobs:
            known, found = ray.get(baseline)
            rows.append(row_of(name, horizon, origin, known, found, ray.get(fits)))
            print(f"{name} {origin} {horizon} d: {time.monotonic() - begun:.0f} s", flush=True)
    (HERE / "scoreboard.json").write_text(json.dumps(rows, indent=1) + "\n")
    text = markdown(rows)
    (HERE / "scoreboard.md").write_text(text)
    print(text)
    weak = [f"{r['dataset']} {r['origin']}: {name}" for r in rows for name in r["weak_baselines"]]
    if weak:
        raise SystemExit("baselines more than 2 % nGini below their published rows: " + "; ".join(weak))


def histories(name: str, cache: Path) -> Path:
    """The dataset, prepared once per state of the library."""
    folder = cache / f"{name}-{source_hash()}"
    if not folder.exists():
        path = DATASETS / f"{name}.yaml"
        preparing.prepare(DatasetSpec.load(path), str(path), folder, run=work_units.run_here)
    return folder.absolute()


def source_hash() -> str:
    """Of everything that could change a number: the library without its server, the dataset files, the pins."""
    digest = hashlib.sha256((ROOT / "constraints.txt").read_bytes())
    for path in sorted([*(ROOT / "clv").rglob("*.py"), *DATASETS.glob("*.yaml")]):
        if "serve" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cached(kind: str) -> Any:
    def task(path: str, shop: Any, origin: int, horizon: int, config: TrainConfig, seed: int) -> Any:
        import torch

        from benchmarks.scoreboard.fits import fit

        torch.set_num_threads(1)
        if Path(path).exists():
            return pickle.loads(Path(path).read_bytes())
        found = fit(kind, shop, origin, horizon, config, seed)
        aside = Path(path).with_suffix(".writing")
        aside.write_bytes(pickle.dumps(found))
        aside.rename(path)
        return found

    return task


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
