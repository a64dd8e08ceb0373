"""Workers, nodes and the driver killed during scoring: it ends right or goes on, with equal output and no half file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from clv.data.hashing import file_sha256
from tests.prepared_shop import prepared_shop

pytestmark = [pytest.mark.faults, pytest.mark.ray]

DRIVER = Path(__file__).with_name("score_driver.py")
ORIGIN = "2024-03-01"
SHARDS = 16
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough customers that no shard is scored in the time that a kill takes."""
    shop = (6_000, "2023-01-01", "2024-07-01")
    return prepared_shop(tmp_path_factory.mktemp("many"), SHARDS, *shop, seed=5, timezone="Europe/Berlin")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `python ARGUMENTS`; what is left of it at the end, Ray's processes too, is killed."""
    mark = uuid.uuid4().hex
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: object) -> subprocess.Popen[str]:
        command = [sys.executable, *map(str, arguments)]
        environment = {**os.environ, "CLV_TEST_MARK": mark}
        started.append(subprocess.Popen(command, text=True, stdout=subprocess.PIPE, env=environment))
        return started[-1]

    yield run
    for process in psutil.process_iter():
        try:
            if process.environ().get("CLV_TEST_MARK") == mark:
                process.kill()
        except psutil.Error:
            continue
    for job in started:
        job.communicate(timeout=30)


def scoring_job(histories: Path, bundle: Path, out: Path) -> list[str]:
    arguments = {"--histories": histories, "--bundle": bundle, "--out": out, "--origin": ORIGIN, "--workers": 2}
    return ["-m", "ray_jobs.score", *(str(part) for pair in arguments.items() for part in pair)]


@pytest.fixture(scope="module")
def undisturbed(many_shards: Path, small_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "scores"
    command = [sys.executable, *scoring_job(many_shards, small_bundle, out)]
    subprocess.run(command, check=True, timeout=400, stdout=subprocess.PIPE)
    return files_of(out)


def files_of(out: Path) -> dict[str, str]:
    """sha256 of every file but the records; hidden and half files would stand out."""
    records = {"manifest.json", "run.json"}
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in records]
    found = {str(path.relative_to(out)): file_sha256(path) for path in files}
    parts = json.loads((out / "manifest.json").read_text())["parts"]
    assert parts == {name: sha for name, sha in found.items() if name.startswith("part-")}
    return found


@pytest.mark.parametrize("what", ["worker", "node"])
def test_a_killed_scorer_or_node_costs_nothing_but_time(
    many_shards: Path, small_bundle: Path, undisturbed: dict[str, str], tmp_path: Path, start: Start, what: str
) -> None:
    out = tmp_path / "scores"
    job = start(DRIVER, many_shards, small_bundle, ORIGIN, out, what)
    said = job.communicate(timeout=400)[0]
    assert job.returncode == 0, said
    assert f"killed a {what}" in said
    assert files_of(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]


def test_a_killed_driver_leaves_nothing_to_see_and_the_next_run_goes_on(
    many_shards: Path, small_bundle: Path, undisturbed: dict[str, str], tmp_path: Path, start: Start
) -> None:
    out = tmp_path / "scores"
    first = start(*scoring_job(many_shards, small_bundle, out))
    assert first.stdout is not None
    for line in first.stdout:
        if line.startswith("3/"):
            os.kill(first.pid, signal.SIGKILL)
            break
    assert first.wait(60) == -signal.SIGKILL
    assert not out.exists()
    second = start(*scoring_job(many_shards, small_bundle, out))
    said = second.communicate(timeout=400)[0]
    assert second.returncode == 0, said
    found = re.search(r"continuing an interrupted run: (\d+) of its tasks are done", said)
    assert found is not None, said
    done = int(found[1])
    assert 3 <= done < SHARDS
    assert len(re.findall(rf"^\d+/{SHARDS} shards", said, re.M)) == SHARDS - done
    assert files_of(out) == undisturbed
    assert [path.name for path in tmp_path.iterdir()] == ["scores"]
