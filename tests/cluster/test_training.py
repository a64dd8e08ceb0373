"""Training on Ray Train: how the histories are read, and runs whose workers or numbers die."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import fs

from clv.cluster import training
from clv.data.dataset import PreparedDataset
from clv.data.spec.models import DatasetSpec
from clv.train.config import TrainConfig
from clv.train.examples.on_storage import Sharded, load_here
from tests.data.servers import S3, s3_server
from tests.prepared_shop import SPEC, prepared_shop


@dataclass
class Killer:
    """Takes the lines of a run; after the line that `after` matches it kills a worker by its logged pid, once."""

    after: str
    rank: int
    lines: list[str] = field(default_factory=list)
    killed: int | None = None

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        if self.killed is None and re.match(self.after, line):
            self.killed = self.pids()[self.rank]
            os.kill(self.killed, signal.SIGKILL)

    def pids(self) -> dict[int, int]:
        found = (re.match(r"worker rank (\d+) of .* pid (\d+)$", line) for line in self.lines)
        return {int(match[1]): int(match[2]) for match in found if match}


def curve(fitted: Any) -> list[tuple[str, int, float]]:
    return [(row["phase"], row["epoch"], row["loss"]) for row in fitted.history]


@pytest.mark.ray
@pytest.mark.faults
@pytest.mark.parametrize(
    ("after", "steps", "resumed_at"),
    [("holdout, epoch 2:", 0, None), ("holdout, epoch 1: saved at step 10", 5, 10)],
    ids=["after an epoch", "within an epoch"],
)
def test_a_killed_worker_costs_no_more_than_the_steps_since_the_last_save_and_changes_nothing(
    task: Any, undisturbed: Any, tmp_path: Path, ray_cluster: None, after: str, steps: int, resumed_at: int | None
) -> None:
    killer = Killer(after=after, rank=1)
    resumed = task.train(tmp_path, killer, steps=steps)

    assert killer.killed is not None
    starts = [i for i, line in enumerate(killer.lines) if line.startswith("worker rank")]
    assert len(starts) == 4, killer.lines  # two workers, twice
    assert killer.pids()[1] != killer.killed
    again = killer.lines[starts[2] :]
    (place,) = [re.search(r"holdout, step (\d+)$", line) for line in again if line.startswith("resuming from ")]
    assert place is not None, killer.lines
    if resumed_at is None:
        assert not any(line.startswith("holdout, epoch 1:") for line in again), killer.lines
    else:
        # What was saved before is not done again.
        assert int(place[1]) >= resumed_at
        saved = [int(line.rsplit(" ", 1)[1]) for line in again if line.startswith("holdout") and "saved at" in line]
        assert min(saved) > resumed_at, killer.lines
    # One writer of scalars, the first worker, in each of the two tries.
    assert len(list((tmp_path / "scalars").glob("events.out.tfevents.*"))) == 2
    assert_same_end(resumed, undisturbed)


@pytest.mark.ray
@pytest.mark.faults
def test_checkpoints_lie_in_a_bucket_and_a_killed_worker_goes_on_from_there(
    task: Any, undisturbed: Any, tmp_path: Path, ray_cluster: None
) -> None:
    with s3_server() as endpoint:
        access = {"access_key": S3["AWS_ACCESS_KEY_ID"], "secret_key": S3["AWS_SECRET_ACCESS_KEY"]}
        host = endpoint.removeprefix("http://")
        bucket = fs.S3FileSystem(
            **access, endpoint_override=host, scheme="http", region=S3["AWS_REGION"], allow_bucket_creation=True
        )
        bucket.create_dir("runs")
        url = (
            f"s3://{':'.join(access.values())}@runs/clv?scheme=http&endpoint_override={host}&region={S3['AWS_REGION']}"
        )
        killer = Killer(after="holdout, epoch 2:", rank=1)
        resumed = task.train(url, killer, scalars=tmp_path)
        assert killer.killed is not None
        assert any(re.match(r"resuming from .*runs/clv/.*: holdout, step \d+$", line) for line in killer.lines)
        found = [info.path for info in bucket.get_file_info(fs.FileSelector("runs/clv", recursive=True))]
    # Those that are kept, and the newest.
    assert 1 <= sum(path.endswith("/progress.pt") for path in found) <= 3
    assert_same_end(resumed, undisturbed)


@pytest.fixture(scope="module")
def undisturbed(task: Any, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Any:
    return task.train(tmp_path_factory.mktemp("quiet"), lambda line: None)


def assert_same_end(resumed: Any, undisturbed: Any) -> None:
    assert [row[:2] for row in curve(resumed)] == [row[:2] for row in curve(undisturbed)]
    assert [row[2] for row in curve(resumed)] == pytest.approx([row[2] for row in curve(undisturbed)], rel=1e-5)
    assert resumed.weights.keys() == undisturbed.weights.keys()
    for name, weight in undisturbed.weights.items():
        np.testing.assert_allclose(resumed.weights[name], weight, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.ray
@pytest.mark.faults
def test_a_loss_that_is_no_number_ends_the_run_at_once(task: Any, tmp_path: Path, ray_cluster: None) -> None:
    lines: list[str] = []
    config = replace(task.config.optimizer, learning_rate=1e12, clip_norm=0.0)
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match=r"^training failed: loss is (nan|-?inf) at step \d+: lower optimizer.lea"):
        task.train(tmp_path, lines.append, optimizer=config)
    # Tried once: one group of two workers.
    assert sum(line.startswith("worker rank") for line in lines) == 2
    assert time.monotonic() - begun < 120


@pytest.mark.ray
@pytest.mark.faults
def test_a_worker_that_dies_every_time_ends_the_run_in_one_line(task: Any, tmp_path: Path, ray_cluster: None) -> None:
    class Relentless(Killer):
        def __call__(self, line: str) -> None:
            self.lines.append(line)
            if match := re.match(r"worker rank 0 of .* pid (\d+)$", line):
                os.kill(int(match[1]), signal.SIGKILL)

    killer = Relentless(after="", rank=0)
    with pytest.raises(RuntimeError, match=r"^training failed: worker rank 0: [^\n]*$"):
        task.train(tmp_path, killer)
    assert sum(line.startswith("worker rank 0") for line in killer.lines) == 2  # max_failures 1


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    folder = tmp_path_factory.mktemp("shop")
    return PreparedDataset.open(prepared_shop(folder, 2, 30, "2023-01-01", "2023-07-01", seed=1))


def test_histories_above_the_limit_of_events_are_read_by_shards(prepared: PreparedDataset) -> None:
    num_tokens, num_customers = prepared.manifest["num_tokens"], prepared.manifest["num_customers"]
    for whole in (
        training.read_dataset(prepared.folder),
        training.read_dataset(prepared.folder, config=TrainConfig(memory_events=num_tokens)),
        training.read_dataset(prepared.folder, config=TrainConfig(memory_events=1, loader="memory")),
    ):
        assert (len(whole.histories), whole.shards, whole.horizons) == (num_customers, (), (30, 90))
    sharded = training.read_dataset(prepared.folder, (7,), TrainConfig(memory_events=num_tokens - 1))
    assert len(sharded.histories) == prepared.manifest["shards"][0]["customers"] < num_customers
    assert sharded.shards == tuple(map(str, prepared.shards))
    assert sharded.load is load_here
    assert sharded.horizons == (7,)
    streamed = training.read_dataset(prepared.folder, config=TrainConfig(loader="ray"))
    assert streamed.load is training.stream_examples


def test_the_facts_in_a_bundle_are_those_of_the_spec_and_the_shards(prepared: PreparedDataset) -> None:
    facts = training.dataset_facts(prepared)
    assert (facts["name"], facts["currency"], facts["timezone"]) == ("simulated", "EUR", "UTC")
    assert facts["horizons"] == [30, 90]
    assert facts["spec_sha256"] == prepared.spec.sha256()
    assert facts["shards"] == {f"shards/part-0000{i}.parquet": prepared.manifest["shards"][i]["sha256"] for i in (0, 1)}


def test_the_line_of_the_loader_gives_the_size_of_the_histories_and_of_the_shards_of_a_process() -> None:
    spec = DatasetSpec.parse(SPEC.format(folder="shop", timezone="UTC"), "simulated")
    shards = [{"file": f"{i}", "customers": customers} for i, customers in enumerate((100, 200, 50, 50))]
    manifest = {"num_tokens": 10_000_000, "num_lines": 12_500_000, "num_customers": 400, "shards": shards}
    large = PreparedDataset(Path("shop"), spec, manifest)
    # 74 bytes of a token and 8 of a line are 0.782 GiB, 300 of 400 customers 0.587 GiB, two of four shards 0.391 GiB.
    assert training.describe_loader(large, TrainConfig(memory_events=8_000_000)) == (
        "histories: 10,000,000 events, 0.782 GiB in memory: a process holds 2 of 4 shards, 300 customers, 0.587 GiB, "
        "and a worker up to two shards more, 0.391 GiB; training reads all of them (loader shards)"
    )
    assert training.describe_loader(large, TrainConfig()) == (
        "histories: 10,000,000 events, 0.782 GiB in memory: every worker holds them (loader memory)"
    )


def test_fewer_shards_than_parts_of_the_global_batch_are_refused() -> None:
    config = TrainConfig(batch_size=32)
    config = replace(config, engine=replace(config.engine, accumulation=2))
    source = Sharded(shards=("a", "b", "c", "d", "e"), num_samples=64, seed=0)
    training.check_loader(source, config, workers=2)
    with pytest.raises(ValueError, match=r"5 shards are too few for workers x accumulation = 8: .*--partitions 8 or"):
        training.check_loader(source, config, workers=4)


def test_the_line_of_an_epoch_has_the_held_out_score_where_there_is_one() -> None:
    row = {"phase": "holdout", "epoch": 3, "loss": 0.51239, "seconds": 61.4}
    assert training.describe_epoch(row) == "holdout, epoch 3: loss 0.5124, 61 s"
    assert training.describe_epoch(row | {"held_out_score": 0.01234, "blend_value": 0.755}) == (
        "holdout, epoch 3: loss 0.5124, 61 s, held-out score +0.0123 against the BTYD model, blend weight 0.76"
    )
