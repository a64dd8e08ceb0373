"""Training that loses a node, and one that fills its disk: it goes on from where it was saved, or says why not."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clv.train import loop, trainer

pytestmark = [pytest.mark.ray, pytest.mark.faults]

DRIVER = Path(__file__).with_name("cluster_driver.py")
# Seconds after which Ray notices what happens, so that a test need not wait for its defaults.
PROMPT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
PROMPT |= {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5", "RAY_AUTH_MODE": "disabled"}


def without_dropout(task: Any, **changes: Any) -> Any:
    """What is drawn from a worker's own generator is not the same for another number of workers."""
    model = replace(task.config.model, dropout=0.0, backbone=replace(task.config.model.backbone, dropout=0.0))
    return replace(task.config, model=model, **changes)


@pytest.mark.parametrize("how", ["killed", "warned"])
def test_a_lost_node_costs_steps_but_changes_nothing_and_the_rest_go_on_without_it(
    task: Any, tmp_path: Path, how: str
) -> None:
    # Ray takes some seconds to pass a notice on.
    config = without_dropout(task, **({} if how == "killed" else {"batch_size": 6}))
    (tmp_path / "task").write_bytes(pickle.dumps((str(task.histories), task.phases, config)))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | PROMPT
    arguments = [tmp_path / "task", tmp_path / "storage", tmp_path / "result", how]
    done = subprocess.run(
        [sys.executable, DRIVER, *arguments], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('"')]

    groups = [int(m[1]) for line in lines if (m := re.match(r"worker rank 0 of (\d+):", line))]
    assert groups == [2, 1], lines
    (place,) = [m for line in lines if (m := re.search(r"resuming from .*: holdout, step (\d+)$", line))]
    cause = lines.index("notice: 1 nodes will be taken away; saving") if how == "warned" else 0
    (saved, *_) = [m for line in lines[cause:] if (m := re.search(r"^holdout, .*: saved at step (\d+)$", line))]
    # It goes on from what was saved when the node was lost, or a little later.
    assert int(place[1]) >= int(saved[1]) > 0, lines

    from clv.cluster.training import read_dataset

    plain = config.with_engine(kind="torch")
    undisturbed = loop.finish(trainer.train(read_dataset(task.histories), task.phases, plain))
    found = pickle.loads((tmp_path / "result").read_bytes())
    losses = [
        [(row["phase"], row["epoch"], row["loss"]) for row in rows] for rows in (found["history"], undisturbed.history)
    ]
    assert [row[:2] for row in losses[0]] == [row[:2] for row in losses[1]]
    assert [row[2] for row in losses[0]] == pytest.approx([row[2] for row in losses[1]], rel=1e-5)
    for name, weight in undisturbed.weights.items():
        torch.testing.assert_close(found["weights"][name], weight, rtol=1e-3, atol=1e-4, msg=name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True)
    if not made or made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_ends_the_run_at_once_and_says_where(task: Any, small_disk: Path, ray_cluster: None) -> None:
    lines: list[str] = []
    with pytest.raises(RuntimeError, match=r"no space left for checkpoints, in .*/disk or .*: free some, or --storage"):
        task.train(small_disk, lines.append)
    # Tried once: one group of two workers.
    assert sum(line.startswith("worker rank") for line in lines) == 2
