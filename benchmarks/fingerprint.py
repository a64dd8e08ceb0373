"""What a refactoring must leave as it is: hashes of shards, the loss curve, and scores, on the dataset of the demo.

    python -m benchmarks.fingerprint --out out/before.json                          in the checkout of before
    python -m benchmarks.fingerprint --out out/after.json --against out/before.json in that of after, same machine
    python -m benchmarks.fingerprint --out out/now.json --record   against the state before the code moved into rooms

It prepares The Complete Journey without Ray, trains the `tiny` preset for two short epochs in this process (seed 0),
and scores everybody. Floating-point sums differ between processors, so both sides must run on one machine. Exits with
1 when anything differs.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
import tyro

from benchmarks.output import reserve
from benchmarks.results import record
from clv.bundle import Bundle
from clv.cluster.training import dataset_facts, read_dataset
from clv.data.dataset import PreparedDataset
from clv.forecast.predictor import Predictor
from clv.train import export, fitting, loop, trainer
from clv.train.config import TrainConfig

REPO = Path(__file__).resolve().parent.parent
BEFORE_THE_MOVE = REPO / "benchmarks/fingerprint/before_the_move.json"
ORIGIN = "2017-10-04"
COLUMNS = ("p_purchase", "orders_mean", "value_mean", "value_median", "value_p10", "value_p90", "clv_mean")


@dataclass(frozen=True)
class Options:
    """Where the fingerprint is written, and which one it must equal."""

    out: Path
    against: Path | None = None
    record: bool = False
    """compare with the state before the move and write the result into benchmarks/results.json"""


def fingerprint(folder: Path) -> dict[str, Any]:
    """Hashes and losses; `folder` takes the prepared histories."""
    histories = folder / "histories"
    spec = REPO / "ray_jobs/datasets/complete_journey.yaml"
    command = [sys.executable, "-m", "ray_jobs.prepare", "--dataset", spec, "--out", histories, "--engine", "here"]
    subprocess.run([str(part) for part in command], check=True, cwd=REPO, stdout=subprocess.DEVNULL)
    prepared = PreparedDataset.open(histories)
    config = replace(TrainConfig().with_engine(kind="torch"), epochs=2, samples_per_epoch=4000)
    dataset = read_dataset(histories, config=config)
    cutoff = prepared.origin(ORIGIN)
    phases = fitting.plan(dataset, cutoff, config)
    fitted = loop.finish(trainer.train(dataset, phases, config))
    bundle: Bundle = export.to_bundle(dataset, phases, config, fitted, dataset_facts(prepared), list(phases.notices))
    scores = Predictor(replace(bundle, version="fingerprint")).predict(prepared.histories(), cutoff)
    found: dict[str, Any] = {part["file"]: part["sha256"] for part in prepared.manifest["shards"]}
    found["losses"] = [row["loss"] for row in fitted.history]
    for days in prepared.spec.horizons_days:
        rows = scores.filter(pc.equal(scores["horizon_days"], days))
        for column in COLUMNS:
            values = rows[column].to_numpy()
            found[f"{column} at {days} days"] = [hashlib.sha256(values.tobytes()).hexdigest(), float(values.mean())]
    return found


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    reserve(options.out)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = fingerprint(Path(folder))
    options.out.write_text(json.dumps(found, indent=1))
    against = BEFORE_THE_MOVE if options.record else options.against
    if against is None:
        return
    before = json.loads(against.read_text())
    different = sorted(key for key in {*found, *before} if found.get(key) != before.get(key))
    equal = f"{len(found) - len(different)} of {len(found)} equal"
    print(equal + "".join(f"\n  differs: {key}" for key in different))
    if options.record:
        command = "python -m benchmarks.fingerprint --out out/now.json --record"
        note = f"{equal} to the state before the move: shards, losses, scores at learned horizons; seed 0, {ORIGIN}"
        record("house.bit_identical", not different, command=command, note=note)
    sys.exit(1 if different else 0)


if __name__ == "__main__":
    main()
