"""The scripts of examples/ run, and print what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PRINTS = {
    "fit_and_predict.py": r"total of \d+ customers: \d+ EUR \(\d+ to \d+\)\nrank correlation with the truth: 0\.[5-9]",
    "prepare_and_describe.py": r"accepted, 0 rejected[\s\S]*\n200 customers in 1 shards",
    "serve_requests.py": r"C0000001: [\d.]+ EUR in 90 days[\s\S]*C0000001 after one more order: [\d.]+ EUR",
}


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PRINTS)


@pytest.mark.parametrize("name", sorted(PRINTS))
def test_an_example_runs_and_prints_what_it_promises(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTS[name], done.stdout), done.stdout
