"""Rollback from the command line; test_promote.py rolls a promotion back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_nothing_to_roll_back_to_ends_with_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ray_jobs.rollback", "--registry", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no earlier version" in done.stderr
    assert "Traceback" not in done.stderr
