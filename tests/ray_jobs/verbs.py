"""Helpers of the tests that run a job of the data stage."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs import prepare

REPO = Path(__file__).parents[2]
DATASETS = REPO / "ray_jobs" / "datasets"


def job(verb: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"ray_jobs.{verb}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPO, timeout=120)


def needs_package(name: str) -> None:
    # Only files of the package are read: it need not be importable.
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"the data come with the package {name}, which is not installed")


def two_day_log(folder: Path) -> prepare.Options:
    """Prepares the first day of a log in `folder`, writes its second day, and returns the options."""
    (folder / "shop.yaml").write_text(
        f"name: shop\ntimezone: UTC\ncurrency: EUR\nevents:\n  path: {folder}/day-*.csv\n"
        "  columns: {customer_id: c, event_time: t, amount: x}\n"
    )
    (folder / "day-1.csv").write_text("c,t,x\na,2024-01-01,5\nb,2024-01-01,6\n")
    options = prepare.Options(dataset=folder / "shop.yaml", out=folder / "out")
    prepare.run(options)
    (folder / "day-2.csv").write_text("c,t,x\nb,2023-12-31,1\nc,2024-01-02,7\n")
    return options
