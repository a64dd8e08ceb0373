"""The same command line under `ray job submit`, on a cluster with token authentication as `ray start` makes it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from ray.cluster_utils import Cluster as Nodes

REPO = Path(__file__).parents[2]
START_S = 120

# Everything here is processes of their own; it runs beside the session's cluster, not on it.
pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Cluster:
    """A running cluster: the address of its job server, and the environment its clients need."""

    address: str
    environment: dict[str, str]

    def submit(self, *entrypoint: object, see: Callable[[str], None] = lambda line: None) -> tuple[int, str]:
        """(exit code, what was printed) of `ray job submit` as the README has it; waits for the job."""
        ray = [RAY, "job", "submit", "--address", self.address]
        # The interpreter by its path: the test's environment need not be the one that PATH finds.
        command = [*ray, "--working-dir", ".", "--", sys.executable, *map(str, entrypoint)]
        with subprocess.Popen(
            command, cwd=REPO, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as job:
            limit = threading.Timer(240, job.kill)
            limit.start()
            assert job.stdout is not None
            lines = []
            for line in job.stdout:
                lines.append(line)
                see(line)
            limit.cancel()
        return job.returncode, "".join(lines)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Short: the sockets under it may have no path of more than 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="clv", dir="/tmp"))
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment.pop("RAY_ADDRESS", None)
    port, board, agent, client = free_ports(4)
    command = [RAY, "start", "--head", "--block", f"--port={port}",
               f"--dashboard-port={board}", f"--dashboard-agent-listen-port={agent}",
               f"--ray-client-server-port={client}", f"--temp-dir={folder}", "--num-cpus=4",
               f"--object-store-memory={256 * 1024**2}", "--disable-usage-stats"]  # fmt: skip
    with (folder / "start.log").open("w") as log:
        head = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{board}"
        wait_for_jobs(address, token.read_text(), head, folder / "start.log")
        yield Cluster(address, environment)
    finally:
        # By its own process group: `ray stop` would take everybody's. Graceful takes half a minute.
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def wait_for_jobs(address: str, token: str, head: subprocess.Popen[bytes], log: Path) -> None:
    """Until the job server answers those who have the token, and only those."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert head.poll() is None, log.read_text()
        try:
            answer = httpx.get(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {token}"}, timeout=5)
            if answer.status_code == 200:
                assert httpx.get(f"{address}/api/jobs/", timeout=5).status_code in (401, 403)
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    pytest.fail(f"no job server at {address} after {START_S} s:\n{log.read_text()}")


def test_a_submitted_prepare_joins_the_cluster_and_writes_what_it_writes_at_home(
    cluster: Cluster, tmp_path: Path
) -> None:
    if find_spec("lifetimes") is None:
        pytest.skip("the data come with the package lifetimes, which is not installed")
    spec = "ray_jobs/datasets/cdnow.yaml"
    code, said = cluster.submit("-m", "ray_jobs.prepare", "--dataset", spec, "--out", tmp_path / "out")
    assert code == 0, said
    assert "events: 69,659 rows read, 69,659 accepted, 0 rejected" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["num_customers"] == 23_570
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["arguments"]["dataset"] == spec
    # The job ran from the copy of the working directory that went with it.
    assert str(REPO) not in record["command"][1]


def test_a_submitted_job_that_fails_ends_the_submission_with_an_error_and_the_line(
    cluster: Cluster, tmp_path: Path
) -> None:
    cdnow = (REPO / "ray_jobs/datasets/cdnow.yaml").read_text()
    (tmp_path / "shop.yaml").write_text(cdnow.replace("horizons_days:", "horizon_days:"))
    code, said = cluster.submit(
        "-m", "ray_jobs.prepare", "--dataset", tmp_path / "shop.yaml", "--out", tmp_path / "out"
    )
    assert code != 0
    assert f"prepare: {tmp_path / 'shop.yaml'}: horizon_days: unknown key (did you mean 'horizons_days'?)" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_without_the_token_nothing_is_submitted(cluster: Cluster, tmp_path: Path) -> None:
    stranger = Cluster(cluster.address, {**cluster.environment, "RAY_AUTH_MODE": "disabled"})
    code, _ = stranger.submit("-c", f"open({str(tmp_path / 'trace')!r}, 'w')")
    assert code != 0
    assert not (tmp_path / "trace").exists()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head without a CPU for workers, and two nodes of one CPU each."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")  # before those that are left go on
    board, *agents = free_ports(4)
    found = Nodes()
    try:
        store = {"object_store_memory": 200 * 1024**2}
        found.add_node(
            num_cpus=0, include_dashboard=True, dashboard_port=board, dashboard_agent_listen_port=agents[0], **store
        )
        for agent in agents[1:]:
            found.add_node(num_cpus=1, dashboard_agent_listen_port=agent, **store)
        found.wait_for_nodes()
        yield found
    finally:
        found.shutdown()


@pytest.mark.faults
def test_a_submitted_training_goes_on_when_a_node_is_killed(nodes: Nodes, histories: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    cluster = Cluster(f"http://{nodes.head_node.webui_url}", environment)
    victims = list(nodes.worker_nodes)[:1]

    def kill(line: str) -> None:
        if re.search(r"holdout, epoch \d+: saved at step", line) and victims:
            nodes.remove_node(victims.pop(), allow_graceful=False)

    code, said = cluster.submit(
        *("-m", "ray_jobs.train", "--histories", histories, "--out", tmp_path / "bundle"),
        *("--workers", "2", "--min-workers", "1", "--checkpoint-steps", "8", "--epochs", "3"),
        *("--samples-per-epoch", "4096", "--architecture", "gru"),
        see=kill,
    )
    assert code == 0, said
    assert re.findall(r"worker rank 0 of (\d+):", said) == ["2", "1"], said
    # By the time the node is gone the run may have come to its second phase, but not to its end.
    steps = re.findall(r"resuming from .*: (?:holdout|final), step (\d+)", said)
    assert [int(step) > 0 for step in steps] == [True], said
    assert (tmp_path / "bundle" / "manifest.json").exists()
