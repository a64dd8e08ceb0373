"""run.json: what a run was given, and with what it ran."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ray_jobs import record, train
from tests.ray_jobs.flags import options_of


def test_a_record_names_arguments_versions_commit_and_duration(tmp_path: Path) -> None:
    options = options_of(train.Options, histories="h", out="o", workers=3, learning_rate=0.5)
    begun = datetime.now(UTC) - timedelta(seconds=5)
    path = record.write(tmp_path, options, begun, seed=7, bundle="v1")
    found = json.loads(path.read_text())
    assert (found["seed"], found["bundle"]) == (7, "v1")
    given = found["arguments"]
    assert (given["workers"], given["learning_rate"], given["histories"]) == (3, 0.5, "h")
    assert 5 <= found["seconds"] < 65
    assert set(found["versions"]) == {"python", *record.PACKAGES}
    assert found["git_commit"] is None or len(found["git_commit"].removesuffix("+changes")) == 40
