"""run.json, the record of a run: arguments, seed, versions of the packages, git commit, begin and duration."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clv.data.workdir import write_json
from clv.train.settings import flatten
from ray_jobs.options import JobOptions

PACKAGES = ("clv", "ray", "torch", "transformers", "deepspeed", "pyarrow", "numpy", "pandas")


def write(out: Path, options: JobOptions, begun: datetime, *, seed: int | None = None, **more: Any) -> Path:
    """Writes `out`/run.json for a job with these options that began at `begun` (UTC); returns its path."""
    now = datetime.now(UTC)
    record = {
        "command": [sys.executable, *sys.argv],
        "arguments": flatten(options),
        "seed": seed,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "git_commit": git_commit(),
        "begun": begun.isoformat(timespec="seconds"),
        "ended": now.isoformat(timespec="seconds"),
        "seconds": round((now - begun).total_seconds(), 3),
        **more,
    }
    path = out / "run.json"
    write_json(path, record, default=str)
    return path


def git_commit() -> str | None:
    """Commit of the code that runs, "+changes" when the tree differs from it; None outside a repository."""
    here = Path(__file__).resolve().parent.parent
    try:
        head = _git(here, "rev-parse", "HEAD")
        return head + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
