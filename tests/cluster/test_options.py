"""Options of training and tuning: numbers out of range are refused by name, and a given storage stays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from clv.cluster.options import Cluster, TuningOptions


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"workers": 0}, "workers must be at least 1, not 0"),
        ({"cpus_per_worker": 0}, "cpus_per_worker must be at least 1, not 0"),
        ({"keep_checkpoints": -1}, "keep_checkpoints must be at least 1, not -1"),
        ({"checkpoint_steps": -1}, "checkpoint_steps must not be negative, not -1"),
        ({"checkpoint_minutes": -0.5}, "checkpoint_minutes must not be negative, not -0.5"),
        ({"workers": 3, "min_workers": 0}, "min_workers 0 must lie between 1 and workers 3"),
        ({"workers": 3, "min_workers": 4}, "min_workers 4 must lie between 1 and workers 3"),
    ],
)
def test_a_cluster_option_out_of_range_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Cluster(**wrong)


@pytest.mark.parametrize("name", ["trials", "concurrent", "grace"])
def test_a_search_needs_at_least_one_of_each(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, not 0$"):
        TuningOptions(**{name: 0})
    assert getattr(TuningOptions(**{name: 1}), name) == 1


def test_the_limits_themselves_are_allowed() -> None:
    for fewest in (1, 3, None):
        cluster = Cluster(workers=3, min_workers=fewest, checkpoint_steps=0, checkpoint_minutes=0, keep_checkpoints=1)
        assert cluster.min_workers == fewest


def test_checkpoints_lie_in_the_given_folder_unless_a_storage_is_given() -> None:
    cluster = Cluster(workers=3, max_failures=5)
    assert cluster.with_storage(Path("/out")) == Cluster(workers=3, max_failures=5, storage="/out")
    given = Cluster(storage="s3://bucket/checkpoints")
    assert given.with_storage(Path("/out")) == given
